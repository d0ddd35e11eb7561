"""The drops laid together: who there is, which images are used, which drops are left out. Pure.

* The same image of the same person and modality is used once, wherever it comes again.
* Under two persons (or in both modalities) of one drop, no copy can be trusted: all are quarantined.
* Under another person than in an earlier drop, the earlier drop keeps it and the later copy is quarantined.
* A benchmark's drop keeps images that come twice for one person: its counts are its authors'. An image that
  is on no list of the split `data.trial` is not used.
* A drop with more bad images than allowed, or with a camera of which every image is bad, is left out as if it
  were not there: it decides nothing for others.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd
import pyarrow as pa

from csdn.data.catalog import PEOPLE_SCHEMA, QUARANTINE_SCHEMA, SAMPLES_SCHEMA
from csdn.data.labels import NO_LABEL, canonical_label, spelling_notes
from csdn.ingest.grey16 import Facts
from csdn.ingest.identities import SplitRule, check_trial, people_splits, published_splits
from csdn.ingest.ledger import Drop, Status

TWO_PEOPLE = "same image under two people or modalities"
EARLIER_DROP = "same image under another person or modality in an earlier drop"
_DUPLICATE, _UNUSED = "duplicate", "unused"
_CONFLICTS = (TWO_PEOPLE, EARLIER_DROP)


@dataclass(frozen=True)
class IndexedDrop:
    """A drop of the ledger with what ingest found in it (csdn.data.catalog)."""

    drop: Drop
    index: pa.Table
    refused: pa.Table
    ignored: int
    grey16: Mapping[str, Facts] = field(default_factory=dict)  # by camera (csdn.ingest.grey16)


@dataclass(frozen=True)
class HeldDrop:
    """An accepted drop that is left out because of its bad images: `refused` has (path, reason) of each.

    cameras: those of which every image is bad, as in "visible camera gate".
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
    labels: list[str]  # warnings: spellings that were joined, or look alike


def merge(drops: Sequence[IndexedDrop], identity: SplitRule, max_bad_fraction: float) -> Merged:
    """Merge the indexed drops, in the ledger's order; see the module's text for the rules."""
    accepted = [(d.drop, d.index) for d in drops if d.drop.status == Status.ACCEPTED]
    check_trial(accepted, identity.trial)
    rows = _all_rows(drops, identity)
    taken, held = _taken(drops, rows, max_bad_fraction)
    rows["fate"] = _fates(rows, taken)
    used = rows[rows["fate"] == ""]
    rejected = {n for n, indexed in enumerate(drops) if indexed.drop.status == Status.REJECTED}
    people = _people(rows, used, rejected, identity, people_splits(rows, taken))
    return Merged(
        people=_as_table(people, PEOPLE_SCHEMA),
        samples=_samples(used, people, drops),
        quarantine=_quarantine(drops, rows),
        duplicates=int((rows["fate"] == _DUPLICATE).sum()),
        held=held,
        labels=_label_notes(rows[rows["drop"].isin(list(taken))]),
    )


def _all_rows(drops: Sequence[IndexedDrop], identity: SplitRule) -> pd.DataFrame:
    """Every indexed image with its drop's position, canonical person and camera, and numbers for image and
    owner; `label` and `camera_label` are as given.
    """
    frames = [
        indexed.index.to_pandas().assign(drop=n, given=published_splits(indexed.index, identity.trial))
        for n, indexed in enumerate(drops)
    ]
    rows = pd.concat(frames, ignore_index=True)
    people = {label: identity.person(label) for label in rows["person"].unique()}
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
            {label: canonical_label(label) for label in rows[given].unique()},  # what aliases join was meant
            rows[column].unique(),
            remedy,
        )
    ]


def _fates(rows: pd.DataFrame, taken: Collection[int]) -> pd.Series:
    """What becomes of each row: "" is used, else why not."""
    fate = pd.Series(_UNUSED, index=rows.index)
    live = rows[rows["drop"].isin(list(taken)) & (rows["given"] != "")]
    owners = live.groupby(["drop", "image"])["owner"]
    torn = owners.transform("min") != owners.transform("max")
    whole = live[~torn]
    clash = whole["owner"] != whole.groupby("image")["owner"].transform("first")
    sound = whole[~clash]
    fate[live.index[torn]] = TWO_PEOPLE
    fate[whole.index[clash]] = EARLIER_DROP
    fate[sound.index] = ""
    kept = sound["given"].notna() & sound.duplicated(["drop", "image"])
    fate[sound.index[sound.duplicated("image") & ~kept]] = _DUPLICATE
    return fate


