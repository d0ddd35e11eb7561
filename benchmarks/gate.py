"""How often the gate errs on a growing site: built-in people that no model has seen, their features stored.

    python benchmarks/gate.py CACHE --other OTHER/models/embedding [--model models/embedding]
                              [--people 640] [--sequences 200] [--threads 1]

A site has 5 test people and gets 5 more each night, up to MOST. Each night the gate's own `compare` and
`decide` judge a candidate on the people so far, until one is promoted. A model is a copy of the stored
features with noise: two copies with as much noise as makes them differ like two trainings with different
seeds (--other), or one with more, so that it is worse by twice the margin. CACHE: a folder for the features.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import fmean, median
from typing import NamedTuple

import numpy as np
import torch
from machine import machine
from open_set import Index, embedded

from csdn.evaluation import protocol
from csdn.evaluation.distances import FeatureDistances
from csdn.evaluation.protocols import Search
from csdn.evaluation.run import Experiment
from csdn.evaluation.scores import Labels
from csdn.params import load_params
from csdn.retraining.comparison import compare
from csdn.retraining.gate import CHAMPION, METRICS, PROMOTE, REJECT, TODAY, Comparison, decide
from csdn.retraining.gate_memory import compare_with_best
from csdn.runtime.files import atomic_write, file_sha256

STEP, MOST = 5, 150  # people a night; test people of the last night
WORSE_MOST = 100  # of a worse candidate: looks at more people are surer
SHOWN = (50, 60, 75, 100)  # test people of the tables' rows and columns
COMPONENTS = 128  # of the features: a tenth of the time, and figures that differ by less than half a point
TRIALS = 3
DRAWS = 20  # sets of people on which the noise is calibrated
CALIBRATED = (50, 100)  # at these numbers of people; the level in between is interpolated


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cache", type=Path)
    parser.add_argument("--model", type=Path, default=Path("models/embedding"))
    parser.add_argument("--other", type=Path, required=True, help="the same training with another seed")
    parser.add_argument("--people", type=int, default=640)
    parser.add_argument("--sequences", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{date.today()}  {machine()}, {options.threads} threads")
    index, of_model = stored(options.model, options.people, options.cache)
    _, of_other = stored(options.other, options.people, options.cache)
    site = Site(index, principal(of_model))
    levels = calibrated(site, principal(of_other))
    print_single(site, levels, options.sequences)
    print_sequences(site, levels, options.sequences)
    print_again(site, levels, options.sequences // 2)
    print_memory(site, levels, options.sequences // 2)


# Features of people that no model has seen.


def stored(model: Path, people: int, cache: Path) -> tuple[Index, np.ndarray]:
    """`open_set.embedded`, from the cache if it is there."""
    path = cache / f"{file_sha256(model / 'model.safetensors')[:16]}-{people}.npz"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        index, features = embedded(model, people)
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez(file, features=features, **{name: np.array(column) for name, column in index.items()})
    with np.load(path) as file:
        index = {name: file[name].tolist() for name in file.files if name != "features"}
        return index, file["features"].astype(np.float32)


def principal(features: np.ndarray) -> np.ndarray:
    """The features' first COMPONENTS principal components, of length 1."""
    _, _, axes = np.linalg.svd(features[::8], full_matrices=False)
    reduced = features @ axes[:COMPONENTS].T
    return reduced / np.linalg.norm(reduced, axis=1, keepdims=True)


