"""Where stage 2 goes on, and what is kept of the runs before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from csdn.state import StageState, as_files
from csdn.training import attempts as module
from csdn.training.attempts import Attempts

KEY = "0123456789abcdef" * 4


@pytest.fixture(params=["beside the state", "in a storage"])
def made(request, tmp_path):
    (tmp_path / KEY).mkdir()
    storage = str(tmp_path / "storage") if request.param == "in a storage" else None
    return Attempts(StageState(tmp_path / KEY), storage)


def checkpoint(made: Attempts, attempt: str, step: int, spoilt: bool = False) -> Path:
    folder = Path(made.folder) / attempt / f"checkpoint_{step}"
    folder.mkdir(parents=True)
    for name, data in as_files({"epoch": 0, "step": step}, {"weight": torch.tensor([step])}).items():
        (folder / name).write_bytes(data[:-1] if spoilt and name != "state.json" else data)
    return folder


def test_nothing_saved_is_a_start(made):
    assert made.load() is None
    made.forget_others()
    made.remove()


def test_the_furthest_counts_wherever_it_is_and_what_is_not_whole_does_not(made):
    made.save({"epoch": 0, "step": 2}, {"weight": torch.tensor([2])})
    checkpoint(made, "a", 3)
    assert made.load()[0]["step"] == 3
    checkpoint(made, "b", 5, spoilt=True)
    position, tensors = made.load()
    assert (position["step"], tensors["weight"].item()) == (3, 3)
    made.save({"epoch": 1, "step": 0}, {"weight": torch.tensor([9])})
    assert made.load()[1]["weight"].item() == 9


def test_only_the_furthest_s_tensors_are_read(made, monkeypatch):
    for step in (1, 2, 3):
        checkpoint(made, "a", step)
    read = []
    real = module.saved_files
    monkeypatch.setattr(module, "saved_files", lambda reader: read.append(reader) or real(reader))
    assert made.load()[0]["step"] == 3
    assert len(read) == 1


def test_earlier_attempts_go_but_the_one_to_go_on_from(made):
    for attempt, step in (("a", 1), ("b", 4), ("c", 2)):
        checkpoint(made, attempt, step)
    made.load()
    made.forget_others()
    assert [folder.name for folder in Path(made.folder).iterdir()] == ["b"]
    made.remove()
    assert not Path(made.folder).exists()
    assert made.state.folder.is_dir()
