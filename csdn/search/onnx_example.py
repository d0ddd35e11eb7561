"""Cosine of two images by the exported model:

    python example.py visible a.jpg infrared b.jpg

Needs onnxruntime, NumPy and Pillow; reads preprocessing.json and the .onnx files beside it.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

FOLDER = Path(__file__).parent
SIZE = json.loads((FOLDER / "preprocessing.json").read_text(encoding="utf-8"))["image"]


def embed(paths: list[str], modality: str) -> np.ndarray:
    """Features float32 [n, D] of unit length, of image files of one modality ("visible" or "infrared")."""
    session = onnxruntime.InferenceSession(FOLDER / f"{modality}.onnx", providers=["CPUExecutionProvider"])
    return session.run(["features"], {"images": np.stack([picture(path) for path in paths])})[0]


def picture(path: str) -> np.ndarray:
    """uint8 [3, height, width], red, green, blue: upright, resized without keeping the aspect ratio."""
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode.startswith("I;16"):  # a thermal camera's: the high byte
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    image = image.convert("RGB").resize((SIZE["width"], SIZE["height"]), Image.Resampling.BILINEAR)
    return np.asarray(image).transpose(2, 0, 1)


if __name__ == "__main__":
    first, second = (embed([path], modality)[0] for modality, path in (sys.argv[1:3], sys.argv[3:5]))
    print(f"{first @ second:.6f}")