class Site:
    """The people, and experiments on some of them: the protocol cameras with TRIALS galleries."""

    def __init__(self, index: Index, features: np.ndarray) -> None:
        self.features, self.rule = features, load_params().gate
        self.people, self.cameras = np.array(index["person"]), np.array(index["camera"])
        self.searches = protocol("cameras", index, trials=TRIALS)

    def draw(self, seed: int) -> np.ndarray:
        """The order in which people come."""
        return np.random.default_rng([seed, 1]).permutation(self.people.max() + 1)

    def experiment(self, people: np.ndarray) -> tuple[np.ndarray, Experiment]:
        """Rows of these people's images, and their experiment, galleries cut to them."""
        there = np.isin(self.people, people)
        place = np.cumsum(there) - 1
        searches = [
            Search(
                one.name,
                one.rule,
                place[one.queries[there[one.queries]]],
                tuple(place[gallery[there[gallery]]] for gallery in one.galleries),
            )
            for one in self.searches
        ]
        rows = np.flatnonzero(there)
        labels = Labels(self.people[rows], self.cameras[rows])
        index = {"camera": self.cameras[rows].tolist()}
        return rows, Experiment(rows, index, labels, searches, "cameras", {})

    def noise(self, people: np.ndarray, *seed: int) -> np.ndarray:
        """Noise [n, COMPONENTS] for the images of these people, in the mean of length 1; 0 for all others."""
        rows = np.flatnonzero(np.isin(self.people, people))
        draws, noise = np.random.default_rng([*seed, 2]), np.zeros_like(self.features)
        noise[rows] = draws.standard_normal((len(rows), COMPONENTS), np.float32) / math.sqrt(COMPONENTS)
        return noise

    def model(self, rows: np.ndarray, level: float, noise: np.ndarray) -> FeatureDistances:
        """The features of these rows with noise of this length; without it their length is 1."""
        return FeatureDistances(self.features[rows] + level * noise[rows])


# How much noise.


class Differences(NamedTuple):
    """Means over draws of people, in points."""

    by_metric: dict[str, float]  # difference, the mean of both directions
    half: dict[str, float]  # half of the interval

    def in_margins(self, site: Site) -> float:
        """The larger loss, in margins."""
        return max(-value / site.rule.margin_of(metric) for metric, value in self.by_metric.items())

    def __str__(self) -> str:
        return ", ".join(
            f"{METRICS[metric]} {value:+.1f} (interval ±{self.half[metric]:.1f})"
            for metric, value in self.by_metric.items()
        )


Pair = Callable[[np.ndarray, int], tuple[FeatureDistances, FeatureDistances]]  # of rows and a seed


def differences(site: Site, people: int, pair: Pair) -> Differences:
    found: list[Comparison] = []
    for seed in range(DRAWS):
        rows, experiment = site.experiment(site.draw(seed)[:people])
        found += compare(experiment, *pair(rows, seed), TODAY, site.rule, seed, of_pairs=False)
    of = {metric: [one for one in found if one.metric == metric] for metric in METRICS}
    return Differences(
        {metric: fmean(one.difference for one in each) for metric, each in of.items()},
        {metric: fmean((one.high - one.low) / 2 for one in each) for metric, each in of.items()},
    )


def noisy(site: Site, champion: float, candidate: float) -> Pair:
    def pair(rows: np.ndarray, seed: int) -> tuple[FeatureDistances, FeatureDistances]:
        first, second = (site.noise(site.people[rows], seed, which) for which in (0, 1))
        return site.model(rows, champion, first), site.model(rows, candidate, second)

    return pair


class Levels(NamedTuple):
    """Lengths of the noise: of the champion and an equal candidate, and of a worse one by people."""

    equal: float
    worse: dict[int, float]

    def candidate(self, worse: bool, people: int) -> float:
        return float(np.interp(people, list(self.worse), list(self.worse.values()))) if worse else self.equal


def calibrated(site: Site, other: np.ndarray) -> Levels:
    """The noise of two trainings, and that of a model that is worse."""

    def seeds(rows: np.ndarray, seed: int) -> tuple[FeatureDistances, FeatureDistances]:
        return FeatureDistances(site.features[rows]), FeatureDistances(other[rows])

    def half(level: float) -> float:
        return differences(site, 100, noisy(site, level, level)).half["mAP"]

    real = differences(site, 100, seeds)
    print(f"\ntwo trainings with different seeds, 100 people: {real}")
    equal = bisect(half, real.half["mAP"])
    print(
        f"noise of length {equal:.2f} on both: {differences(site, 100, noisy(site, equal, equal))}",
        flush=True,
    )
    worse = {}
    for people in CALIBRATED:

        def loss(level: float, people: int = people) -> float:
            return differences(site, people, noisy(site, equal, level)).in_margins(site)

        worse[people] = bisect(loss, 2.0)
        found = differences(site, people, noisy(site, equal, worse[people]))
        print(f"{NAMES[True]}, {people} people: noise of length {worse[people]:.2f}: {found}", flush=True)
    return Levels(equal, worse)


