"""`csdn relabel`: corrected labels, as an edited table of `csdn check-labels` has them, become a new drop.

The images stay as they are, wherever they are: the new entry of the ledger has the old one's address, and
the corrected labels by path (csdn.ingest.ledger.Drop). The old entry is rejected. Both happen in one write of
the ledger.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from csdn.data.catalog import ImageRecord
from csdn.data.labels import NO_LABEL, canonical_label, label_fault
from csdn.data.outputs import from_cell
from csdn.ingest.ledger import (
    SHORT,
    Drop,
    Status,
    change_ledger,
    content_name,
    decide,
    drop_id,
    find_drop,
    list_records,
    read_ledger,
)
from csdn.ingest.sources import open_source
from csdn.runtime.documents import delimiter_of, read_text
from csdn.runtime.errors import UserError

NEEDED = ("path", "person", "drop")
FIXED = ("modality", "camera")  # a table may have them, and does not change them
LAYOUTS = ("cameras", "builtin")  # the labels of a benchmark are its authors'
READERS = 8


class EditedRow(NamedTuple):
    """A row of an edited table: the image, its person, and what must be as in the drop."""

    path: str
    person: str
    fixed: dict[str, str]


def read_edited(path: Path) -> tuple[str, list[EditedRow]]:
    """(the drop's id, the rows) of an edited table; raises UserError where it is no table of one drop."""
    try:
        text = read_text(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `csdn check-labels DROP --csv FILE` writes one") from None
    table = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter_of(text), strict=True)
    if missing := [name for name in NEEDED if name not in (table.fieldnames or ())]:
        raise UserError(
            f"{path}: column {', '.join(missing)} is missing; `csdn check-labels DROP --csv FILE` writes "
            "the table, of which only `person` is to be edited"
        )
    try:
        cells = [{name: from_cell(cell or "") for name, cell in row.items() if name} for row in table]
    except csv.Error as error:
        raise UserError(f"{path}: line {table.line_num}: {error}") from None
    drops = {row["drop"] for row in cells}
    if len(drops) != 1 or "" in drops:
        raise UserError(f"{path}: column drop: one drop's id is needed in every row, here are {len(drops)}")
    rows = [
        EditedRow(row["path"], row["person"], {name: row[name] for name in FIXED if name in row})
        for row in cells
    ]
    return drops.pop(), rows


def changed_labels(records: Sequence[ImageRecord], rows: Iterable[EditedRow], where: str) -> dict[str, str]:
    """path -> person of the images whose person is another in the rows; images without a row keep theirs.

    An empty person takes the label away. Raises UserError for a path that the drop does not have, a person
    that is no label, two people for one path, and another modality or camera than the drop's.
    """
    known: dict[str, list[ImageRecord]] = defaultdict(list)
    wanted: dict[str, set[str]] = defaultdict(set)
    for record in records:
        known[record.path].append(record)
    for row in rows:
        if row.path not in known:
            raise UserError(f"{where}: {row.path!r} is no image of the drop")
        if (fault := label_fault(row.person)) and fault != NO_LABEL:
            raise UserError(f"{where}: {row.path}: person {row.person!r} {fault}")
        for name, value in row.fixed.items():
            if not any(_same(getattr(one, name), value) for one in known[row.path]):
                raise UserError(
                    f"{where}: {row.path}: {name} {value!r} is not that of the drop; only `person` can be "
                    "corrected here"
                )
        wanted[row.path].add(row.person.strip())
    changed = {}
    for path, people in wanted.items():
        before = {one.person.strip() for one in known[path]}
        if people == before:
            continue
        if len(people) > 1:
            raise UserError(f"{where}: {path} has two people: {', '.join(map(repr, sorted(people)))}")
        changed[path] = people.pop()
    return changed


def _same(given: str, edited: str) -> bool:
    return canonical_label(given) == canonical_label(edited)


def relabelled(drop: Drop, rows: Iterable[EditedRow], where: str) -> tuple[Drop, int]:
    """(the drop with the corrected labels, how many images they change); raises UserError.

    The images are read, to know that they are those of the drop.
    """
    if drop.layout not in LAYOUTS:
        raise UserError(f"{drop}: layout {drop.layout}: the labels of a benchmark are its authors'")
    if drop.status == Status.REJECTED:
        raise UserError(
            f"{drop} is rejected: {drop.reason}. First: csdn accept {drop.id[:SHORT]} --reason ..."
        )
    source = open_source(drop.address, drop.layout)
    records = list_records(source, drop)
    changed = changed_labels(records, rows, where)
    if not changed:
        raise UserError(f"{where}: every label is as in {drop}; edit the column `person` first")
    try:
        with ThreadPoolExecutor(READERS) as readers:
            names = list(readers.map(lambda record: content_name(source, record), records))
    except OSError as error:
        raise UserError(f"{drop}: cannot be read: {error}") from error
    if drop_id(records, names, source.refused) != drop.fingerprint:
        raise UserError(f"{drop} changed since it was added: its files are not those that the ledger names")
    records = [replace(one, person=changed.get(one.path, one.person)) for one in records]
    reason = drop.reason if drop.status == Status.ACCEPTED else ""
    new = Drop(
        drop_id(records, names, source.refused),
        drop.address,
        drop.layout,
        reason=reason,
        labels={**drop.labels, **changed},
    )
    return new, len(changed)


def relabel(path: Path) -> tuple[Drop, Drop, int]:
    """Put the labels of an edited table in force; returns (the old drop, the new one, labels changed).

    Raises UserError, and then nothing has changed.
    """
    identifier, rows = read_edited(path)
    old = find_drop(read_ledger(), identifier)
    new, count = relabelled(old, rows, str(path))

    def exchange(drops: list[Drop]) -> list[Drop]:
        if same := next((drop for drop in drops if drop.id == new.id), None):
            raise UserError(f"{path}: {same} has these labels already; it is {same.status}")
        before = f"; before: {old.reason}" if old.reason else ""
        rejected = decide(drops, old.id, Status.REJECTED, f"relabelled as {new.id[:SHORT]}{before}")
        return [*rejected, new]

    change_ledger(exchange)
    return old, new, count
