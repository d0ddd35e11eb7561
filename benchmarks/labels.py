"""How many wrong labels `csdn check-labels` finds among people that the model has not seen.

    python benchmarks/labels.py [--people 200] [--kind model|CLIP] [--threads 2]

Of the project's own test people, with the features of the stage evaluate; with --people, of so many built-in
people, who have 2 images by each of 4 visible cameras and 4 by each of 2 infrared ones. Labels are made wrong
at random, SHUFFLES times for each row. n is the number of wrong labels, so the precision and the recall of
the first n findings are the same number. `model`: judged by the model's features; `CLIP`: as people that the
model was trained on, by those of CLIP without training, cross-validated by person.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from machine import machine
from safetensors.numpy import load_file

from csdn.curation.label_check import ClipEmbedder
from csdn.curation.labels import CLIP, MODEL, Judge, Judgement, cross_validated, judge_labels
from csdn.data.catalog import load_dataset
from csdn.params import load_params
from csdn.search.embedder import BATCH, Embedder
from csdn.synthetic.people import FRESH
from csdn.synthetic.sets import PeopleSet, images_of, png

SHUFFLES = 10
WRONG_PEOPLE = 0.05  # of the people, in each row of people


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=int, help="built-in people that no model has seen")
    parser.add_argument("--kind", choices=(MODEL, CLIP), help="by whose features alone")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{date.today()}  {machine()}, {options.threads} threads")
    drop = built_in(options.people) if options.people else test_people()
    people = len(np.unique(drop.people))
    print(f"{people} people, {len(drop.people)} images, {SHUFFLES} shuffles a row; percent")
    for kind in [options.kind] if options.kind else (MODEL, CLIP):
        print(f"\nJudged by {kind}")
        judge = drop.judge(kind, drop.people)
        print(
            f"  right labels: {100 * np.mean(judge.best > judge.own):.1f} of the images resemble another "
            "person more"
        )
        for share in (0.01, 0.05, 0.10):
            image_row(drop, kind, f"{100 * share:.0f} % of images", partial(drop.some_images, share))
        image_row(drop, kind, "5 % of images, whole tracks", partial(drop.some_tracks, 0.05))
        for name, second in SECOND_LABEL.items():
            pair_row(drop, kind, name, second)
        split_row(drop, kind)


class Drop(NamedTuple):
    """The features of images by kind of judge, the right labels 0..P-1, the cameras, whether infrared."""

    features: dict[str, np.ndarray]
    people: np.ndarray
    cameras: np.ndarray
    infrared: np.ndarray

    def judge(self, kind: str, labels: np.ndarray, chosen: np.ndarray | slice = slice(None)) -> Judgement:
        """The images `chosen` alone, with these labels, numbered without gaps."""
        labels, views, features = labels[chosen], self.cameras[chosen], self.features[kind][chosen]
        people = np.unique(labels)
        nobody = np.zeros(len(people), bool)
        judges = [Judge(MODEL, features, people, nobody)]
        if kind == CLIP:
            judges = cross_validated(features, labels, self.infrared[chosen].astype(int), people)
        return judge_labels(judges, labels, views, len(labels))

    def others(self, rows: np.ndarray, draws: np.random.Generator) -> np.ndarray:
        """Another person for each row."""
        count = self.people.max() + 1
        return (self.people[rows] + draws.integers(1, count, len(rows))) % count

    def some_images(self, share: float, draws: np.random.Generator) -> np.ndarray:
        labels = self.people.copy()
        rows = draws.choice(len(labels), round(share * len(labels)), replace=False)
        labels[rows] = self.others(rows, draws)
        return labels

    def some_tracks(self, share: float, draws: np.random.Generator) -> np.ndarray:
        """All images of a person by a camera get the same wrong label."""
        track = self.people * (self.cameras.max() + 1) + self.cameras
        tracks, first = np.unique(track, return_index=True)
        chosen = draws.choice(len(tracks), round(share * len(tracks)), replace=False)
        wrong = dict(zip(tracks[chosen], self.others(first[chosen], draws), strict=True))
        return np.array([wrong.get(one, person) for one, person in zip(track, self.people, strict=True)])


def test_people() -> Drop:
    """The project's test people."""
    index = load_dataset("data").test_index(("person", "modality", "camera"))
    stored = load_file("evaluation/features.safetensors")
    features = {kind: unit(stored[name]) for kind, name in ((MODEL, "trained"), (CLIP, "clip"))}
    infrared = np.array(index["modality"]) == "infrared"
    return Drop(features, dense(index["person"]), dense(index["camera"]), infrared)


def built_in(people: int) -> Drop:
    images = list(images_of(PeopleSet(FRESH.start, people, visible=2, infrared=4)))
    images.sort(key=lambda image: image.modality)
    model = Embedder.open("models/embedding")
    embedders = {MODEL: model, CLIP: ClipEmbedder.of(model, load_params())}
    parts: dict[str, list[np.ndarray]] = {MODEL: [], CLIP: []}
    for modality, of in itertools.groupby(images, key=lambda image: image.modality):
        while batch := list(itertools.islice(of, BATCH)):
            pixels = np.stack([model.prepare(png(image), "png") for image in batch])
            for kind, embedder in embedders.items():
                parts[kind].append(embedder.embed(pixels, modality))
    return Drop(
        {kind: np.concatenate(found) for kind, found in parts.items()},
        np.array([image.person - FRESH.start for image in images]),
        np.array([image.camera.number for image in images]),
        np.array([image.camera.infrared for image in images]),
    )


