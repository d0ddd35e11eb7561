"""The figures of several models as one: RegDB's ten trials are ten models, their mean is published. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def average(models: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and deviation over the models of each figure's mean; each is what metrics/evaluation.json holds.

    `counts` are the first model's, with `models`, how many there are. Raises ValueError where the models
    were not evaluated in the same way.
    """
    shapes = [_shape(model) for model in models]
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError("the files hold figures of different protocols or sizes; they have no common mean")
    methods = {
        method: {
            direction: {
                name: _spread([model[method][direction][name]["mean"] for model in models])
                for name in figures
            }
            for direction, figures in directions.items()
        }
        for method, directions in models[0].items()
        if method != "counts"
    }
    counts = {name: {**count, "models": len(models)} for name, count in models[0]["counts"].items()}
    return {**methods, "counts": counts}


def _shape(model: Mapping[str, Any]) -> Any:
    """What must be the same: methods, directions, and how many queries and gallery images they have."""
    counts = {
        name: tuple(count[what] for what in ("queries", "gallery", "trials"))
        for name, count in model["counts"].items()
    }
    return sorted(model), counts


def _spread(means: Sequence[float | None]) -> dict[str, float | None]:
    if None in means:
        return {"mean": None, "std": None}
    return {
        "mean": round(float(np.mean(means)), 6),
        "std": round(float(np.std(means, ddof=1)), 6) if len(means) > 1 else None,
    }
