"""The golden vectors: what a correct CSDN computes (tests/parity/golden), and how close is close enough.

Computed once with the published method on a small random network: images 64x32, 12 people, published stem.
"""

import json
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file

from csdn.model import CSDN, load_published
from csdn.model.published import published_name

FOLDER = Path(__file__).parents[1] / "parity" / "golden"
IMAGE_SIZE = (64, 32)

# What was compared with the golden vectors -> (largest relative difference, tolerance); benchmarks/parity.py.
MEASURED: dict[str, tuple[float, float]] = {}


@cache
def tensors(name: str) -> dict[str, torch.Tensor]:
    return load_file(FOLDER / f"{name}.safetensors")


@cache
def expected() -> dict:
    return json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))


def network() -> CSDN:
    """The golden network, fresh for each caller, in evaluation mode."""
    return load_published(tensors("state_dict"), IMAGE_SIZE)


def named_parameters(model: CSDN) -> dict[str, torch.nn.Parameter]:
    """What trains, by published name."""
    return {published_name(n): p for n, p in model.named_parameters() if p.requires_grad}


def named_buffers(model: CSDN) -> dict[str, torch.Tensor]:
    """BN statistics by published name."""
    return {published_name(n): b for n, b in model.named_buffers() if n in model.state_dict()}


def sampled(tensor: torch.Tensor, count: int = 16) -> torch.Tensor:
    """The entries that the files keep of a large tensor: `count` of them, evenly spaced."""
    flat = tensor.detach().flatten()
    return flat[torch.linspace(0, len(flat) - 1, min(count, len(flat))).long()]


def assert_near(
    actual: torch.Tensor, wanted: torch.Tensor, relative: float = 1e-5, what: str | None = None
) -> None:
    """The largest difference is within `relative` of the largest value; `what` names it in MEASURED."""
    assert actual.shape == wanted.shape
    difference = (actual.detach().double() - wanted.double()).abs().max().item()
    assert_within(difference / wanted.double().abs().max().item(), relative, what)


def assert_close(actual: float, wanted: float, relative: float, what: str) -> None:
    """Two scalars, as `assert_near`."""
    assert_within(abs(actual - wanted) / abs(wanted), relative, what)


def assert_within(difference: float, tolerance: float, what: str | None) -> None:
    """`difference` is at most `tolerance`; the largest of each `what` is kept for docs/parity.md."""
    assert difference <= tolerance, f"{what or 'values'} differ by {difference:.2g}, allowed is {tolerance:g}"
    if what is not None:
        largest = MEASURED.get(what, (0.0, tolerance))[0]
        MEASURED[what] = (max(largest, difference), tolerance)
