"""`csdn suggest` on built-in people that no model has seen: what is proposed, and how much of it is right.

    python benchmarks/suggest.py [--model models/embedding] [--people 640] [--precision 0.95] [--threads 2]

Test people set the thresholds. A drop has images without a person of 40 of 80 known people, of whom the
known images are others, and of 40 new people: of each person 4 visible images (4 cameras) and 4 infrared ones
(2 cameras). SEEDS draws of the people; figures are sums over the draws.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from datetime import date
from pathlib import Path

import numpy as np
import torch
from machine import machine
from open_set import embedded

from csdn.curation.grouping import NOBODY, Groups, Images, calibrate, grouped, known_means
from csdn.curation.suggestions import relation_in_words

SEEDS = 30
KNOWN, RETURNING, NEW = 80, 40, 40  # people


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("models/embedding"))
    parser.add_argument("--people", type=int, default=640)
    parser.add_argument("--precision", type=float, default=0.95)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{date.today()}  {machine()}, {options.threads} threads")
    index, features = embedded(options.model, options.people)
    people = np.array(index["person"])
    shots = np.array([int(key[-8:-4]) for key in index["key"]])
    images = Images(
        (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32),
        (np.array(index["modality"]) == "infrared").astype(np.int8),
        np.unique(index["camera"], return_inverse=True)[1],
    )
    print(f"{options.people} people, {len(people)} images; {100 * options.precision:g} % wanted")
    for test in (80, 240, 480):
        if test + KNOWN + NEW <= options.people:
            show(images, people, shots, test, options.precision)


def show(images: Images, people: np.ndarray, shots: np.ndarray, test: int, precision: float) -> None:
    began, counts, supported = time.process_time(), Counter[str](), Counter[str]()
    for seed in range(SEEDS):
        who = np.random.default_rng(seed).permutation(people.max() + 1)
        known, new = who[test : test + KNOWN], who[test + KNOWN : test + KNOWN + NEW]
        # Of two visible images by a camera one is the drop's, of four infrared ones two are.
        late = shots > np.where(images.modality == 1, 2, 1)
        of_test = np.flatnonzero(np.isin(people, who[:test]))
        of_known = np.flatnonzero(np.isin(people, known) & ~late)
        of_drop = np.flatnonzero(np.isin(people, [*known[:RETURNING], *new]) & late)
        drop = images.of(of_drop)
        sizes = Counter(("visible", "infrared")[code] for code in drop.modality) | {"all": len(of_drop)}
        cuts = calibrate(images.of(of_test), people[of_test], sizes, KNOWN, precision)
        batch = images.features[of_known], people[of_known], images.modality[of_known]
        means = known_means([batch], people.max() + 1, images.features.shape[1])
        supported.update(relation_in_words(one) for one, cut in cuts.items() if cut.threshold is not None)
        counts.update(counted(grouped(drop, means, cuts), drop, people[of_drop], known))
    print(f"\n{test} test people ({time.process_time() - began:.0f} s of CPU for {SEEDS} drops)")
    for relation, draws in supported.items():
        print(f"  proposes {relation}: in {draws} of {SEEDS} draws")
    for name in ("visible", "infrared"):
        for kind in ("known", "new"):
            share = ratio(counts, f"{kind} {name} proposed", f"{kind} {name}")
            print(f"  of the {name} images of {kind} people are proposed: {share}")
        print(f"  names of {name} images: right {ratio(counts, f'{name} names right', f'{name} names')}")
    for kind in ("visible", "infrared", "cross"):
        print(
            f"  pairs in groups of new people, {kind}: right {ratio(counts, f'{kind} right', f'{kind} pairs')}"
        )


def counted(found: Groups, drop: Images, people: np.ndarray, known: np.ndarray) -> Counter[str]:
    """Images proposed, names and pairs that are right; a pair is within a modality, or `cross`."""
    _, member, sizes = np.unique(found.group, return_inverse=True, return_counts=True)
    named = found.person != NOBODY
    proposed, returning = named | (sizes[member] > 1), np.isin(people, known)
    counts = Counter[str]()
    for code, name in enumerate(("visible", "infrared")):
        of = drop.modality == code
        for kind, mask in (("known", of & returning), ("new", of & ~returning)):
            counts[f"{kind} {name}"] += np.count_nonzero(mask)
            counts[f"{kind} {name} proposed"] += np.count_nonzero(mask & proposed)
        counts[f"{name} names"] += np.count_nonzero(of & named)
        counts[f"{name} names right"] += np.count_nonzero(of & named & (found.person == people))
    same = np.triu((found.group[:, None] == found.group) & ~named[:, None], 1)
    first, second = np.nonzero(same)
    kinds = np.where(drop.modality[first] == drop.modality[second], drop.modality[first], 2)
    for code, name in enumerate(("visible", "infrared", "cross")):
        counts[f"{name} pairs"] += np.count_nonzero(kinds == code)
        counts[f"{name} right"] += np.count_nonzero((kinds == code) & (people[first] == people[second]))
    return counts


def ratio(counts: Counter[str], part: str, whole: str) -> str:
    if not counts[whole]:
        return "none"
    return f"{100 * counts[part] / counts[whole]:.1f} % ({counts[part]} of {counts[whole]})"


if __name__ == "__main__":
    main()
