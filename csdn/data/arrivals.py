"""Drops that arrive: what is at an address, and is it complete?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from csdn.data.drops import Drop, content_name, drop_id, whole_address
from csdn.data.records import MODALITIES, ImageRecord
from csdn.data.refusals import refused_in_words
from csdn.data.sources import Source, open_source
from csdn.data.sources.cameras import MANIFESTS, MARKER
from csdn.data.sources.kinds import kinds_in_words
from csdn.data.sources.tree import RemoteTree, is_system_file
from csdn.errors import UserError

# Hashing and waiting for a store both leave Python's lock.
READERS = 8


def examine(address: str, layout: str, note: Callable[[str], None] = lambda line: None) -> tuple[Drop, int]:
    """The ledger entry of the drop at `address`, and how many images it lists.

    `note` is told what of the drop is left out, and why. Raises UserError, also where the drop is not
    complete yet, and where no image of it can be taken.
    """
    source = open_source(address, layout)
    records = source.listing()
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
    return Drop(id_of(source, records, address), whole_address(address), layout), len(records)


def _inner_drop(source: Source, address: str) -> str:
    """Where the drop is one folder further down, as an archive may unpack it: what to call instead."""
    folders = {_above_modality(path) for path, _ in source.refused}
    if len(folders) != 1 or not (folder := folders.pop()):
        return ""
    return f". The drop is in a folder below it: csdn add {address.rstrip('/')}/{folder}"


def _above_modality(path: str) -> str | None:
    """The folders of a path above the one that is called as a modality; None where none is."""
    parts = path.split("/")
    place = next((n for n, part in enumerate(parts) if part.lower() in MODALITIES), None)
    return None if place is None else "/".join(parts[:place])


def _left_out(source: Source) -> list[str]:
    """What of a listed drop is no image of it, a line for each sort."""
    others = [path for path in source.ignored if not is_system_file(path)]
    system = [(path, "hidden or system file") for path in source.ignored if is_system_file(path)]
    lines = list(source.notes)
    if source.refused:
        lines.append(f"not taken: {refused_in_words(source.refused)}")
    if others or system:
        lines.append(f"ignored: {refused_in_words(kinds_in_words(others) + system)}")
    return lines


def id_of(source: Source, records: Sequence[ImageRecord], address: str) -> str:
    """The id of the drop that `source` has listed as `records`; raises UserError."""
    try:
        with ThreadPoolExecutor(READERS) as readers:
            names = list(readers.map(lambda record: content_name(source, record), records))
    except OSError as error:
        raise UserError(f"{address}: cannot be read: {error}") from error
    return drop_id(records, names, source.refused)


def sub_folders(place: str) -> list[str]:
    """Addresses of the folders directly below a landing place, sorted. Raises UserError."""
    if "://" in place:
        return RemoteTree(place).sub_folders()
    root = Path(whole_address(place))
    if not root.is_dir():
        raise UserError(f"{place}: no such folder; params.yaml names it (ingest.landing)")
    folders = (path for path in root.iterdir() if path.is_dir() and not is_system_file(path.name))
    return sorted(map(str, folders))