def bisect(figure: Callable[[float], float], wanted: float) -> float:
    """Where a figure that rises with the level has the wanted value."""
    low, high = 0.0, 2.0
    for _ in range(7):
        middle = (low + high) / 2
        low, high = (middle, high) if figure(middle) < wanted else (low, middle)
    return (low + high) / 2


# Looks and sequences of looks.

NAMES = ("equal", "worse by twice the margin")


class Champion(NamedTuple):
    """Its noise, and the people of the data that it was chosen on."""

    noise: np.ndarray
    people: np.ndarray


def look(
    site: Site, levels: Levels, champion: Champion, noise: np.ndarray, people: np.ndarray, worse: bool
) -> str:
    """The gate's decision on a candidate; people: those of today's data.

    Pairs of cameras are compared only if the rest would promote: they can only reject.
    """
    level = levels.candidate(worse, len(people))

    def decision(of_pairs: bool) -> str:
        found: list[Comparison] = []
        for data, of in ((TODAY, people), (CHAMPION, champion.people)):
            if data == CHAMPION and len(of) < site.rule.min_people:
                continue  # the gate does not judge by it
            rows, experiment = site.experiment(of)
            models = site.model(rows, levels.equal, champion.noise), site.model(rows, level, noise)
            found += compare(experiment, *models, data, site.rule, seed=0, of_pairs=of_pairs)
        return decide(found, site.rule).decision

    without_pairs = decision(of_pairs=False)
    return decision(of_pairs=True) if without_pairs == PROMOTE else without_pairs


Looks = list[tuple[int, str]]  # (people, decision)


def sequence(
    site: Site,
    levels: Levels,
    seed: int,
    worse: bool,
    fresh: bool,
    champion: Champion | None = None,
    start: int = 0,
) -> Looks:
    """The looks up to the first promotion; fresh: each night trains again.

    With fewer people than `gate.min_people` the gate is undecided, whatever the figures.
    """
    most = WORSE_MOST if worse else MOST
    order = site.draw(seed)[:most]
    champion = champion or Champion(site.noise(order, seed, 0), order[:STEP])
    noise = site.noise(order, seed, 1)
    looks: Looks = []
    for people in range(max(site.rule.min_people, start), most + 1, STEP):
        if fresh:
            noise = site.noise(order, seed, people)
        looks.append((people, look(site, levels, champion, noise, order[:people], worse)))
        if looks[-1][1] == PROMOTE:
            break
    return looks


def print_single(site: Site, levels: Levels, count: int) -> None:
    """Decisions on an equal candidate at one number of people, without looks before it."""
    print(f"\nOne look at an equal candidate, {count} draws of people and noise:\n")
    print("| test people | promoted | undecided | rejected |\n|---|---|---|---|")
    for people in SHOWN:
        decisions = []
        for seed in range(count):
            drawn = site.draw(seed)[:people]
            champion = Champion(site.noise(drawn, seed, 0), drawn[:0])
            decisions.append(look(site, levels, champion, site.noise(drawn, seed, 1), drawn, worse=False))
        promoted, rejected = decisions.count(PROMOTE), decisions.count(REJECT)
        cells = (share(number, count) for number in (promoted, count - promoted - rejected, rejected))
        print(f"| {people} | {' | '.join(cells)} |", flush=True)