def unit(features: np.ndarray) -> np.ndarray:
    features = features.astype(np.float32)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def dense(labels: Sequence[Any]) -> np.ndarray:
    return np.unique(labels, return_inverse=True)[1]


# Images.


def image_row(
    drop: Drop, kind: str, name: str, shuffled: Callable[[np.random.Generator], np.ndarray]
) -> None:
    found, twice, right = [], [], []
    for seed in range(SHUFFLES):
        labels = shuffled(np.random.default_rng(seed))
        judgement, wrong = drop.judge(kind, labels), np.flatnonzero(labels != drop.people)
        order = np.argsort(-np.nan_to_num(judgement.score, nan=-np.inf), kind="stable")
        hits = np.intersect1d(order[: len(wrong)], wrong)
        found.append(len(hits) / len(wrong))
        twice.append(np.isin(wrong, order[: 2 * len(wrong)]).mean())
        right.append(np.mean(judgement.other[hits] == drop.people[hits]))
    print(
        f"  {name}, n = {len(wrong)}: of the first n {percent(found)}, recall of the first 2n "
        f"{percent(twice)}; suggestion right {percent(right)}"
    )


def percent(shares: list[float]) -> str:
    values = 100 * np.array(shares)
    return f"{values.mean():.1f} ± {values.std(ddof=1):.1f}"


# People.


def random_half(drop: Drop, rows: np.ndarray, draws: np.random.Generator) -> np.ndarray:
    return draws.choice(rows, len(rows) // 2, replace=False)


def half_of_cameras(drop: Drop, rows: np.ndarray, draws: np.random.Generator) -> np.ndarray:
    cameras = draws.permutation(drop.cameras.max() + 1)
    return rows[np.isin(drop.cameras[rows], cameras[: len(cameras) // 2])]


def infrared_ones(drop: Drop, rows: np.ndarray, draws: np.random.Generator) -> np.ndarray:
    return rows[drop.infrared[rows]]


SECOND_LABEL = {
    "one person under two labels, half of the images each": random_half,
    "one person under two labels, other cameras each": half_of_cameras,
    "one person under two labels, one for each modality": infrared_ones,
}


def pair_row(drop: Drop, kind: str, name: str, second: Callable[..., np.ndarray]) -> None:
    """People of whom some images, chosen by `second`, have a label of their own."""
    count = drop.people.max() + 1
    found, twice = [], []
    for seed in range(SHUFFLES):
        draws, labels = np.random.default_rng(seed), drop.people.copy()
        chosen = draws.choice(count, round(WRONG_PEOPLE * count), replace=False)
        for number, person in enumerate(chosen):
            labels[second(drop, np.flatnonzero(drop.people == person), draws)] = count + number
        pairs = np.triu(np.nan_to_num(drop.judge(kind, labels).pairs, nan=-np.inf), 1)
        pairs[np.tril_indices(len(pairs))] = -np.inf
        order = np.stack(np.unravel_index(np.argsort(-pairs, axis=None, kind="stable"), pairs.shape), 1)
        wanted = {(person, count + number) for number, person in enumerate(chosen)}
        for shares, size in ((found, len(chosen)), (twice, 2 * len(chosen))):
            shares.append(len(wanted & {tuple(pair) for pair in order[:size]}) / len(chosen))
    print(
        f"  {name}, n = {len(chosen)}: of the first n {percent(found)}, recall of the first 2n "
        f"{percent(twice)}"
    )


def split_row(drop: Drop, kind: str) -> None:
    """Two people under one label, of both together as many images as others have."""
    count = drop.people.max() + 1
    found, twice, halves = [], [], []
    for seed in range(SHUFFLES):
        draws, labels, keep = np.random.default_rng(seed), drop.people.copy(), np.ones(len(drop.people), bool)
        pairs = draws.permutation(count)[: 2 * round(WRONG_PEOPLE * count)].reshape(-1, 2)
        for pair in pairs:
            labels[drop.people == pair[1]] = pair[0]
            for person in pair:
                keep[random_half(drop, np.flatnonzero(drop.people == person), draws)] = False
        names, given = np.unique(labels[keep], return_inverse=True)
        judgement = drop.judge(kind, dense(labels), keep)
        ranked = names[np.argsort(-np.nan_to_num(judgement.splits, nan=-np.inf), kind="stable")]
        found.append(np.isin(pairs[:, 0], ranked[: len(pairs)]).mean())
        twice.append(np.isin(pairs[:, 0], ranked[: 2 * len(pairs)]).mean())
        for pair in pairs:
            own = names[given] == pair[0]
            same = judgement.part[own] == (drop.people[keep][own] == pair[0])
            halves.append(max(same.mean(), 1 - same.mean()))
    print(
        f"  two people under one label, n = {len(pairs)}: of the first n {percent(found)}, recall of the "
        f"first 2n {percent(twice)}; images in the right half {100 * np.mean(halves):.1f}"
    )


if __name__ == "__main__":
    main()
