"""Who is a query, who is in the gallery of each trial, and by which rule: pure functions of plain columns.

    rows = protocol("cameras", {"person": [...], "modality": [...], "camera": [...], "key": [...]})

gives searches whose queries and galleries are row numbers of the index, so that anybody's features of those
rows can be evaluated with `csdn.evaluation.rank_metrics`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from csdn.evaluation.protocols.cameras import cameras
from csdn.evaluation.protocols.llcm import llcm, llcm_swapped
from csdn.evaluation.protocols.numbers import canonical_index
from csdn.evaluation.protocols.regdb import regdb
from csdn.evaluation.protocols.search import Index, Search, excluded_pairs
from csdn.evaluation.protocols.sysu import sysu, sysu_official

__all__ = [
    "PROTOCOLS",
    "Index",
    "Search",
    "canonical_index",
    "excluded_pairs",
    "options_of",
    "protocol",
    "rule_cameras",
    "rule_people",
]

PROTOCOLS: dict[str, Callable[..., list[Search]]] = {
    "cameras": cameras,
    "sysu": sysu,
    "sysu_official": sysu_official,
    "regdb": regdb,
    "llcm": llcm,
    "llcm_swapped": llcm_swapped,
}
_COLUMNS = ("person", "modality", "camera")
_MODALITIES = ("visible", "infrared")


def protocol(name: str, index: Index, **options: Any) -> list[Search]:
    """The searches of a protocol over an index of test images.

    index: columns of the same length, one entry an image: person, modality ("visible" or "infrared") and
    camera; for the protocol cameras also key, for the others path: draws depend on sorted file names. Labels
    are compared as csdn.data.labels says; people and cameras of the benchmarks are numbers, or names that end
    in one. options: those of the function of that name. Raises ValueError for an unknown name, option or
    modality, for a missing column or columns of different lengths, and for labels as `canonical_index` does.
    Returns one search for each direction: rows of the index, int64, and the rule of `rank_metrics`.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"unknown protocol {name!r}; allowed: {', '.join(PROTOCOLS)}")
    known = options_of(name)
    if unknown := [option for option in options if option not in known]:
        raise ValueError(
            f"protocol {name} has no option {', '.join(unknown)}; it has: {', '.join(known) or 'none'}"
        )
    trials = options.get("trials", 1)
    if not isinstance(trials, int | np.integer) or trials < 1:
        raise ValueError(f"trials = {trials!r}: a whole number, at least 1")
    columns = (*_COLUMNS, "key" if name == "cameras" else "path")
    if missing := [column for column in columns if column not in index]:
        raise ValueError(f"the index has no column {', '.join(missing)}")
    columns += ("places",) if name == "sysu_official" and "places" in index else ()
    index = canonical_index(name, {column: index[column] for column in columns})
    if len({len(index[column]) for column in columns}) > 1:
        raise ValueError("the index's columns have different lengths")
    if strange := set(index["modality"]) - set(_MODALITIES):
        raise ValueError(f"modality {min(map(repr, strange))}; allowed: {', '.join(_MODALITIES)}")
    return PROTOCOLS[name](index, **options)


def options_of(name: str) -> list[str]:
    """The options of a protocol."""
    return list(inspect.signature(PROTOCOLS[name]).parameters)[1:]


def rule_cameras(name: str, index: Index) -> np.ndarray:
    """Cameras as `csdn.evaluation.rank_metrics` takes them for a protocol's rule, int64 [n].

    SYSU-MM01's rule is about cameras 2 and 3; the others only ask whether two cameras are the same.
    """
    return _as_numbers(canonical_index(name, index)["camera"])


def rule_people(name: str, index: Index) -> np.ndarray:
    """People as `csdn.evaluation.rank_metrics` takes them, int64 [n]: equal where the protocol sees one."""
    return _as_numbers(canonical_index(name, index)["person"])


def _as_numbers(labels: Sequence[str] | Sequence[int]) -> np.ndarray:
    """The labels themselves where they are numbers, else one number for each name."""
    values = np.asarray(labels)
    return values if values.dtype == np.int64 else np.unique(values, return_inverse=True)[1].astype(np.int64)
