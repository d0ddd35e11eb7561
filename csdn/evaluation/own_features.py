"""Figures of features that somebody made with a model of their own, by any protocol. Pure."""

from __future__ import annotations

from typing import Any

import numpy as np

from csdn.data.labels import spelling_notes
from csdn.evaluation.counts import counts_of
from csdn.evaluation.protocols import Index, canonical_index, protocol, rule_cameras, rule_people
from csdn.evaluation.scores import Labels, feature_distances, headline, trial_metrics


def label_notes(index: Index, name: str) -> list[str]:
    """Warnings: labels of the index that the protocol `name` joins, or that look alike and stay apart."""
    labels = canonical_index(name, index)
    return [
        note
        for what, plural in (("person", "people"), ("camera", "cameras"))
        for note in spelling_notes(
            plural,
            dict(zip(index[what], labels[what], strict=True)),
            map(str, labels[what]),
            "name them alike in the index",
        )
    ]


def evaluate_features(features: np.ndarray, index: Index, name: str, **options: Any) -> dict[str, Any]:
    """The figures of features [n, D], row n being image n of the index, by the protocol `name`.

    Two images are compared by the dot product of their features: normalise them where that is meant. index
    and options: as for `csdn.evaluation.protocol`. Returns {"features": {direction: {figure: {"mean",
    "std"}}}, "counts": {direction: {...}}}, in percent over the trials. Raises ValueError where the features
    do not fit the index or are not finite, and as `protocol` does.
    """
    if features.ndim != 2 or not np.issubdtype(features.dtype, np.floating):
        raise ValueError(f"features are {features.dtype} {features.shape}; expected floats [images, numbers]")
    if not features.shape[1]:
        raise ValueError(f"features are {features.shape}: no image has a number to be compared by")
    searches = protocol(name, index, **options)
    index = canonical_index(name, index)
    if len(features) != len(index["person"]):
        raise ValueError(f"{len(features)} features, but the index has {len(index['person'])} images")
    labels = Labels(rule_people(name, index), rule_cameras(name, index))
    figures: dict[str, Any] = {"features": {}, "counts": {}}
    for search in searches:
        trials = trial_metrics(search, labels, feature_distances(features))
        figures["features"][search.name] = headline(trials)
        figures["counts"][search.name] = counts_of(
            search, index, labels.people, trials[0].valid_queries, name, options
        )
    return figures
