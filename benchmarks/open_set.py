"""Open-set identification on 1,000 built-in people that no model has seen.

    python benchmarks/open_set.py [--model models/embedding] [--people 1000] [--threads 2]

What more test people bring; whether thresholds hold in galleries of other sizes; whether normalising the
scores by pairs of cameras helps (five sets of people of their own). Each person has 2 visible images by each
of 4 built-in cameras and 4 infrared ones by each of 2. Protocol cameras, 10 galleries, flip TTA.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from machine import machine

from csdn.data.augment import resize
from csdn.data.views import normalised
from csdn.evaluation import embed_with_flip_tta, protocol
from csdn.evaluation.distances import FeatureDistances
from csdn.evaluation.open_set import (
    DirectionThresholds,
    SearchScores,
    fpir_at_size,
    open_set_of,
    search_scores,
    thresholds_of,
)
from csdn.evaluation.protocols import Search
from csdn.evaluation.scores import Labels
from csdn.model import fuse_batch_norms, load
from csdn.params import load_params
from csdn.synthetic.people import FRESH, person
from csdn.synthetic.rendering import render
from csdn.synthetic.sets import BuiltinImage, PeopleSet, images_of

BATCH = 128
SEEDS = 5
SIZES = (25, 50, 100, 250, 500)  # people of a gallery


Index = dict[str, list]  # columns as csdn.evaluation.protocol takes them; people by their number from 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("models/embedding"))
    parser.add_argument("--people", type=int, default=1000, help="at least 150")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{date.today()}  {machine()}, {options.threads} threads")
    began = time.perf_counter()
    index, features = embedded(options.model, options.people)
    print(f"{options.people} people, {len(features)} images, embedded in {time.perf_counter() - began:.0f} s")
    for part in (more_people, other_sizes, normalised_scores):
        part(index, features, options.people)


# The people, as the stages ingest and evaluate see them.


def embedded(model: Path, people: int, visible: int = 2, infrared: int = 4) -> tuple[Index, np.ndarray]:
    """The index of the people's images, so many by each camera, and their features [n, D]."""
    network = fuse_batch_norms(load(model))
    normalize, size = load_params().model.normalize, network.config.image_size
    images = list(images_of(PeopleSet(FRESH.start, people, visible, infrared)))
    images.sort(key=lambda image: image.modality)
    features = []
    for modality in ("infrared", "visible"):
        of = [image for image in images if image.modality == modality]
        for start in range(0, len(of), BATCH):
            pixels = np.stack([pixels_of(image, size) for image in of[start : start + BATCH]])
            with torch.inference_mode():
                batch = normalised(torch.from_numpy(pixels), normalize)
                features.append(embed_with_flip_tta(network, batch, modality).numpy())
    index = {
        "person": [image.person - FRESH.start for image in images],
        "modality": [image.modality for image in images],
        "camera": [image.camera.name for image in images],
        "key": [image.path for image in images],
    }
    return index, np.concatenate(features)


def pixels_of(image: BuiltinImage, size: Sequence[int]) -> np.ndarray:
    """The image as the network takes it, uint8 [3, H, W]."""
    pixels = render(person(image.person), image.camera, image.number)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    return resize(pixels, size).transpose(2, 0, 1)


class World(NamedTuple):
    """The images of some people, and the searches of the protocol cameras over them."""

    labels: Labels
    features: np.ndarray
    searches: list[Search]


def world(index: Index, features: np.ndarray, people: np.ndarray) -> World:
    rows = np.flatnonzero(np.isin(index["person"], people))
    of = {name: [column[row] for row in rows] for name, column in index.items()}
    labels = Labels(np.array(of["person"]), np.array(of["camera"]))
    return World(labels, features[rows], protocol("cameras", of, trials=10))


# What more people bring.


def more_people(index: Index, features: np.ndarray, people: int) -> None:
    print("\nMore test people: FPIR and DIR in percent, with their 95 % intervals")
    for count in sorted({min(count, people) for count in (80, 300, 1000)}):
        for gallery in sorted({80, count}):
            began = time.perf_counter()
            for direction, scores in grouped(index, features, np.arange(count), gallery).items():
                figures = open_set_of(scores, direction, seed=0).figures
                rates = "; ".join(rate(name, figures.get(name)) for name in ("fpir_10", "fpir_1"))
                head = f"{figures['people']:5} people in galleries of {gallery}, {direction}"
                print(f"  {head}: FPIR from {figures['least_fpir']:.2f} %; {rates}")
            print(f"  {'':5} both directions: {time.perf_counter() - began:.1f} s")


def rate(name: str, figures: dict[str, dict[str, float]] | None) -> str:
    wanted = name.replace("fpir_", "FPIR ")
    if figures is None:
        return f"{wanted} %: -"
    dirs, fpir = figures["dir"], figures["fpir"]
    return (
        f"{wanted} % (measured {fpir['value']:.2f}, {fpir['low']:.2f} to {fpir['high']:.2f}): "
        f"DIR {dirs['value']:.2f}, {dirs['low']:.2f} to {dirs['high']:.2f}"
    )


# Thresholds of galleries of one size, in galleries of other sizes and other people.


