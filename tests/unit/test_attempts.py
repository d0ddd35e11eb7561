"""Stage 2 resumes from the furthest checkpoint of all attempts and removes the others."""

from __future__ import annotations

import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from csdn.data.state import StageState, as_files, clone_name
from csdn.training import checkpoint as module
from csdn.training.checkpoint import CheckpointStore

KEY = "0123456789abcdef" * 4


@pytest.fixture(params=["beside the state", "in a storage"])
def made(request, tmp_path):
    (tmp_path / KEY).mkdir()
    storage = str(tmp_path / "storage") if request.param == "in a storage" else None
    return CheckpointStore(StageState(tmp_path / KEY), storage)


def checkpoint(made: CheckpointStore, attempt: str, step: int, spoilt: bool = False) -> Path:
    folder = Path(made.folder) / attempt / f"checkpoint_{step}"
    folder.mkdir(parents=True)
    for name, data in as_files({"epoch": 0, "step": step}, {"weight": torch.tensor([step])}).items():
        (folder / name).write_bytes(data[:-1] if spoilt and name != "state.json" else data)
    return folder


def test_without_checkpoints_training_starts_at_the_beginning(made):
    assert made.load() is None
    made.forget_others()
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
    real = module.saved_files
    monkeypatch.setattr(module, "saved_files", lambda reader: read.append(reader) or real(reader))
    assert made.load()[0]["step"] == 3
    assert len(read) == 1


def test_all_attempts_but_the_loaded_one_are_removed(made):
    for attempt, step in (("a", 1), ("b", 4), ("c", 2)):
        checkpoint(made, attempt, step)
    made.load()
    made.forget_others()
    assert [folder.name for folder in Path(made.folder).iterdir()] == ["b"]
    made.remove()
    assert not Path(made.folder).exists()
    assert made.state.folder.is_dir()


def workspace(folder: Path, storage: Path) -> CheckpointStore:
    """The attempts of a clone in `folder` that trains what the others do."""
    (folder / ".state" / KEY).mkdir(parents=True, exist_ok=True)
    return CheckpointStore(StageState(folder / ".state" / KEY), str(storage))


def test_clones_that_share_a_storage_do_not_read_or_remove_each_others_attempts(tmp_path):
    one, other = (workspace(tmp_path / name, tmp_path / "storage") for name in ("one", "other"))
    checkpoint(one, "a", 3)
    assert other.load() is None
    checkpoint(other, "b", 5)
    assert one.load()[0]["step"] == 3
    one.forget_others()
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


def test_concurrent_processes_get_the_same_clone_name(tmp_path):
    with ThreadPoolExecutor(8) as threads:
        names = set(threads.map(lambda _: clone_name(tmp_path), range(50)))
    assert len(names) == 1 and re.fullmatch("[0-9a-f]{16}", names.pop())
