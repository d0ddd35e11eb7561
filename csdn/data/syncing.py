"""`csdn sync`: which drops arrived at the landing places, and what became of those that came from there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from csdn.data.arrivals import examine, id_of, sub_folders
from csdn.data.drops import SHORT, Drop, Status, whole_address
from csdn.data.records import ImageRecord
from csdn.data.sources import open_source
from csdn.data.tables import INDEX_SCHEMA, REFUSED_SCHEMA, read_table
from csdn.errors import Away, UserError
from csdn.safe import printable

DATA = Path("data")


def synced(
    drops: Sequence[Drop], places: Sequence[str], data: Path = DATA, thorough: bool = False
) -> tuple[list[Drop], list[str]]:
    """(the ledger with the complete drops that are new at `places`, a line on each that is worth one).

    A known drop is compared with what was added: in a store by its listing, in a folder by the names and
    sizes that ingest recorded below `data`, with `thorough` by its bytes. Its entry stays as it is.
    Raises UserError where a place cannot be listed.
    """
    found = list(dict.fromkeys(address for place in places for address in sub_folders(place)))
    now, notes = list(drops), []
    for address in found:
        known = [drop for drop in drops if drop.address == address]
        if not known:
            now, said = _with_arrival(now, address)
            notes += said
        notes += [note for drop in known if (note := _change(drop, data, thorough))]
    gone = [drop for drop in drops if drop.address not in found and _from(drop, places)]
    return now, notes + [_vanished(drop, data) for drop in gone]


def _with_arrival(drops: list[Drop], address: str) -> tuple[list[Drop], list[str]]:
    """The ledger with the drop at `address`, if it can be taken; one bad folder does not stop the others."""
    shown, left_out = printable(address), []
    try:
        if Path(address).is_symlink():
            raise UserError(f"{address}: a link to another place; if it is meant: csdn add {address}")
        drop, images = examine(address, "cameras", left_out.append)
    except Away:  # nothing can be said of the drop
        raise
    except UserError as error:
        return drops, [f"skipped: {error}"]
    same = next((other for other in drops if other.id == drop.id), None)
    if same:
        return drops, [f"skipped: {shown}: the same images are already in the ledger as {_named(same)}"]
    added = f"added drop {drop.id[:SHORT]}: {shown}, {images} images"
    return [*drops, drop], [added, *(f"  {printable(line)}" for line in left_out)]


def _change(drop: Drop, data: Path, thorough: bool) -> str | None:
    """What to say of a drop that is not as it was added; a rejected one may change."""
    if drop.status == Status.REJECTED:
        return None
    try:
        source = open_source(drop.address, drop.layout)
        records = source.listing()
        if thorough or all(record.etag for record in records):
            same = id_of(source, records, drop.address) == drop.id
        else:
            same = _as_recorded(drop, records, source.refused, data)
    except Away:
        raise
    except UserError as error:
        return f"changed: {_named(drop)}: {error}"
    if same:
        return None
    return f"changed: {_named(drop)}: its files are not those that were added; {_advice(drop)}"


def _as_recorded(
    drop: Drop, records: Sequence[ImageRecord], refused: Sequence[tuple[str, str]], data: Path
) -> bool:
    """Whether a folder has the files and sizes that ingest found; True before ingest, which compares all."""
    if not _is_read(drop, data):
        return True
    index = read_table(data / "index" / f"{drop.id}.parquet", INDEX_SCHEMA)
    bad = read_table(data / "index" / f"{drop.id}.quarantine.parquet", REFUSED_SCHEMA)["path"].to_pylist()
    good = dict(zip(index["path"].to_pylist(), index["size"].to_pylist(), strict=True))
    listed = Counter([record.path for record in records] + [path for path, _ in refused])
    if listed != Counter(index["path"].to_pylist() + bad):
        return False
    return all(good.get(record.path, record.size) == record.size for record in records)


def _is_read(drop: Drop, data: Path) -> bool:
    return all((data / "index" / f"{drop.id}{end}").exists() for end in (".parquet", ".quarantine.parquet"))


def _from(drop: Drop, places: Sequence[str]) -> bool:
    """Whether a drop that is not rejected came from a landing place."""
    parent = drop.address.rpartition("/")[0]
    return drop.status != Status.REJECTED and parent in {_folder(place) for place in places}


def _folder(place: str) -> str:
    """A place as it stands in the addresses of its sub-folders."""
    return place.rstrip("/") if "://" in place else whole_address(place)


def _vanished(drop: Drop, data: Path) -> str:
    kept = "its shards stay" if _is_read(drop, data) else f"ingest has not read it yet; {_bring_back(drop)}"
    return f"vanished: {_named(drop)}: nothing is there any more; {kept}"


def _bring_back(drop: Drop) -> str:
    return f"bring it back, or: csdn reject {drop.id[:SHORT]} --reason 'gone'"


def _advice(drop: Drop) -> str:
    return (
        "put new images into a folder of their own, or take the drop as it is now: "
        f"csdn reject {drop.id[:SHORT]} --reason 'changed' && csdn add {printable(drop.address)}"
    )


def _named(drop: Drop) -> str:
    return printable(str(drop))
