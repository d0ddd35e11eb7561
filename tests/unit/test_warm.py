"""Warm start: rows are transferred by name, and a champion that does not fit is refused with the reason."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from warm_work import (
    FIRST,
    NEW,
    STAYED,
    TEST,
    Killed,
    Runs,
    make_champion,
    make_data,
    make_params,
    start_of,
)

from csdn.data.checkpoint_store import stage_key, state_key
from csdn.model import load
from csdn.model.network import row_std
from csdn.runtime.errors import UserError
from csdn.training.prompts import contrastive_losses
from csdn.training.warm_start import WarmStart, new_rows, proxy_negatives, training_inputs, warm_params


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Folder with `champion` (of FIRST), and data of `first` and `today`."""
    folder = tmp_path_factory.mktemp("world")
    for name, people in {"first": FIRST, "today": [*STAYED, *NEW]}.items():
        make_data(folder / name, people)
    make_champion(folder / "champion", folder / "first/data", make_params())
    return folder


@pytest.fixture
def warm(world):
    return WarmStart(start_of(world / "champion"), world / "champion")


@pytest.fixture
def runs(world, warm, tmp_path):
    return Runs(tmp_path / "runs", world / "today/data", make_params(), warm)


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    """Both stages, started from the champion, without interruption."""
    warm = WarmStart(start_of(world / "champion"), world / "champion")
    runs = Runs(tmp_path_factory.mktemp("finished"), world / "today/data", make_params(), warm)
    runs.figures = runs.prompts()
    runs.embedded_images = runs.embedded
    runs.embedding()
    return runs


@pytest.fixture
def copied(world, tmp_path):
    """The champion's files, to change."""
    return shutil.copytree(world / "champion", tmp_path / "champion")


def inputs_of(stage, world, warm, params=None, data="today"):
    return training_inputs(params or make_params(), world / data / "data", stage, warm=warm)


def tensors(folder):
    return load_file(folder / "prompts/prompts.safetensors")


def people_of(folder, stage="prompts"):
    return json.loads((folder / stage / "config.json").read_text())["people"]


def rows(table, people, names):
    return table[[people.index(name) for name in names]]


def test_texts_of_known_people_equal_the_champions_and_new_ones_are_learnt(world, warm, finished):
    before, after = tensors(world / "champion"), tensors(finished.folder)
    old, now = people_of(world / "champion"), people_of(finished.folder)
    assert set(now) == {*STAYED, *NEW}
    assert [now.index(name) for name in STAYED] != [old.index(name) for name in STAYED]
    start = inputs_of("prompts", world, warm).model.state_dict()
    for name in after:
        if name.startswith("integration."):
            assert torch.equal(after[name], before[name])
            continue
        assert after[name].shape[0] == len(now)
        assert torch.equal(rows(after[name], now, STAYED), rows(before[name], old, STAYED))
        if name in start:
            moved = (rows(after[name], now, NEW) - rows(start[name], now, NEW)).abs().amax(dim=(1, 2))
            assert (moved > 1e-3).all()
    fused = inputs_of("prompts", world, warm).model
    fused.prompts.load_state_dict(part(after, "prompts"))
    expected = fused.fused_text_features().detach()
    torch.testing.assert_close(after["fused_text"], expected, rtol=1e-5, atol=1e-5)


def part(state, name):
    return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}


def test_only_images_of_new_people_are_read(finished):
    assert finished.embedded_images == len(NEW) * 6, "four visible and two infrared images of each"
    assert finished.figures["new_people"] == len(NEW)
    assert {phase for phase, _ in finished.steps} == {"embedding"}
    assert (finished.folder / "prompts/log.csv").read_text().count("prompts,") == 2


def test_without_new_people_the_texts_are_the_champions_and_no_image_is_read(world, warm, tmp_path):
    runs = Runs(tmp_path, world / "first/data", make_params(), warm)
    assert runs.prompts() == {"new_people": 0}
    assert (runs.embedded, runs.steps) == (0, [])
    champion = Runs(world / "champion", world, runs.params).files("prompts")
    assert runs.files("prompts") == champion | {"log.csv": champion["log.csv"].splitlines(True)[0]}


