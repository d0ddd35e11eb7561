"""Input that means harm: pickles whose loading would be noticed, and names that would do something."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from csdn.synthetic.sets import SETS, images_of, write_images


class Trap:
    """Unpickling it makes the file `marker`."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


def pickles(marker: Path) -> dict[str, bytes]:
    """One file of each kind that runs code, or may hold some, when it is loaded without care."""
    trap = Trap(marker)
    return {
        "a plain pickle": pickle.dumps(trap),
        "a file of torch.save": _saved({"weight": trap}),
        "a file of torch.save of old": _saved({"weight": trap}, _use_new_zipfile_serialization=False),
        "a TorchScript archive": _scripted(),
    }


def _saved(value: object, **options: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def _scripted() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Identity(), torch.zeros(1)), buffer)
    return buffer.getvalue()


CAMERAS = {
    "cam1": "=cmd|'/c calc'!A1",
    "cam2": 'north,"gate"\nsecond line',
    "cam3": "\x1b[2J\x1b]8;;http://evil\x07red",
    "cam4": "</script><script>alert(1)</script>",
    "cam5": "[bold]x[/bold] | y",
    "cam6": "\u202egpj.exe %s {0} {{ 1 }}",
}


def hostile_drop(folder: Path) -> Path:
    """The set "tiny" as a drop whose cameras and people have names that would do something; its address."""
    write_images("tiny", folder)
    images = sorted(images_of(SETS["tiny"]), key=lambda image: image.path)
    columns = {
        "path": [image.path for image in images],
        "person": [f"\x1b[31m=HYPERLINK(1) </script>\n{image.label}" for image in images],
        "modality": [image.modality for image in images],
        "camera": [CAMERAS[image.camera.name] for image in images],
    }
    pq.write_table(pa.table(columns), folder / "manifest.parquet")
    return folder
