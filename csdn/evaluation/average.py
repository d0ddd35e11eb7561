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
    shapes = [shape(model) for model in models]
    if any(other != shapes[0] for other in shapes):
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


def shape(model: Mapping[str, Any]) -> Any:
    """What must be the same: methods, directions, figures, and numbers of queries and gallery images."""
    counts = {
        name: tuple(count[what] for what in ("queries", "gallery", "trials"))
        for name, count in model["counts"].items()
    }
    figures = {
        (method, direction): sorted(found)
        for method, directions in model.items()
        if method != "counts"
        for direction, found in directions.items()
    }
    return figures, counts


def _spread(means: Sequence[float | None]) -> dict[str, float | None]:
    if None in means:
        return {"mean": None, "std": None}
    return {
        "mean": round(float(np.mean(means)), 6),
        "std": round(float(np.std(means, ddof=1)), 6) if len(means) > 1 else None,
    }
