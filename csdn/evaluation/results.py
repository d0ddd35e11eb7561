"""What the methods achieve on an experiment, as the rows of the files that "evaluate" writes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save as serialize

from csdn.data.dataset import SampleTable
from csdn.evaluation.counts import counts_of
from csdn.evaluation.protocols import Search
from csdn.evaluation.scores import (
    Distances,
    Labels,
    camera_pairs,
    cmc_rows,
    first_trial,
    guesses,
    headline,
    trial_metrics,
)
from csdn.evaluation.summary import METHODS
from csdn.evaluation.text_maps import TextMaps
from csdn.files import replace_folder, write_csv

PAIR = ("query_camera", "gallery_camera")
PAIR_COLUMNS = ("direction", *PAIR, "queries", "rank1", "mAP")
QUERIES_SCHEMA = pa.schema(
    {
        "direction": pa.string(),
        "key": pa.string(),
        "person": pa.string(),
        "camera": pa.string(),
        "first_rank": pa.int64(),  # 1 = the best; null where the query has no right image to find
        "ap": pa.float64(),  # percent
        "inp": pa.float64(),  # percent
        "top_keys": pa.list_(pa.string()),  # the ten best gallery images, the best first
        "right_key": pa.string(),  # the right gallery image that is ranked best
    }
)


@dataclass(frozen=True)
class Experiment:
    """The test images and who searches whom among them; `index` are the protocol's columns."""

    table: SampleTable
    index: Mapping[str, Sequence[str]]
    labels: Labels
    searches: list[Search]
    protocol: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class PeopleMaps:
    """Text maps of some training people; row n of `images` (key, person, modality) is image n of the maps."""

    images: list[dict[str, str]]
    maps: TextMaps


@dataclass(frozen=True)
class Results:
    """What is written: metrics/evaluation.json, and the rows of the files in evaluation/."""

    figures: dict[str, Any]
    cmc: list[dict[str, Any]]
    camera_pairs: list[dict[str, Any]]
    queries: list[dict[str, Any]]


def evaluate(experiment: Experiment, methods: Mapping[str, Distances], seed: int) -> Results:
    """Every method on every search of the experiment; chance is added."""
    figures: dict[str, Any] = {name: {} for name in METHODS}
    cmc: list[dict[str, Any]] = []
    for number, search in enumerate(experiment.searches):
        for name, distances in {**methods, "chance": guesses(seed, number)}.items():
            trials = trial_metrics(search, experiment.labels, distances)
            figures[name][search.name] = headline(trials)
            cmc += cmc_rows(trials, name, search.name)
    pairs, left_out = camera_tables(experiment, methods["trained"])
    queries = [
        row for search in experiment.searches for row in query_rows(experiment, search, methods["trained"])
    ]
    valid = Counter(row["direction"] for row in queries if row["first_rank"] is not None)
    figures["counts"] = {
        search.name: counts_of(
            search,
            experiment.index,
            experiment.labels.people,
            valid[search.name],
            experiment.protocol,
            experiment.options,
        )
        | ({"camera_pairs_left_out": left_out[search.name]} if left_out[search.name] else {})
        for search in experiment.searches
    }
    return Results(figures, cmc, pairs, queries)


def camera_tables(
    experiment: Experiment, distances: Distances
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Rows of camera_pairs.csv, and how many pairs of cameras each search leaves out.

    These are a row too, without figures: the table does not look whole where it is not.
    """
    names = dict(zip(experiment.labels.cameras.tolist(), experiment.index["camera"], strict=True))
    table, left_out = [], {}
    for search in experiment.searches:
        rows, left_out[search.name] = camera_pairs(search, experiment.labels, distances)
        table += [row | {column: names[row[column]] for column in PAIR} for row in rows]
        if left_out[search.name]:
            rest = {"query_camera": f"{left_out[search.name]} other pairs"}
            table.append(dict.fromkeys(PAIR_COLUMNS) | {"direction": search.name} | rest)
    return table, left_out


def query_rows(experiment: Experiment, search: Search, distances: Distances) -> list[dict[str, Any]]:
    """Rows of queries.parquet: each query of a search in trial 0."""
    metrics, top, right = first_trial(search, experiment.labels, distances)
    key = experiment.index["key"]
    rows = []
    for number, query in enumerate(search.queries):
        valid = bool(metrics.valid[number])
        rows.append(
            {
                "direction": search.name,
                "key": key[query],
                "person": experiment.index["person"][query],
                "camera": experiment.index["camera"][query],
                "first_rank": int(metrics.first_rank[number]) if valid else None,
                "ap": round(100 * float(metrics.ap[number]), 6) if valid else None,
                "inp": round(100 * float(metrics.inp[number]), 6) if valid else None,
                "top_keys": [key[row] for row in top[number] if row >= 0],
                "right_key": key[right[number]] if valid else None,
            }
        )
    return rows


def write_results(
    results: Results, features: Mapping[str, np.ndarray], people: PeopleMaps, out: Path
) -> None:
    """The folder `evaluation/`, whole or not at all."""
    with replace_folder(out) as folder:
        write_csv(folder / "cmc.csv", results.cmc)
        write_csv(folder / "camera_pairs.csv", results.camera_pairs, PAIR_COLUMNS)
        pq.write_table(pa.Table.from_pylist(results.queries, QUERIES_SCHEMA), folder / "queries.parquet")
        halves = {name: torch.from_numpy(features[name]).half() for name in ("trained", "clip")}
        (folder / "features.safetensors").write_bytes(serialize(halves))
        write_csv(folder / "text_maps.csv", people.images)
        maps = {name: found.cpu().contiguous() for name, found in people.maps._asdict().items()}
        (folder / "text_maps.safetensors").write_bytes(serialize(maps))
