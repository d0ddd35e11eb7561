"""The catalog: what is known of each image, as records, as the Parquet files of `data/`, and as arrays.

A source of ingest lists a drop as `ImageRecord`s (csdn.ingest.sources). Ingest writes the tables whose
columns the schemas below describe. Training and evaluation see the data through `load_dataset` and
`SampleTable`, from which csdn.data.sampler plans batches.
"""

from __future__ import annotations

import binascii
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
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
    their trials. `confirmed` is False for an unconfirmed suggestion of `csdn suggest`.
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
    confirmed: bool = True


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


ROW_GROUP = 2**20  # rows


def write_table(path: Path, table: pa.Table, facts: Mapping[str, Any] | None = None) -> None:
    """Write a table completely or not at all; `facts` are JSON values stored in its metadata."""
    write_batches(path, table.schema, table.to_batches(), facts)


def write_batches(
    path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch], facts: Mapping[str, Any] | None = None
) -> None:
    """`write_table` for rows that need not fit into memory: the bytes do not depend on how they are cut."""
    metadata = {
        _VERSION_KEY: str(TABLES_VERSION),
        _FACTS_KEY: json.dumps(facts or {}, sort_keys=True),
    }
    with (
        atomic_write(path) as temporary,
        pq.ParquetWriter(temporary, schema.with_metadata(metadata), compression="zstd") as writer,
    ):
        for rows in _row_groups(schema, batches):
            writer.write_table(rows.replace_schema_metadata(metadata), row_group_size=ROW_GROUP)


