"""Evaluation of any model's features by any protocol, and the files that `csdn evaluate-features` reads."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np

from csdn.data.catalog import load_dataset
from csdn.data.labels import spelling_notes
from csdn.evaluation.distances import FeatureDistances
from csdn.evaluation.protocols import Index, canonical_index, protocol, rule_cameras, rule_people
from csdn.evaluation.run import counts_of
from csdn.evaluation.scores import Labels, trial_metrics, trial_statistics
from csdn.runtime.documents import delimiter_of, read_text
from csdn.runtime.errors import UserError

COLUMNS = ("person", "modality", "camera", "path")


def evaluate_features(features: np.ndarray, index: Index, name: str, **options: Any) -> dict[str, Any]:
    """The figures of features [n, D], row n being image n of the index, by the protocol `name`.

    Two images are compared by the dot product of their features: normalise features for cosine similarity.
    index and options: as for `csdn.evaluation.protocol`. Returns {"features": {direction: {figure: {"mean",
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
        trials = trial_metrics(search, labels, FeatureDistances(features))
        figures["features"][search.name] = trial_statistics(trials)
        figures["counts"][search.name] = counts_of(
            search, index, labels.people, trials[0].valid_queries, name, options
        )
    return figures


def label_notes(index: Index, name: str) -> list[str]:
    """Warnings: labels of the index that the protocol `name` merges, or that look alike and stay separate."""
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


def read_features(path: Path) -> np.ndarray:
    """Floats [n, D] of a .npy file; a file with pickled objects is refused, never run. Raises UserError."""
    try:
        features = np.load(path, allow_pickle=False)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, EOFError) as error:
        raise UserError(f"{path}: not a .npy file of numbers: {error}") from None
    if not isinstance(features, np.ndarray):
        raise UserError(f"{path}: holds several arrays; give a .npy file of one")
    return features


def read_index(path: Path) -> dict[str, list[Any]]:
    """The columns for csdn.evaluation.protocol, from a CSV file or from the test images of a folder `data`.

    Raises UserError where they are missing or not readable.
    """
    if path.is_dir():
        return load_dataset(path).test_index()
    try:
        text = read_text(path.read_bytes(), str(path))
        rows = list(csv.DictReader(io.StringIO(text), delimiter=delimiter_of(text), strict=True))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except csv.Error as error:
        raise UserError(f"{path}: not readable as CSV: {error}") from None
    found = rows[0].keys() if rows else ()
    if missing := [column for column in COLUMNS if column not in found]:
        raise UserError(f"{path}: column {', '.join(missing)} is missing; it needs {', '.join(COLUMNS)}")
    if any(None in row or None in row.values() for row in rows):
        raise UserError(f"{path}: a line has more or fewer entries than the head")
    index = {column: [row[column] for row in rows] for column in COLUMNS}
    # The protocol cameras draws by the key of an image; a path can be one.
    return index | {"key": [row.get("key", row["path"]) for row in rows]}
