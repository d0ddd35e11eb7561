"""Merging: the indexes of all drops become people, samples and a quarantine. Pure functions of tables.

csdn.ingest.run has read each drop into an index of its own; csdn.ingest.identities decides who is who. Of the
indexes only those columns are in memory that decide, as numbers; the samples are written while the indexes
are read again. Time and memory are linear in the images. The rules:

* Several copies of an image of the same person and modality are used once, from whatever drops they are.
* If one drop has the same image under two people (or in both modalities), all its copies are quarantined.
* If a later drop has an image of an earlier drop under another person, the later copy is quarantined.
* A benchmark's drop keeps an image that it has twice for one person, because its authors count both. An image
  that is on no list of the split `data.trial` is not used.
* A drop is held, as if it were not there, if it has more bad images than allowed, or a camera of which
  every image is bad. A held drop does not affect the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from csdn.data.catalog import (
    MODALITIES,
    PEOPLE_SCHEMA,
    QUARANTINE_SCHEMA,
    SAMPLES_SCHEMA,
    codes,
    digests,
    image_numbers,
    positions,
    table_of,
    take_rows,
    to_batches,
    to_table,
)
from csdn.data.labels import NO_LABEL, canonical_label, spelling_notes
from csdn.data.outputs import refused_in_words
from csdn.ingest.forgotten import REASON as FORGOTTEN
from csdn.ingest.identities import NO_LISTS, UNLISTED, SplitRule, check_trial, people_splits, published_splits
from csdn.ingest.ledger import SHORT, Drop, Status
from csdn.runtime.errors import UserError

# What becomes of an image.
_USED, _UNUSED, _DUPLICATE, _TWO_PEOPLE, _EARLIER_DROP = range(5)
_CONFLICTS = {
    _TWO_PEOPLE: "same image under two people or modalities",
    _EARLIER_DROP: "same image under another person or modality in an earlier drop",
}


@dataclass(frozen=True)
class IndexedDrop:
    """A drop of the ledger with the tables that ingest made of it (csdn.data.catalog)."""

    drop: Drop
    index: ds.Dataset
    refused: pa.Table
    ignored: int
    grey16: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # by camera (csdn.ingest.counts)


@dataclass(frozen=True)
class HeldDrop:
    """An accepted drop that is left out because of its bad images; `refused` has (path, reason) of each.

    cameras: those of which every image is bad, such as "visible camera gate".
    """

    drop: Drop
    images: int
    refused: list[tuple[str, str]]
    cameras: list[str]

    @property
    def bad(self) -> int:
        return len(self.refused)


@dataclass(frozen=True)
class Merged:
    """samples: makes the rows of samples.parquet, read from the indexes. counts: their numbers, `images`, by
    drop, split, person_row, modality and camera.
    """

    people: pa.Table
    samples: Callable[[], Iterator[pa.RecordBatch]]
    counts: pa.Table
    quarantine: pa.Table
    duplicates: int
    held: list[HeldDrop]
    labels: list[str]  # warnings of spellings that were joined, or that look alike


def merge(
    drops: Sequence[IndexedDrop],
    rule: SplitRule,
    max_bad_fraction: float,
    tombstones: Mapping[int, str] = MappingProxyType({}),
) -> Merged:
    """Merge the indexed drops, in the ledger's order, by the rules above.

    tombstones: row -> name of the rows that forgotten people had, so that nobody else's row changes.
    """
    accepted = [(d.drop, d.index) for d in drops if d.drop.status == Status.ACCEPTED]
    check_trial(accepted, rule.trial)
    rows = _all_rows(drops, rule)
    used, held = _used_drops(drops, rows, max_bad_fraction)
    fates = _fates(rows, used)
    listed = people_splits(rows.frame, rows.people, used)
    people = _people(drops, rows, fates, rule, listed, tombstones)
    in_samples = (fates == _USED) & people.active[rows.frame["person"]]
    return Merged(
        people=people.table,
        samples=partial(_samples, drops, rows, people, in_samples),
        counts=_counts(rows, people, in_samples),
        quarantine=_quarantine(drops, rows, fates),
        duplicates=int((fates == _DUPLICATE).sum()),
        held=held,
        labels=_label_notes([rows.labels[n] for n in sorted(used)], rule),
    )


@dataclass(frozen=True)
class _Rows:
    """All indexed images, drop by drop, as numbers.

    frame: `drop`, the position of the drop; `person`, `camera` and `modality`, positions in the lists below
    and in MODALITIES; `listed`, what lists of authors say (csdn.ingest.identities.published_splits); `image`,
    the same for the same contents; `owner`, a number of person and modality. starts [drops + 1]: where the
    rows of a drop begin. ids: the drops' ids. labels: of each drop, the labels of people and of cameras as
    given.
    """

    frame: pd.DataFrame
    starts: np.ndarray
    ids: pa.Array
    people: list[str]
    cameras: pa.Array
    labels: list[tuple[list[str], list[str]]]

    def of(self, drop: int) -> slice:
        return slice(self.starts[drop], self.starts[drop + 1])


def _all_rows(drops: Sequence[IndexedDrop], rule: SplitRule) -> _Rows:
    people, cameras = _Numbers(rule.person), _Numbers(canonical_label)
    columns: dict[str, list[np.ndarray]] = {name: [] for name in ("person", "camera", "modality", "listed")}
    keys, labels = [], []
    for index in (indexed.index for indexed in drops):
        given_people, person = people(to_table(index, ["person"])["person"])
        given_cameras, camera = cameras(to_table(index, ["camera"])["camera"])
        modality = positions(to_table(index, ["modality"])["modality"], MODALITIES)
        found = person, camera, modality, published_splits(index, rule.trial)
        for column, values in zip(columns.values(), found, strict=True):
            column.append(values)
        keys.append(digests(to_batches(index, ["key"])))
        labels.append((given_people, given_cameras))
    sizes = [len(part) for part in keys]
    frame = pd.DataFrame({name: np.concatenate(parts) for name, parts in columns.items()})
    frame["drop"] = np.repeat(np.arange(len(drops), dtype=np.int32), sizes)
    frame["owner"] = len(MODALITIES) * frame["person"] + frame["modality"]
    frame["image"] = image_numbers(np.concatenate(keys))
    return _Rows(
        frame=frame,
        starts=np.cumsum([0, *sizes]),
        ids=pa.array([indexed.drop.id for indexed in drops], pa.string()),
        people=list(people.known),
        cameras=pa.array(list(cameras.known), pa.string()),
        labels=labels,
    )


class _Numbers:
    """Numbers labels by what they mean, in order of appearance."""

    def __init__(self, meaning: Callable[[str], str]) -> None:
        self.meaning, self.known = meaning, dict[str, int]()

    def __call__(self, column: pa.ChunkedArray) -> tuple[list[str], np.ndarray]:
        """The distinct labels of a column, and the number of each row's label, int32."""
        labels, found = codes(column)
        numbers = [self.known.setdefault(self.meaning(label), len(self.known)) for label in labels]
        return labels, np.array(numbers, np.int32)[found]


