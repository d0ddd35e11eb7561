"""State of a killed stage is complete or absent, and belongs to one run."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from make_images import Project, jpeg, make_drop, people_named
from memory_bucket import fill
from safetensors.torch import load_file, save_file
from workspace import ROOT

from csdn.data import checkpoint_store, storage
from csdn.data.checkpoint_store import (
    KEPT,
    CheckpointStore,
    CheckpointTimer,
    clone_name,
    open_state,
    state_key,
)
from csdn.params import Params, load_params
from csdn.runtime.errors import ServiceUnavailable, UserError
from csdn.training.warm_start import training_inputs


def test_key_changes_with_anything_that_decides_the_result(monkeypatch):
    key = state_key(data="a", params={"seed": 0})
    assert key == state_key(params={"seed": 0}, data="a")
    assert key != state_key(data="b", params={"seed": 0})
    assert key != state_key(data="a", params={"seed": 1})
    monkeypatch.setattr(checkpoint_store, "version", lambda name: "another")
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
    assert not list(tmp_path.iterdir())


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


def test_a_save_removes_what_a_killed_one_has_left(tmp_path):
    code = (
        "import os, torch; from csdn.data import checkpoint_store as c\n"
        "c.file_sha256 = lambda path: os.kill(os.getpid(), 9)\n"
        "c.CheckpointStore(c.Path('k')).save({'epoch': 0}, {'w': torch.ones(4)})"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == -signal.SIGKILL
    assert len(list((tmp_path / "k").iterdir())) == 1
    CheckpointStore(tmp_path / "k").save({"epoch": 1}, {"w": torch.ones(4)})
    assert sorted(path.suffix for path in (tmp_path / "k").iterdir()) == [".json", ".safetensors"]


def unfinished(stage, key, root):
    """Leave the state of a run that failed."""
    with pytest.raises(OSError), open_state(stage, key, root) as state:
        state.save({"of": key})
        raise OSError


def test_the_latest_unfinished_runs_of_a_stage_are_kept(tmp_path):
    unfinished("other stage", "other", tmp_path)
    for number in range(KEPT + 2):
        unfinished("stage", f"run {number}", tmp_path)
        os.utime(tmp_path / f"run {number}/stage", (number, number))
    with open_state("stage", "held", tmp_path):
        os.utime(tmp_path / "held/stage", (0, 0))
        unfinished("stage", "new", tmp_path)
        assert (tmp_path / "held").exists(), "a run at work lost its state"
    kept = {f"run {number}" for number in range(2, KEPT + 2)}
    kept |= {"other", "new"}
    assert {path.name for path in tmp_path.iterdir()} == kept | {f"{name}.lock" for name in kept}


def test_a_run_that_starts_while_another_removes_its_state_gets_a_new_state(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_store, "LOCK_SECONDS", 60)
    code = (
        "import sys, time; from csdn.data.checkpoint_store import open_state\n"
        "with open_state('stage', 'k'):\n"
        "    print('began', flush=True); time.sleep(0.5)"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"began\n"
        with open_state("stage", "k", tmp_path / ".state") as state:
            state.save({"epoch": 1})
            assert other.wait() == 0
            assert state.load() == ({"epoch": 1}, {})
            monkeypatch.setattr(checkpoint_store, "LOCK_SECONDS", 0.1)
            with (
                pytest.raises(UserError, match="another process"),
                open_state("stage", "k", state.folder.parent),
            ):
                raise AssertionError("two runs hold one state")
    assert list((tmp_path / ".state").iterdir()) == []


def test_a_killed_holder_releases_the_lock_even_if_its_child_lives(tmp_path):
    code = (
        "import os, time; from csdn.data.checkpoint_store import open_state\n"
        "with open_state('stage', 'k') as state:\n"
        "    state.save({'epoch': 3})\n"
        "    if not os.fork(): time.sleep(30)\n"
        "    print('began', flush=True); time.sleep(30)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, start_new_session=True
    ) as holder:
        assert holder.stdout.readline() == b"began\n"
        holder.kill()
        holder.wait()
        try:
            with open_state("stage", "k", tmp_path / ".state") as state:
                assert state.load() == ({"epoch": 3}, {})
        finally:
            os.killpg(holder.pid, signal.SIGKILL)


def test_a_position_without_tensors_is_saved_without_torch(tmp_path):
    code = (
        "import sys; from csdn.data.checkpoint_store import open_state\n"
        "with open_state('stage', 'k') as state:\n"
        "    state.save({'done': 3}); print(state.load(), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "({'done': 3}, {}) False\n", done.stderr


def test_saving_takes_half_a_percent_of_the_time(monkeypatch):
    now = 0.0
    monkeypatch.setattr(checkpoint_store.time, "monotonic", lambda: now)
    timer = CheckpointTimer()
    spent = 0
    while now < 10_000:
        now += 1  # a step
        if timer.due():
            with timer.saving():
                now += 5
                spent += 5
    assert 0.004 < spent / now < 0.0055


def test_an_error_names_the_age_of_the_last_checkpoint_of_its_run(tmp_path):
    unfinished("stage", "of other parameters", tmp_path)
    with pytest.raises(OSError) as nothing_saved, open_state("stage", "present", tmp_path) as state:
        raise OSError
    assert not hasattr(nothing_saved.value, "__notes__")
    now = time.time()
    with pytest.raises(OSError) as error, open_state("stage", "present", tmp_path) as state:
        for part, ago in (("first", 200), ("second", 80)):
            state.part(part).save({})
            os.utime(tmp_path / "present" / part / "state.json", (now - ago,) * 2)
        raise OSError
    [note] = error.value.__notes__
    assert 60 <= int(re.search(r"what stage saved (\d+) s ago is kept", note)[1]) <= 100


# Attempts: checkpoints of runs on a cluster.

KEY = "0123456789abcdef" * 4


@pytest.fixture(params=["beside the state", "in a storage"])
def made(request, tmp_path):
    storage = str(tmp_path / "storage") if request.param == "in a storage" else None
    return CheckpointStore(tmp_path / KEY, storage)


def checkpoint(made: CheckpointStore, attempt: str, step: int, spoilt: bool = False) -> Path:
    folder = attempts(made) / attempt / f"checkpoint_{step}"
    CheckpointStore(folder).save({"epoch": 0, "step": step}, {"weight": torch.tensor([step])})
    if spoilt:
        [file] = folder.glob("*.safetensors")
        file.write_bytes(file.read_bytes()[:-1])
    return folder


def attempts(made: CheckpointStore) -> Path:
    return Path(made.storage[1])


def test_without_checkpoints_training_starts_at_the_beginning(made):
    assert made.load() is None
    made.remove_other_attempts()
    made.remove()


def test_the_furthest_complete_checkpoint_is_loaded(made):
    made.save({"epoch": 0, "step": 2}, {"weight": torch.tensor([2])})
    checkpoint(made, "a", 3)
    assert made.load()[0]["step"] == 3
    checkpoint(made, "b", 5, spoilt=True)
    position, tensors = made.load()
    assert (position["step"], tensors["weight"].item()) == (3, 3)
    made.save({"epoch": 1, "step": 0}, {"weight": torch.tensor([9])})
    assert made.load()[1]["weight"].item() == 9


def test_only_the_tensors_of_the_furthest_checkpoint_are_read(made, monkeypatch):
    for step in (1, 2, 3):
        checkpoint(made, "a", step)
    read = []
    real = checkpoint_store._read_tensors
    monkeypatch.setattr(checkpoint_store, "_read_tensors", lambda *of: read.append(of) or real(*of))
    assert made.load()[0]["step"] == 3
    assert len(read) == 1


def test_all_attempts_but_the_loaded_one_are_removed(made):
    for attempt, step in (("a", 1), ("b", 4), ("c", 2)):
        checkpoint(made, attempt, step)
    made.load()
    made.remove_other_attempts()
    assert [folder.name for folder in attempts(made).iterdir()] == ["b"]
    made.remove()
    assert not attempts(made).exists() and not made.folder.exists()


def test_an_attempt_that_cannot_be_read_is_no_reason_to_begin_anew(tmp_path, monkeypatch):
    fill("attempts", {"readme": b"", f"{clone_name(tmp_path)}/{KEY[:16]}/a/state.json": b"{}"})
    monkeypatch.setattr(storage, "TIMEOUT", 0)
    made = CheckpointStore(tmp_path / KEY, "memory://attempts")
    assert made.load() is None  # it is not a checkpoint

    def away(path):
        raise ConnectionError

    monkeypatch.setattr(made.storage[0], "cat_file", away)
    with pytest.raises(ServiceUnavailable, match="memory://attempts: the store does not respond"):
        made.load()


def workspace(folder: Path, storage: Path) -> CheckpointStore:
    """The attempts of a clone in `folder` that trains what the others do."""
    return CheckpointStore(folder / ".state" / KEY, str(storage))


def test_clones_that_share_a_storage_do_not_read_or_remove_each_others_attempts(tmp_path):
    one, other = (workspace(tmp_path / name, tmp_path / "storage") for name in ("one", "other"))
    checkpoint(one, "a", 3)
    assert other.load() is None
    checkpoint(other, "b", 5)
    assert one.load()[0]["step"] == 3
    one.remove_other_attempts()
    one.remove()
    assert (one.load(), other.load()[0]["step"]) == (None, 5)


def test_a_clone_finds_its_attempts_and_a_copy_of_its_folder_does_not(tmp_path):
    checkpoint(workspace(tmp_path / "one", tmp_path / "storage"), "a", 3)
    assert workspace(tmp_path / "one", tmp_path / "storage").load()[0]["step"] == 3
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    assert workspace(tmp_path / "copy", tmp_path / "storage").load() is None
    # A retraining's working tree is a folder of its own, with a state of its own.
    assert workspace(tmp_path / "one/.runs/20261128-0123abcd", tmp_path / "storage").load() is None


def test_with_csdn_clone_another_clone_continues(tmp_path, monkeypatch):
    monkeypatch.setenv("CSDN_CLONE", "the cluster's job")
    checkpoint(workspace(tmp_path / "lost", tmp_path / "storage"), "a", 3)
    assert workspace(tmp_path / "new", tmp_path / "storage").load()[0]["step"] == 3
    monkeypatch.setenv("CSDN_CLONE", "another job")
    assert workspace(tmp_path / "new", tmp_path / "storage").load() is None


def test_a_checkpoint_is_copied_to_the_storage_and_another_machine_continues_from_it(tmp_path, monkeypatch):
    monkeypatch.setenv("CSDN_CLONE", "run 20261128-0123abcd")
    lost = workspace(tmp_path / "lost", tmp_path / "storage")
    for step in (1, 2):
        lost.save({"epoch": 0, "step": step}, {"weight": torch.tensor([step])})
    shutil.rmtree(tmp_path / "lost")
    other = workspace(tmp_path / "other", tmp_path / "storage")
    position, tensors = other.load()
    assert (position["step"], tensors["weight"].item()) == (2, 2)
    other.save({"epoch": 0, "step": 3}, {"weight": torch.tensor([3])})
    kept = [checkpoint for attempt in attempts(other).iterdir() for checkpoint in attempt.iterdir()]
    assert [len(list(checkpoint.iterdir())) for checkpoint in kept] == [2, 2]  # of each process the last one
    # A machine that was only away writes to its own place, so it spoils nothing.
    lost.save({"epoch": 0, "step": 2}, {"weight": torch.tensor([2])})
    assert other.load()[0]["step"] == 3
    other.remove()
    assert not attempts(other).exists()


def test_concurrent_processes_get_the_same_clone_name(tmp_path):
    with ThreadPoolExecutor(8) as threads:
        names = set(threads.map(lambda _: clone_name(tmp_path), range(50)))
    assert len(names) == 1 and re.fullmatch("[0-9a-f]{16}", names.pop())
