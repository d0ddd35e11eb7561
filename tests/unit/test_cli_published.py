"""A published checkpoint becomes a folder that csdn.load reads, by one command."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from golden_vectors import assert_near, network, tensors

import csdn
from csdn.cli.benchmarks import import_published
from csdn.runtime.errors import UserError

IMAGES = tensors("inputs")["x_ir"]


@pytest.fixture
def checkpoint(tmp_path):
    """The golden network as it would be published: a file of a state dict, names with "module."."""
    path = tmp_path / "published.pth"
    torch.save({f"module.{name}": tensor for name, tensor in tensors("state_dict").items()}, path)
    return path


def test_the_command_imports_a_checkpoint_and_says_what_it_dropped(checkpoint, tmp_path):
    command = Path(sys.executable).with_name("csdn")
    arguments = ["import-published", checkpoint, "--image-size", "64x32", "--out", tmp_path / "model"]
    done = subprocess.run([command, *arguments], capture_output=True, text=True, check=True)
    assert "attention_fusion.embedding_q.0.weight: SII has one key" in done.stdout
    model = csdn.load(tmp_path / "model")
    assert model.config.stem == "published"
    assert_near(model.embed(IMAGES, "infrared"), network().embed(IMAGES, "infrared"), 1e-7)


def test_what_does_not_fit_is_refused_by_name_and_shape_and_nothing_is_written(tmp_path, fault):
    state = dict(tensors("state_dict"))
    del state["classifier2.BN.weight"]
    state["attnpool.c_proj.bias"] = torch.zeros(7)
    torch.save(state | {"stranger": torch.zeros(2)}, tmp_path / "published.pth")
    with pytest.raises(UserError) as caught:
        import_published(tmp_path / "published.pth", tmp_path / "model", "64x32")
    for part in ("classifier2.BN.weight", "attnpool.c_proj.bias", "[7]", "stranger"):
        assert part in str(caught.value)
    assert not (tmp_path / "model").exists()
    fault(
        "weights and checkpoints",
        "a published checkpoint with missing, extra and misshapen tensors",
        str(caught.value),
    )


@pytest.mark.parametrize("size", ["288", "288x", "axb", "288*144", "-3x4"])
def test_a_size_that_is_none_is_explained(tmp_path, size):
    with pytest.raises(UserError, match="write height x width in pixels, such as 288x144"):
        import_published(tmp_path / "none.pth", tmp_path / "model", size)


def test_a_folder_that_is_there_is_not_touched(checkpoint, tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(UserError, match="exists already"):
        import_published(checkpoint, tmp_path / "model", "64x32")
    assert not list((tmp_path / "model").iterdir())