def _label_notes(labels: Sequence[tuple[list[str], list[str]]], rule: SplitRule) -> list[str]:
    """Warnings about the labels of the drops in use, people and cameras of each as given."""
    people = {label for of_drop, _ in labels for label in of_drop}
    cameras = {label for _, of_drop in labels for label in of_drop}
    kinds = (
        ("people", people, rule.person, "join them in the file that data.aliases names"),
        ("cameras", cameras, canonical_label, "name them alike, in the folders or the manifest"),
    )
    return [
        note
        for what, given, meaning, remedy in kinds
        for note in spelling_notes(
            what,
            {label: canonical_label(label) for label in given},  # not aliases: those are meant to join
            {meaning(label) for label in given},
            remedy,
        )
    ]


def _fates(rows: _Rows, used: Collection[int]) -> np.ndarray:
    """What becomes of each row if these drops are used, int8: _USED where the image is, otherwise why not."""
    frame = rows.frame
    in_use = np.isin(np.arange(len(rows.starts) - 1), list(used))[frame["drop"]]
    fates = np.where(in_use & (frame["listed"] != UNLISTED), _USED, _UNUSED).astype(np.int8)
    repeated = _repeated(frame)
    fates[repeated.index] = _fates_of_repeated(repeated, used)
    return fates


