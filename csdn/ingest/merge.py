"""Merging: the indexes of all drops become people, samples and a quarantine. Pure functions of tables.

csdn.ingest.run has read each drop into an index of its own; csdn.ingest.identities decides who is who. The
rules:

* Several copies of an image of the same person and modality are used once, from whatever drops they are.
* If one drop has the same image under two people (or in both modalities), all its copies are quarantined.
* If a later drop has an image of an earlier drop under another person, the later copy is quarantined.
* A benchmark's drop keeps an image that it has twice for one person, because its authors count both. An image
  that is on no list of the split `data.trial` is not used.
* A drop is held, as if it were not there, if it has more bad images than allowed, or a camera of which every
image
  is bad. A held drop does not affect the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd
import pyarrow as pa

from csdn.data.catalog import PEOPLE_SCHEMA, QUARANTINE_SCHEMA, SAMPLES_SCHEMA
from csdn.data.labels import NO_LABEL, canonical_label, spelling_notes
from csdn.data.outputs import refused_in_words
from csdn.ingest.identities import SplitRule, check_trial, people_splits, published_splits
from csdn.ingest.ledger import SHORT, Drop, Status
from csdn.runtime.errors import UserError

TWO_PEOPLE = "same image under two people or modalities"
EARLIER_DROP = "same image under another person or modality in an earlier drop"
_DUPLICATE, _UNUSED = "duplicate", "unused"
_CONFLICTS = (TWO_PEOPLE, EARLIER_DROP)


@dataclass(frozen=True)
class IndexedDrop:
    """A drop of the ledger with the tables that ingest made of it (csdn.data.catalog)."""

    drop: Drop
    index: pa.Table
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
    people: pa.Table
    samples: pa.Table
    quarantine: pa.Table
    duplicates: int
    held: list[HeldDrop]
    labels: list[str]  # warnings of spellings that were joined, or that look alike


def merge(drops: Sequence[IndexedDrop], rule: SplitRule, max_bad_fraction: float) -> Merged:
    """Merge the indexed drops, in the ledger's order, by the rules above."""
    accepted = [(d.drop, d.index) for d in drops if d.drop.status == Status.ACCEPTED]
    check_trial(accepted, rule.trial)
    rows = _all_rows(drops, rule)
    used, held = _used_drops(drops, rows, max_bad_fraction)
    rows["disposition"] = _dispositions(rows, used)
    images = rows[rows["disposition"] == ""]
    rejected = {n for n, indexed in enumerate(drops) if indexed.drop.status == Status.REJECTED}
    people = _people(rows, images, rejected, rule, people_splits(rows, used))
    return Merged(
        people=_as_table(people, PEOPLE_SCHEMA),
        samples=_samples(images, people, drops),
        quarantine=_quarantine(drops, rows),
        duplicates=int((rows["disposition"] == _DUPLICATE).sum()),
        held=held,
        labels=_label_notes(rows[rows["drop"].isin(list(used))]),
    )


def _all_rows(drops: Sequence[IndexedDrop], rule: SplitRule) -> pd.DataFrame:
    """All indexed images with the position of their drop, and the split that lists of authors give them.

    `person` and `camera` are canonical, `label` and `camera_label` as given; `image` numbers the contents,
    `owner` the pairs of person and modality.
    """
    frames = [
        indexed.index.to_pandas().assign(drop=n, given=published_splits(indexed.index, rule.trial))
        for n, indexed in enumerate(drops)
    ]
    rows = pd.concat(frames, ignore_index=True)
    people = {label: rule.person(label) for label in rows["person"].unique()}
    cameras = {label: canonical_label(label) for label in rows["camera"].unique()}
    rows["label"], rows["camera_label"] = rows["person"], rows["camera"]
    rows["person"], rows["camera"] = rows["person"].map(people), rows["camera"].map(cameras)
    rows["image"] = pd.factorize(rows["key"])[0]
    rows["owner"] = rows.groupby(["person", "modality"]).ngroup()
    return rows


def _label_notes(rows: pd.DataFrame) -> list[str]:
    """Warnings about the labels of the drops in use."""
    remedies = (
        ("people", "label", "person", "join them in the file that data.aliases names"),
        ("cameras", "camera_label", "camera", "name them alike, in the folders or the manifest"),
    )
    return [
        note
        for what, given, column, remedy in remedies
        for note in spelling_notes(
            what,
            {
                label: canonical_label(label) for label in rows[given].unique()
            },  # not aliases: those are meant to join
            rows[column].unique(),
            remedy,
        )
    ]


def _dispositions(rows: pd.DataFrame, used: Collection[int]) -> pd.Series:
    """What becomes of each row if these drops are used: "" where the image is used, otherwise why not."""
    disposition = pd.Series(_UNUSED, index=rows.index)
    listed = rows[rows["drop"].isin(list(used)) & (rows["given"] != "")]
    owners = listed.groupby(["drop", "image"])["owner"]
    ambiguous = owners.transform("min") != owners.transform("max")
    unambiguous = listed[~ambiguous]
    conflicting = unambiguous["owner"] != unambiguous.groupby("image")["owner"].transform("first")
    clean = unambiguous[~conflicting]
    disposition[listed.index[ambiguous]] = TWO_PEOPLE
    disposition[unambiguous.index[conflicting]] = EARLIER_DROP
    disposition[clean.index] = ""
    kept_twice = clean["given"].notna() & clean.duplicated(["drop", "image"])
    disposition[clean.index[clean.duplicated("image") & ~kept_twice]] = _DUPLICATE
    return disposition


