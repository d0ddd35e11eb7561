"""`csdn add | sync | drops | accept | reject`: the ledger by hand, and from cron."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from csdn.data.arrivals import examine
from csdn.data.drops import SHORT, Status, decide, read_ledger, write_ledger
from csdn.data.sources import LAYOUTS
from csdn.data.syncing import synced
from csdn.documents import expected_in, read_json
from csdn.errors import UserError
from csdn.params import load_params
from csdn.safe import printable

DropId = Annotated[str, typer.Argument(metavar="DROP", help="Its address, its id, or the id's first digits.")]
Reason = Annotated[str, typer.Option(help="Why; others read it in the ledger.")]


def add(
    address: Annotated[str, typer.Argument(help="A folder, an s3:// prefix, or builtin:NAME.")],
    layout: Annotated[str, typer.Option(help=f"How the drop is laid out: {', '.join(LAYOUTS)}.")] = "cameras",
) -> None:
    """Append a drop of images to the ledger."""
    drops = read_ledger()
    drop, images = examine(address, layout)
    known = next((other for other in drops if other.id == drop.id), None)
    if known:
        raise UserError(f"{address}: these images are already in the ledger as {known}, {known.status}")
    write_ledger([*drops, drop])
    print(f"added drop {drop.id[:SHORT]}: {printable(address)}, {images} images. Next: dvc repro")


def sync(
    thorough: Annotated[
        bool, typer.Option(help="Read known drops of folders again, where names and sizes would do.")
    ] = False,
) -> None:
    """Append the drops that are new and complete at the places of `ingest.landing` in params.yaml.

    A known drop that changed, vanished, or comes again under another name is reported, and stays as it is.
    """
    places = load_params().ingest.landing
    if not places:
        raise UserError("ingest.landing in params.yaml is empty; name the folders or s3:// prefixes to watch")
    before = read_ledger()
    drops, notes = synced(before, places, thorough=thorough)
    if drops != before:
        write_ledger(drops)
    for note in notes:
        print(note)
    print(f"{len(drops) - len(before)} new, {len(drops)} in the ledger")


def drops() -> None:
    """List the ledger: id, status, layout, address, reason."""
    held = _held_by_ingest()
    for drop in read_ledger():
        waiting = drop.id in held and not drop.reason
        status = "held" if waiting else str(drop.status)
        why = f"{held[drop.id]}: csdn accept or reject it" if waiting else drop.reason
        print(printable(f"{drop.id[:SHORT]}  {status:8}  {drop.layout:8}  {drop.address}  {why}".rstrip()))


def _held_by_ingest() -> dict[str, str]:
    """Drop id -> why the last ingest held it; empty before the first."""
    path, advice = Path("metrics/ingest.json"), "`dvc repro ingest` makes it"
    if not path.exists():
        return {}
    with expected_in(path, advice):
        held = read_json(path, advice)["drops"]["held"]
        return {one["id"]: f"{one['bad']} of {one['images']} images are bad" for one in held}


def accept(drop: DropId, reason: Reason) -> None:
    """Take a drop however many bad images it has (those stay out)."""
    _decide(drop, Status.ACCEPTED, reason)


def reject(drop: DropId, reason: Reason) -> None:
    """Leave a drop out; its place in the ledger, and its people's rows, stay."""
    _decide(drop, Status.REJECTED, reason)


def _decide(name: str, status: Status, reason: str) -> None:
    write_ledger(decide(read_ledger(), name, status, reason))
    print(f"{printable(name)}: {status}. Next: dvc repro")
