"""Any number of workers trains the same model: the losses of every step, the weights, the figures."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import worker_loop
from safetensors.torch import load_file
from small_network import SMALL

from csdn.evaluation import rank_metrics
from csdn.model import CSDN
from csdn.training.distributed import synchronise_batch_norms

pytestmark = pytest.mark.slow
# Of weights and losses after 24 steps. In float32 an Adam step of a larger rate multiplies rounding until
# two runs of one process with 1 and 2 threads differ by more.
TOLERANCES = {"float64": 1e-9, "float32": 1e-4}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder with what 1 and 8 processes have trained: of 8, each has half of a person's images."""
    folder = tmp_path_factory.mktemp("trained")
    for size in (1, 8):
        command = [sys.executable, worker_loop.__file__, str(folder)]
        workers = [subprocess.Popen([*command, str(rank), str(size)]) for rank in range(size)]
        assert [worker.wait(timeout=900) for worker in workers] == [0] * size
    return folder


def weights(folder: Path, kind: str, size: int) -> dict[str, torch.Tensor]:
    return load_file(folder / f"{kind}-{size}.safetensors")


@pytest.mark.parametrize("kind", TOLERANCES)
@pytest.mark.parametrize("size", [8])
def test_all_weights_and_buffers_are_those_of_one_process(trained, kind, size):
    one, several = weights(trained, kind, 1), weights(trained, kind, size)
    assert list(one) == list(several)
    flat = [torch.cat([v.double().flatten() for v in tensors.values()]) for tensors in (one, several)]
    assert (flat[1] - flat[0]).norm() / flat[0].norm() < TOLERANCES[kind]
    moved = CSDN(replace(SMALL, identities=worker_loop.IDENTITIES)).state_dict()
    assert any(not torch.equal(moved[name].to(one[name].dtype), one[name]) for name in one)


@pytest.mark.parametrize("kind", TOLERANCES)
@pytest.mark.parametrize("size", [8])
def test_the_losses_are_those_of_one_process_at_every_step(trained, kind, size):
    one, several = (json.loads((trained / f"{kind}-{n}.json").read_text()) for n in (1, size))
    assert len(one) == len(several) == worker_loop.STEPS * worker_loop.EPOCHS
    for expected, found in zip(one, several, strict=True):
        assert found == pytest.approx(expected, rel=TOLERANCES[kind] * 10)


@pytest.mark.parametrize("size", [8])
def test_the_figures_are_those_of_one_process(trained, size):
    figures = [retrieval(weights(trained, "float64", n)) for n in (1, size)]
    assert figures[0] == pytest.approx(figures[1], abs=1e-9)


def retrieval(tensors: dict[str, torch.Tensor]) -> list[float]:
    """Rank-1 to 5 and mAP of 24 infrared queries among 24 visible images."""
    model = CSDN(replace(SMALL, identities=worker_loop.IDENTITIES)).double()
    model.load_state_dict(tensors)
    batch = next(worker_loop.Slices(0, 1, torch.float64).epoch(9))
    queries = model.eval().embed(batch.infrared, "infrared")
    gallery = model.embed(batch.visible_view1, "visible")
    cameras = [torch.full_like(batch.labels, camera) for camera in (0, 1)]
    found = rank_metrics(-queries @ gallery.T, batch.labels, batch.labels, *cameras, rule="cameras")
    return [*found.cmc[:5], found.mean_ap]


def test_synchronised_batch_norms_share_names_and_tensors():
    model = CSDN(SMALL).train()
    before = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    after = synchronise_batch_norms(model).state_dict()
    assert {name: tensor.data_ptr() for name, tensor in after.items()} == before
    assert not any(type(module) is torch.nn.BatchNorm2d for module in model.modules())