def _repeated(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows whose image other rows have too: only they can be duplicates or in conflict."""
    return frame[np.bincount(frame["image"])[frame["image"]] > 1]


def _fates_of_repeated(rows: pd.DataFrame, used: Collection[int]) -> pd.Series:
    fates = pd.Series(_UNUSED, index=rows.index, dtype="int8")
    listed = rows[rows["drop"].isin(list(used)) & (rows["listed"] != UNLISTED)]
    owners = listed.groupby(["drop", "image"])["owner"]
    ambiguous = owners.transform("min") != owners.transform("max")
    unambiguous = listed[~ambiguous]
    conflicting = unambiguous["owner"] != unambiguous.groupby("image")["owner"].transform("first")
    clean = unambiguous[~conflicting]
    fates[listed.index[ambiguous]] = _TWO_PEOPLE
    fates[unambiguous.index[conflicting]] = _EARLIER_DROP
    fates[clean.index] = _USED
    kept_twice = (clean["listed"] != NO_LISTS) & clean.duplicated(["drop", "image"])
    fates[clean.index[clean.duplicated("image") & ~kept_twice]] = _DUPLICATE
    return fates


def _used_drops(
    drops: Sequence[IndexedDrop], rows: _Rows, max_bad_fraction: float
) -> tuple[set[int], list[HeldDrop]]:
    """Positions of the drops that are used, and the accepted drops that are held."""
    images = [
        int(n) + indexed.refused.num_rows for n, indexed in zip(np.diff(rows.starts), drops, strict=True)
    ]
    refused, bad_cameras = [_bad(d.refused).num_rows for d in drops], [_bad_cameras(d) for d in drops]
    used = {n for n, indexed in enumerate(drops) if indexed.drop.status == Status.ACCEPTED}
    checked = {n for n in used if not drops[n].drop.reason}  # with a reason, a person accepted it as it is
    held: dict[int, HeldDrop] = {}
    repeated = _repeated(rows.frame)
    while True:
        fates = _fates_of_repeated(repeated, used)
        conflicts = fates[fates.isin(list(_CONFLICTS))]
        counts = repeated.loc[conflicts.index, "drop"].value_counts()
        bad = {n: refused[n] + int(counts.get(n, 0)) for n in checked & used}
        over = sorted(n for n in bad if bad[n] > max_bad_fraction * images[n] or bad_cameras[n])
        if not over:
            return used, [held[n] for n in sorted(held)]
        # Hold the first alone: without it, a later drop over the limit may have fewer conflicts.
        first = over[0]
        own = conflicts[repeated.loc[conflicts.index, "drop"] == first]
        paths = take_rows(drops[first].index, ["path"], own.index.to_numpy() - rows.starts[first])["path"]
        files = bad_files(drops[first]) + list(zip(paths.to_pylist(), own.map(_CONFLICTS), strict=True))
        held[first] = HeldDrop(drops[first].drop, images[first], files, bad_cameras[first])
        used.remove(first)


def _bad(refused: pa.Table) -> pa.Table:
    """The refused files that are bad; an image without a label is not, nor is a forgotten one."""
    return refused.filter(pc.invert(pc.is_in(refused["reason"], pa.array([NO_LABEL, FORGOTTEN]))))


def bad_files(indexed: IndexedDrop) -> list[tuple[str, str]]:
    """(path, reason) of the bad files among those refused when the drop was read."""
    bad = _bad(indexed.refused)
    return list(zip(bad["path"].to_pylist(), bad["reason"].to_pylist(), strict=True))


def _bad_cameras(indexed: IndexedDrop) -> list[str]:
    """The drop's cameras of which every image is bad."""
    bad = _cameras(_bad(indexed.refused))
    if not bad:
        return []
    good = _cameras(to_table(indexed.index, ["modality", "camera"]))
    good |= _cameras(indexed.refused.filter(pc.equal(indexed.refused["reason"], NO_LABEL)))
    # A file that was refused unread has no camera here; its source has checked that its camera has other
    # images.
    return [f"{modality} camera {camera}" for modality, camera in sorted(bad - good - {(None, None)})]


def _cameras(table: pa.Table) -> set[tuple[str | None, str | None]]:
    cameras = table.select(["modality", "camera"]).group_by(["modality", "camera"]).aggregate([])
    return set(zip(cameras["modality"].to_pylist(), cameras["camera"].to_pylist(), strict=True))


@dataclass(frozen=True)
class _People:
    """The table of people; by a person's number, the arrays row, split (texts) and active: is in samples."""

    table: pa.Table
    row: np.ndarray
    split: pa.Array
    active: np.ndarray


def _people(
    drops: Sequence[IndexedDrop],
    rows: _Rows,
    fates: np.ndarray,
    rule: SplitRule,
    listed: Mapping[str, str],
    tombstones: Mapping[int, str],
) -> _People:
    """A row for each person, by first drop, then by label, so that later drops only append rows; tombstones
    keep theirs.
    """
    frame, count = rows.frame, len(rows.people)
    first = np.full(count, len(drops))
    np.minimum.at(first, frame["person"].to_numpy(), frame["drop"].to_numpy())
    order = sorted(range(count), key=lambda n: (first[n], rows.people[n]))
    kept = [min(row, count + n) for n, row in enumerate(sorted(tombstones))]  # rows have no gaps
    numbers = np.setdiff1d(np.arange(count + len(kept)), kept)
    people = pd.DataFrame({"row": numbers, "person": [rows.people[n] for n in order]})
    people["bucket"] = [rule.bucket(person) for person in people["person"]]
    people["split"] = [
        listed.get(person, rule.split(bucket))
        for person, bucket in zip(people["person"], people["bucket"], strict=True)
    ]
    for code, modality in enumerate(MODALITIES):
        images = frame["person"][(fates == _USED) & (frame["modality"] == code)]
        people[modality.value] = np.bincount(images, minlength=count)[order]
    rejected = np.array([indexed.drop.status == Status.REJECTED for indexed in drops], dtype=bool)
    present = np.bincount(frame["person"][~rejected[frame["drop"]]], minlength=count)[order] > 0
    people["status"] = [
        _status(*facts)
        for facts in zip(people["split"], people["visible"], people["infrared"], present, strict=True)
    ]
    place = np.argsort(order)
    active = people["status"].isin(["train", "test"]).to_numpy()
    table = pa.Table.from_pandas(people[PEOPLE_SCHEMA.names], schema=PEOPLE_SCHEMA, preserve_index=False)
    split = table["split"].combine_chunks().take(place)
    names = [tombstones[row] for row in sorted(tombstones)]
    table = pa.concat_tables([table, *map(tombstone, kept, names)]).sort_by("row")
    return _People(table, numbers[place], split, active[place])


def tombstone(row: int, name: str) -> pa.Table:
    """The row of people.parquet that a forgotten person leaves."""
    return table_of([(row, name, -1, "", "removed", 0, 0)], PEOPLE_SCHEMA)


def _status(split: str, visible: int, infrared: int, present: bool) -> str:
    """`waiting`: lacks images (a train person needs both modalities); `removed`: all drops with it are
    rejected.
    """
    if not present:
        return "removed"
    if split == "test":
        return "test" if visible or infrared else "waiting"
    return "train" if visible and infrared else "waiting"


def _samples(
    drops: Sequence[IndexedDrop], rows: _Rows, people: _People, chosen: np.ndarray
) -> Iterator[pa.RecordBatch]:
    """The chosen rows as in samples.parquet; an index is sorted by path."""
    stored = ("key", "extension", "shard", "offset", "size", "modality", "path", "places")
    for n, indexed in enumerate(drops):
        start = rows.starts[n]
        for batch in to_batches(indexed.index, stored):
            own = slice(start, start + batch.num_rows)
            start = own.stop
            batch, about = batch.filter(pa.array(chosen[own])), rows.frame[own][chosen[own]]
            columns = {name: batch[name] for name in stored} | _columns(rows, people, about)
            yield pa.record_batch([columns[name] for name in SAMPLES_SCHEMA.names], schema=SAMPLES_SCHEMA)


def _columns(rows: _Rows, people: _People, about: pd.DataFrame) -> dict[str, pa.Array]:
    """What the merged tables say of some rows of the frame."""
    return {
        "drop": rows.ids.take(pa.array(about["drop"])),
        "split": people.split.take(pa.array(about["person"])),
        "person_row": pa.array(people.row[about["person"]]),
        "camera": rows.cameras.take(pa.array(about["camera"])),
    }


def _counts(rows: _Rows, people: _People, chosen: np.ndarray) -> pa.Table:
    numbers = ["drop", "person", "modality", "camera"]
    images = pa.Table.from_pandas(rows.frame.loc[chosen, numbers], preserve_index=False)
    counts = images.group_by(numbers, use_threads=False).aggregate([([], "count_all")])
    modality = pa.array(list(map(str, MODALITIES))).take(counts["modality"].combine_chunks())
    columns = _columns(rows, people, counts.to_pandas())
    return pa.table({**columns, "modality": modality, "images": counts["count_all"]})


def _quarantine(drops: Sequence[IndexedDrop], rows: _Rows, fates: np.ndarray) -> pa.Table:
    """The files refused on reading (except of rejected drops) and the conflicts, drop by drop, by path."""
    parts = [QUARANTINE_SCHEMA.empty_table()]
    for n, indexed in enumerate(drops):
        conflicts = np.flatnonzero(np.isin(fates[rows.of(n)], list(_CONFLICTS)))
        why = pa.array([_CONFLICTS[fate] for fate in fates[rows.of(n)][conflicts].tolist()], pa.string())
        images = take_rows(indexed.index, ["path", "key", "person", "modality", "camera"], conflicts)
        images = images.rename_columns({"key": "sha256"}).append_column("reason", why)
        refused = indexed.refused
        if indexed.drop.status == Status.REJECTED:
            refused = refused.slice(0, 0)
        files = pa.concat_tables([refused, images.select(refused.schema.names)]).sort_by("path")
        parts.append(files.append_column("drop", pa.repeat(indexed.drop.id, files.num_rows)))
    return pa.concat_tables([part.cast(QUARANTINE_SCHEMA) for part in parts])


# Checking that training and testing are possible, before hours are spent.


def check_trainable(people: pa.Table, held: Sequence[HeldDrop], minimum_people: int) -> None:
    """Raise UserError if the merged data cannot be trained on or tested with; the error says what is missing.

    people: the table of people.parquet; minimum_people: the people of a batch (P).
    """
    problem = _problem(people, minimum_people)
    if problem is None:
        return
    notes = [
        f"  held, and so left out: drop {one.drop.id[:SHORT]} ({one.drop.address}), {one.bad} of "
        f"{one.images} images bad: {refused_in_words(one.refused)}; take it as it is with: "
        f"csdn accept {one.drop.id[:SHORT]} --reason '...'"
        for one in held
    ]
    raise UserError("\n".join([problem, *notes]))


def _problem(people: pa.Table, minimum_people: int) -> str | None:
    for modality in ("visible", "infrared"):
        if not sum(people[modality].to_pylist()):
            return (
                f"nothing to train on: there is no usable {modality} image in any drop; "
                "a cross-modality model needs visible and infrared images of the same people"
            )
    status = Counter(people["status"].to_pylist())
    if status["train"] < minimum_people:
        return (
            f"nothing to train on: {status['train']} training people have visible and infrared images, "
            f"a batch needs {minimum_people} (embedding.identities_per_batch); "
            f"{status['waiting']} more have one modality only. Add images of them, or lower the number"
        )
    if not status["test"]:
        return (
            "nothing to test with: nobody is a test person (the highest buckets, data.test_percent); "
            "add people or raise data.test_percent"
        )
    return None