def other_sizes(index: Index, features: np.ndarray, people: int) -> None:
    """One half of the people sets thresholds, the other is searched: SEEDS splits into halves."""
    print(
        "\nGalleries of other sizes: measured FPIR in percent for a wanted 10 %, mean and range over splits"
    )
    half = people // 2
    for size in (min(100, half), half):
        measured: dict[tuple[str, int], list[tuple[float, float]]] = {}
        for seed in range(SEEDS):
            order = np.random.default_rng(seed).permutation(people)
            setting = grouped(index, features, order[:half], size)
            for other in (one for one in SIZES if one <= half):
                for direction, found in grouped(index, features, order[half:], other).items():
                    of = thresholds_of(setting[direction])
                    adjusted = fpir_at_size(0.1, found.gallery_people, of.gallery_people)
                    pair = tuple(100 * np.mean(found.other >= at(of, fpir)) for fpir in (0.1, adjusted))
                    measured.setdefault((direction, other), []).append(pair)
        for (direction, other), pairs in measured.items():
            as_set, adjusted = (
                f"{np.mean(of):.1f} ({min(of):.1f} to {max(of):.1f})" for of in zip(*pairs, strict=True)
            )
            print(f"  set at {size}, {direction}, {other:4} people: as set {as_set}, by the model {adjusted}")


def at(of: DirectionThresholds, fpir: float) -> float:
    """The threshold for an FPIR, also where csdn.evaluation.open_set does not adjust to a size."""
    return next(threshold for threshold, value in zip(of.thresholds, of.fpir, strict=True) if value <= fpir)


def grouped(index: Index, features: np.ndarray, people: np.ndarray, size: int) -> dict[str, SearchScores]:
    """Scores of each direction in galleries of `size` of the people, each group by itself."""
    found: dict[str, list[SearchScores]] = {}
    for start in range(0, len(people) - size + 1, size):
        of = world(index, features, people[start : start + size])
        distances = FeatureDistances(of.features)
        for search in of.searches:
            found.setdefault(search.name, []).append(search_scores(search, of.labels, distances))
    return {
        name: SearchScores(
            *(np.concatenate(column) for column in list(zip(*groups, strict=True))[:3]),
            groups[0].gallery_people,
            groups[0].gallery_images,
        )
        for name, groups in found.items()
    }


# Scores normalised by pairs of cameras: zero mean and unit deviation of the scores of two people.

Statistics = dict[tuple[str, str], tuple[float, float]]  # mean and deviation, by query and gallery camera


def normalised_scores(index: Index, features: np.ndarray, people: int) -> None:
    """SEEDS sets of people; the statistics of one set are those of the next set's people."""
    size = people // SEEDS
    worlds = [world(index, features, np.arange(size) + size * number) for number in range(SEEDS)]
    print(f"\nScores normalised by pairs of cameras: DIR at FPIR 10 % in {SEEDS} sets of {size} people")
    for number, direction in enumerate(search.name for search in worlds[0].searches):
        plain, better = [], []
        for place, of in enumerate(worlds):
            statistics = statistics_of(worlds[(place + 1) % SEEDS], number)
            for found, use in ((plain, None), (better, statistics)):
                figures = open_set_of(pair_scores(of, number, use), direction, seed=place).figures
                found.append(figures["fpir_10"]["dir"]["value"])
        gains = np.subtract(better, plain)
        rows = ", ".join(f"{one:.2f} -> {other:.2f}" for one, other in zip(plain, better, strict=True))
        print(f"  {direction}: {rows}; gain {gains.mean():+.2f}, deviation {gains.std(ddof=1):.2f}")


def statistics_of(of: World, number: int) -> Statistics:
    """Of the pairs of images of two people, over all images of both modalities."""
    search, people, cameras = of.searches[number], of.labels.people, of.labels.cameras
    gallery = np.unique(np.concatenate(search.galleries))
    scores = cosines(of.features[search.queries], of.features[gallery])
    scores[people[search.queries][:, None] == people[gallery]] = np.nan
    found = {}
    for query in np.unique(cameras[search.queries]):
        rows = scores[cameras[search.queries] == query]
        for camera in np.unique(cameras[gallery]):
            block = rows[:, cameras[gallery] == camera]
            found[query, camera] = float(np.nanmean(block)), float(np.nanstd(block))
    return found


def pair_scores(of: World, number: int, statistics: Statistics | None) -> SearchScores:
    """`search_scores`, normalised where there are statistics; no camera sees both modalities."""
    search, people, cameras = of.searches[number], of.labels.people, of.labels.cameras
    parts = []
    for gallery in search.galleries:
        scores = cosines(of.features[search.queries], of.features[gallery])
        for (query, camera), (mean, deviation) in (statistics or {}).items():
            block = np.ix_(cameras[search.queries] == query, cameras[gallery] == camera)
            # A common scale keeps the scores within -1 to 1.
            scores[block] = (scores[block] - mean) / deviation / 20
        same = people[search.queries][:, None] == people[gallery]
        parts.append([np.max(scores, axis=1, where=where, initial=-np.inf) for where in (same, ~same)])
    mate, other = np.concatenate(parts, axis=1)
    asked = np.tile(people[search.queries], len(search.galleries))
    others = len(np.unique(people)) - 1
    return SearchScores(asked, mate, other, others, len(search.galleries[0]))


def cosines(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (queries, gallery)]
    return unit[0] @ unit[1].T


if __name__ == "__main__":
    main()