def _taken(
    drops: Sequence[IndexedDrop], rows: pd.DataFrame, max_bad_fraction: float
) -> tuple[set[int], list[HeldDrop]]:
    """Positions of the drops that are used, and the accepted ones that are held."""
    images = [indexed.index.num_rows + indexed.refused.num_rows for indexed in drops]
    refused, blind = [bad_files(d) for d in drops], [_blind_cameras(d) for d in drops]
    taken = {n for n, indexed in enumerate(drops) if indexed.drop.status == Status.ACCEPTED}
    judged = {n for n in taken if not drops[n].drop.reason}  # a reason: somebody accepted it as it is
    held: dict[int, HeldDrop] = {}
    while True:
        fates = rows[["drop", "path"]].assign(reason=_fates(rows, taken))
        conflicts = fates[fates["reason"].isin(_CONFLICTS)]
        torn = conflicts["drop"].value_counts()
        bad = {n: len(refused[n]) + int(torn.get(n, 0)) for n in judged & taken}
        over = sorted(n for n in bad if bad[n] > max_bad_fraction * images[n] or blind[n])
        if not over:
            return taken, [held[n] for n in sorted(held)]
        # Of those over the limit the first is held for certain; a later one may owe it to the first.
        first = over[0]
        of_first = conflicts.loc[conflicts["drop"] == first, ["path", "reason"]]
        files = refused[first] + list(of_first.itertuples(index=False, name=None))
        held[first] = HeldDrop(drops[first].drop, images[first], files, blind[first])
        taken.remove(first)


def bad_files(indexed: IndexedDrop) -> list[tuple[str, str]]:
    """(path, reason) of what was refused when the drop was read; an image without a label is not bad."""
    columns = (indexed.refused[name].to_pylist() for name in ("path", "reason"))
    return [(path, reason) for path, reason in zip(*columns, strict=True) if reason != NO_LABEL]


def _blind_cameras(indexed: IndexedDrop) -> list[str]:
    """The drop's cameras of which every image is bad."""
    good = set(_cameras(indexed.index))
    bad = set()
    for place, reason in zip(_cameras(indexed.refused), indexed.refused["reason"].to_pylist(), strict=True):
        (good if reason == NO_LABEL else bad).add(place)
    # What was refused unread has no camera here; its source has checked that the camera has other images.
    return [f"{modality} camera {camera}" for modality, camera in sorted(bad - good - {(None, None)})]


def _cameras(table: pa.Table) -> list[tuple[str | None, str | None]]:
    return list(zip(table["modality"].to_pylist(), table["camera"].to_pylist(), strict=True))


def _people(
    rows: pd.DataFrame,
    used: pd.DataFrame,
    rejected: Collection[int],
    identity: SplitRule,
    given: Mapping[str, str],
) -> pd.DataFrame:
    """One line a person, in order of first drop, then of label: later drops only ever append."""
    people = rows.sort_values(["drop", "person"], kind="stable")[["person"]].drop_duplicates(
        ignore_index=True
    )
    people["row"] = people.index
    people["bucket"] = [identity.bucket(person) for person in people["person"]]
    people["side"] = [
        given.get(person, identity.side(bucket))
        for person, bucket in zip(people["person"], people["bucket"], strict=True)
    ]
    for modality in ("visible", "infrared"):
        counts = used.loc[used["modality"] == modality, "person"].value_counts()
        people[modality] = people["person"].map(counts).fillna(0).astype("int64")
    present = people["person"].isin(rows.loc[~rows["drop"].isin(list(rejected)), "person"])
    people["status"] = [
        _status(*facts)
        for facts in zip(people["side"], people["visible"], people["infrared"], present, strict=True)
    ]
    return people


def _status(side: str, visible: int, infrared: int, present: bool) -> str:
    """`waiting`: for images (a train person needs both modalities); `removed`: with all drops that had it."""
    if not present:
        return "removed"
    if side == "test":
        return "test" if visible or infrared else "waiting"
    return "train" if visible and infrared else "waiting"


def _samples(used: pd.DataFrame, people: pd.DataFrame, drops: Sequence[IndexedDrop]) -> pa.Table:
    active = people.loc[people["status"].isin(["train", "test"]), ["person", "row", "side"]]
    samples = used.merge(active.rename(columns={"row": "person_row"}), on="person", how="inner")
    samples = samples.sort_values(["drop", "path"], kind="stable")
    samples["drop"] = samples["drop"].map({n: indexed.drop.id for n, indexed in enumerate(drops)})
    return _as_table(samples, SAMPLES_SCHEMA)


def _quarantine(drops: Sequence[IndexedDrop], rows: pd.DataFrame) -> pa.Table:
    """What was refused on reading (rejected drops aside) and what conflicts, drop by drop, by path."""
    ids = {n: indexed.drop.id for n, indexed in enumerate(drops)}
    parts = [
        indexed.refused.append_column("drop", pa.array([ids[n]] * indexed.refused.num_rows, pa.string()))
        for n, indexed in enumerate(drops)
        if indexed.drop.status != Status.REJECTED
    ]
    torn = rows[rows["fate"].isin(_CONFLICTS)].assign(drop=lambda frame: frame["drop"].map(ids))
    torn = torn.drop(columns=["person", "camera"]).rename(
        columns={"fate": "reason", "key": "sha256", "label": "person", "camera_label": "camera"}
    )
    place = {drop: n for n, drop in ids.items()}
    frame = pd.concat([table.to_pandas() for table in [*parts, _as_table(torn, QUARANTINE_SCHEMA)]])
    frame["place"] = frame["drop"].map(place)
    return _as_table(frame.sort_values(["place", "path"], kind="stable"), QUARANTINE_SCHEMA)


def _as_table(frame: pd.DataFrame, schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pandas(frame[schema.names], schema=schema, preserve_index=False)
