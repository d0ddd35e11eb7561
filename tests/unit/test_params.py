"""A mistake in params.yaml is named: key, value, and what is allowed. No result depends on csdn/params.py."""

import shutil
from collections.abc import Iterator
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel
from ruamel.yaml import YAML

from csdn.cli.presets import apply_preset, names
from csdn.params import Params, load_params, parse_params
from csdn.runtime.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def raw():
    return yaml.safe_load((ROOT / "params.yaml").read_text())


def test_the_committed_file_is_valid():
    assert load_params(ROOT / "params.yaml").embedding.identities_per_batch == 8


@pytest.mark.parametrize(
    ("key", "value", "expected", "what"),
    [
        (
            "embedding.image_per_identity",
            8,
            "unknown key; the nearest is images_per_identity; allowed here: epochs",
            "a misspelt parameter",
        ),
        ("colour", 1, "unknown key; allowed here: seed, data", "a section that there is not"),
        (
            "embedding.identities_per_batch",
            "eight",
            "= 'eight': Input should be a valid integer",
            "a word for a number",
        ),
        (
            "embedding.identities_per_batch",
            1,
            "= 1: Input should be greater than or equal to 2",
            "one person in a batch",
        ),
        ("embedding.learning_rate", -1, "= -1: Input should be greater than 0", "a negative learning rate"),
        ("model.stem", "resnet", "= 'resnet': Input should be 'clip' or 'published'", "an unknown stem"),
        ("model.image_size", [64], "at least 2 items", "a height without a width"),
        ("data.test_percent", 100, "less than or equal to 99", "nobody left to train on"),
        ("embedding.schedule.milestones", [70, 40], "must increase", "milestones that fall"),
        ("prompts.tokens.warmup_epochs", 99, "99.0 is longer than epochs 6", "a warm-up without an end"),
        ("ingest.store", "data/shards", "= 'data/shards': not an address of", "a folder for ingest.store"),
        ("ingest.max_bad_fraction", 2, "less than or equal to 1", "a fraction of 2"),
        ("gate.rank1_margin", -1, "= -1: Input should be greater than or equal to 0", "a negative margin"),
        ("gate.confidence", 95, "= 95: Input should be less than 1", "a confidence in percent"),
    ],
)
def test_a_mistake_is_named(raw, key, value, expected, what, fault):
    *path, last = key.split(".")
    section = raw
    for name in path:
        section = section[name]
    section[last] = value
    with pytest.raises(UserError) as error:
        parse_params(raw, source="params.yaml")
    assert expected in str(error.value) and f"  {key.rpartition('.')[0]}" in str(error.value)
    fault("parameters", what, error.value)


def test_values_that_contradict_each_other_are_named(raw, fault):
    raw["scaling"]["workers"] = 3
    with pytest.raises(UserError) as error:
        parse_params(raw, source="params.yaml")
    assert "images_per_identity = 8 x 2 cannot be split over scaling.workers = 3: choose" in str(error.value)
    fault("training", "the images of a batch cannot be split over the workers", error.value)


def test_compilation_is_for_one_worker(raw):
    raw["training"]["compile"], raw["scaling"]["workers"] = True, 1
    assert parse_params(raw).training.compile
    raw["scaling"]["workers"] = 2
    with pytest.raises(
        UserError, match=r"training\.compile = true with scaling\.workers = 2 was never tried"
    ):
        parse_params(raw)


def test_a_person_s_images_may_be_split_over_workers(raw):
    raw["scaling"]["workers"] = 16
    assert parse_params(raw).embedding.identities_per_batch == 8


def test_all_mistakes_are_reported_at_once(raw):
    raw["seed"] = -1
    del raw["report"]
    with pytest.raises(UserError) as error:
        parse_params(raw)
    assert "seed = -1" in str(error.value)
    assert "report: missing" in str(error.value)


@pytest.mark.parametrize(
    "text, what",
    [
        ("a: [", "params.yaml is cut"),
        ("", "params.yaml is an empty file"),
        ("just text", "params.yaml is a text"),
    ],
)
def test_a_file_that_is_not_a_mapping_is_rejected(tmp_path, text, what, fault):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(UserError, match=r"not usable|not valid YAML") as error:
        load_params(tmp_path / "params.yaml")
    fault("parameters", what, error.value)


def test_the_error_of_a_missing_file_says_where_to_run(tmp_path, fault):
    with pytest.raises(UserError, match="root folder") as error:
        load_params(tmp_path / "params.yaml")
    fault("parameters", "no params.yaml where the command is run", error.value)


def test_a_protocol_is_described_with_its_mode_and_shots(raw):
    assert parse_params(raw).evaluation.described() == "cameras"
    raw["evaluation"] |= {"protocol": "sysu", "mode": "indoor", "shots": 10}
    assert parse_params(raw).evaluation.described() == "sysu, indoor, 10-shot"


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, object]]:
    """(dotted key, default) of every field that has a default."""
    for name, field in model.model_fields.items():
        kinds = [field.annotation, *get_args(field.annotation)]
        for section in (kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)):
            yield from fields(section, f"{prefix}{name}.")
        if not field.is_required():
            yield f"{prefix}{name}", field.get_default(call_default_factory=True)


def test_only_scaling_has_defaults_that_are_not_empty():
    """DVC does not see a default: a stage would keep a result that another default made."""
    defaults = dict(fields(Params))
    assert "evaluation.mode" in defaults and "scaling.max_failures" in defaults
    outside = {key: value for key, value in defaults.items() if not key.startswith("scaling.")}
    assert {key: value for key, value in outside.items() if value not in (None, [], {})} == {}


@pytest.mark.parametrize("preset", [None, *names()])
def test_stages_get_the_values_that_dvc_tracks(tmp_path, preset):
    path = Path(shutil.copy(ROOT / "params.yaml", tmp_path))
    if preset:
        apply_preset(preset, path)
    in_file = YAML(typ="safe").load(path)  # the reader that DVC uses
    in_stage = load_params(path).model_dump()
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values()
    tracked = {key for stage in stages for key in stage.get("params", ()) if isinstance(key, str)}
    assert {"model", "embedding", "seed"} <= tracked
    for key in tracked:
        assert value_at(in_stage, key) == value_at(in_file, key)


def value_at(values: Any, key: str) -> Any:
    return reduce(getitem, key.split("."), values)
