"""An optimiser resumes from its saved state to the same bytes; a thread writes the checkpoints."""

import re
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from csdn.data.checkpoint_store import CheckpointStore, open_state
from csdn.training.checkpoint import LocalState, optimizer_tensors, restore_optimizer


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_adam_resumes_to_the_same_bytes(layout):
    def run(steps_before_restart: int) -> torch.Tensor:
        start = torch.linspace(-1, 1, 54).reshape(2, 3, 3, 3)
        weight, optimizer = _adam(start.to(memory_format=layout))
        for step in range(6):
            if step == steps_before_restart:
                tensors = {
                    name: t.clone(memory_format=torch.contiguous_format)  # as a file has them
                    for name, t in optimizer_tensors(optimizer).items()
                }
                weight, optimizer = _adam(weight.detach())
                restore_optimizer(optimizer, tensors)
            optimizer.zero_grad()
            (weight**3).sum().backward()
            optimizer.step()
        return weight.detach()

    assert torch.equal(run(3), run(99))


def _adam(start: torch.Tensor) -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
    weight = torch.nn.Parameter(start.clone(memory_format=torch.preserve_format))
    return weight, torch.optim.Adam([weight], lr=0.1, weight_decay=0.01, fused=True)


# A thread writes the checkpoints of a training.


class HeldStore(CheckpointStore):
    """A disk that writes nothing until `go` is set."""

    def __init__(self, folder):
        super().__init__(folder)
        self.go = threading.Event()

    def save(self, *what):
        assert self.go.wait(60)
        super().save(*what)


def test_a_checkpoint_holds_the_tensors_of_its_step_however_slow_the_disk_is(tmp_path):
    store, weight = HeldStore(tmp_path / "k"), torch.zeros(8, 3, 2, 2).to(memory_format=torch.channels_last)
    with LocalState(store) as state:
        assert not state.write_pending()
        state.save({"step": 1}, {"weight": weight})
        weight += 1  # the next step does not wait
        assert state.write_pending() and store.load() is None
        store.go.set()
        state.save({"step": 2}, {"weight": weight})  # waits for the one before
        weight += 1
        assert store.load()[0]["step"] in (1, 2)
    position, tensors = store.load()
    assert position == {"step": 2} and not state.write_pending()
    assert torch.equal(tensors["weight"], torch.ones(8, 3, 2, 2))


def test_an_error_of_the_training_waits_until_the_checkpoint_is_written(tmp_path):
    """Otherwise the next run could begin while the thread still writes."""
    store = HeldStore(tmp_path / "k")
    with pytest.raises(KeyboardInterrupt), LocalState(store) as state:
        state.save({"step": 1}, {"weight": torch.ones(1)})
        threading.Timer(0.2, store.go.set).start()
        raise KeyboardInterrupt
    assert store.load()[0] == {"step": 1}
    assert {path.suffix for path in store.folder.iterdir()} == {".json", ".safetensors"}


def test_a_write_that_fails_is_reported_at_the_next_step_and_at_the_end(tmp_path):
    store = CheckpointStore(tmp_path / "k")
    (tmp_path / "k").write_text("in the way")
    with pytest.raises(FileExistsError, match="/k'"), LocalState(store) as state:
        state.save({"step": 1}, {"weight": torch.ones(1)})
        while state.write_pending():
            pass
    with pytest.raises(FileExistsError), LocalState(store) as state:
        state.save({"step": 1}, {"weight": torch.ones(1)})
    with pytest.raises(KeyboardInterrupt), LocalState(store) as state:
        state.save({"step": 1}, {"weight": torch.ones(1)})
        raise KeyboardInterrupt


def test_ctrl_c_while_a_checkpoint_is_written_ends_the_process_with_that_checkpoint(tmp_path):
    code = (
        "import time, torch; from csdn.data.checkpoint_store import CheckpointStore, open_state\n"
        "from csdn.training.checkpoint import LocalState\n"
        "class Slow(CheckpointStore):\n"
        "    def save(self, *what):\n"
        "        print('began', flush=True); time.sleep(1); super().save(*what)\n"
        "with open_state('embedding', 'k') as store, LocalState(Slow(store.folder)) as state:\n"
        "    state.save({'step': 1}, {'weight': torch.ones(9)})\n"
        "    time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"began\n"
        time.sleep(0.3)  # the main thread may still be in `submit`; an interrupt there was lost once
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert b"KeyboardInterrupt" in errors and re.search(rb"what embedding saved \d s ago is kept", errors)
    with open_state("embedding", "k", tmp_path / ".state") as store:
        assert store.load()[0] == {"step": 1}
