"""SYSU-MM01's `rand_perm_cam.mat`: for each camera and person, how the authors order the images per trial."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from scipy.io import loadmat

from csdn.errors import UserError

VARIABLE = "rand_perm_cam"


def read_permutations(data: bytes, where: str) -> dict[tuple[int, int], list[list[int]]]:
    """(camera, person), both from 1 -> for each trial the numbers of the images, from 1, in drawing order.

    `data` is a MATLAB 5 file (such files hold no code); `where` names it in errors. Raises UserError where it
    is not readable, holds something else, or an order is no permutation.
    """
    try:
        cameras = loadmat(io.BytesIO(data), variable_names=[VARIABLE])[VARIABLE]
        cells = {
            (camera, person): np.asarray(cell, dtype=np.int64)
            for camera, people in enumerate(cameras.ravel(), start=1)
            for person, cell in enumerate(people.ravel(), start=1)
        }
    except Exception as error:  # whatever a parser of a binary format meets in a file that is something else
        raise UserError(
            f"{where}: not readable as {VARIABLE}, a cell per camera of cells per person: "
            f"{error or type(error).__name__}"
        ) from None
    return {place: _trials(cell, where, *place) for place, cell in cells.items() if cell.size}


def _trials(cell: np.ndarray[Any, Any], where: str, camera: int, person: int) -> list[list[int]]:
    """[trials, images] as lists, each a permutation of 1..images."""
    if cell.ndim != 2 or (np.sort(cell, axis=1) != np.arange(1, cell.shape[1] + 1)).any():
        raise UserError(
            f"{where}: camera {camera}, person {person}: a trial is no permutation of its images' numbers"
        )
    return cell.tolist()
