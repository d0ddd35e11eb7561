"""State of a killed stage is whole or absent, belongs to one run, and continues it exactly."""

import json

import pytest
import torch

from csdn.errors import UserError
from csdn.state import open_state, state_key
from csdn.training.checkpoint import optimizer_tensors, restore_optimizer


def test_key_changes_with_anything_that_decides_the_result():
    key = state_key(data="a", params={"seed": 0})
    assert key == state_key(params={"seed": 0}, data="a")
    assert key != state_key(data="b", params={"seed": 0})
    assert key != state_key(data="a", params={"seed": 1})


def test_state_survives_an_error_and_goes_on_success(tmp_path):
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


def test_a_kill_between_the_two_writes_leaves_the_older_state(tmp_path, monkeypatch):
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
def test_damaged_state_is_not_picked_up(tmp_path, damage):
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


def test_adam_continues_to_the_same_bytes():
    def run(steps_before_restart: int) -> torch.Tensor:
        weight, optimizer = _adam(torch.linspace(-1, 1, 8))
        for step in range(6):
            if step == steps_before_restart:
                tensors = {name: t.clone() for name, t in optimizer_tensors(optimizer, "o.").items()}
                weight, optimizer = _adam(weight.detach())
                restore_optimizer(optimizer, tensors, "o.")
            optimizer.zero_grad()
            (weight**3).sum().backward()
            optimizer.step()
        return weight.detach()

    assert torch.equal(run(3), run(99))


def _adam(start: torch.Tensor) -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
    weight = torch.nn.Parameter(start.clone())
    return weight, torch.optim.Adam([weight], lr=0.1, weight_decay=0.01, fused=True)


def test_only_one_tensor_file_is_kept(tmp_path):
    with open_state("stage", "k", tmp_path) as state:
        for epoch in range(3):
            state.save({"epoch": epoch}, {"w": torch.full((4,), float(epoch))})
        names = {file.suffix for file in (tmp_path / "k").iterdir()}
        assert len(list((tmp_path / "k").iterdir())) == 3
    assert names == {"", ".json", ".safetensors"}
