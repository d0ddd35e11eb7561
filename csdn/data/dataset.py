"""What ingest made, as arrays: the one door through which training and evaluation see the data."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from csdn.data.images import EXTENSIONS
from csdn.data.records import MODALITIES, Modality
from csdn.data.tables import PEOPLE_SCHEMA, SAMPLES_SCHEMA, read_table


@dataclass(frozen=True)
class SampleTable:
    """Images of one side as columns, one row an image, in the ledger's order, then by path.

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
        """The digests as str, 64 hex digits: eight times the memory, so only for those who ask."""
        return np.array([digest.tobytes().hex() for digest in self.digest], dtype=str)

    def of(self, modality: Modality) -> np.ndarray:
        """Ordinals of the images of a modality, rising."""
        return np.flatnonzero(self.modality == MODALITIES.index(modality))

    def of_people(self, labels: np.ndarray) -> SampleTable:
        """The images of these people alone, who are numbered anew: labels[n] becomes n (they rise)."""
        chosen = np.isin(self.label, labels)
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        kept = {name: of[chosen] for name, of in columns.items() if isinstance(of, np.ndarray)}
        return replace(self, **kept | {"label": np.searchsorted(labels, kept["label"])})


@dataclass(frozen=True)
class Dataset:
    """The merged data: the tables samples.parquet and people.parquet (csdn.data.tables)."""

    samples: pa.Table
    people: pa.Table

    def train_table(self) -> SampleTable:
        return _sample_table(self.samples, "train")

    def test_table(self) -> SampleTable:
        return _sample_table(self.samples, "test")

    def test_index(self) -> dict[str, list[Any]]:
        """The test images as the columns of csdn.evaluation.protocol; row n is row n of `test_table`."""
        names = dict(zip(self.people["row"].to_pylist(), self.people["person"].to_pylist(), strict=True))
        rows = self.samples.filter(pa.compute.equal(self.samples["side"], "test"))
        columns = {name: rows[name].to_pylist() for name in ("modality", "camera", "key", "path", "places")}
        return {"person": [names[row] for row in rows["person_row"].to_pylist()], **columns}


def load_dataset(root: str | Path = "data") -> Dataset:
    """Read what ingest wrote below `root`; raises UserError where it is missing or not readable."""
    root = Path(root)
    return Dataset(
        samples=read_table(root / "samples.parquet", SAMPLES_SCHEMA),
        people=read_table(root / "people.parquet", PEOPLE_SCHEMA),
    )


def _sample_table(samples: pa.Table, side: str) -> SampleTable:
    rows = samples.filter(pa.compute.equal(samples["side"], side)).combine_chunks()
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
