"""Commands of the care of data: csdn drift."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from csdn.cli.data import DropId
from csdn.cli.search import Model, embedder_for, model_folder
from csdn.data.shards import shards_at
from csdn.ingest.ledger import find_drop, read_ledger
from csdn.ingest.sync import DATA
from csdn.params import load_params
from csdn.runtime.console import progress


def drift(
    drop: DropId,
    html: Annotated[Path | None, typer.Option(help="Write a page with pictures.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    model: Model = None,
) -> None:
    """Compare each camera of a drop with the images of training and test: what has changed?"""
    from csdn.curation.drift import Reference, drift_of
    from csdn.curation.drift_page import lines, write_page

    params, chosen = load_params(), find_drop(read_ledger(), drop)
    embedder = embedder_for(model_folder(model))
    reference = Reference(DATA, shards_at(params, DATA), embedder, {chosen.id})
    with progress("drift", "compare", "cameras", images=0) as report:
        found = drift_of(chosen, reference, params.ingest.grey16_range, report)
    if html:
        write_page(found, html)
    if as_json:
        print(json.dumps(found.as_json(), indent=1, ensure_ascii=False))
    else:
        print(*lines(found), sep="\n")
        if html:
            print(f"page: {html} (one file, opens offline)")
