"""Arrival: `csdn add` and `csdn sync` put complete drops into the ledger, and report drops that changed.

`open_drop` inspects an address (csdn.ingest.sources) and makes its ledger entry (csdn.ingest.ledger).
`sync_ledger` looks for new drops in the watched places, the folders and prefixes of `ingest.watch`.
csdn.ingest.run reads the drops of the ledger afterwards.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from csdn.data.catalog import INDEX_SCHEMA, MODALITIES, REFUSED_SCHEMA, ImageRecord, read_table
from csdn.data.outputs import refused_in_words
from csdn.data.storage import Store
from csdn.ingest.forgotten import FORGOTTEN, Forgotten, read_forgotten
from csdn.ingest.ledger import (
    SHORT,
    Drop,
    Status,
    content_name,
    drop_id,
    list_records,
    whole_address,
)
from csdn.ingest.sources import Source, open_source
from csdn.ingest.sources.cameras import MANIFESTS, MARKER, read_manifest, split_manifest
from csdn.ingest.sources.tree import FileEntry, RemoteTree, is_system_file, kinds_in_words
from csdn.runtime.documents import read_json
from csdn.runtime.errors import ServiceUnavailable, UserError
from csdn.runtime.files import atomic_write, write_json
from csdn.runtime.sanitize import escape_control_chars

# Threads: hashing and waiting for a store both release the GIL.
READERS = 8
LIST_ALL_DAYS = 7  # after so many days `csdn sync` lists every drop in a store again


def open_drop(address: str, layout: str, note: Callable[[str], None] = lambda line: None) -> tuple[Drop, int]:
    """The ledger entry of the drop at `address`, and how many images it lists.

    `note` gets a line for each kind of file that is left out. Raises UserError, also where the drop is not
    complete yet, or no image of it can be taken.
    """
    return _opened(address, layout, note)[:2]


def _opened(
    address: str, layout: str, note: Callable[[str], None], forgotten: Forgotten | None = None
) -> tuple[Drop, int, FileEntry | None]:
    """As `open_drop`, with the file that completes the drop."""
    source = open_source(address, layout)
    records = list_records(source, Drop("", address, layout), forgotten)
    if not source.complete:
        raise UserError(
            f"{address}: not complete: there is no {MARKER}, {' or '.join(MANIFESTS)}. "
            f"When all files are there, finish the drop with: touch {address.rstrip('/')}/{MARKER}"
        )
    if not records:
        why = refused_in_words(source.refused)
        raise UserError(f"{address}: no image can be taken: {why}{_inner_drop(source, address)}")
    for line in _left_out(source):
        note(line)
    drop = Drop(drop_fingerprint(source, records, address), whole_address(address), layout)
    return drop, len(records), source.marker


def label_drop(
    address: str, labels: Path, note: Callable[[str], None] = lambda line: None
) -> tuple[Drop, int]:
    """Put a manifest into the drop at `address`, and open the drop whose people it names (`open_drop`).

    Its name there contains the hash of its content, so it replaces no other. Raises UserError where it is no
    manifest.
    """
    try:
        content = labels.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{labels}: no such file; `csdn suggest` writes one") from None
    next(read_manifest(content, str(labels)), None)  # raises where it cannot be read
    folder, _ = split_manifest(address)
    name = f"labels-{hashlib.sha256(content).hexdigest()[:SHORT]}{labels.suffix.lower()}"
    if "://" in folder:
        Store(folder).put(name, labels)
    else:
        with atomic_write(Path(folder) / name) as temporary:
            temporary.write_bytes(content)
    return open_drop(f"{folder.rstrip('/')}/{name}", "cameras", note)


def _inner_drop(source: Source, address: str) -> str:
    """The command for a drop that is one folder further down, as some archives unpack; "" if it is not."""
    folders = {_above_modality(path) for path, _ in source.refused}
    if len(folders) != 1 or not (folder := folders.pop()):
        return ""
    return f". The drop is in a folder below it: csdn add {address.rstrip('/')}/{folder}"


def _above_modality(path: str) -> str | None:
    """The folders of a path above the one named after a modality; None where none is."""
    parts = path.split("/")
    index = next((n for n, part in enumerate(parts) if part.lower() in MODALITIES), None)
    return None if index is None else "/".join(parts[:index])


def _left_out(source: Source) -> list[str]:
    """A line for each kind of file that is not among the images of a listed drop."""
    others = [path for path in source.ignored if not is_system_file(path)]
    system = [(path, "hidden or system file") for path in source.ignored if is_system_file(path)]
    lines = list(source.notes)
    if source.refused:
        lines.append(f"not taken: {refused_in_words(source.refused)}")
    if others or system:
        lines.append(f"ignored: {refused_in_words(kinds_in_words(others) + system)}")
    return lines


def drop_fingerprint(source: Source, records: Sequence[ImageRecord], address: str) -> str:
    """The id of the drop that `source` has listed as `records`; raises UserError."""
    try:
        with ThreadPoolExecutor(READERS) as readers:
            names = list(readers.map(lambda record: content_name(source, record), records))
    except OSError as error:
        raise UserError(f"{address}: cannot be read: {error}") from error
    return drop_id(records, names, source.refused)


def sub_folders(place: str) -> list[str]:
    """Addresses of the folders directly below a watched place, sorted. Raises UserError."""
    if "://" in place:
        return RemoteTree(place).sub_folders()
    root = Path(whole_address(place))
    if not root.is_dir():
        raise UserError(f"{place}: no such folder; params.yaml names it (ingest.watch)")
    folders = (path for path in root.iterdir() if path.is_dir() and not is_system_file(path.name))
    return sorted(map(str, folders))


# `csdn sync`: new drops at the watched places, and changes of the drops that came from there.


DATA = Path("data")


def sync_ledger(
    drops: Sequence[Drop], places: Sequence[str], data: Path = DATA, thorough: bool = False
) -> tuple[list[Drop], list[str]]:
    """(the ledger with the new complete drops at the watched `places`, notes about new and changed drops).

    A known drop is compared with what was added: in a folder by the names and sizes that ingest recorded
    below `data`, in a store by its listing, if the file that completes it is another than at the last
    listing (SeenDrops). Once a week every drop in a store is listed. With `thorough` they are listed now, and
    the bytes of drops in folders are read. The entry of a known drop does not change. Raises UserError where
    a place cannot be listed.
    """
    addresses = dict.fromkeys(address for place in places for address in sub_folders(place))
    ledger, notes = {drop.id: drop for drop in drops}, []
    known: dict[str, list[Drop]] = {}
    for drop in drops:
        known.setdefault(drop.address, []).append(drop)
    seen = SeenDrops(data.parent / ".state/seen-drops.json", thorough)
    forgotten = read_forgotten(data / FORGOTTEN.name)
    unchanged = seen.unchanged([drop.address for drop in drops if drop.address in addresses])
    for address in addresses:
        if address not in known:
            notes += _add(ledger, address, seen, forgotten)
        elif address not in unchanged:
            notes += [
                note for drop in known[address] if (note := _change(drop, data, thorough, seen, forgotten))
            ]
    seen.save()
    folders = {_folder(place) for place in places}
    gone = [drop for drop in drops if drop.address not in addresses and _from(drop, folders)]
    return list(ledger.values()), notes + [_vanished(drop, data) for drop in gone]


class SeenDrops:
    """Which drops in object stores were as in the ledger when they were listed, by the file that completes
    them, so that a nightly sync asks for that file alone: one request a drop, whatever its images.

    The file `path` is only a memory: without it every drop is listed once.
    """

    def __init__(self, path: Path, list_all: bool) -> None:
        self.path, self.time = path, time.time()
        known = _read_seen(path)
        self.listed: float = known.get("listed", 0.0)
        self.markers: dict[str, list[str]] = known.get("markers", {})  # address -> name, etag
        self.list_all = list_all or self.time - self.listed > LIST_ALL_DAYS * 86_400
        if self.list_all:
            self.listed = self.time

    def unchanged(self, addresses: Iterable[str]) -> set[str]:
        """Those of the addresses whose file is the same as before."""
        if self.list_all:
            return set()
        remembered = [address for address in addresses if address in self.markers]
        with ThreadPoolExecutor(READERS) as readers:
            same = list(readers.map(self._is_same, remembered))
        return {address for address, is_same in zip(remembered, same, strict=True) if is_same}

    def note(self, address: str, marker: FileEntry | None) -> None:
        """Remember a drop that was listed."""
        if marker and marker.etag and "://" in address:
            self.markers[address] = [marker.path, marker.etag]

    def forget(self, address: str) -> None:
        """The next sync lists the drop again."""
        self.markers.pop(address, None)

    def save(self) -> None:
        if self.markers or self.path.exists():
            write_json(self.path, {"listed": self.listed, "markers": self.markers})

    def _is_same(self, address: str) -> bool:
        name, etag = self.markers[address]
        found = Store(address).find(name)
        return found is not None and found.etag == etag


def _read_seen(path: Path) -> dict[str, Any]:
    try:
        known = read_json(path) if path.exists() else {}
    except UserError:
        return {}
    return known if isinstance(known, dict) else {}


def _add(ledger: dict[str, Drop], address: str, seen: SeenDrops, forgotten: Forgotten) -> list[str]:
    """Add the drop at `address` to the ledger, by id; returns notes, which say why if it cannot be added."""
    shown, left_out = escape_control_chars(address), list[str]()
    try:
        if Path(address).is_symlink():
            raise UserError(f"{address}: a link to another place; if it is meant: csdn add {address}")
        drop, images, marker = _opened(address, "cameras", left_out.append, forgotten)
    except ServiceUnavailable:  # the state of the drop is unknown
        raise
    except UserError as error:
        return [f"skipped: {error}"]
    if same := next((one for one in ledger.values() if drop.id in (one.id, one.fingerprint)), None):
        return [f"skipped: {shown}: the same images are already in the ledger as {_named(same)}"]
    seen.note(address, marker)
    ledger[drop.id] = drop
    added = f"added drop {drop.id[:SHORT]}: {shown}, {images} images"
    return [added, *(f"  {escape_control_chars(line)}" for line in left_out)]


def _change(drop: Drop, data: Path, thorough: bool, seen: SeenDrops, forgotten: Forgotten) -> str | None:
    """A note about a drop that has changed since it was added; None if it has not, or is rejected."""
    if drop.status == Status.REJECTED:
        return None
    try:
        source = open_source(drop.address, drop.layout)
        records = list_records(source, drop, forgotten)
        if thorough or all(record.etag for record in records):
            same = drop_fingerprint(source, records, drop.address) == drop.fingerprint
        else:
            same = _as_recorded(drop, source, records, forgotten, data)
    except ServiceUnavailable:
        raise
    except UserError as error:
        seen.forget(drop.address)
        return f"changed: {_named(drop)}: {error}"
    if same:
        seen.note(drop.address, source.marker)
        return None
    seen.forget(drop.address)
    return f"changed: {_named(drop)}: its files are not those that were added; {_advice(drop)}"


def _as_recorded(
    drop: Drop, source: Source, records: Sequence[ImageRecord], forgotten: Forgotten, data: Path
) -> bool:
    """Whether a folder has the files and sizes that ingest found; True before ingest, which checks
    everything. An image of a forgotten person may be there under somebody else's name.
    """
    if not _is_read(drop, data):
        return True
    index = read_table(data / "index" / f"{drop.id}.parquet", INDEX_SCHEMA, ["path", "size"])
    bad = read_table(data / "index" / f"{drop.id}.quarantine.parquet", REFUSED_SCHEMA, ["path"])
    paths, sizes = index["path"].to_pylist(), index["size"].to_pylist()
    good = dict(zip(paths, sizes, strict=True))
    listed = Counter([record.path for record in records] + [path for path, _ in source.refused])
    found = Counter(paths + bad["path"].to_pylist())
    if found - listed or not all(good.get(record.path, record.size) == record.size for record in records):
        return False
    known = {record.path: record for record in records}
    more = [known.get(path) for path in listed - found]
    return all(record and content_name(source, record) in forgotten.images for record in more)


def _is_read(drop: Drop, data: Path) -> bool:
    return all((data / "index" / f"{drop.id}{end}").exists() for end in (".parquet", ".quarantine.parquet"))


def _from(drop: Drop, folders: Collection[str]) -> bool:
    """Whether a drop that is not rejected came from one of the watched `folders`."""
    return drop.status != Status.REJECTED and drop.address.rpartition("/")[0] in folders


def _folder(place: str) -> str:
    """A place as the addresses of its sub-folders contain it."""
    return place.rstrip("/") if "://" in place else whole_address(place)


def _vanished(drop: Drop, data: Path) -> str:
    kept = "its shards stay" if _is_read(drop, data) else f"ingest has not read it yet; {_bring_back(drop)}"
    return f"vanished: {_named(drop)}: nothing is there any more; {kept}"


def _bring_back(drop: Drop) -> str:
    return f"bring it back, or: csdn reject {drop.id[:SHORT]} --reason 'gone'"


def _advice(drop: Drop) -> str:
    return (
        "put new images into a folder of their own, or take the drop as it is now: "
        f"csdn reject {drop.id[:SHORT]} --reason 'changed' && csdn add {escape_control_chars(drop.address)}"
    )


def _named(drop: Drop) -> str:
    return escape_control_chars(str(drop))
