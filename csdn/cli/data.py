"""Commands on the ledger of drops: csdn add, sync, drops, accept, reject; and csdn demo-images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from csdn.data.catalog import REFUSED_SCHEMA, read_table
from csdn.data.outputs import in_words, refused_in_words
from csdn.ingest.ledger import (
    SHORT,
    Drop,
    Status,
    change_ledger,
    decide,
    find_drop,
    read_ledger,
    whole_address,
)
from csdn.ingest.sources import LAYOUTS
from csdn.ingest.sources.cameras import split_manifest
from csdn.ingest.sync import DATA, label_drop, open_drop, sync_ledger
from csdn.params import load_params
from csdn.runtime.documents import expected_in, read_json
from csdn.runtime.errors import UserError
from csdn.runtime.sanitize import escape_control_chars
from csdn.synthetic.sets import SETS, write_images

DropId = Annotated[
    str,
    typer.Argument(metavar="DROP", help="Of the ledger: its address, its id, or the id's first digits."),
]
Reason = Annotated[str, typer.Option(help="Why; others read it in the ledger.")]


def add(
    address: Annotated[str, typer.Argument(help="A folder, an s3:// prefix, or builtin:NAME.")],
    layout: Annotated[str, typer.Option(help=f"How the drop is laid out: {', '.join(LAYOUTS)}.")] = "cameras",
) -> None:
    """Append a drop of images to the ledger."""
    read_ledger()  # reports an invalid ledger before images are read
    notes: list[str] = []
    drop, images = open_drop(address, layout, notes.append)

    def append(drops: list[Drop]) -> list[Drop]:
        known = next((other for other in drops if other.id == drop.id), None)
        if known:
            raise UserError(f"{address}: these images are already in the ledger as {known}, {known.status}")
        return [*drops, drop]

    change_ledger(append)
    added = f"added drop {drop.id[:SHORT]}: {drop.address}, {images} images. Next: dvc repro"
    print(*map(escape_control_chars, [added, *(f"  {note}" for note in notes)]), sep="\n")


def sync(
    thorough: Annotated[
        bool, typer.Option(help="Read the files of known drops in folders again, not only names and sizes.")
    ] = False,
) -> None:
    """Append the new, complete drops that are in the folders of `ingest.watch` in params.yaml.

    A known drop that changed, vanished, or has another name now is reported, and stays as it is.
    """
    watched = load_params().ingest.watch
    if not watched:
        raise UserError("ingest.watch in params.yaml is empty; name the folders or s3:// prefixes to watch")
    before = read_ledger()
    drops, notes = sync_ledger(before, watched, thorough=thorough)
    if new := drops[len(before) :]:

        def append(now: list[Drop]) -> list[Drop]:
            known = {drop.id for drop in now}
            return [*now, *(drop for drop in new if drop.id not in known)]

        change_ledger(append)
    for note in notes:
        print(note)
    print(f"{len(new)} new, {len(read_ledger())} in the ledger")


def drops() -> None:
    """List the ledger: id, status, layout, address, reason; below each drop its bad files."""
    held = _held_by_ingest()
    for drop in read_ledger():
        undecided = held.get(drop.id) if not drop.reason else None
        status = "held" if undecided else str(drop.status)
        reason = f"{undecided[0]}: csdn accept or reject it" if undecided else drop.reason
        line = f"{drop.id[:SHORT]}  {status:8}  {drop.layout:8}  {drop.address}  {reason}"
        print(escape_control_chars(line.rstrip()))
        bad = undecided[1] if undecided else _rejected_files(drop)
        if bad and drop.status != Status.REJECTED:
            print(escape_control_chars(f"{'':14}bad: {bad}"))


def _held_by_ingest() -> dict[str, tuple[str, str]]:
    """Drop id -> (count of bad images, reasons and examples) of the drops that the last ingest held."""
    path, advice = Path("metrics/ingest.json"), "`dvc repro ingest` makes it"
    if not path.exists():
        return {}
    with expected_in(path, advice):
        held = read_json(path, advice)["drops"]["held"]
        return {
            drop["id"]: (
                f"{drop['bad']} of {drop['images']} images are bad",
                in_words(drop["reasons"], drop["examples"]),
            )
            for drop in held
        }


def _rejected_files(drop: Drop) -> str:
    """The bad files that ingest found when it read the drop, even if ingest stopped later."""
    path = DATA / "index" / f"{drop.id}.quarantine.parquet"
    if not path.exists():
        return ""
    table = read_table(path, REFUSED_SCHEMA, ["path", "reason"])
    return refused_in_words(list(zip(table["path"].to_pylist(), table["reason"].to_pylist(), strict=True)))


def accept(
    drop: DropId,
    reason: Reason,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="A manifest of `csdn suggest`, corrected: it is put into the drop, and names its people."
        ),
    ] = None,
) -> None:
    """Accept a drop in spite of its bad images, which stay excluded; or with the labels that you give it."""
    if labels:
        _accept_labelled(drop, labels, reason)
    else:
        _decide(drop, Status.ACCEPTED, reason)


def _accept_labelled(name: str, labels: Path, reason: str) -> None:
    """The drop at its address with the manifest is accepted; the entry without it is rejected."""
    drops, notes = read_ledger(), list[str]()
    is_address = "://" in name or Path(name).is_dir()
    address = whole_address(name) if is_address else find_drop(drops, name).address
    labelled, images = label_drop(address, labels, notes.append)
    folder = split_manifest(address)[0]

    def change(drops: list[Drop]) -> list[Drop]:
        for old in drops:
            if split_manifest(old.address)[0] == folder and old.status != Status.REJECTED:
                drops = decide(drops, old.id, Status.REJECTED, f"labelled: {labelled.id[:SHORT]}")
        known = any(drop.id == labelled.id for drop in drops)
        return decide(drops if known else [*drops, labelled], labelled.id, Status.ACCEPTED, reason)

    change_ledger(change)
    said = f"accepted {labelled}, {images} images. Next: dvc repro"
    print(*map(escape_control_chars, [said, *(f"  {note}" for note in notes)]), sep="\n")


def reject(drop: DropId, reason: Reason) -> None:
    """Exclude a drop; it keeps its place in the ledger, and its people keep their rows."""
    _decide(drop, Status.REJECTED, reason)


def _decide(name: str, status: Status, reason: str) -> None:
    change_ledger(lambda drops: decide(drops, name, status, reason))
    print(f"{escape_control_chars(name)}: {status}. Next: dvc repro")


def demo_images(
    out: Annotated[Path, typer.Option(help="Folder to make; it must be empty or missing.")],
    name: Annotated[str, typer.Option(help=f"Which of the built-in sets: {', '.join(SETS)}.")] = "demo",
) -> None:
    """Write the built-in people as a drop of images: the layout that your own cameras should have."""
    write_images(name, out)
    print(f"{out}: written. Try it as a drop of your own: csdn add {out}")
