"""Files of `csdn evaluate-features`: somebody's features, and which image each of their rows is."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np

from csdn.data.dataset import load_dataset
from csdn.data.text import delimiter_of, read_text
from csdn.errors import UserError

COLUMNS = ("person", "modality", "camera", "path")


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
    """Columns of csdn.evaluation.protocol: of a CSV file, or of the test images below the folder `data`.

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
    # The protocol cameras draws by the image's own name; a path is one.
    return index | {"key": [row.get("key", row["path"]) for row in rows]}
