"""`csdn preset` sets the values of a preset in params.yaml, and changes nothing else."""

import shutil
from pathlib import Path

import pytest

from csdn.cli import presets
from csdn.params import load_params, set_value
from csdn.runtime.documents import parse_yaml
from csdn.runtime.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def params_path(tmp_path):
    return Path(shutil.copy(ROOT / "params.yaml", tmp_path))


def keys(mapping, prefix=""):
    for name, value in mapping.items():
        yield from keys(value, f"{prefix}{name}.") if isinstance(value, dict) else [f"{prefix}{name}"]


def test_the_committed_file_is_the_demo(params_path):
    before = params_path.read_bytes()
    presets.apply_preset("demo", params_path)
    assert params_path.read_bytes() == before


def test_presets_set_the_same_keys_so_that_one_undoes_the_other(params_path):
    assert presets.names() == ["cameras", "demo", "llcm", "regdb", "sysu"]
    assert len({frozenset(keys(presets.values(name))) for name in presets.names()}) == 1
    before = load_params(params_path)
    presets.apply_preset("cameras", params_path)
    assert load_params(params_path) != before
    presets.apply_preset("demo", params_path)
    assert load_params(params_path) == before


def test_cameras_are_the_published_settings(params_path):
    changes = presets.apply_preset("cameras", params_path)
    params = load_params(params_path)
    assert (params.model.clip, params.model.image_size) == ("RN50", [288, 144])
    assert params.prompts.tokens.epochs == params.prompts.integration.epochs == 60
    assert (
        params.embedding.epochs,
        params.embedding.identities_per_batch,
        params.embedding.images_per_identity,
    ) == (120, 8, 4)
    assert params.embedding.head_learning_rate == 2 * params.embedding.learning_rate == 6e-4
    assert params.embedding.schedule.milestones == [40, 70]
    assert "embedding.epochs: 10 -> 120" in changes
    assert "csdn fetch-clip" in changes[-1]


@pytest.mark.parametrize("name", ["sysu", "regdb", "llcm"])
def test_benchmarks_are_the_published_settings_under_their_own_protocol(params_path, name):
    presets.apply_preset("cameras", params_path)
    cameras = load_params(params_path)
    presets.apply_preset(name, params_path)
    params = load_params(params_path)
    assert (params.prompts, params.embedding) == (cameras.prompts, cameras.embedding)
    assert params.model == cameras.model.model_copy(update={"stem": "published"})
    assert params.evaluation.protocol == name
    options = {"sysu": {"mode": "all", "shots": 1, "trials": 10}, "regdb": {}, "llcm": {"trials": 10}}
    assert params.evaluation.options() == options[name]


def test_a_small_benchmark_is_the_demo_under_another_protocol(params_path):
    before = load_params(params_path)
    presets.apply_preset("sysu", params_path, small=True)
    params = load_params(params_path)
    assert (params.model, params.prompts, params.embedding) == (
        before.model,
        before.prompts,
        before.embedding,
    )
    assert params.evaluation.protocol == "sysu"


def test_comments_order_and_the_user_s_own_values_stay(params_path):
    mine = params_path.read_text().replace("seed: 0 ", "seed: 7 ").replace("watch: []", 'watch: ["s3://in"]')
    params_path.write_text(mine)
    presets.apply_preset("cameras", params_path)
    after = params_path.read_text()
    assert load_params(params_path).seed == 7
    assert load_params(params_path).ingest.watch == ["s3://in"]
    comments = [line.split("#", 1)[1] for line in mine.splitlines() if "#" in line]
    assert [line.split("#", 1)[1] for line in after.splitlines() if "#" in line] == comments
    assert list(keys(parse_yaml(after, ""))) == list(keys(parse_yaml(mine, "")))


def test_the_error_of_an_unknown_preset_lists_the_presets(params_path, fault):
    with pytest.raises(UserError, match=r"'sysuu'.*cameras, demo") as error:
        presets.apply_preset("sysuu", params_path)
    fault("parameters", "csdn preset with an unknown preset", error.value)


def test_an_invalid_file_stays_unchanged(params_path):
    broken = params_path.read_text().replace("trials: 10", "trails: 10")
    params_path.write_text(broken)
    with pytest.raises(UserError, match="trails: unknown key"):
        presets.apply_preset("cameras", params_path)
    assert params_path.read_text() == broken


@pytest.mark.parametrize("value", [1e-05, 2.5e-07, 0.0003, 3.0, 1e20])
def test_a_number_that_is_set_is_read_as_that_number(params_path, value):
    set_value(params_path, "embedding.weight_decay", value)
    assert load_params(params_path).embedding.weight_decay == value