def test_warm_start_prompts_all_trains_all_texts(world, warm, tmp_path):
    runs = Runs(tmp_path, world / "today/data", make_params(**{"warm_start.prompts": "all"}), warm)
    figures = runs.prompts()
    assert "new_people" not in figures
    assert runs.embedded == (len(NEW) + len(STAYED)) * 6
    assert {phase for phase, _ in runs.steps} == {"embed", "prompts", "integration"}
    before, after = tensors(world / "champion"), tensors(runs.folder)
    start = inputs_of("prompts", world, warm, runs.params).model.state_dict()
    old, now = people_of(world / "champion"), people_of(runs.folder)
    assert torch.equal(start["integration.output.weight"], before["integration.output.weight"])
    for name in ("prompts.tokens.visible", "prompts.tokens.infrared"):
        assert torch.equal(rows(start[name], now, STAYED), rows(before[name], old, STAYED))
        assert not (after[name] == start[name]).all(dim=2).any(), "nobody's row stays"


def test_stage_2_starts_from_the_champion_with_rows_by_name(world, warm):
    champion = load(world / "champion/embedding").state_dict()
    inputs = inputs_of("embedding", world, warm)
    old = people_of(world / "champion", "embedding")
    for name, tensor in inputs.model.state_dict().items():
        if row_std(name) is None:
            assert torch.equal(tensor, champion[name]), name
        else:
            assert torch.equal(rows(tensor, inputs.people, STAYED), rows(champion[name], old, STAYED)), name
            assert 0 < rows(tensor, inputs.people, NEW).std() < 2 * row_std(name)
    from_clip = training_inputs(make_params(), world / "today/data", "embedding").model.state_dict()
    for name in ("gem.p", "gem_neck.norm.running_mean", "stems.infrared.bn1.running_var"):
        assert not torch.equal(champion[name], from_clip[name])


def test_stage_2_uses_the_epochs_and_rates_of_warm_start(finished):
    log = (finished.folder / "embedding/log.csv").read_text().splitlines()
    assert {line.split(",")[0] for line in log[1:]} == {"0"}
    trained, text = load(finished.folder / "embedding").state_dict(), tensors(finished.folder)
    assert torch.equal(trained["prompts.tokens.visible"], text["prompts.tokens.visible"])


def test_the_schedule_is_scaled_with_the_epochs():
    changes = {"embedding.epochs": 120, "warm_start.epochs": 30, "warm_start.learning_rate": 0.1}
    schedule = {"embedding.schedule.milestones": [40, 70], "embedding.schedule.warmup_epochs": 10}
    before = make_params(**changes, **schedule)
    after = warm_params(before)
    assert after.embedding.schedule.milestones == [10, 17.5]
    assert after.embedding.schedule.warmup_epochs == 2.5
    assert (after.embedding.epochs, after.embedding.learning_rate) == (30, 0.1)
    assert after.embedding.head_learning_rate == before.warm_start.head_learning_rate
    assert after.embedding.losses == before.embedding.losses


@pytest.mark.parametrize("stage", ["prompts", "embedding"])
def test_the_initial_row_of_a_new_person_does_not_depend_on_others(world, warm, tmp_path, stage):
    make_data(tmp_path / "alone", [*FIRST, NEW[1]])
    many = inputs_of(stage, world, warm)
    alone = training_inputs(make_params(), tmp_path / "alone/data", stage, warm=warm)
    other = inputs_of(stage, world, warm, make_params(seed=1))
    for name, tensor in many.model.state_dict().items():
        if row_std(name) is None or (stage == "prompts" and "classifier" in name):
            continue
        row = rows(tensor, many.people, [NEW[1]])
        assert torch.equal(row, rows(alone.model.state_dict()[name], alone.people, [NEW[1]]))
        assert not torch.equal(row, rows(other.model.state_dict()[name], other.people, [NEW[1]]))
        assert not torch.equal(row, rows(tensor, many.people, [NEW[0]]))


