"""The catalog: what is known of each image, as records, as the Parquet files of `data/`, and as arrays.

A source of ingest lists a drop as `ImageRecord`s (csdn.ingest.sources). Ingest writes the tables whose
columns the schemas below describe. Training and evaluation see the data through `load_dataset` and
`SampleTable`, from which csdn.data.sampler plans batches.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from csdn.data.images import EXTENSIONS
from csdn.runtime.documents import parse_json
from csdn.runtime.errors import UserError
from csdn.runtime.files import atomic_write


class Modality(StrEnum):
    VISIBLE = "visible"
    INFRARED = "infrared"


# Codes in arrays: 0 visible, 1 infrared.
MODALITIES = tuple(Modality)


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image of a drop.

    `path` is relative to the drop's root, with `/`. `person` and `camera` are the labels as given ("": none).
    `size` is in bytes, 0 where it is not known before reading. `etag` identifies the content where the source
    has one. The authors of a benchmark give more: `splits`, "train" or "test" in each of their splits (""
    where the image is on no list), and `places`, its position in their gallery order, from 0, in each of
    their trials.
    """

    path: str
    person: str
    modality: str
    camera: str
    size: int
    captured_at: str | None = None
    etag: str | None = None
    splits: tuple[str, ...] = ()
    places: tuple[int, ...] = ()


# The Parquet files of `data/`; the same rows give the same bytes.


TABLES_VERSION = 3
_VERSION_KEY = b"csdn_index_version"
_FACTS_KEY = b"csdn_facts"


def _schema(**types: pa.DataType) -> pa.Schema:
    return pa.schema([pa.field(name, kind) for name, kind in types.items()])


# data/index/<drop id>.parquet: a row for each good image of a drop, sorted by path. `offset` and `size` are
# those of the image's bytes in the shard; `person` and `camera` are the labels as given. Rows with the same
# key have the same image. `splits` and `places` are null except in benchmarks (see ImageRecord).
INDEX_SCHEMA = _schema(
    key=pa.string(),
    extension=pa.string(),
    shard=pa.string(),
    offset=pa.int64(),
    size=pa.int64(),
    person=pa.string(),
    modality=pa.string(),
    camera=pa.string(),
    path=pa.string(),
    width=pa.int32(),
    height=pa.int32(),
    captured_at=pa.string(),
    splits=pa.list_(pa.string()),
    places=pa.list_(pa.int32()),
)

# data/index/<drop id>.quarantine.parquet: the images of the drop that are not in the index.
REFUSED_SCHEMA = _schema(
    path=pa.string(),
    reason=pa.string(),
    sha256=pa.string(),
    person=pa.string(),
    modality=pa.string(),
    camera=pa.string(),
)

# data/quarantine.parquet: the same for all drops, with the conflicts that merging finds.
QUARANTINE_SCHEMA = REFUSED_SCHEMA.append(pa.field("drop", pa.string()))

# data/people.parquet: a person keeps `row` for ever; `visible` and `infrared` count the images in use.
PEOPLE_SCHEMA = _schema(
    row=pa.int64(),
    person=pa.string(),
    bucket=pa.int32(),
    split=pa.string(),
    status=pa.string(),
    visible=pa.int64(),
    infrared=pa.int64(),
)

# data/samples.parquet: every image of training and test people, in the ledger's order, then by path;
# `camera` is the canonical label (csdn.data.labels).
SAMPLES_SCHEMA = _schema(
    key=pa.string(),
    extension=pa.string(),
    shard=pa.string(),
    offset=pa.int64(),
    size=pa.int64(),
    person_row=pa.int64(),
    split=pa.string(),
    modality=pa.string(),
    camera=pa.string(),
    path=pa.string(),
    drop=pa.string(),
    places=pa.list_(pa.int32()),
)


