"""What a protocol gives: who asks, who answers in each trial, and by which rule, as rows of an index."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from csdn.evaluation.protocols.numbers import canonical_index

# Columns, one entry an image: person, modality ("visible" | "infrared"), camera, key (the image's own name),
# path (below the data set's root), and places (csdn.data.records) for sysu_official.
Index = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Search:
    """One experiment of a protocol: rows of the index that ask, and those that answer in each trial."""

    name: str  # as in "infrared_to_visible"
    rule: str  # of csdn.evaluation.rank_metrics
    queries: np.ndarray  # int64 [q]
    galleries: tuple[np.ndarray, ...]  # int64 [g] for each trial
    drawn_queries: tuple[
        np.ndarray, ...
    ] = ()  # of each trial, where they are drawn too; the first is `queries`

    def asking(self, trial: int) -> np.ndarray:
        """The queries of a trial, int64 [q]."""
        return self.drawn_queries[trial] if self.drawn_queries else self.queries


def rows_of(index: Index, modality: str) -> np.ndarray:
    """Rows of a modality, rising."""
    return np.flatnonzero([value == modality for value in index["modality"]])


def excluded_pairs(search: Search, index: Index, trial: int = 0) -> int | None:
    """(query, gallery image) pairs of one person and one camera, where the rule takes them away.

    None for a rule that is about something else: a reader need not be told that it fires.
    """
    if search.rule not in ("cameras", "llcm"):
        return None
    index = canonical_index(search.rule, index)  # both rules are called as their protocols
    person, camera = index["person"], index["camera"]
    asked = Counter((person[row], camera[row]) for row in search.asking(trial))
    answers = Counter((person[row], camera[row]) for row in search.galleries[trial])
    return sum(count * answers[place] for place, count in asked.items())
