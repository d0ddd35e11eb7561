"""report/index.html: one self-contained page about a run. It loads nothing from the network.

In this order: write the page, read what the other stages wrote, the values of the template by section,
publish a copy in an object store.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jinja2 import Environment, PackageLoader, StrictUndefined
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors

from csdn.data.catalog import QUARANTINE_SCHEMA, Dataset, SampleTable, load_dataset, read_table
from csdn.data.outputs import read_csv
from csdn.data.shards import Place, shards_at
from csdn.data.storage import Store
from csdn.evaluation.headline import notes
from csdn.params import Params
from csdn.report import tables, wording
from csdn.report.advice import Evidence, next_steps, phase_losses, train_image_counts
from csdn.report.charts import (
    FIGURES,
    PEOPLE,
    camera_pairs_chart,
    cmc_charts,
    distance_charts,
    loss_charts,
    naming_charts,
    open_set_charts,
    plane_charts,
    write_charts,
    write_png,
)
from csdn.report.drift import newest_drift
from csdn.report.feature_space import pairs_by_kind, planes
from csdn.report.images import Gallery, confusions, ranked_lists, text_maps_shown
from csdn.report.tables import AblationTable, data_hash, read_ablation
from csdn.report.wording import shown
from csdn.runtime.documents import read_json
from csdn.runtime.errors import UserError
from csdn.runtime.files import atomic_folder, file_sha256

HASH_DIGITS = 16  # of the page's SHA-256, the folder of a published copy


def write_report(params: Params, root: Path, out: Path) -> Path:
    """Write the report on the project in folder `root`; returns the page's path.

    Raises UserError where a file of an earlier stage is missing or damaged.
    """
    inputs = read_inputs(root, shards_at(params, root / "data"))
    with atomic_folder(out) as folder:
        page = render(context(params, inputs, folder / FIGURES))
        (folder / "index.html").write_text(page, encoding="utf-8")
    return out / "index.html"


def render(values: dict[str, Any]) -> str:
    """The page as HTML. Every value is escaped: names of people, cameras and files come from outside."""
    environment = Environment(
        loader=PackageLoader("csdn.report", "templates"),
        autoescape=True,
        finalize=shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(values)


# Inputs: the files of the other stages.


@dataclass(frozen=True)
class ReportInputs:
    """The outputs of the earlier stages, and the ledger."""

    ledger: Sequence[Mapping[str, Any]]  # its drops, as data/drops.json has them
    dataset: Dataset
    train: SampleTable
    test: SampleTable
    shards: Place  # folder, or prefix of an object store
    data_hash: str  # SHA-256 of samples.parquet
    data_md5: str  # of the same file, DVC's hash
    quarantine: pa.Table
    ingest: Mapping[str, Any]  # metrics/ingest.json
    naming: Mapping[str, float]  # metrics/prompts.json
    evaluation: Mapping[str, Any]  # metrics/evaluation.json
    cmc: list[dict[str, str]]
    camera_pairs: list[dict[str, str]]
    open_set: list[dict[str, str]]
    queries: list[dict[str, Any]]
    features: Mapping[str, np.ndarray]
    text_map_images: list[dict[str, str]]
    text_maps: Mapping[str, np.ndarray]
    prompts_log: list[dict[str, str]]
    embedding_log: list[dict[str, str]]
    ablation: AblationTable | None  # metrics/ablation.json
    model: Mapping[str, Any]  # models/embedding/config.json


def read_inputs(root: Path, shards: Place) -> ReportInputs:
    """Read the inputs below the project's root; raises UserError naming the first file that is missing.

    shards: their folder, or prefix of an object store (csdn.data.shards.shards_at).
    """
    data, metrics, evaluation, models = (root / name for name in ("data", "metrics", "evaluation", "models"))
    try:
        dataset = load_dataset(data)
        return ReportInputs(
            ledger=_json(data / "drops.json")["drops"],
            dataset=dataset,
            train=dataset.train_table(),
            test=dataset.test_table(),
            shards=shards,
            data_hash=file_sha256(data / "samples.parquet"),
            data_md5=data_hash(data / "samples.parquet"),
            quarantine=read_table(data / "quarantine.parquet", QUARANTINE_SCHEMA),
            ingest=_json(metrics / "ingest.json"),
            naming=_json(metrics / "prompts.json"),
            evaluation=_json(metrics / "evaluation.json"),
            cmc=read_csv(evaluation / "cmc.csv"),
            camera_pairs=read_csv(evaluation / "camera_pairs.csv"),
            open_set=read_csv(evaluation / "open_set.csv"),
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


# The values of page.html.j2, by section.


def context(params: Params, inputs: ReportInputs, figures: Path) -> dict[str, Any]:
    """The template's values, by section; writes the PNG of each figure into the folder `figures`."""
    return {
        **_head(params, inputs),
        **_retrieval(params, inputs, figures),
        **_open_set(inputs, figures),
        **_features(inputs, figures),
        **_training(inputs, figures),
        "drift": _drift(inputs),
        "ablation": tables.ablation_shown(inputs.ablation, params, inputs.data_md5),
        **_data(params, inputs),
        "steps": next_steps(_evidence(params, inputs)),
    }


