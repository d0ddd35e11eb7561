"""report/index.html: one page that holds everything it shows, and asks nobody for anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from csdn.data.reading import shards_at
from csdn.files import replace_folder
from csdn.params import Params
from csdn.report.context import context, drawn_figures
from csdn.report.inputs import read_inputs
from csdn.report.png import write_pngs
from csdn.report.words import shown

FIGURES = "figures"  # the folder of PNGs beside the page


def write_report(params: Params, root: Path, out: Path) -> Path:
    """Render the report on what stands below the project's root; returns the page's path.

    Raises UserError where a file of an earlier stage is missing.
    """
    inputs = read_inputs(root, shards_at(params, root / "data"))
    drawn = drawn_figures(inputs)
    with replace_folder(out) as folder:
        names = write_pngs(drawn, folder / FIGURES)
        pngs = {name: f"{FIGURES}/{name}.png" for name in names}
        page = render(context(params, inputs, drawn) | {"pngs": pngs})
        (folder / "index.html").write_text(page, encoding="utf-8")
    return out / "index.html"


def render(values: dict[str, Any]) -> str:
    """The page; every value is escaped, since names of people, cameras and files are anybody's."""
    environment = Environment(
        loader=PackageLoader("csdn.report", "."),
        autoescape=True,
        finalize=shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(values)
