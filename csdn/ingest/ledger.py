"""The ledger `data/drops.json`: the drops of images in order of arrival, and whether each is accepted.

A drop is a set of image files at one address. csdn.ingest.sync adds drops that arrive, `csdn accept` and
`csdn reject` decide about them, and csdn.ingest.run reads those that are not rejected.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from csdn.data.catalog import ImageRecord
from csdn.data.images import BadImage
from csdn.ingest.forgotten import Forgotten, read_forgotten, without_forgotten
from csdn.ingest.sources import LAYOUTS, Source
from csdn.runtime.documents import parse_json
from csdn.runtime.errors import UserError
from csdn.runtime.files import locked, write_json
from csdn.runtime.sanitize import has_credentials

LEDGER = Path("data/drops.json")
LEDGER_VERSION = 1
SHORT = 12  # displayed digits of an id


class Status(StrEnum):
    ACCEPTED = "accepted"
    HELD = "held"
    REJECTED = "rejected"


@dataclass(frozen=True)
class Drop:
    """One entry of the ledger. A person gives `reason`; an accepted drop with a reason is never held.

    labels: path -> person, of the images whose label `csdn relabel` has corrected. They are in the ledger and
    not beside the images, because a drop may be read-only, and because one file changes atomically.
    listing: the hash of the drop's listing since people of it were forgotten; "": `id` is that hash.
    """

    id: str
    address: str
    layout: str
    status: Status = Status.ACCEPTED
    reason: str = ""
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    listing: str = ""

    @property
    def fingerprint(self) -> str:
        """What `drop_id` gives as long as the drop is unchanged."""
        return self.listing or self.id

    def __str__(self) -> str:
        return f"drop {self.id[:SHORT]} ({self.address})"


def list_records(source: Source, drop: Drop, forgotten: Forgotten | None = None) -> list[ImageRecord]:
    """The images of a drop as its source lists them, with the drop's corrected labels, without those of
    forgotten people (None: those of the project in the working directory). Raises UserError.
    """
    records = source.listing()
    if drop.labels:
        records = [replace(one, person=drop.labels.get(one.path, one.person)) for one in records]
    return without_forgotten(records, source.refused, read_forgotten() if forgotten is None else forgotten)


def drop_id(
    records: Iterable[ImageRecord], names: Iterable[str | None], refused: Iterable[tuple[str, str]]
) -> str:
    """SHA-256 of a drop's sorted listing; `names` identify the contents of the records (etag or hash).

    The listing has a JSON line for each image (path, size, name, labels), then one for each refused path.
    """
    digest = hashlib.sha256()
    for record, name in zip(records, names, strict=True):
        about: list[Any] = [record.person, record.modality, record.camera, record.captured_at]
        if record.splits:
            about += [record.splits, record.places]
        if not record.confirmed:
            about.append("not confirmed")
        digest.update(json.dumps([record.path, record.size, name, *about]).encode() + b"\n")
    for path, reason in refused:
        digest.update(json.dumps([path, reason]).encode() + b"\n")
    return digest.hexdigest()


def content_name(source: Source, record: ImageRecord) -> str | None:
    """The identifier of an image's content: the store's etag, else its SHA-256; None where reading is not
    allowed.
    """
    if record.etag is not None:
        return record.etag
    try:
        return hashlib.sha256(source.read(record)).hexdigest()
    except BadImage:
        return None


def read_ledger(path: Path = LEDGER) -> list[Drop]:
    """The drops in order; raises UserError naming the entry, its value and what is allowed."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the command in the project's root folder") from None
    return parse_ledger(text, str(path))


def parse_ledger(text: bytes, path: str) -> list[Drop]:
    """The drops of a ledger's text, in order; `path` names it in the UserError."""
    ledger = parse_json(text, path, f"`git diff {path}` shows what changed")
    if not isinstance(ledger, dict) or not isinstance(ledger.get("drops"), list):
        raise UserError(
            f'{path}: expected {{"version": {LEDGER_VERSION}, "drops": [...]}}; '
            f"`git diff {path}` shows what changed"
        )
    if repr(ledger.get("version")) != repr(LEDGER_VERSION):  # true equals 1
        raise UserError(
            f"{path}: version = {ledger.get('version')!r}; this program reads version {LEDGER_VERSION}: "
            "another version wrote the file, or it was edited"
        )
    drops = [_drop(entry, f"{path}: entry {n}") for n, entry in enumerate(ledger["drops"], start=1)]
    known: set[str] = set()
    for drop in drops:
        if drop.id in known:
            raise UserError(f"{path}: {drop} is there twice; delete one of the entries")
        known.add(drop.id)
    return drops


