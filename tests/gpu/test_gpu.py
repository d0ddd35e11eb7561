"""The method on a GPU: the values of a CPU, the same bytes each time, and no wait within a step.

Skipped without a card; `make test-gpu` runs them, in about two minutes. With two cards two workers train over
NCCL.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import fields, replace

import pytest
import torch
from feed_data import train_source, write_data
from small_network import SMALL
from warm_work import FIRST, Killed, Runs, make_data, make_params
from worker_loop import IDENTITIES, IMAGES, Slices, settings

from csdn.data.catalog import load_dataset
from csdn.data.loader import TrainBatch, TrainLoader
from csdn.evaluation.run import run_evaluation
from csdn.model import CSDN, load
from csdn.model.device import compiled, configure_torch
from csdn.training.embedding import build_optimizer, freeze_text, training_step

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")
# Of the losses of a step, relative to those of a CPU in float32.
TOLERANCES = {"float32": 1e-4, "tf32": 1e-2, "bf16": 5e-2}
SAME_FEATURE = 0.9999  # cosine
SIZE = (64, 32)


@pytest.fixture(autouse=True)
def _torch_as_before() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")
    configure_torch(1, "cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Built-in images of a few people."""
    return make_data(tmp_path_factory.mktemp("data"), FIRST)


# A step.


def network(device: torch.device) -> CSDN:
    torch.manual_seed(0)
    model = CSDN(replace(SMALL, identities=IDENTITIES)).channels_last().train().to(device)
    freeze_text(model)
    return model


def first_batch(device: torch.device) -> TrainBatch:
    batch = next(Slices(0, 1, torch.float32).epoch(0))
    found = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return TrainBatch(**{n: v.to(device) if isinstance(v, torch.Tensor) else v for n, v in found.items()})


def losses_of(device: torch.device, precision: str, steps: int = 1, fast: bool = False) -> torch.Tensor:
    """The losses [8 and their sum] of the last of some steps with one batch."""
    model, batch = network(device), first_batch(device)
    trained = compiled(model) if fast else model
    text = torch.randn(IDENTITIES, SMALL.embed_dim, generator=torch.Generator().manual_seed(1)).to(device)
    optimizer = build_optimizer(model, settings(torch.float32))
    for _ in range(steps):
        losses = training_step(trained, optimizer, batch, text, settings(torch.float32), precision)
    return torch.stack([loss.detach().cpu() for loss in losses.values()])


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("precision", TOLERANCES)
def test_a_step_has_the_losses_of_a_cpu(precision, deterministic):
    expected = losses_of(configure_torch(1, "cpu"), "float32")
    found = losses_of(configure_torch(1, "cuda", precision, deterministic), precision)
    torch.testing.assert_close(found, expected, rtol=TOLERANCES[precision], atol=0)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_compiled_step_has_the_losses_of_a_plain_one(precision):
    device = configure_torch(1, "cuda", precision)
    plain, fast = (losses_of(device, precision, fast=fast) for fast in (False, True))
    torch.testing.assert_close(fast, plain, rtol=TOLERANCES[precision], atol=0)


@pytest.mark.parametrize("precision", TOLERANCES)
def test_every_kernel_of_a_step_is_deterministic(precision):
    device = configure_torch(1, "cuda", precision)
    torch.set_deterministic_debug_mode("error")
    one, other = (losses_of(device, precision, steps=5) for _ in range(2))
    assert torch.equal(one, other)


def test_compiled_steps_give_the_same_bytes_each_time():
    device = configure_torch(1, "cuda", "bf16")
    one, other = (losses_of(device, "bf16", steps=5, fast=True) for _ in range(2))
    assert torch.equal(one, other)


@pytest.mark.parametrize("precision", TOLERANCES)
def test_a_step_never_waits_for_the_card(precision):
    device = configure_torch(1, "cuda", precision)
    model, batch = network(device), first_batch(device)
    text = torch.randn(IDENTITIES, SMALL.embed_dim, device=device)
    optimizer = build_optimizer(model, settings(torch.float32))
    for mode in ("default", "error"):  # the first step loads kernels and makes the optimiser's state
        torch.cuda.set_sync_debug_mode(mode)
        training_step(model, optimizer, batch, text, settings(torch.float32), precision)


# The loader.


@pytest.mark.parametrize("processes", [0, 2])
def test_the_loader_finishes_the_bytes_of_a_cpu(tmp_path, processes):
    write_data(tmp_path, people=6)
    table = load_dataset(tmp_path).train_table()
    source = train_source(table, tmp_path / "shards", 4, IMAGES, SIZE, padding=2)
    on_cpu = list(TrainLoader(source, 0).epoch(0))
    on_card = list(TrainLoader(source, processes, torch.device("cuda")).epoch(0))
    assert len(on_card) == len(on_cpu)
    for found, expected in zip(on_card, on_cpu, strict=True):
        for name in ("visible_view1", "visible_view2", "infrared", "labels"):
            assert getattr(found, name).is_cuda
            assert torch.equal(getattr(found, name).cpu(), getattr(expected, name)), name


# The stages.


def runs_of(folder, data, **changes) -> Runs:
    return Runs(
        folder, data, make_params(**{"scaling.device": "cuda", "scaling.loader_workers": 2} | changes)
    )


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_killed_and_resumed_run_gives_the_same_bytes(tmp_path, data, precision):
    finished = runs_of(tmp_path / "finished", data, **{"training.precision": precision})
    finished.prompts()
    finished.embedding()
    steps = finished.steps
    killed = runs_of(tmp_path / "killed", data, **{"training.precision": precision})
    killed.prompts()
    with pytest.raises(Killed):
        killed.embedding(kill=steps[len(steps) // 2])
    killed.embedding()
    for stage in ("prompts", "embedding"):
        assert killed.files(stage) == finished.files(stage)


def test_the_model_of_a_card_embeds_and_evaluates_as_on_a_cpu(tmp_path, data):
    runs = runs_of(tmp_path / "runs", data)
    runs.prompts()
    runs.embedding()
    images = torch.randn(8, 3, 32, 16)
    model = load(runs.folder / "embedding").eval()
    expected = model.embed(images, "infrared")
    found = model.to("cuda").embed(images.to("cuda"), "infrared").cpu()
    assert torch.cosine_similarity(found, expected).min() > SAME_FEATURE
    figures = {}
    for device in ("cpu", "cuda"):
        params = make_params(**{"scaling.device": device})
        out = runs.folder / f"evaluation-{device}", runs.folder / f"{device}.json"
        with contextlib.chdir(runs.folder):
            figures[device] = run_evaluation(params, data, runs.folder / "embedding", *out, runs._progress)
    for name, found in figures["cuda"]["trained"].items():
        assert found["mAP"]["mean"] == pytest.approx(figures["cpu"]["trained"][name]["mAP"]["mean"], abs=0.5)
