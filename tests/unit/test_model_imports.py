"""The core works with torch, open_clip and numpy only; no unused module is imported."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROGRAM = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"No module named {{name!r}} (blocked)")

sys.meta_path.insert(0, Missing())
import csdn.evaluation, csdn.losses, csdn.model, csdn.training
assert "open_clip" not in sys.modules and "torchvision" not in sys.modules
{more}
"""
BLOCKED = {
    "pandas",
    "pyarrow",
    "pydantic",
    "ray",
    "dvc",
    "prefect",
    "rich",
    "ruamel",
    "yaml",
    "matplotlib",
    "PIL",
}


def run(blocked, more=""):
    program = PROGRAM.format(blocked=sorted(blocked), more=more)
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_model_and_losses_import_without_the_packages_of_the_pipeline():
    run(BLOCKED)


def test_a_network_is_built_and_run_without_open_clip():
    run(
        BLOCKED | {"open_clip", "torchvision"},
        "import torch\n"
        "from csdn.model import CSDN, ModelConfig\n"
        "sizes = dict(width=4, pool_heads=2, embed_dim=8, text_width=8, text_heads=2, text_layers=1)\n"
        "model = CSDN(ModelConfig(identities=2, image_size=(32, 16), depths=(1, 1, 1, 1), **sizes)).eval()\n"
        "assert model.embed(torch.zeros(2, 3, 32, 16), 'visible').shape == (2, 136)\n",
    )


def test_training_from_shipped_weights_does_not_import_open_clip():
    run(
        {"open_clip", "torchvision"},
        "import torch\n"
        "from pathlib import Path\n"
        "from csdn.model.device import configure_torch\n"
        "from csdn.model import CSDN, load_clip\n"
        "from csdn.params import load_params\n"
        "from csdn.training.embedding import build_optimizer, training_step\n"
        "from csdn.data.loader import TrainBatch\n"
        "configure_torch(1, 'cpu')\n"
        "params = load_params(Path('params.yaml'))\n"
        "clip = load_clip(params.model.clip, params.model.weights)\n"
        "model = CSDN.from_clip(clip, identities=2, image_size=(64, 32)).train()\n"
        "settings = params.embedding.model_copy(update={'images_per_identity': 4})\n"
        "images, labels = torch.randn(8, 3, 64, 32), torch.tensor([0, 1]).repeat_interleave(4)\n"
        "batch = TrainBatch(images, images, images, labels, 0, 0)\n"
        "text = torch.randn(2, model.config.embed_dim)\n"
        "training_step(model, build_optimizer(model, settings), batch, text, settings)\n",
    )


@pytest.mark.parametrize(
    "modules",
    [
        "csdn.cli.summary, csdn.report.page",
        "csdn.cluster.ray_data, csdn.cluster.ingest, csdn.cluster.progress",
    ],
    ids=["report", "tasks and actors of Ray"],
)
def test_modules_that_do_not_compute_do_not_import_torch(modules):
    program = f"import {modules}, sys; assert 'torch' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