def test_the_key_without_warm_start_is_unchanged():
    params = make_params()
    for section in ("prompts", "embedding"):
        assert stage_key(section, params, "clip", []) == state_key(
            section=section,
            seed=params.seed,
            model=params.model.model_dump(exclude={"weights", "pretrained"}),
            settings=getattr(params, section).model_dump(),
            clip="clip",
            inputs=[],
            training={"precision": "float32", "deterministic": True}
            | ({"compile": False} if section == "embedding" else {}),
        )


def test_another_start_has_another_key(world, warm, copied):
    keys = {inputs_of(stage, world, one).key for stage in ("prompts", "embedding") for one in (None, warm)}
    assert len(keys) == 4
    renamed = replace(warm, start=warm.start.model_copy(update={"version": "v2"}))
    assert {inputs_of(stage, world, renamed).key for stage in ("prompts", "embedding")} <= keys
    keys.add(inputs_of("prompts", world, warm, make_params(**{"warm_start.prompts": "all"})).key)
    faster = warm_params(make_params(**{"warm_start.epochs": 3}))
    keys |= {inputs_of("embedding", world, warm, one).key for one in (faster, warm_params(make_params()))}
    assert len(keys) == 7
    for file in ("prompts/prompts.safetensors", "embedding/model.safetensors"):
        changed = load_file(copied / file)
        next(iter(changed.values())).view(-1)[0] += 1
        save_file(changed, copied / file)
    other = WarmStart(start_of(copied), copied)
    keys |= {inputs_of(stage, world, other).key for stage in ("prompts", "embedding")}
    assert len(keys) == 9


@pytest.mark.parametrize("kill", [("embed", 12), ("prompts", 1), ("prompts", 2)])
def test_a_killed_stage_1_resumes_to_the_same_bytes(runs, finished, kill):
    with pytest.raises(Killed):
        runs.prompts(kill)
    runs.prompts()
    assert runs.files("prompts") == finished.files("prompts")


def test_a_killed_stage_2_resumes_to_the_same_bytes(runs, finished):
    runs.prompts()
    with pytest.raises(Killed):
        runs.embedding(("embedding", 3))
    runs.embedding()
    assert runs.steps[0][1] > 1, "it began anew"
    assert runs.files("embedding") == finished.files("embedding")


@pytest.mark.parametrize("stage", ["prompts", "embedding"])
@pytest.mark.parametrize(
    ("file", "what"),
    [
        ("prompts/prompts.safetensors", "training starts from a champion whose texts are not there"),
        ("embedding/model.safetensors", "training starts from a champion whose weights are not there"),
    ],
)
def test_a_missing_or_changed_file_of_the_champion_is_found_before_training(
    world, warm, copied, stage, file, what, fault
):
    warm = replace(warm, folder=copied)
    data = (copied / file).read_bytes()
    (copied / file).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UserError, match="its SHA-256 is") as error:
        inputs_of(stage, world, warm)
    assert "`csdn fetch-champion v1` fetches" in str(error.value)
    (copied / file).unlink()
    with pytest.raises(UserError, match="no such file, and training starts from v1") as error:
        inputs_of(stage, world, warm)
    fault("weights and checkpoints", what, error.value)


@pytest.mark.parametrize("text", [None, "{", "[]", "{}", '{"people": "ana"}'])
def test_a_champion_without_a_usable_list_of_people_is_refused(world, warm, copied, text):
    path = copied / "prompts/config.json"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(UserError, match=r"prompts/config\.json.*csdn fetch-champion v1"):
        inputs_of("prompts", world, replace(warm, folder=copied))


def test_a_list_of_people_that_does_not_fit_the_tensors_is_refused(world, warm, copied):
    path = copied / "prompts/config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"people": config["people"][1:]}))
    with pytest.raises(
        UserError, match=r"prompts\.tokens\.visible: \[6, 4, 128\] found, \[5, 4, 128\] needed"
    ):
        inputs_of("prompts", world, replace(warm, folder=copied))


