"""State of a killed stage is complete or absent, and belongs to one run."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time

import pytest
import torch
from make_images import Project, jpeg, make_drop, people_named
from safetensors.torch import load_file, save_file
from workspace import ROOT

from csdn.data import state as state_module
from csdn.data.state import KEPT, CheckpointTimer, open_state, seconds_since_save, state_key
from csdn.params import Params, load_params
from csdn.runtime.errors import UserError
from csdn.training.warm_start import training_inputs


def test_key_changes_with_anything_that_decides_the_result(monkeypatch):
    key = state_key(data="a", params={"seed": 0})
    assert key == state_key(params={"seed": 0}, data="a")
    assert key != state_key(data="b", params={"seed": 0})
    assert key != state_key(data="a", params={"seed": 1})
    monkeypatch.setattr(state_module, "version", lambda name: "another")
    assert key != state_key(data="a", params={"seed": 0})


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    project = Project(tmp_path_factory.mktemp("project"))
    project.add(make_drop(project.root / "drop", people_named(6)))
    project.ingest()
    return project


def key(data, weights=ROOT / "csdn/model/assets/clip-small.safetensors", **changes):
    """The key of stage 2 on that data, dotted parameters changed."""
    values = load_params(ROOT / "params.yaml").model_dump()
    for name, value in {"model.weights": str(weights), **changes}.items():
        *path, last = name.split(".")
        section = values
        for part in path:
            section = section[part]
        section[last] = value
    return training_inputs(Params.model_validate(values), data, "embedding").key


def test_every_parameter_of_the_stage_is_in_its_key_and_scaling_is_not(project):
    plain = key(project.data)
    assert plain == key(
        project.data, **{"scaling.threads": 3, "scaling.loader_workers": 7, "scaling.workers": 1}
    )
    assert plain == key(project.data, **{"report.queries": 3, "prompts.tokens.epochs": 9})
    changes = {"seed": 1, "model.stem": "published", "embedding.losses.triplet": 0.2, "embedding.padding": 3}
    others = [key(project.data, **{name: value}) for name, value in changes.items()]
    assert len({plain, *others}) == 1 + len(changes)


def test_changed_weights_change_the_key_and_another_path_does_not(project, tmp_path):
    weights = ROOT / "csdn/model/assets/clip-small.safetensors"
    same = shutil.copy(weights, tmp_path / "same.safetensors")
    assert key(project.data, same) == key(project.data)
    tensors = load_file(weights)
    tensors["logit_scale"] += 1e-3
    save_file(tensors, tmp_path / "other.safetensors")
    assert key(project.data, tmp_path / "other.safetensors") != key(project.data)


def test_a_changed_image_changes_the_key(project, tmp_path, fault):
    other = Project(tmp_path)
    drop = make_drop(tmp_path / "drop", people_named(6))
    (drop / "visible/north/person 000/0.jpg").write_bytes(jpeg("another picture"))
    other.add(drop)
    other.ingest()
    assert key(other.data) != key(project.data)
    fault(
        "weights and checkpoints",
        "a parameter, an image or a weight was changed after a kill",
        "The checkpoint is of another key: the stage begins anew.",
    )


def test_state_survives_an_error_and_is_removed_on_success(tmp_path):
    with pytest.raises(ZeroDivisionError), open_state("stage", "k", tmp_path) as state:
        state.save({"epoch": 3}, {"w": torch.arange(4.0)})
        raise ZeroDivisionError
    with open_state("stage", "k", tmp_path) as state:
        position, tensors = state.load()
    assert position == {"epoch": 3}
    assert torch.equal(tensors["w"], torch.arange(4.0))
    assert not (tmp_path / "k").exists()


def test_a_second_run_on_the_same_state_is_refused(tmp_path):
    with (
        open_state("stage", "k", tmp_path),
        pytest.raises(UserError, match="another process"),
        open_state("stage", "k", tmp_path),
    ):
        raise AssertionError("two runs hold one state")


def test_a_kill_between_the_two_writes_leaves_the_old_state(tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt), open_state("stage", "k", tmp_path) as state:
        state.save({"epoch": 1}, {"w": torch.ones(2)})
        monkeypatch.setattr(json, "dumps", _interrupt)
        state.save({"epoch": 2}, {"w": torch.zeros(2)})
    monkeypatch.undo()
    with open_state("stage", "k", tmp_path) as state:
        position, tensors = state.load()
    assert position == {"epoch": 1}
    assert torch.equal(tensors["w"], torch.ones(2))


def _interrupt(*_args, **_options):
    raise KeyboardInterrupt


@pytest.mark.parametrize("damage", ["cut", "flip", "pointer"])
def test_damaged_state_is_ignored(tmp_path, damage, fault):
    with pytest.raises(OSError), open_state("stage", "k", tmp_path) as state:
        state.save({"epoch": 1}, {"w": torch.ones(64)})
        raise OSError
    [file] = (tmp_path / "k").glob("*.safetensors")
    data = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(data[:-8])
    elif damage == "flip":
        data[-1] ^= 1
        file.write_bytes(data)
    else:
        (tmp_path / "k" / "state.json").write_text("{")
    with open_state("stage", "k", tmp_path) as state:
        assert state.load() is None
    fault("weights and checkpoints", "a checkpoint was cut short or changed", "The stage begins anew.")


def test_only_one_tensor_file_is_kept(tmp_path):
    with open_state("stage", "k", tmp_path) as state:
        for epoch in range(3):
            state.save({"epoch": epoch}, {"w": torch.full((4,), float(epoch))})
        names = {file.suffix for file in (tmp_path / "k").iterdir()}
        assert len(list((tmp_path / "k").iterdir())) == 3
    assert names == {"", ".json", ".safetensors"}


def unfinished(stage, key, root):
    """Leave the state of a run that failed."""
    with pytest.raises(OSError), open_state(stage, key, root) as state:
        state.save({"of": key})
        raise OSError


def test_the_latest_unfinished_runs_of_a_stage_are_kept(tmp_path):
    unfinished("other stage", "other", tmp_path)
    for number in range(KEPT + 2):
        unfinished("stage", f"run {number}", tmp_path)
        os.utime(tmp_path / f"run {number}/lock", (number, number))
    with open_state("stage", "held", tmp_path):
        os.utime(tmp_path / "held/lock", (0, 0))
        unfinished("stage", "new", tmp_path)
        assert (tmp_path / "held").exists(), "a run at work lost its state"
    kept = {f"run {number}" for number in range(2, KEPT + 2)}
    assert {folder.name for folder in tmp_path.iterdir()} == {"other", "new", *kept}


def test_a_run_that_starts_while_another_removes_its_state_gets_a_new_state(tmp_path, monkeypatch):
    (tmp_path / "k").mkdir()
    lock = fcntl.flock

    def first_let_the_other_end(*arguments):
        monkeypatch.setattr(fcntl, "flock", lock)
        state_module._remove(tmp_path / "k")
        lock(*arguments)

    monkeypatch.setattr(fcntl, "flock", first_let_the_other_end)
    with open_state("stage", "k", tmp_path) as state:
        state.save({"epoch": 1})
        with pytest.raises(UserError, match="another process"), open_state("stage", "k", tmp_path):
            raise AssertionError("two runs hold one state")


def test_leftovers_of_a_killed_removal_are_removed(tmp_path):
    (tmp_path / "k.removed/part").mkdir(parents=True)
    with open_state("stage", "k", tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_position_without_tensors_is_saved_without_torch(tmp_path):
    code = (
        "import sys; from csdn.data.state import open_state\n"
        "with open_state('stage', 'k') as state:\n"
        "    state.save({'done': 3}); print(state.load(), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "({'done': 3}, {}) False\n", done.stderr


def test_saving_takes_half_a_percent_of_the_time(monkeypatch):
    now = 0.0
    monkeypatch.setattr(state_module.time, "monotonic", lambda: now)
    timer = CheckpointTimer()
    spent = 0
    while now < 10_000:
        now += 1  # a step
        if timer.due():
            with timer.saving():
                now += 5
                spent += 5
    assert 0.004 < spent / now < 0.0055


def test_seconds_since_save_counts_this_process_only(tmp_path, monkeypatch):
    monkeypatch.setattr(state_module, "_opened", [])
    with pytest.raises(OSError), open_state("stage", "of other parameters", tmp_path) as state:
        state.save({})
        raise OSError
    monkeypatch.setattr(state_module, "_opened", [])
    assert seconds_since_save() is None
    now = time.time()
    with pytest.raises(OSError), open_state("stage", "present", tmp_path) as state:
        assert seconds_since_save() is None
        state.part("first").save({})
        state.part("second").save({})
        for part, ago in (("first", 200), ("second", 80)):
            os.utime(tmp_path / "present" / part / "state.json", (now - ago,) * 2)
        raise OSError
    assert seconds_since_save() == pytest.approx(80, abs=20)
