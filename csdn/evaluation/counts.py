"""How large a search is, and how large it should be where the data is a benchmark's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from csdn.evaluation.protocols import Index, Search, excluded_pairs
from csdn.evaluation.protocols.published import published_counts


def counts_of(
    search: Search,
    index: Index,
    people: np.ndarray,
    valid_queries: int,
    protocol: str,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Counts of a search over an index whose images show `people` [n]; queries and gallery are of trial 0.

    `published` says what some of them should be, where the data is a benchmark's and no miniature of it.
    """
    counts = {
        "queries": len(search.queries),
        "valid_queries": valid_queries,
        "gallery": len(search.galleries[0]),
        "people": len(np.unique(people[search.queries])),
        "excluded_pairs": excluded_pairs(search, index),
        "trials": len(search.galleries),
    }
    published = published_counts(protocol, counts, **options)
    return counts | ({"published": published} if published else {})
