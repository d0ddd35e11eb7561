"""Protocols of LLCM: all of one modality look for one drawn image of each person and camera of the other."""

from __future__ import annotations

import numpy as np

from csdn.evaluation.protocols.numbers import folders, seeded_draw
from csdn.evaluation.protocols.search import Index, Search, rows_of


def llcm(index: Index, trials: int = 10) -> list[Search]:
    """Protocol "llcm": both directions; trial t draws with `random.seed(t)`, t = 0, 1, ...

    The rule excludes images of the query's own person and camera.
    """
    return [
        Search(f"{asking}_to_{answering}", "llcm", rows_of(index, asking), _draws(index, answering, trials))
        for asking, answering in (("infrared", "visible"), ("visible", "infrared"))
    ]


def llcm_swapped(index: Index, trials: int = 10) -> list[Search]:
    """Protocol "llcm_swapped": drawn infrared images look for all visible ones.

    This is what the authors' script computes for the figures published as visible to infrared: it draws from
    the modality that should answer, and then lets it ask. The search is named by what it does.
    """
    queries, visible = _draws(index, "infrared", trials), rows_of(index, "visible")
    return [Search("infrared_to_visible", "llcm", queries[0], (visible,) * trials, queries)]


def _draws(index: Index, modality: str, trials: int) -> tuple[np.ndarray, ...]:
    places = folders(index, rows_of(index, modality))
    return tuple(seeded_draw(places, 1, trial) for trial in range(trials))