def print_sequences(site: Site, levels: Levels, count: int) -> None:
    heads = " | ".join(f"promoted by {people} people" for people in SHOWN)
    print(f"\n{count} sequences of nights:\n\n| candidate | trained | {heads} | ever rejected |")
    print(f"|---|---|{'---|' * len(SHOWN)}---|")
    for worse, fresh in ((False, True), (True, True), (True, False)):
        found = [sequence(site, levels, seed, worse, fresh) for seed in range(count)]
        cells = [promoted_by(found, people) for people in SHOWN]
        trained = "each night" if fresh else "once"
        print(f"| {NAMES[worse]} | {trained} | {' | '.join(cells)} | {rejected_in(found)} |", flush=True)


def print_again(site: Site, levels: Levels, count: int) -> None:
    """The nights after a promotion: the champion's data are the people of that night."""
    nights = (1, 5, 10)
    heads = " | ".join(f"promoted within {number}" for number in nights)
    print("\nAfter the first promotion, an equal candidate each night:\n")
    print(f"| sequences | {heads} nights | ever rejected |")
    print("|---|---|---|---|---|")
    found = []
    for seed in range(count):
        promoted = first(sequence(site, levels, seed, worse=False, fresh=True), PROMOTE)
        if promoted and promoted + STEP * nights[-1] <= MOST:
            order = site.draw(seed)[:MOST]
            champion = Champion(site.noise(order, seed, promoted), order[:promoted])
            looks = sequence(site, levels, seed, False, True, champion, promoted + STEP)
            found.append([((people - promoted) // STEP, decision) for people, decision in looks])
    cells = [promoted_by(found, number) for number in nights]
    print(f"| {len(found)} | {' | '.join(cells)} | {rejected_in(found)} |", flush=True)


def print_memory(site: Site, levels: Levels, count: int) -> None:
    """One look at an equal candidate that is also compared with the best of five equal versions."""
    print(f"\nOne look at an equal candidate, with and without five equal versions, {count} draws:\n")
    print("| test people | promoted without them | promoted with them |\n|---|---|---|")
    versions = [f"v{number}" for number in range(1, 6)]
    for people in SHOWN:
        without = both = 0
        for seed in range(count):
            drawn = site.draw(seed)[:people]
            rows, experiment = site.experiment(drawn)
            models = {
                name: site.model(rows, levels.equal, site.noise(drawn, seed, number))
                for number, name in enumerate(["champion", "candidate", *versions])
            }
            pair = models["champion"], models["candidate"]
            alone = compare(experiment, *pair, TODAY, site.rule, seed=0, of_pairs=False)
            best, against, _ = compare_with_best(experiment, models.__getitem__, versions, site.rule, seed=0)
            without += decide(alone, site.rule).decision == PROMOTE
            both += decide([*alone, *against], site.rule, best).decision == PROMOTE
        print(f"| {people} | {share(without, count)} | {share(both, count)} |", flush=True)


def first(looks: Looks, decision: str) -> int | None:
    """The people at the first look with this decision."""
    return next((people for people, one in looks if one == decision), None)


def promoted_by(found: list[Looks], people: int) -> str:
    return share(sum((first(looks, PROMOTE) or MOST + 1) <= people for looks in found), len(found))


def rejected_in(found: list[Looks]) -> str:
    """The share of sequences with a rejection, and at how many people the first one comes."""
    at = [people for looks in found if (people := first(looks, REJECT)) is not None]
    return share(len(at), len(found)) + (f", first at {median(at):.0f} (median)" if at else "")


def share(part: int, whole: int) -> str:
    """In percent, with Wilson's 95 % interval."""
    if not whole:
        return "-"
    z, rate = 1.959964, part / whole
    centre = (rate + z**2 / (2 * whole)) / (1 + z**2 / whole)
    half = z * math.sqrt(rate * (1 - rate) / whole + z**2 / (4 * whole**2)) / (1 + z**2 / whole)
    return f"{100 * rate:.1f} % ({100 * (centre - half):.1f} to {100 * (centre + half):.1f})"


if __name__ == "__main__":
    main()