def _used_drops(
    drops: Sequence[IndexedDrop], rows: pd.DataFrame, max_bad_fraction: float
) -> tuple[set[int], list[HeldDrop]]:
    """Positions of the drops that are used, and the accepted drops that are held."""
    images = [indexed.index.num_rows + indexed.refused.num_rows for indexed in drops]
    refused, bad_cameras = [bad_files(d) for d in drops], [_bad_cameras(d) for d in drops]
    used = {n for n, indexed in enumerate(drops) if indexed.drop.status == Status.ACCEPTED}
    checked = {n for n in used if not drops[n].drop.reason}  # with a reason, a person accepted it as it is
    held: dict[int, HeldDrop] = {}
    while True:
        reasons = rows[["drop", "path"]].assign(reason=_dispositions(rows, used))
        conflicts = reasons[reasons["reason"].isin(_CONFLICTS)]
        counts = conflicts["drop"].value_counts()
        bad = {n: len(refused[n]) + int(counts.get(n, 0)) for n in checked & used}
        over = sorted(n for n in bad if bad[n] > max_bad_fraction * images[n] or bad_cameras[n])
        if not over:
            return used, [held[n] for n in sorted(held)]
        # Hold the first alone: without it, a later drop over the limit may have fewer conflicts.
        first = over[0]
        of_first = conflicts.loc[conflicts["drop"] == first, ["path", "reason"]]
        files = refused[first] + list(of_first.itertuples(index=False, name=None))
        held[first] = HeldDrop(drops[first].drop, images[first], files, bad_cameras[first])
        used.remove(first)


def bad_files(indexed: IndexedDrop) -> list[tuple[str, str]]:
    """(path, reason) of the files refused when the drop was read; an image without a label is not bad."""
    columns = (indexed.refused[name].to_pylist() for name in ("path", "reason"))
    return [(path, reason) for path, reason in zip(*columns, strict=True) if reason != NO_LABEL]


def _bad_cameras(indexed: IndexedDrop) -> list[str]:
    """The drop's cameras of which every image is bad."""
    good = set(_cameras(indexed.index))
    bad = set()
    for camera, reason in zip(_cameras(indexed.refused), indexed.refused["reason"].to_pylist(), strict=True):
        (good if reason == NO_LABEL else bad).add(camera)
    # A file that was refused unread has no camera here; its source has checked that its camera has other
    # images.
    return [f"{modality} camera {camera}" for modality, camera in sorted(bad - good - {(None, None)})]


def _cameras(table: pa.Table) -> list[tuple[str | None, str | None]]:
    return list(zip(table["modality"].to_pylist(), table["camera"].to_pylist(), strict=True))


def _people(
    rows: pd.DataFrame,
    images: pd.DataFrame,
    rejected: Collection[int],
    rule: SplitRule,
    listed: Mapping[str, str],
) -> pd.DataFrame:
    """A row for each person, by first drop, then by label, so that later drops only append rows."""
    people = rows.sort_values(["drop", "person"], kind="stable")[["person"]].drop_duplicates(
        ignore_index=True
    )
    people["row"] = people.index
    people["bucket"] = [rule.bucket(person) for person in people["person"]]
    people["split"] = [
        listed.get(person, rule.split(bucket))
        for person, bucket in zip(people["person"], people["bucket"], strict=True)
    ]
    for modality in ("visible", "infrared"):
        counts = images.loc[images["modality"] == modality, "person"].value_counts()
        people[modality] = people["person"].map(counts).fillna(0).astype("int64")
    present = people["person"].isin(rows.loc[~rows["drop"].isin(list(rejected)), "person"])
    people["status"] = [
        _status(*facts)
        for facts in zip(people["split"], people["visible"], people["infrared"], present, strict=True)
    ]
    return people


def _status(split: str, visible: int, infrared: int, present: bool) -> str:
    """`waiting`: lacks images (a train person needs both modalities); `removed`: all drops with it are
    rejected.
    """
    if not present:
        return "removed"
    if split == "test":
        return "test" if visible or infrared else "waiting"
    return "train" if visible and infrared else "waiting"


def _samples(images: pd.DataFrame, people: pd.DataFrame, drops: Sequence[IndexedDrop]) -> pa.Table:
    active = people.loc[people["status"].isin(["train", "test"]), ["person", "row", "split"]]
    samples = images.merge(active.rename(columns={"row": "person_row"}), on="person", how="inner")
    samples = samples.sort_values(["drop", "path"], kind="stable")
    samples["drop"] = samples["drop"].map({n: indexed.drop.id for n, indexed in enumerate(drops)})
    return _as_table(samples, SAMPLES_SCHEMA)


def _quarantine(drops: Sequence[IndexedDrop], rows: pd.DataFrame) -> pa.Table:
    """The files refused on reading (except of rejected drops) and the conflicts, drop by drop, by path."""
    ids = {n: indexed.drop.id for n, indexed in enumerate(drops)}
    parts = [
        indexed.refused.append_column("drop", pa.array([ids[n]] * indexed.refused.num_rows, pa.string()))
        for n, indexed in enumerate(drops)
        if indexed.drop.status != Status.REJECTED
    ]
    conflicts = rows[rows["disposition"].isin(_CONFLICTS)].assign(drop=lambda frame: frame["drop"].map(ids))
    conflicts = conflicts.drop(columns=["person", "camera"]).rename(
        columns={"disposition": "reason", "key": "sha256", "label": "person", "camera_label": "camera"}
    )
    frame = pd.concat([table.to_pandas() for table in [*parts, _as_table(conflicts, QUARANTINE_SCHEMA)]])
    frame["position"] = frame["drop"].map({drop: n for n, drop in ids.items()})
    return _as_table(frame.sort_values(["position", "path"], kind="stable"), QUARANTINE_SCHEMA)


def _as_table(frame: pd.DataFrame, schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pandas(frame[schema.names], schema=schema, preserve_index=False)


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
