"""Identities: which labels mean the same person, and who is in the training split and who in the test split.

The bucket of a person, a hash of the canonical label, decides: test people are those in the `test_percent`
highest buckets. No seed, no other person and no later drop changes that, so a test person never becomes a
training person. The people of a benchmark are in the splits that its authors publish. csdn.ingest.merge
applies all this.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from csdn.data.catalog import positions, to_batches
from csdn.data.labels import BadLabel, canonical_label
from csdn.ingest.ledger import Drop
from csdn.runtime.documents import parse_json
from csdn.runtime.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

BUCKETS = 100


@dataclass(frozen=True)
class SplitRule:
    """How labels become people in a split: aliases, the salt of the buckets, the share of test people."""

    salt: str
    test_percent: int
    aliases: Mapping[str, str] = field(default_factory=dict)  # canonical -> canonical
    trial: int = 1  # which of the splits of a benchmark

    def person(self, label: str) -> str:
        """The canonical label of the person that a label as given means."""
        canonical = canonical_label(label)
        return self.aliases.get(canonical, canonical)

    def bucket(self, person: str) -> int:
        """0..99, from the canonical label."""
        return int(hashlib.sha256((self.salt + person).encode()).hexdigest(), 16) % BUCKETS

    def split(self, bucket: int) -> str:
        return "test" if bucket >= BUCKETS - self.test_percent else "train"


def read_aliases(path: str | Path) -> dict[str, str]:
    """Read a JSON file {"label as given": "label meant"}; both become canonical. Raises UserError."""
    try:
        text = Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; data.aliases in params.yaml names it") from None
    return parse_aliases(text, path)


def parse_aliases(text: bytes, path: str | Path) -> dict[str, str]:
    """The aliases in the text of such a file; `path` names it in errors."""
    given = parse_json(text, path)
    if not isinstance(given, dict) or not all(isinstance(meant, str) for meant in given.values()):
        raise UserError(f'{path}: expected {{"label as given": "label meant", ...}}')
    aliases: dict[str, str] = {}
    for label, meant in given.items():
        try:
            one, other = canonical_label(label), canonical_label(meant)
        except BadLabel as bad:
            raise UserError(f"{path}: {label!r} -> {meant!r}: {bad}") from None
        if not one or not other:
            raise UserError(f"{path}: {label!r} -> {meant!r}: a label is empty, or a missing value")
        if aliases.setdefault(one, other) != other:
            raise UserError(
                f"{path}: {label!r} -> {meant!r}: another spelling of {one!r} means somebody else"
            )
    for label, meant in aliases.items():
        if aliases.get(meant, meant) != meant:
            raise UserError(f"{path}: {label!r} -> {meant!r}, which is an alias itself; name the last one")
    return aliases


# The published splits of benchmarks; drops of own cameras have none.


# What lists of authors say of an image: its drop has no lists, it is on none of them, or its split.
NO_LISTS, UNLISTED, _TRAIN, _TEST = range(4)
_SPLITS = {"": UNLISTED, "train": _TRAIN, "test": _TEST}


def published_splits(index: ds.Dataset, trial: int) -> np.ndarray:
    """For each image of a drop's index what the authors' split number `trial` (from 1) says, int8.

    Where there are fewer splits, the last one counts.
    """
    found = [np.zeros(0, np.int8)]
    for batch in to_batches(index, ["splits"]):
        lists = batch["splits"]
        lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
        listed = np.zeros(len(lists), np.int8)
        last = lists.offsets.to_numpy()[:-1] + np.minimum(trial, lengths) - 1
        splits = lists.values.take(pa.array(last[lengths > 0]))
        listed[lengths > 0] = positions(splits, tuple(_SPLITS)) + UNLISTED
        found.append(listed)
    return np.concatenate(found)


def check_trial(drops: Sequence[tuple[Drop, ds.Dataset]], trial: int) -> None:
    """Raise UserError where a drop (given with its index) has fewer splits than `trial`, or no drop has
    any.
    """
    counts = {}
    for drop, index in drops:
        for batch in islice(to_batches(index, ["splits"]), 1):
            for first in batch["splits"].slice(0, 1).to_pylist():
                counts[drop] = len(first or ())
    for drop, count in counts.items():
        if 0 < count < trial:
            raise UserError(
                f"data.trial = {trial}: {drop}, layout {drop.layout}, has {count} split{'s' * (count > 1)}; "
                "set it to 1, RegDB alone has ten"
            )
    if trial > 1 and not any(counts.values()):
        raise UserError(f"data.trial = {trial}: no drop in use comes with splits of its authors; set it to 1")


def people_splits(rows: pd.DataFrame, people: Sequence[str], used: Collection[int]) -> dict[str, str]:
    """Person -> split, for those on a list.

    rows: with the columns drop, person (position in `people`) and listed (as from `published_splits`). The
    lists of used drops (positions `used`) win over others. Raises UserError where used drops contradict.
    """
    listed = rows.loc[rows["listed"] >= _TRAIN, ["drop", "person", "listed"]].drop_duplicates()
    in_use = listed["drop"].isin(list(used))
    splits = listed[in_use].groupby("person")["listed"].nunique()
    if ambiguous := sorted(people[n] for n in splits.index[splits > 1]):
        raise UserError(
            f"person {ambiguous[0]!r} ({len(ambiguous)} in all) is for training by one drop's lists and for "
            "testing by another's; `csdn drops` lists the drops: reject one, or correct the file that "
            "data.aliases names"
        )
    deciding = listed.assign(later=~in_use).sort_values(["later", "drop"], kind="stable")
    deciding = deciding.drop_duplicates("person")
    names = {code: split for split, code in _SPLITS.items()}
    return {people[n]: names[split] for n, split in zip(deciding["person"], deciding["listed"], strict=True)}
