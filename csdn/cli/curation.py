"""Commands of the care of data: csdn drift, check-labels, relabel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from csdn.cli.data import DropId
from csdn.cli.search import Model, embedder_for, model_folder
from csdn.data.shards import shards_at
from csdn.ingest.identities import read_aliases
from csdn.ingest.ledger import SHORT, Status, find_drop, read_ledger
from csdn.ingest.sync import DATA
from csdn.params import load_params
from csdn.runtime.console import progress
from csdn.runtime.sanitize import escape_control_chars


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


def check_labels(
    drop: DropId,
    table: Annotated[
        Path | None, typer.Option("--csv", help="Write a table to edit and to give to `csdn relabel`.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with pictures.")] = None,
    top: Annotated[int, typer.Option(help="How many findings of each kind to show.", min=1)] = 20,
    model: Model = None,
) -> None:
    """Rank the images and people of a drop whose labels the model and the other images contradict."""
    from csdn.curation.label_check import check_labels, trained_people
    from csdn.curation.label_page import lines, write_page, write_table

    params, ledger = load_params(), read_ledger()
    chosen = find_drop(ledger, drop)
    others = [one for one in ledger if one.status == Status.ACCEPTED and one.id != chosen.id]
    folder = model_folder(model)
    trained, embedder = trained_people(folder), embedder_for(folder)
    with progress("labels", "embed", "images") as report:
        check = check_labels(
            chosen, others, embedder, trained, params, read_aliases(params.data.aliases), report
        )
    print(*lines(check, top), sep="\n")
    if table:
        write_table(check, table, top)
        print(f"table: {table}; edit its column `person`, then: csdn relabel {table}")
    if html:
        write_page(check, html, top)
        print(f"page: {html} (one file, opens offline)")


def relabel(
    file: Annotated[Path, typer.Argument(help="A table of `csdn check-labels --csv`, edited.")],
) -> None:
    """Correct the labels of a drop: the ledger gets it anew with the labels of the table."""
    from csdn.curation.relabel import relabel

    old, new, count = relabel(file)
    print(
        escape_control_chars(
            f"labels corrected: {count}; drop {new.id[:SHORT]} replaces {old.id[:SHORT]} ({new.address}). "
            "Next: dvc repro"
        )
    )
