"""A manifest: which images a drop has, of whom, by which camera; CSV or Parquet."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from csdn.data.labels import exact_below
from csdn.data.text import delimiter_of, read_text
from csdn.errors import UserError
from csdn.safe import printable

REQUIRED = ("path", "person", "modality", "camera")
OPTIONAL = ("captured_at",)


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """One line; `refusal` says why its path must not be looked for, None where it may."""

    path: str
    person: str
    modality: str
    camera: str
    captured_at: str | None
    refusal: str | None


def read_manifest(data: bytes, name: str) -> Iterator[ManifestRow]:
    """The rows of a manifest's bytes; `name` names it in errors. Raises UserError."""
    try:
        table = _read_table(data, name)
        columns = [_texts(table[column], f"{name}: column {column}") for column in (*REQUIRED, *OPTIONAL)]
    except (pa.ArrowException, ValueError, OSError, KeyError) as error:  # of damaged pages it is an OSError
        raise UserError(f"{name}: not readable as a table: {error}") from None
    for path, person, modality, camera, captured_at in zip(*columns, strict=True):
        clean, refusal = _inside(path or "")
        yield ManifestRow(clean, person or "", modality or "", camera or "", captured_at or None, refusal)


def _texts(column: pa.ChunkedArray, where: str) -> list[str | None]:
    """Values as given, as texts. Raises UserError for floats too large for their type."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not pa.types.is_floating(column.type):
        return column.cast(pa.string()).to_pylist()
    values = column.to_numpy()  # a missing value is NaN
    if len(inexact := values[np.isfinite(values) & (np.abs(values) >= exact_below(values.dtype))]):
        raise UserError(
            f"{where}: {inexact[0]}, as {values.dtype}, may stand for several numbers: write whole numbers, "
            "or texts"
        )
    return [str(value) for value in values.tolist()]


def _read_table(data: bytes, name: str) -> pa.Table:
    if name.lower().endswith(".parquet"):
        table = pq.read_table(io.BytesIO(data), page_checksum_verification=True)
    else:
        texts = dict.fromkeys((*REQUIRED, *OPTIONAL), pa.string())  # "007" and "NA" are labels, no values
        text = read_text(data, name)
        table = csv.read_csv(
            io.BytesIO(text.encode()),
            parse_options=csv.ParseOptions(delimiter=delimiter_of(text)),
            convert_options=csv.ConvertOptions(column_types=texts),
        )
    missing = [column for column in REQUIRED if column not in table.column_names]
    if missing:
        raise UserError(
            f"{name}: column {', '.join(missing)} is missing; it needs {', '.join(REQUIRED)} "
            f"(and may have {', '.join(OPTIONAL)}); it has {', '.join(table.column_names)}"
        )
    for column in OPTIONAL:
        if column not in table.column_names:
            table = table.append_column(column, pa.nulls(table.num_rows, pa.string()))
    return table


def _inside(path: str) -> tuple[str, str | None]:
    """The path in its plain form, and why it is refused: it must stay below the manifest's folder."""
    plain, windows = PurePosixPath(path), PureWindowsPath(path)
    if not path or path == ".":
        return path, "no path"
    if "\0" in path:
        return printable(path), "NUL in the path"
    if plain.is_absolute() or windows.is_absolute():
        return path, "absolute path, not one below the manifest's folder"
    if ".." in (*plain.parts, *windows.parts):
        return path, "outside the drop"
    return str(plain), None
