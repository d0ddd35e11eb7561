"""Commands that hand a model on: csdn export, csdn card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from csdn.cli.search import PARAMS, Model, model_folder
from csdn.params import load_params
from csdn.runtime.errors import UserError


def export(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write; an older export is replaced.")],
    model: Model = None,
    half: Annotated[
        bool, typer.Option("--half", help="Files in float16 too; measures what they cost.")
    ] = False,
) -> None:
    """Write a model as ONNX files, with what is needed to use them and an example (docs/export.md)."""
    from csdn.runtime.console import progress
    from csdn.search.export import PREPROCESSING
    from csdn.search.export import export as write

    params = load_params(PARAMS) if PARAMS.exists() else None
    values = write(params, Path(), model_folder(model), out, half, lambda *phase: progress("export", *phase))
    print(f"{out}/: model {values['model'][:12]}, {values['features']['numbers']} numbers a feature")
    print(f"thresholds: {'in ' + PREPROCESSING if values['thresholds'] else 'none of this model'}")
    if half:
        print(f"float16: smallest cosine with float32 {values['float16']['smallest_cosine']:.6f}")
        for direction, of in (values["float16"]["mAP"] or {}).items():
            print(
                f"  {direction.replace('_', ' ')}: mAP {of['float16']:.2f} %, float32 {of['float32']:.2f} %"
            )
        if not values["float16"]["mAP"]:
            print("  mAP not measured: this project has no test images")


def card(
    model: Model = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to write; not given: print.")
    ] = None,
) -> None:
    """Write the model card: data, figures, thresholds, parameters, intended use and licence, as Markdown."""
    from csdn.search.model_card import model_card, write_card

    if out is None:
        print(model_card(Path(), model_folder(model)), end="")
    elif out.is_dir():
        raise UserError(f"{out}: a folder; name a file, such as MODEL_CARD.md")
    else:
        write_card(Path(), model_folder(model), out)