def table_of(rows: Sequence[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    """Rows, in the order of the schema's columns, as a table."""
    columns = zip(*rows, strict=True) if rows else [()] * len(schema)
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema=schema
    )


def write_table(path: Path, table: pa.Table, facts: Mapping[str, Any] | None = None) -> None:
    """Write a table completely or not at all; `facts` are JSON values stored in its metadata."""
    metadata = {
        _VERSION_KEY: str(TABLES_VERSION),
        _FACTS_KEY: json.dumps(facts or {}, sort_keys=True),
    }
    with atomic_write(path) as temporary:
        pq.write_table(
            table.combine_chunks().replace_schema_metadata(metadata), temporary, compression="zstd"
        )


def read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """Read what `write_table` wrote; raises UserError for a missing, damaged or other version's file."""
    _metadata(path)
    try:
        return pq.read_table(path, columns=schema.names).cast(schema)
    except (pa.ArrowException, ValueError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it and run `dvc repro` again") from None


def read_facts(path: Path) -> dict[str, Any]:
    """The facts that `write_table` stored; raises UserError as `read_table` does."""
    advice = "delete it and run `dvc repro` again"
    facts = parse_json(_metadata(path).get(_FACTS_KEY, b""), f"{path}: {_FACTS_KEY.decode()}", advice)
    if not isinstance(facts, dict):
        raise UserError(f"{path} is damaged: {_FACTS_KEY.decode()} is no object; {advice}")
    return facts


def _metadata(path: Path) -> dict[bytes, bytes]:
    try:
        metadata = pq.read_schema(path).metadata or {}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `dvc repro ingest` makes it") from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it and run `dvc repro` again") from None
    version = metadata.get(_VERSION_KEY, b"none").decode()
    if version != str(TABLES_VERSION):
        raise UserError(
            f"{path}: has version {version} of the tables, this program reads {TABLES_VERSION}; "
            "delete it and run `dvc repro ingest` to make it again"
        )
    return metadata


# The data as arrays: the only interface through which training and evaluation see it.


@dataclass(frozen=True)
class SampleTable:
    """The images of the training or of the test split as columns, in the ledger's order, then by path.

    An image's index is its row.

    `label` numbers the people of this table 0..C-1 in the order of their rows in people.parquet.
    """

    shard: np.ndarray  # int32, position in shard_names
    shard_names: list[str]
    offset: np.ndarray  # int64, of the image's first byte in its shard
    size: np.ndarray  # int64, bytes
    extension: np.ndarray  # int8, position in csdn.data.images.EXTENSIONS
    label: np.ndarray  # int64
    person_row: np.ndarray  # int64
    modality: np.ndarray  # int8: 0 visible, 1 infrared
    camera: np.ndarray  # int32, position in camera_names
    camera_names: list[str]
    digest: np.ndarray  # 32 bytes each (V32), SHA-256 of the image's bytes
    path: np.ndarray  # str, in its drop

    def __len__(self) -> int:
        return len(self.label)

    @cached_property
    def key(self) -> np.ndarray:
        """The digests as str, 64 hex digits. They take eight times the memory, so they are made when first
        used.
        """
        return np.array([digest.tobytes().hex() for digest in self.digest], dtype=str)

    def of(self, modality: Modality) -> np.ndarray:
        """Indices of the images of a modality, ascending."""
        return np.flatnonzero(self.modality == MODALITIES.index(modality))

    def of_people(self, labels: np.ndarray) -> SampleTable:
        """The images of these people alone, with new labels: labels[n], ascending, becomes n."""
        chosen = np.isin(self.label, labels)
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        kept = {name: column[chosen] for name, column in columns.items() if isinstance(column, np.ndarray)}
        return replace(self, **kept | {"label": np.searchsorted(labels, kept["label"])})


@dataclass(frozen=True)
class Dataset:
    """The merged data: the tables samples.parquet and people.parquet."""

    samples: pa.Table
    people: pa.Table

    def train_table(self) -> SampleTable:
        return _sample_table(self.samples, "train")

    def test_table(self) -> SampleTable:
        return _sample_table(self.samples, "test")

    def test_index(self) -> dict[str, list[Any]]:
        """The test images as the columns of csdn.evaluation.protocols; row n is row n of `test_table`."""
        names = dict(zip(self.people["row"].to_pylist(), self.people["person"].to_pylist(), strict=True))
        rows = self.samples.filter(pa.compute.equal(self.samples["split"], "test"))
        columns = {name: rows[name].to_pylist() for name in ("modality", "camera", "key", "path", "places")}
        return {"person": [names[row] for row in rows["person_row"].to_pylist()], **columns}


def load_dataset(root: str | Path = "data") -> Dataset:
    """Read the tables that ingest wrote below `root`; raises UserError where one is missing or not
    readable.
    """
    root = Path(root)
    return Dataset(
        samples=read_table(root / "samples.parquet", SAMPLES_SCHEMA),
        people=read_table(root / "people.parquet", PEOPLE_SCHEMA),
    )


def _sample_table(samples: pa.Table, split: str) -> SampleTable:
    rows = samples.filter(pa.compute.equal(samples["split"], split)).combine_chunks()
    shard_names, shard = _codes(rows["shard"])
    camera_names, camera = _codes(rows["camera"])
    person_row = rows["person_row"].to_numpy()
    return SampleTable(
        shard=shard,
        shard_names=shard_names,
        offset=rows["offset"].to_numpy(),
        size=rows["size"].to_numpy(),
        extension=_positions(rows["extension"], EXTENSIONS).astype(np.int8),
        label=np.unique(person_row, return_inverse=True)[1].astype(np.int64),
        person_row=person_row,
        modality=_positions(rows["modality"], MODALITIES).astype(np.int8),
        camera=camera,
        camera_names=camera_names,
        digest=np.frombuffer(bytes.fromhex("".join(rows["key"].to_pylist())), "V32"),
        path=np.array(rows["path"].to_pylist(), dtype=str),
    )


def _codes(column: pa.ChunkedArray) -> tuple[list[str], np.ndarray]:
    """Sorted distinct names, and each row's position among them as int32."""
    names = sorted(column.unique().to_pylist())
    return names, _positions(column, names)


def _positions(column: pa.ChunkedArray, names: list[str] | tuple[str, ...]) -> np.ndarray:
    codes = pa.compute.index_in(column, value_set=pa.array(list(map(str, names)), pa.string()))
    return codes.to_numpy().astype(np.int32)
