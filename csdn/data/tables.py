"""The Parquet files of `data/`: their columns, and writing them so that the same rows give the same bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from csdn.documents import parse_json
from csdn.errors import UserError
from csdn.files import replace_file

TABLES_VERSION = 2
_VERSION_KEY = b"csdn_index_version"
_FACTS_KEY = b"csdn_facts"


def _schema(**types: pa.DataType) -> pa.Schema:
    return pa.schema([pa.field(name, kind) for name, kind in types.items()])


# data/index/<drop id>.parquet: a row for each good image of a drop, sorted by path. `offset` and `size` are
# the image's bytes in the shard; `person` and `camera` are the labels as given. A key that comes twice is
# the same image. `sides` and `places` are null but for benchmarks (csdn.data.records).
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
    sides=pa.list_(pa.string()),
    places=pa.list_(pa.int32()),
)

# data/index/<drop id>.quarantine.parquet: what the drop has and the index has not.
REFUSED_SCHEMA = _schema(
    path=pa.string(),
    reason=pa.string(),
    sha256=pa.string(),
    person=pa.string(),
    modality=pa.string(),
    camera=pa.string(),
)

# data/quarantine.parquet: the same over all drops, with what only shows when they are laid together.
QUARANTINE_SCHEMA = REFUSED_SCHEMA.append(pa.field("drop", pa.string()))

# data/people.parquet: `row` is for life; `visible` and `infrared` count the images that are used.
PEOPLE_SCHEMA = _schema(
    row=pa.int64(),
    person=pa.string(),
    bucket=pa.int32(),
    side=pa.string(),
    status=pa.string(),
    visible=pa.int64(),
    infrared=pa.int64(),
)

# data/samples.parquet: every image that is trained on or tested with, in the ledger's order, then by path;
# `camera` is the canonical label (csdn.data.labels).
SAMPLES_SCHEMA = _schema(
    key=pa.string(),
    extension=pa.string(),
    shard=pa.string(),
    offset=pa.int64(),
    size=pa.int64(),
    person_row=pa.int64(),
    side=pa.string(),
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
    """Write a table whole or not at all; `facts` are JSON values kept beside the columns."""
    metadata = {
        _VERSION_KEY: str(TABLES_VERSION),
        _FACTS_KEY: json.dumps(facts or {}, sort_keys=True),
    }
    with replace_file(path) as temporary:
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
    """The facts that `write_table` kept beside the columns; raises UserError as `read_table` does."""
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
            "delete it and run `dvc repro ingest` to make it anew"
        )
    return metadata