def _drop(entry: Any, where: str) -> Drop:
    names = {field.name for field in fields(Drop)}
    if not isinstance(entry, dict):
        raise UserError(f"{where}: {entry!r} is not an entry; `csdn add` makes entries")
    labels = entry.get("labels", {})
    if not isinstance(labels, dict) or not all(isinstance(person, str) for person in labels.values()):
        raise UserError(f'{where}: labels is not {{"path": "person", ...}}; `csdn relabel` writes it')
    entry = {"listing": "", **entry, "labels": labels}
    for problem, keys in (("missing", names - set(entry)), ("unknown", set(entry) - names)):
        if keys:
            raise UserError(f"{where}: {problem}: {', '.join(sorted(keys))}; `csdn add` makes entries")
    for name, value in entry.items():
        if name != "labels" and not isinstance(value, str):
            raise UserError(f"{where}: {name} = {value!r} is not a text")
    _allow(where, "layout", entry["layout"], LAYOUTS)
    _allow(where, "status", entry["status"], tuple(Status))
    if not re.fullmatch("([0-9a-f]{64})?", entry["listing"]):
        raise UserError(
            f"{where}: listing = {entry['listing']!r} is not 64 hex digits; `csdn forget` sets it"
        )
    if not re.fullmatch("[0-9a-f]{64}", entry["id"]):
        raise UserError(f"{where}: id = {entry['id']!r} is not 64 hex digits; `csdn add` makes entries")
    if not entry["address"]:
        raise UserError(f"{where}: address is empty; it is a folder, an s3:// prefix or builtin:NAME")
    if has_credentials(entry["address"]):
        raise UserError(
            f"{where}: the address has a key or password in it, and Git keeps this file: take it out, and "
            "use another key from now on. Keys belong in the environment, or in ~/.aws/credentials"
        )
    return Drop(**{**entry, "status": Status(entry["status"])})


def _allow(where: str, key: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise UserError(f"{where}: {key} = {value!r}; allowed: {', '.join(allowed)}")


def write_ledger(drops: Sequence[Drop], path: Path = LEDGER) -> None:
    write_json(path, as_document(drops))


def as_document(drops: Sequence[Drop]) -> dict[str, Any]:
    """The content of the ledger's file."""
    return {"version": LEDGER_VERSION, "drops": [as_entry(drop) for drop in drops]}


def as_entry(drop: Drop) -> dict[str, Any]:
    """The JSON values of a drop; `labels` and `listing` only where there are some."""
    return {name: value for name, value in asdict(drop).items() if name not in ("labels", "listing") or value}


def merge_ledgers(ours: Sequence[Drop], base: Sequence[Drop], theirs: Sequence[Drop]) -> list[Drop]:
    """Our ledger with what `theirs` has changed since `base`; an entry that we have changed stays ours."""
    before, after = ({drop.id: drop for drop in ledger} for ledger in (base, theirs))
    known = before.keys() | {drop.id for drop in ours}
    changed = [after.get(drop.id, drop) if before.get(drop.id) == drop else drop for drop in ours]
    return [*changed, *(drop for drop in theirs if drop.id not in known)]


def change_ledger(change: Callable[[list[Drop]], list[Drop]], path: Path = LEDGER) -> None:
    """Replace the ledger by the result of `change`, under a lock that excludes other processes."""
    read_ledger(path)  # raises before a lock file is made in a folder that is no project
    with locked(path):
        write_ledger(change(read_ledger(path)), path)


def whole_address(address: str) -> str:
    """The address in a form that is valid in any working directory: a local path becomes absolute.

    >>> whole_address("s3://bucket/in"), whole_address("builtin:demo"), whole_address("/data/in/")
    ('s3://bucket/in', 'builtin:demo', '/data/in')
    """
    if "://" in address or address.startswith("builtin:"):
        return address
    path = Path(address)
    return str(
        path.resolve() if ".." in path.parts else path.absolute()
    )  # `..` after a link means the parent of its target


def find_drop(drops: Sequence[Drop], name: str) -> Drop:
    """The drop at the address `name`, or whose id begins with it; UserError if there is not exactly one."""
    addresses = (name, whole_address(name))
    found = [drop for drop in drops if name and (drop.address in addresses or drop.id.startswith(name))]
    if len(found) != 1:
        known = "\n".join(f"  {drop.id[:SHORT]}  {drop.address}" for drop in found or drops)
        no = "is no drop's id or address in the ledger (`csdn add ADDRESS` adds one)"
        many = "names more than one drop" if found else no
        raise UserError(f"{name!r} {many}; there are:\n{known}")
    return found[0]


def decide(drops: Sequence[Drop], name: str, status: Status, reason: str) -> list[Drop]:
    """The ledger with the status and reason of one drop (`find_drop`) changed; its position stays."""
    if not reason.strip():
        raise UserError("a reason is needed: it is what others will read in the ledger")
    chosen = find_drop(drops, name)
    return [replace(drop, status=status, reason=reason.strip()) if drop == chosen else drop for drop in drops]
