"""Protocols of SYSU-MM01: every infrared test image looks for visible ones, drawn in one of two ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from csdn.evaluation.protocols.numbers import Place, folders, seeded_draw
from csdn.evaluation.protocols.search import Index, Search, rows_of

GALLERY_CAMERAS = {"all": (1, 2, 4, 5), "indoor": (1, 2)}
QUERY_CAMERAS = (3, 6)
SHOTS = (1, 10)
OFFICIAL_TRIALS = 10


def sysu(index: Index, mode: str = "all", shots: int = 1, trials: int = 10) -> list[Search]:
    """Protocol "sysu": single-shot galleries as the literature's codes draw them, ten-shot ones by our draw.

    mode: gallery of the cameras 1, 2, 4, 5 ("all") or 1, 2 ("indoor"). shots: images of each person and
    camera, 1 or 10. Trial t is `random.seed(t)`, t = 0, 1, ... (`csdn.evaluation.protocols.numbers`).
    """
    return _searches(index, mode, shots, trials, lambda places, trial: seeded_draw(places, shots, trial))


def sysu_official(index: Index, mode: str = "all", shots: int = 1, trials: int = 10) -> list[Search]:
    """Protocol "sysu_official": the first 1 or 10 images of the authors' permutations, `rand_perm_cam.mat`.

    Options as for `sysu`; the index's column `places` tells where each gallery image stands in each trial.
    """
    if "places" not in index:
        raise ValueError("the index has no column places; protocol sysu needs none")
    if trials > OFFICIAL_TRIALS:
        raise ValueError(f"trials = {trials}: the authors give {OFFICIAL_TRIALS} permutations")

    def draw(folders_of: dict[Place, list[int]], trial: int) -> np.ndarray:
        order = index["places"]
        drawn = [row for rows in folders_of.values() for row in _first(rows, order, trial, shots)]
        return np.array(drawn, dtype=np.int64)

    return _searches(index, mode, shots, trials, draw)


def _first(rows: list[int], places: Sequence[Sequence[int] | None], trial: int, shots: int) -> list[int]:
    if any(len(places[row] or ()) <= trial for row in rows):
        raise ValueError(
            "images of the gallery have no places in the authors' permutations: exp/rand_perm_cam.mat was "
            "not there when the data was added; protocol sysu works without it"
        )
    return sorted(rows, key=lambda row: places[row][trial])[:shots]


def _searches(
    index: Index,
    mode: str,
    shots: int,
    trials: int,
    draw: Callable[[dict[Place, list[int]], int], np.ndarray],
) -> list[Search]:
    if mode not in GALLERY_CAMERAS:
        raise ValueError(f"mode = {mode!r}; allowed: {', '.join(GALLERY_CAMERAS)}")
    if shots not in SHOTS:
        raise ValueError(f"shots = {shots!r}; allowed: 1, 10")
    camera = np.array(index["camera"], np.int64)
    queries, visible = rows_of(index, "infrared"), rows_of(index, "visible")
    for rows, known in ((queries, QUERY_CAMERAS), (visible, GALLERY_CAMERAS["all"])):
        if strange := sorted(set(camera[rows].tolist()) - set(known)):
            raise ValueError(f"camera {strange[0]} has images of the other modality than in SYSU-MM01")
    places = folders(index, visible[np.isin(camera[visible], GALLERY_CAMERAS[mode])])
    galleries = tuple(draw(places, trial) for trial in range(trials))
    return [Search("infrared_to_visible", "sysu", queries, galleries)]
