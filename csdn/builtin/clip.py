"""The small CLIP that ships with the package, as open_clip knows models.

After `register()`:
    open_clip.create_model("csdn-small", pretrained=str(WEIGHTS)); open_clip.get_tokenizer("csdn-small")
"""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path

NAME = "csdn-small"
ASSETS = Path(__file__).parent / "assets"
WEIGHTS = ASSETS / "clip-small.safetensors"
VOCABULARY = ASSETS / "bpe-small.txt.gz"


def config() -> dict:
    """open_clip's model configuration; the vocabulary's path is of this installation."""
    model = json.loads((ASSETS / f"{NAME}.json").read_text(encoding="utf-8"))
    model["text_cfg"]["tokenizer_kwargs"] = {"bpe_path": str(VOCABULARY)}
    return model


@cache
def register() -> None:
    """Make open_clip know "csdn-small"; further calls do nothing."""
    import open_clip  # it takes seconds, and most who need a name of this file do not need it

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{NAME}.json")
        path.write_text(json.dumps(config()), encoding="utf-8")
        open_clip.add_model_config(path)  # it reads the file at once and keeps what it says
