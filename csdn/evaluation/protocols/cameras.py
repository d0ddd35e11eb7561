"""Protocol of own cameras: infrared looks for visible and the reverse; draws stay when others arrive."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from csdn.evaluation.protocols.search import Index, Search, rows_of


def cameras(index: Index, trials: int = 10) -> list[Search]:
    """Protocol "cameras": infrared looks for visible, and the reverse.

    Every image of one modality is a query. The gallery has one image for each (person, camera) of the
    other: the one whose SHA-256 of (trial, person, camera, key) is lowest, so that a draw stays when other
    images arrive. The rule excludes images of the query's own person and camera.
    """
    rows = {m: rows_of(index, m) for m in ("infrared", "visible")}
    galleries = {m: tuple(_lowest_hash(index, rows[m], trial) for trial in range(trials)) for m in rows}
    return [
        Search("infrared_to_visible", "cameras", rows["infrared"], galleries["visible"]),
        Search("visible_to_infrared", "cameras", rows["visible"], galleries["infrared"]),
    ]


def _lowest_hash(index: Index, rows: np.ndarray, trial: int) -> np.ndarray:
    """One of `rows` for each (person, camera), in the order of the index."""
    lowest: dict[tuple[Any, Any], tuple[bytes, int]] = {}
    for row in rows:
        place = (index["person"][row], index["camera"][row])
        drawn = (_hash(trial, *place, index["key"][row]), int(row))
        lowest[place] = min(lowest.get(place, drawn), drawn)
    return np.array(sorted(row for _, row in lowest.values()), dtype=np.int64)


def _hash(trial: int, person: str, camera: str, key: str) -> bytes:
    # JSON keeps the parts apart: "ab" + "c" is not "a" + "bc".
    return hashlib.sha256(json.dumps([trial, str(person), str(camera), str(key)]).encode()).digest()
