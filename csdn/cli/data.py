"""`csdn add | sync | drops | accept | reject`: the ledger by hand, and from cron."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from csdn.data.catalog import REFUSED_SCHEMA, read_table
from csdn.ingest.ledger import SHORT, Drop, Status, change_ledger, decide, read_ledger
from csdn.ingest.sources import LAYOUTS
from csdn.ingest.sync import DATA, open_drop, sync_ledger
from csdn.params import load_params
from csdn.runtime.documents import expected_in, read_json
from csdn.runtime.errors import UserError
from csdn.runtime.sanitize import escape_control_chars, in_words, refused_in_words

DropId = Annotated[str, typer.Argument(metavar="DROP", help="Its address, its id, or the id's first digits.")]
Reason = Annotated[str, typer.Option(help="Why; others read it in the ledger.")]


def add(
    address: Annotated[str, typer.Argument(help="A folder, an s3:// prefix, or builtin:NAME.")],
    layout: Annotated[str, typer.Option(help=f"How the drop is laid out: {', '.join(LAYOUTS)}.")] = "cameras",
) -> None:
    """Append a drop of images to the ledger."""
    read_ledger()  # what is wrong with it is said before images are read
    notes: list[str] = []
    drop, images = open_drop(address, layout, notes.append)

    def append(drops: list[Drop]) -> list[Drop]:
        known = next((other for other in drops if other.id == drop.id), None)
        if known:
            raise UserError(f"{address}: these images are already in the ledger as {known}, {known.status}")
        return [*drops, drop]

    change_ledger(append)
    print(
        f"added drop {drop.id[:SHORT]}: {escape_control_chars(drop.address)}, {images} images. Next: dvc repro"
    )
    for line in notes:
        print(f"  {escape_control_chars(line)}")


def sync(
    thorough: Annotated[
        bool, typer.Option(help="Read known drops of folders again, where names and sizes would do.")
    ] = False,
) -> None:
    """Append the drops that are new and complete at the places of `ingest.watch` in params.yaml.

    A known drop that changed, vanished, or comes again under another name is reported, and stays as it is.
    """
    places = load_params().ingest.watch
    if not places:
        raise UserError("ingest.watch in params.yaml is empty; name the folders or s3:// prefixes to watch")
    before = read_ledger()
    drops, notes = sync_ledger(before, places, thorough=thorough)
    new = drops[len(before) :]
    if new:
        change_ledger(lambda now: [*now, *(drop for drop in new if drop.id not in {one.id for one in now})])
    for note in notes:
        print(note)
    print(f"{len(new)} new, {len(read_ledger())} in the ledger")


def drops() -> None:
    """List the ledger: id, status, layout, address, reason; below each drop, which of its files are bad."""
    held = _held_by_ingest()
    for drop in read_ledger():
        waiting = held.get(drop.id) if not drop.reason else None
        status = "held" if waiting else str(drop.status)
        why = f"{waiting[0]}: csdn accept or reject it" if waiting else drop.reason
        print(
            escape_control_chars(
                f"{drop.id[:SHORT]}  {status:8}  {drop.layout:8}  {drop.address}  {why}".rstrip()
            )
        )
        bad = waiting[1] if waiting else _refused(drop)
        if bad and drop.status != Status.REJECTED:
            print(escape_control_chars(f"{'':14}bad: {bad}"))


def _held_by_ingest() -> dict[str, tuple[str, str]]:
    """Drop id -> (how many images are bad, which and why) of what the last ingest held; empty before it."""
    path, advice = Path("metrics/ingest.json"), "`dvc repro ingest` makes it"
    if not path.exists():
        return {}
    with expected_in(path, advice):
        held = read_json(path, advice)["drops"]["held"]
        return {
            one["id"]: (
                f"{one['bad']} of {one['images']} images are bad",
                in_words(one["reasons"], one["examples"]),
            )
            for one in held
        }


def _refused(drop: Drop) -> str:
    """What ingest refused when it read the drop, though it may have stopped later; empty before."""
    path = DATA / "index" / f"{drop.id}.quarantine.parquet"
    if not path.exists():
        return ""
    table = read_table(path, REFUSED_SCHEMA)
    return refused_in_words(list(zip(table["path"].to_pylist(), table["reason"].to_pylist(), strict=True)))


def accept(drop: DropId, reason: Reason) -> None:
    """Take a drop however many bad images it has (those stay out)."""
    _decide(drop, Status.ACCEPTED, reason)


def reject(drop: DropId, reason: Reason) -> None:
    """Leave a drop out; its place in the ledger, and its people's rows, stay."""
    _decide(drop, Status.REJECTED, reason)


def _decide(name: str, status: Status, reason: str) -> None:
    change_ledger(lambda drops: decide(drops, name, status, reason))
    print(f"{escape_control_chars(name)}: {status}. Next: dvc repro")