def _row_groups(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The rows as tables of ROW_GROUP rows, the last one shorter, possibly empty."""
    waiting, count = list[pa.RecordBatch](), 0
    for batch in batches:
        waiting.append(batch)
        count += batch.num_rows
        while count > ROW_GROUP:
            rows = pa.Table.from_batches(waiting, schema)
            yield rows.slice(0, ROW_GROUP).combine_chunks()
            waiting, count = rows.slice(ROW_GROUP).to_batches(), count - ROW_GROUP
    yield pa.Table.from_batches(waiting, schema).combine_chunks()


def read_table(path: Path, schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
    """Read what `write_table` wrote, or these columns of it; raises UserError as `open_table` does."""
    return to_table(open_table(path, schema), columns)


def open_table(path: Path, schema: pa.Schema) -> ds.Dataset:
    """What `write_table` wrote, to be read column by column with `to_table` and `to_batches`.

    Raises UserError for a missing, damaged or other version's file.
    """
    if missing := set(schema.names) - set(_schema_of(path).names):
        raise UserError(_damaged(path, f"there is no column {min(missing)}"))
    return ds.dataset(path, schema=schema, format="parquet")


def to_table(
    table: ds.Dataset, columns: Sequence[str] | None = None, where: pc.Expression | None = None
) -> pa.Table:
    """These columns of the rows for which `where` is true, in order; raises UserError for a damaged file."""
    columns = table.schema.names if columns is None else columns
    schema = pa.schema([table.schema.field(name) for name in columns])
    return pa.Table.from_batches(to_batches(table, columns, where), schema)


def to_batches(
    table: ds.Dataset, columns: Sequence[str], where: pc.Expression | None = None
) -> Iterator[pa.RecordBatch]:
    """`to_table` a batch at a time."""
    try:
        yield from table.to_batches(columns=list(columns), filter=where, use_threads=False)
    except (pa.ArrowException, ValueError, OSError) as error:
        raise UserError(_damaged(" ".join(getattr(table, "files", ["a table"])), error)) from None


def take_rows(table: ds.Dataset, columns: Sequence[str], rows: np.ndarray) -> pa.Table:
    """These columns of the rows with these numbers, which ascend."""
    start, parts = 0, []
    for batch in to_batches(table, columns) if len(rows) else ():
        first, after = np.searchsorted(rows, [start, start + len(batch)])
        parts.append(batch.take(pa.array(rows[first:after] - start)))
        start += len(batch)
    return pa.Table.from_batches(parts, pa.schema([table.schema.field(name) for name in columns]))


def _damaged(path: Path | str, why: object) -> str:
    return f"{path} is damaged ({why}); delete it and run `dvc repro` again"


def read_facts(path: Path) -> dict[str, Any]:
    """The facts that `write_table` stored; raises UserError as `open_table` does."""
    advice = "delete it and run `dvc repro` again"
    facts = parse_json(
        _schema_of(path).metadata.get(_FACTS_KEY, b""), f"{path}: {_FACTS_KEY.decode()}", advice
    )
    if not isinstance(facts, dict):
        raise UserError(f"{path} is damaged: {_FACTS_KEY.decode()} is no object; {advice}")
    return facts


def _schema_of(path: Path) -> pa.Schema:
    """The schema of a table of this version, with its metadata."""
    try:
        schema = pq.read_schema(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `dvc repro ingest` makes it") from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(_damaged(path, error)) from None
    version = (schema.metadata or {}).get(_VERSION_KEY, b"none").decode()
    if version != str(TABLES_VERSION):
        raise UserError(
            f"{path}: has version {version} of the tables, this program reads {TABLES_VERSION}; "
            "delete it and run `dvc repro ingest` to make it again"
        )
    return schema


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

    def __len__(self) -> int:
        return len(self.label)

    def key(self, row: int) -> str:
        """The image's key in the tables: its digest as 64 hex digits."""
        return self.digest[row].tobytes().hex()

    def of(self, modality: Modality) -> np.ndarray:
        """Indices of the images of a modality, ascending."""
        return np.flatnonzero(self.modality == MODALITIES.index(modality))

    def of_people(self, labels: np.ndarray) -> SampleTable:
        """The images of these people alone, with new labels: labels[n], ascending, becomes n."""
        chosen = np.isin(self.label, labels)
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        kept: dict[str, Any] = {
            name: column[chosen] for name, column in columns.items() if isinstance(column, np.ndarray)
        }
        return replace(self, **kept | {"label": np.searchsorted(labels, kept["label"])})


@dataclass(frozen=True)
class Dataset:
    """The merged data: samples.parquet, of which only the columns in use are read, and people.parquet."""

    samples: ds.Dataset
    people: pa.Table

    def train_table(self) -> SampleTable:
        return _sample_table(self.samples, "train")

    def test_table(self) -> SampleTable:
        return _sample_table(self.samples, "test")

    def test_index(
        self, columns: Sequence[str] = ("person", "modality", "camera", "key", "path", "places")
    ) -> dict[str, list[Any]]:
        """The test images as columns of csdn.evaluation.protocols; row n is row n of `test_table`."""
        stored = ["person_row" if name == "person" else name for name in columns]
        rows = to_table(self.samples, stored, ds.field("split") == "test")
        return {name: self._values(name, rows[kept]) for name, kept in zip(columns, stored, strict=True)}

    def _values(self, name: str, column: pa.ChunkedArray) -> list[Any]:
        """A column of `test_index`; images with the same label share its text."""
        if name == "person":
            names, found = self.people["person"].to_pylist(), column.to_numpy()
        elif name in ("modality", "camera"):
            names, found = codes(column)
        else:
            return column.to_pylist()
        return np.array(names, dtype=object)[found].tolist()


def load_dataset(root: str | Path = "data") -> Dataset:
    """The tables that ingest wrote below `root`; raises UserError where one is missing or not readable."""
    root = Path(root)
    return Dataset(
        samples=open_table(root / "samples.parquet", SAMPLES_SCHEMA),
        people=read_table(root / "people.parquet", PEOPLE_SCHEMA),
    )


def _sample_table(samples: ds.Dataset, split: str) -> SampleTable:
    """The images of a split. Columns are read one after another: one alone is in memory as texts."""

    def column(name: str) -> pa.ChunkedArray:
        return to_table(samples, [name], ds.field("split") == split)[name]

    digest = digests(to_batches(samples, ["key"], ds.field("split") == split))
    shard_names, shard = _sorted_codes(column("shard"))
    camera_names, camera = _sorted_codes(column("camera"))
    person_row = column("person_row").to_numpy()
    return SampleTable(
        shard=shard,
        shard_names=shard_names,
        offset=column("offset").to_numpy(),
        size=column("size").to_numpy(),
        extension=positions(column("extension"), EXTENSIONS),
        label=_labels(person_row),
        person_row=person_row,
        modality=positions(column("modality"), MODALITIES),
        camera=camera,
        camera_names=camera_names,
        digest=digest,
    )


def _labels(person_row: np.ndarray) -> np.ndarray:
    """Each row's position among the distinct rows of people."""
    present = np.zeros(person_row.max(initial=-1) + 1, dtype=np.int64)
    present[person_row] = 1
    return (np.cumsum(present) - 1)[person_row]


# Columns of texts as arrays.


def codes(column: pa.ChunkedArray) -> tuple[list[str], np.ndarray]:
    """The distinct texts of a column, in order of appearance, and each row's position among them, int32."""
    chunks = column.dictionary_encode().chunks  # they share one dictionary
    names = chunks[0].dictionary.to_pylist() if chunks else []
    return names, np.concatenate([np.zeros(0, np.int32), *(chunk.indices.to_numpy() for chunk in chunks)])


def _sorted_codes(column: pa.ChunkedArray) -> tuple[list[str], np.ndarray]:
    """`codes` with the texts in ascending order."""
    names, found = codes(column)
    order = sorted(range(len(names)), key=names.__getitem__)
    rank = np.empty(len(names), np.int32)
    rank[order] = np.arange(len(names))
    return [names[n] for n in order], rank[found]


def positions(column: pa.ChunkedArray | pa.Array, names: Sequence[str]) -> np.ndarray:
    """Each row's position among a few given texts, int8."""
    found = pc.index_in(column, value_set=pa.array(list(map(str, names)), pa.string()))
    return found.cast(pa.int8()).to_numpy()


def digests(batches: Iterable[pa.RecordBatch]) -> np.ndarray:
    """The column `key`, 64 hex digits an image, as 32 bytes each (V32)."""
    parts = []
    for batch in batches:
        digits = batch["key"].cast(pa.binary()).cast(pa.binary(64))
        text = memoryview(digits.buffers()[1])[64 * digits.offset :]
        parts.append(binascii.unhexlify(text[: 64 * len(digits)]))
    return np.frombuffer(b"".join(parts), "V32")


def image_numbers(keys: np.ndarray) -> np.ndarray:
    """The same number, int32 from 0, for images with the same of these `digests`."""
    texts = pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), len(keys), [None, pa.py_buffer(keys)])
    return texts.dictionary_encode().indices.to_numpy()
