"""`csdn import-published`: a checkpoint of the published implementation becomes a model folder of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from csdn.errors import UserError


def import_published(
    checkpoint: Annotated[Path, typer.Argument(help="File of a state dict (.pth); nothing in it is run.")],
    out: Annotated[Path, typer.Option(help="Folder to make, for csdn.load.")],
    image_size: Annotated[
        str, typer.Option(help="Height x width in pixels that it was trained at.")
    ] = "288x144",
) -> None:
    """Read a published CSDN checkpoint, say what was taken and what dropped, and write it as ours."""
    # Imported here: torch takes seconds.
    from csdn.model import import_published as read
    from csdn.model import save

    size = _size(image_size)
    if out.exists():
        raise UserError(f"{out}: there is something already; name a folder that does not exist yet")
    model, report = read(checkpoint, size)
    save(model, out, normalize="imagenet")
    print(report)
    print(f"{out}: {model.config.identities} people, images of {image_size}; load it with csdn.load")


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise UserError(f"--image-size {text}: write height x width in pixels, such as 288x144")
    return int(height), int(width)