@pytest.mark.parametrize(
    ("key", "value", "says", "what"),
    [
        (
            *("model.image_size", [64, 32], "is [64, 32]; the champion has [32, 16]"),
            "training starts from a champion of another model.image_size",
        ),
        (
            *("model.stem", "published", "is published; the champion has clip"),
            "training starts from a champion of another model.stem",
        ),
        (
            *("model.integration", "sum", "is sum; the champion has sii"),
            "training starts from a champion of another model.integration",
        ),
        (
            *("model.normalize", "clip", "is clip; the champion has imagenet"),
            "training starts from a champion of another model.normalize",
        ),
    ],
)
def test_the_error_names_the_parameter_that_differs_from_the_champion(
    world, warm, key, value, says, what, fault
):
    with pytest.raises(UserError) as error:
        inputs_of("prompts", world, warm, make_params(**{key: value}))
    assert f"{key} {says}" in str(error.value)
    assert '"start": null' in str(error.value)
    fault("parameters", what, error.value)


def test_a_champion_with_other_weights_of_clip_is_refused(world, warm, tmp_path):
    other = load_file(make_params().model.weights)
    other["logit_scale"] += 1e-3
    save_file(other, tmp_path / "clip.safetensors")
    with pytest.raises(UserError, match=r"model\.weights \(the SHA-256 of the file\) is"):
        inputs_of(
            "prompts", world, warm, make_params(**{"model.weights": str(tmp_path / "clip.safetensors")})
        )


def test_a_champion_trained_on_current_test_people_is_refused(world, warm, copied, fault):
    path = copied / "prompts/config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"people": [*config["people"][1:], TEST[0]]}))
    with pytest.raises(UserError, match=f"are test people now \\({TEST[0]}\\)") as error:
        inputs_of("prompts", world, replace(warm, folder=copied))
    fault("parameters", "the champion was trained on people who are test people now", error.value)


def test_proxies_are_negatives_of_the_texts_only():
    draws = torch.Generator().manual_seed(0)
    images, text, others = (torch.randn(n, 8, generator=draws) for n in (4, 4, 3))
    labels = torch.tensor([0, 1, 0, 1])
    alone, among = contrastive_losses(images, text, labels), contrastive_losses(images, text, labels, others)
    assert among["image_to_text"] == alone["image_to_text"]
    scores = text @ torch.cat([images, others]).T
    expected = -torch.log_softmax(scores, dim=1)[:, :4][labels[:, None] == labels].mean()
    torch.testing.assert_close(among["text_to_image"], expected)
    assert contrastive_losses(images, text, labels, others[:0])["loss"] == alone["loss"]


def test_proxy_negatives_are_texts_of_known_people_with_the_length_of_images(world, warm):
    inputs, embeddings = inputs_of("prompts", world, warm), torch.full((5, 128), 0.5)
    new = new_rows(inputs, inputs.champion)
    assert [inputs.people[n] for n in new] == [name for name in inputs.people if name in NEW]
    found = proxy_negatives(inputs, new, embeddings)
    torch.testing.assert_close(found.norm(dim=1), embeddings.norm(dim=1)[0].expand(2 * len(STAYED)))
    known = torch.tensor([n for n, name in enumerate(inputs.people) if name in STAYED])
    texts = inputs.model.text_features("infrared", known)
    cosines = torch.cosine_similarity(found[len(STAYED) :], texts)
    torch.testing.assert_close(cosines, torch.ones(len(STAYED)))


def test_a_table_of_selected_people_has_their_images_relabelled(world):
    table = inputs_of("prompts", world, None).table
    some = table.of_people(np.array([1, 3]))
    assert set(some.label) == {0, 1}
    for label, number in ((1, 0), (3, 1)):
        assert some.digest[some.label == number].tolist() == table.digest[table.label == label].tolist()
    assert some.digest.tolist() == table.digest[np.isin(table.label, [1, 3])].tolist()
