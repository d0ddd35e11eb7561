"""`csdn suggest` on built-in people that no model has seen: what is proposed, and how much of it is right.

    python benchmarks/suggest.py [--model models/embedding] [--people 480] [--precision 0.95] [--threads 2]

Test people set the thresholds, by 2 images of each visible camera (4) and 4 of each infrared one (2). A drop
has images without a person of 40 of 80 known people, of whom the known images are others, and of 40 new
people: as many images of a person as the test has, or half as many. SEEDS draws of all these people; figures
are sums over the draws.
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

from csdn.curation.grouping import LEVELS, NAMES, NOBODY, Groups, Images, grouped, known_means
from csdn.curation.suggestions import relation_in_words

SEEDS = 20
KNOWN, RETURNING, NEW = 80, 40, 40  # people
EARLY = {"visible": 2, "infrared": 4}  # images of a person by each camera, of the test and of known people


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("models/embedding"))
    parser.add_argument("--people", type=int, default=480)
    parser.add_argument("--precision", type=float, default=0.95)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{date.today()}  {machine()}, {options.threads} threads")
    index, features = embedded(options.model, options.people, visible=4, infrared=8)
    features = features / np.linalg.norm(features, axis=1, keepdims=True)
    codes = np.array([list(EARLY).index(name) for name in index["modality"]])
    images = Images(features.astype(np.float32), codes, np.unique(index["camera"], return_inverse=True)[1])
    shots = np.array([int(key[-8:-4]) for key in index["key"]]) / np.array(list(EARLY.values()))[codes]
    print(f"{options.people} people, {len(images.features)} images; {100 * options.precision:g} % wanted")
    for test in (80, 320):
        for part, last in (("as many images of a person as of a test person", 2), ("half as many", 1.5)):
            began = time.process_time()
            counts = sum_of_draws(images, np.array(index["person"]), shots, test, last, options.precision)
            print(f"\n{test} test people; in the drop {part} ({time.process_time() - began:.0f} s of CPU)")
            show(counts)


def sum_of_draws(
    images: Images, people: np.ndarray, shots: np.ndarray, test: int, last: float, precision: float
) -> Counter[str]:
    """Counts over SEEDS drops; shots [n]: up to 1 of test and known people, then up to `last` the drop's."""
    counts = Counter[str]()
    for seed in range(SEEDS):
        who = np.random.default_rng(seed).permutation(people.max() + 1)
        known, new = who[test : test + KNOWN], who[test + KNOWN : test + KNOWN + NEW]
        of_test = np.flatnonzero(np.isin(people, who[:test]) & (shots <= 1))
        of_known = np.flatnonzero(np.isin(people, known) & (shots <= 1))
        of_drop = np.isin(people, [*known[:RETURNING], *new]) & (shots > 1) & (shots <= last)
        drop = images.of(of_drop)
        batch = images.features[of_known], people[of_known], images.modality[of_known]
        means = known_means([batch], people.max() + 1, images.features.shape[1])
        found = grouped(drop, means, images.of(of_test), people[of_test], precision)
        counts.update(relation_in_words(one) for one, cut in found.cuts.items() if cut.threshold is not None)
        counts.update(counted(found, drop, people[of_drop], known))
    return counts


def show(counts: Counter[str]) -> None:
    for relation in map(relation_in_words, (*LEVELS, *NAMES)):
        print(f"  {relation}: a threshold in {counts[relation]} of {SEEDS} draws")
    for name in EARLY:
        for kind in ("known", "new"):
            share = ratio(counts, f"{kind} {name} proposed", f"{kind} {name}")
            print(f"  {name} images of {kind} people: proposed {share}")
        right = ratio(counts, f"{name} names right", f"{name} names")
        print(f"  {name} images with a known name: right {right}")
    for kind in (*EARLY, "cross"):
        right = ratio(counts, f"{kind} right", f"{kind} pairs")
        print(f"  pairs of images of proposed new people, {kind}: right {right}")


def counted(found: Groups, drop: Images, people: np.ndarray, known: np.ndarray) -> Counter[str]:
    """Images proposed, names and pairs that are right; a pair is within a modality, or `cross`."""
    _, member, sizes = np.unique(found.group, return_inverse=True, return_counts=True)
    named = found.person != NOBODY
    proposed, returning = named | (sizes[member] > 1), np.isin(people, known)
    counts = Counter[str]()
    for code, name in enumerate(EARLY):
        of = drop.modality == code
        for kind, mask in (("known", of & returning), ("new", of & ~returning)):
            counts[f"{kind} {name}"] += np.count_nonzero(mask)
            counts[f"{kind} {name} proposed"] += np.count_nonzero(mask & proposed)
        counts[f"{name} names"] += np.count_nonzero(of & named)
        counts[f"{name} names right"] += np.count_nonzero(of & named & (found.person == people))
    same = np.triu((found.group[:, None] == found.group) & ~named[:, None], 1)
    first, second = np.nonzero(same)
    kinds = np.where(drop.modality[first] == drop.modality[second], drop.modality[first], 2)
    for code, name in enumerate((*EARLY, "cross")):
        counts[f"{name} pairs"] += np.count_nonzero(kinds == code)
        counts[f"{name} right"] += np.count_nonzero((kinds == code) & (people[first] == people[second]))
    return counts


def ratio(counts: Counter[str], part: str, whole: str) -> str:
    if not counts[whole]:
        return "none"
    return f"{100 * counts[part] / counts[whole]:.1f} % ({counts[part]} of {counts[whole]})"


if __name__ == "__main__":
    main()
