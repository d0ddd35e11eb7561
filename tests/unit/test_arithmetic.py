"""The arithmetic that the parameters choose: precision, determinism, compilation."""

from __future__ import annotations

import os

import pytest
import torch
from small_network import SMALL
from torch import nn
from workspace import ROOT

from csdn.model import CSDN, device
from csdn.model.device import compiled, configure_torch, in_precision, with_precision
from csdn.params import load_params
from csdn.runtime.errors import UserError


def test_deterministic_kernels_are_the_default():
    configure_torch(1, "cpu")
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8" and not torch.backends.cudnn.benchmark
    configure_torch(1, "cpu", deterministic=False)
    assert torch.backends.cudnn.benchmark
    configure_torch(1, "cpu")


@pytest.mark.parametrize(("precision", "rounding"), [("float32", "ieee"), ("tf32", "tf32"), ("bf16", "ieee")])
def test_only_tf32_rounds_the_factors_of_float32(precision, rounding):
    configure_torch(1, "cpu", precision)
    assert torch.backends.cuda.matmul.fp32_precision == rounding
    assert torch.backends.cudnn.conv.fp32_precision == rounding
    configure_torch(1, "cpu")


@pytest.mark.parametrize(
    ("capability", "flags", "scaling", "expected"),
    [
        ((9, 0), set(), {}, ("bf16", "H200")),
        ((8, 0), set(), {}, ("bf16", "H200")),
        ((7, 5), set(), {}, ("float32", "H200")),
        ((9, 0), set(), {"device": "cpu"}, ("float32", "no bfloat16")),
        ((9, 0), {"avx512_bf16"}, {"device": "cpu"}, ("bf16", "avx512_bf16")),
        (None, {"avx2", "amx_bf16", "avx512_bf16"}, {}, ("bf16", "amx_bf16")),
        (None, {"avx2"}, {}, ("float32", "no bfloat16")),
        (None, {"avx2"}, {"workers": 2, "use_gpu": True}, ("bf16", "GPUs of a cluster")),
        ((9, 0), {"avx2"}, {"workers": 2}, ("float32", "no bfloat16")),
    ],
)
def test_auto_takes_the_fastest_precision_and_says_why(monkeypatch, capability, flags, scaling, expected):
    """The card is pretended: there is none here."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H200")
    monkeypatch.setattr(device, "_cpu_flags", lambda: flags)
    params = load_params(ROOT / "params.yaml")
    chosen = {
        "scaling": params.scaling.model_copy(update=scaling),
        "training": params.training.model_copy(update={"precision": "auto"}),
    }
    notes = []
    found = with_precision(params.model_copy(update=chosen), notes.append)
    assert found.training.precision == expected[0]
    assert expected[0] in notes[0] and expected[1] in notes[0]


def test_a_precision_that_is_set_is_kept():
    params = load_params(ROOT / "params.yaml")
    assert with_precision(params, pytest.fail) is params


def test_features_in_bf16_are_nearly_those_of_float32():
    torch.manual_seed(0)
    model = CSDN(SMALL).eval()
    images = torch.randn(16, 3, *SMALL.image_size)
    cpu = torch.device("cpu")
    exact, lower = (in_precision(model.embed, name, cpu)(images, "visible") for name in ("float32", "bf16"))
    assert lower.dtype == torch.float32 and not torch.equal(lower, exact)
    assert torch.cosine_similarity(lower, exact).min() > 0.999


def test_a_compiled_module_gives_the_values_of_the_plain_one():
    torch.manual_seed(0)
    plain, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU()), torch.randn(4, 8)
    torch.testing.assert_close(compiled(plain)(x), plain(x))


def test_without_a_compiler_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"training\.compile needs a C\+\+ compiler"):
        compiled(nn.Linear(1, 1))