def _head(params: Params, inputs: ReportInputs) -> dict[str, Any]:
    figures = inputs.evaluation
    return {
        "opening": wording.opening(figures),
        "order": wording.order(figures),
        "directions": tables.direction_results(figures),
        "trials": params.evaluation.trials,
        "notes": [*notes(figures["counts"]), *wording.sampling(figures), *wording.reranking(figures)],
        "protocol": params.evaluation.described(),
        "clip": inputs.model["model"]["clip"],
        "test_people": inputs.ingest["people"]["test"],
    }


def _retrieval(params: Params, inputs: ReportInputs, figures: Path) -> dict[str, Any]:
    gallery = Gallery(inputs.test, inputs.dataset, inputs.shards, inputs.features["trained"])
    grids = tables.camera_grids(inputs.camera_pairs)
    return {
        "cmc": write_charts(cmc_charts(inputs.cmc), figures),
        "lists": ranked_lists(inputs.queries, params.report.queries, gallery),
        "confusions": confusions(inputs.queries, params.report.queries, gallery),
        "grids": [(grid, write_png(camera_pairs_chart(grid), figures)) for grid in grids],
        "roomy": all(grid.roomy for grid in grids),
        "pairs_left_out": wording.pairs_left_out(inputs.evaluation),
    }


def _open_set(inputs: ReportInputs, figures: Path) -> dict[str, Any]:
    return {
        "fnir": write_charts(open_set_charts(inputs.open_set), figures),
        "open_set": tables.open_set_rows(inputs.evaluation),
        "open_set_words": wording.open_set(inputs.evaluation),
    }


def _features(inputs: ReportInputs, figures: Path) -> dict[str, Any]:
    pairs = pairs_by_kind(inputs.features, inputs.test)
    areas = {kind: {method: of.area() for method, of in found.items()} for kind, found in pairs.items()}
    shown_planes, people = planes(inputs.features, inputs.test, inputs.dataset)
    shares = [(plane.between_people, plane.between_modalities) for plane in shown_planes]
    return {
        "distances": write_charts(distance_charts(pairs), figures),
        "separation": wording.separation(areas),
        "planes": write_charts(plane_charts(shown_planes, people), figures),
        "plane_people": people,
        "people_colours": PEOPLE,
        "variance": wording.variance(*shares) if shares else "",
    }


def _training(inputs: ReportInputs, figures: Path) -> dict[str, Any]:
    people = inputs.ingest["people"]["train"]
    gallery = Gallery(inputs.train, inputs.dataset, inputs.shards)
    return {
        "losses": write_charts(loss_charts(inputs.prompts_log, inputs.embedding_log), figures),
        "naming": write_charts(naming_charts(inputs.naming), figures),
        "naming_words": wording.naming_words(inputs.naming, people),
        "maps": text_maps_shown(inputs.text_map_images, inputs.text_maps, gallery),
    }


def _drift(inputs: ReportInputs) -> dict[str, Any] | None:
    tables, image_size = (inputs.train, inputs.test), inputs.model["model"]["image_size"]
    features = inputs.features["trained"]
    return newest_drift(inputs.ledger, inputs.dataset, tables, inputs.shards, features, image_size)


def _data(params: Params, inputs: ReportInputs) -> dict[str, Any]:
    return {
        "data": tables.data_rows(inputs.ingest),
        "remarks": tables.data_remarks(inputs.ingest),
        "cameras": tables.camera_counts(inputs.ingest),
        "more_cameras": tables.more_cameras(inputs.ingest),
        "quarantine": tables.quarantine(inputs.quarantine),
        "parameters": tables.parameter_groups(params),
        "versions": tables.versions(),
        "clip_hash": inputs.model["model"]["clip_sha256"],
        "data_hash": inputs.data_hash,
    }


def _evidence(params: Params, inputs: ReportInputs) -> Evidence:
    return Evidence(
        figures=inputs.evaluation,
        camera_pairs=inputs.camera_pairs,
        queries=inputs.queries,
        naming=inputs.naming,
        losses=phase_losses(inputs.prompts_log, inputs.embedding_log),
        train_images=train_image_counts(inputs.train.label, inputs.train.modality),
        images_of_batch=params.embedding.images_per_identity,
        refused=inputs.ingest["quarantined"],
        images=inputs.dataset.samples.count_rows() + inputs.quarantine.num_rows,
    )


# A copy of the report in an object store (`report.store`), under a name derived from its content.


def publish(page: Path, address: str) -> str:
    """Copy `page` and its folder into an object store; returns the copy's address. Raises UserError.

    The page is uploaded last, so its pictures are there when it can be read.
    """
    store = Store(published_at(page, address).rpartition("/")[0])
    pictures = (path for path in page.parent.rglob("*") if path.is_file() and path != page)
    for path in (*sorted(pictures), page):
        store.put(path.relative_to(page.parent).as_posix(), path)
    return store.address_of(page.name)


def published_at(page: Path, address: str) -> str:
    """The address of the copy of `page` below `address`."""
    name = file_sha256(page)[:HASH_DIGITS]
    return f"{address.rstrip('/')}/{name}/{page.name}"
