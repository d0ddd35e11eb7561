"""The core works where only torch, open_clip and numpy are installed, and does not wait for open_clip."""

import subprocess
import sys

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
BLOCKED = {"pandas", "pyarrow", "pydantic", "ray", "dvc", "prefect", "rich", "yaml", "matplotlib", "PIL"}


def run(blocked, more=""):
    program = PROGRAM.format(blocked=sorted(blocked), more=more)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_model_and_losses_import_without_the_pipelines_packages():
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
