"""report/index.html: one page that holds everything it shows, and asks nobody for anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from csdn.evaluation.scores import notes
from csdn.files import replace_folder
from csdn.params import Params
from csdn.report import facts, words
from csdn.report.inputs import ReportInputs, read_inputs
from csdn.report.losses import loss_charts
from csdn.report.pictures import Pictures
from csdn.report.ranked_lists import Shown, ranked_lists
from csdn.report.results import camera_grids, cmc_charts, direction_results
from csdn.report.similarity import similarity_charts


def write_report(params: Params, root: Path, out: Path) -> Path:
    """Render the report on what stands below the project's root; returns the page's path.

    Raises UserError where a file of an earlier stage is missing.
    """
    page = render(context(params, read_inputs(root)))
    with replace_folder(out) as folder:
        (folder / "index.html").write_text(page, encoding="utf-8")
    return out / "index.html"


def render(values: dict[str, Any]) -> str:
    """The page; every value is escaped, since names of people, cameras and files are anybody's."""
    environment = Environment(
        loader=PackageLoader("csdn.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(values)


def context(params: Params, inputs: ReportInputs) -> dict[str, Any]:
    """Everything that page.html.j2 shows."""
    figures = inputs.evaluation
    table = inputs.dataset.test_table()
    charts, areas = similarity_charts(inputs.features, table)
    model = inputs.model["model"]
    return {
        "opening": words.opening(figures),
        "order": words.order(figures),
        "directions": direction_results(figures),
        "trials": params.evaluation.trials,
        "notes": notes(figures["counts"]),
        "cmc": cmc_charts(inputs.cmc),
        "lists": ranked_lists(inputs.queries, params.report.queries, _showing(inputs)),
        "grids": camera_grids(inputs.camera_pairs),
        "similarity": charts,
        "separation": words.separation(areas) if areas else "",
        "losses": loss_charts(inputs.prompts_log, inputs.embedding_log),
        "naming": facts.naming_rows(inputs.naming),
        "data": facts.data_rows(inputs.ingest),
        "remarks": facts.data_remarks(inputs.ingest),
        "cameras": facts.camera_counts(inputs.ingest),
        "quarantine": facts.quarantine(inputs.quarantine),
        "parameters": facts.parameter_groups(params),
        "versions": facts.versions(),
        "protocol": params.evaluation.protocol,
        "clip": model["clip"],
        "clip_hash": model["clip_sha256"],
        "data_hash": inputs.data_hash,
        "test_people": inputs.ingest["people"]["test"],
    }


def _showing(inputs: ReportInputs) -> Any:
    """A function that gives the picture, person and camera of an image's key."""
    table = inputs.dataset.test_table()
    pictures = Pictures(table, inputs.shards)
    rows = {key: row for row, key in enumerate(table.key)}
    people = inputs.dataset.people
    names = dict(zip(people["row"].to_pylist(), people["person"].to_pylist(), strict=True))

    def show(key: str) -> Shown:
        row = rows[key]
        return Shown(
            picture=pictures.uri(row),
            person=names[int(table.person_row[row])],
            camera=table.camera_names[table.camera[row]],
        )

    return show
