"""What the report shows, read from the files that the other stages wrote."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors

from csdn.ablation_file import Table, data_hash
from csdn.ablation_file import read_table as read_ablation
from csdn.data.dataset import Dataset, load_dataset
from csdn.data.tables import QUARANTINE_SCHEMA, read_table
from csdn.documents import read_json
from csdn.errors import UserError
from csdn.files import read_csv


@dataclass(frozen=True)
class ReportInputs:
    """The outputs of the stages before, as they are."""

    dataset: Dataset
    shards: str | Path  # where they are
    data_hash: str  # SHA-256 of samples.parquet
    data_md5: str  # by which DVC knows the same file
    quarantine: pa.Table
    ingest: Mapping[str, Any]  # metrics/ingest.json
    naming: Mapping[str, float]  # metrics/prompts.json
    evaluation: Mapping[str, Any]  # metrics/evaluation.json
    cmc: list[dict[str, str]]
    camera_pairs: list[dict[str, str]]
    queries: list[dict[str, Any]]
    features: Mapping[str, np.ndarray]
    text_map_images: list[dict[str, str]]
    text_maps: Mapping[str, np.ndarray]
    prompts_log: list[dict[str, str]]
    embedding_log: list[dict[str, str]]
    ablation: Table | None  # metrics/ablation.json
    model: Mapping[str, Any]  # models/embedding/config.json


def read_inputs(root: Path, shards: str | Path) -> ReportInputs:
    """Read everything below the project's root; raises UserError naming the first file that is missing.

    shards: where they are (csdn.data.reading.shards_at).
    """
    data, metrics, evaluation, models = (root / name for name in ("data", "metrics", "evaluation", "models"))
    try:
        return ReportInputs(
            dataset=load_dataset(data),
            shards=shards,
            data_hash=hashlib.sha256((data / "samples.parquet").read_bytes()).hexdigest(),
            data_md5=data_hash(data / "samples.parquet"),
            quarantine=read_table(data / "quarantine.parquet", QUARANTINE_SCHEMA),
            ingest=_json(metrics / "ingest.json"),
            naming=_json(metrics / "prompts.json"),
            evaluation=_json(metrics / "evaluation.json"),
            cmc=read_csv(evaluation / "cmc.csv"),
            camera_pairs=read_csv(evaluation / "camera_pairs.csv"),
            queries=pq.read_table(evaluation / "queries.parquet").to_pylist(),
            features=load_tensors((evaluation / "features.safetensors").read_bytes()),
            text_map_images=read_csv(evaluation / "text_maps.csv"),
            text_maps=load_tensors((evaluation / "text_maps.safetensors").read_bytes()),
            prompts_log=read_csv(models / "prompts" / "log.csv"),
            embedding_log=read_csv(models / "embedding" / "log.csv"),
            ablation=read_ablation(metrics / "ablation.json"),
            model=_json(models / "embedding" / "config.json"),
        )
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: no such file; `dvc repro` makes it") from None
    except (SafetensorError, ValueError, csv.Error, pa.ArrowException, OSError) as error:
        raise UserError(f"a file of an earlier stage is damaged: {error}; run `dvc repro`") from None


def _json(path: Path) -> dict[str, Any]:
    value = read_json(path, "`dvc repro` makes it")
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged; `dvc repro` makes it")
    return value
