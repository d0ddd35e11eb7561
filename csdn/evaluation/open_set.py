"""Open-set identification: is the person in the gallery at all? Thresholds and their error rates.

Terms of ISO/IEC 19795-1 and of NIST's FRVT 1:N. The score of two images is the cosine of their features, the
score of a person the largest of their gallery images' scores; a search has a candidate at or above a
threshold or none.

    FPIR    false-positive identification rate: share of the unmated searches, whose person is not in the
            gallery, that have a candidate at or above the threshold
    FNIR    false-negative identification rate: share of the mated searches, whose person is in the gallery,
            in which the person is not at rank 1 or below the threshold (FNIR at rank 1)
    DIR     detection and identification rate, 1 - FNIR

Every query of the protocol has both roles: it is searched in its gallery (mated), and in the same gallery
without the images of its person (unmated), which is one person smaller. The protocol's rule removes images
in both. A query without a match in the gallery has the unmated role only. Each person counts once: a share is
the mean over people of the share of their searches.

Thresholds are cross-fitted: the people are split into two halves, and a query of one half is judged by the
threshold that is set on the unmated searches of the other half. With n people no FPIR below 3 / n is shown:
where an event has not been seen in n independent trials, 3 / n is the end of the 95 % interval of its rate
(the rule of three).

In this order: scores, the shares of each person, the figures, and thresholds for use in thresholds.json.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from csdn.data.rng import generator
from csdn.evaluation.bootstrap import Intervals, PeopleSums, bootstrap, bootstrap_people
from csdn.evaluation.distances import FeatureDistances, Rows, Trial
from csdn.evaluation.headline import OPEN_SET_FPIRS
from csdn.evaluation.protocols import Search
from csdn.evaluation.ranking import RULES
from csdn.evaluation.scores import Labels
from csdn.runtime.documents import read_json
from csdn.runtime.errors import UserError
from csdn.runtime.files import write_json

LEVELS = 200  # of thresholds: at equal steps of FPIR, and as many at equal ratios
CURVE_POINTS = 25  # of open_set.csv, at equal ratios of FPIR
CONFIDENCE, RESAMPLES = 0.95, 1000
CURVE_COLUMNS = ("direction", "fpir", "fnir", "low", "high", "measured_fpir")
# Random streams of their own, far above those of csdn.data.rng.Stream.
_HALVES, _BOOTSTRAP = 1003, 1004


def least_fpir(people: int) -> float:
    """The smallest FPIR that unmated searches of this many people support (the rule of three)."""
    return 3 / people


# Scores of the searches.


class SearchScores(NamedTuple):
    """Cosines of the searches of one direction: a row for each query in each trial [m]."""

    people: np.ndarray  # of the query, numbers as in Labels
    mate: np.ndarray  # float32, the best score of the query's own person; -inf: no image to be found
    other: np.ndarray  # float32, the best score of another person; -inf: there is no other
    gallery_people: int  # other people in a gallery, mean over the searches
    gallery_images: int  # their images, likewise

    @property
    def identified(self) -> np.ndarray:
        """The highest threshold at which the person is identified; -inf where it is not at rank 1."""
        return np.where(self.mate > self.other, self.mate, -np.inf)


def search_scores(search: Search, labels: Labels, distances: FeatureDistances) -> SearchScores:
    """The scores of every query of a search, by blocks of queries; features of any length but 0."""
    norms = torch.linalg.vector_norm(distances.features, dim=1).cpu().numpy()
    trials = [Trial(search.queries_of(number), rows, number) for number, rows in enumerate(search.galleries)]
    found = [np.empty((2, len(one.queries)), np.float32) for one in trials]
    rule = RULES[search.rule]

    def best(rows: Rows) -> None:
        queries, gallery = trials[rows.trial].queries[rows.queries], trials[rows.trial].gallery
        scores = rows.read()
        scores /= -norms[gallery]
        scores /= norms[queries][:, None]
        same = labels.people[queries][:, None] == labels.people[gallery]
        excluded = rule.excluded(labels.cameras[queries][:, None], labels.cameras[gallery], same)
        scores[excluded] = -np.inf
        found[rows.trial][0, rows.queries] = np.max(scores, axis=1, where=same, initial=-np.inf)
        found[rows.trial][1, rows.queries] = np.max(scores, axis=1, where=~same, initial=-np.inf)

    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        for block in distances.blocks(trials, labels.cameras):
            deque(threads.map(best, block), maxlen=0)
    mate, other = np.concatenate(found, axis=1)
    people = np.concatenate([labels.people[one.queries] for one in trials])
    sizes = [_other_sizes(labels.people[one.queries], labels.people[one.gallery]) for one in trials]
    others, images = (round(float(np.mean(part))) for part in np.concatenate(sizes, axis=1))
    return SearchScores(people, mate, other, others, images)


def _other_sizes(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """For each query, the number of other people in the gallery and that of their images, [2, q]."""
    people, images = np.unique(gallery, return_counts=True)
    place = np.minimum(np.searchsorted(people, queries), len(people) - 1)
    own = people[place] == queries
    return np.stack([len(people) - own, len(gallery) - np.where(own, images[place], 0)])


# The shares of each person, at thresholds that are the same for all.


class PersonShares(NamedTuple):
    """Shares 0..1 of each person's searches [p, t], at rising thresholds [t]."""

    thresholds: np.ndarray  # float64 [t]; no unmated search of the people they are of reaches the last
    false_positive: np.ndarray  # of the unmated searches: a candidate at or above the threshold
    identified: np.ndarray  # of the mated searches: the person at rank 1 and at or above it; 0 without any
    mated: np.ndarray  # bool [p], has a mated search


def person_shares(scores: SearchScores, of: np.ndarray) -> PersonShares:
    """The shares of the people with a query, by rising number of the person.

    of: those whose unmated scores are the thresholds, bool [p].
    """
    people, person = np.unique(scores.people, return_inverse=True)
    thresholds = _thresholds(scores.other[of[person]], len(people))
    mated = np.isfinite(scores.mate)

    def shares(values: np.ndarray, person: np.ndarray) -> np.ndarray:
        passed = np.searchsorted(thresholds, values, side="right")  # number of thresholds at or below
        shape = len(people), len(thresholds) + 1
        counts = np.bincount(person * shape[1] + passed, minlength=shape[0] * shape[1]).reshape(shape)
        at_or_above = counts[:, ::-1].cumsum(axis=1)[:, -2::-1]
        return at_or_above / np.maximum(1, counts.sum(axis=1))[:, None]

    return PersonShares(
        thresholds,
        shares(scores.other, person),
        shares(scores.identified[mated], person[mated]),
        np.bincount(person[mated], minlength=len(people)) > 0,
    )


def _thresholds(scores: np.ndarray, people: int) -> np.ndarray:
    """-1, at most 2 LEVELS of the scores, denser at the high ones, and a threshold above them all."""
    fpirs = np.concatenate([np.linspace(0, 1, LEVELS + 1), np.geomspace(0.1 / people, 1, LEVELS)])
    finite = np.append(scores[np.isfinite(scores)], -1.0).astype(np.float64)
    chosen = np.unique(np.quantile(finite, 1 - fpirs, method="nearest"))
    return np.append(chosen, np.nextafter(chosen[-1], np.inf))


# Figures: thresholds set on one half of the people, and the rates of the other half at them.


def halves(people: int, seed: int) -> np.ndarray:
    """Which people are in the first half, bool [people], drawn by the seed."""
    return generator(seed, _HALVES).permutation(people) < people // 2


class Fold(NamedTuple):
    """The people whose searches set the thresholds, bool [p]; the others are judged by them."""

    set_on: np.ndarray
    shares: PersonShares


def folds_of(scores: SearchScores, first: np.ndarray) -> tuple[Fold, Fold]:
    """Each half sets thresholds for the other; first: bool [p]."""
    return Fold(first, person_shares(scores, first)), Fold(~first, person_shares(scores, ~first))


def cross_fitted_dir(folds: Sequence[Fold], fpirs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """DIR at the thresholds for wanted `fpirs` [f], which are set anew for each weighting: fractions [n, f].

    weights: how often each person counts, float64 [n, p].
    """
    found = np.zeros((len(weights), len(fpirs)))
    for fold in folds:
        sums = weights[:, ~fold.set_on] @ fold.shares.identified[~fold.set_on]
        found += np.take_along_axis(sums, _places(fold, fpirs, weights), axis=1)
    return found / np.maximum(1, weights[:, folds[0].shares.mated].sum(axis=1))[:, None]


def cross_fitted_false_positives(folds: Sequence[Fold], fpirs: np.ndarray) -> np.ndarray:
    """Of each person, the share of the unmated searches that are false positives at the thresholds [p, f]."""
    found = np.zeros((len(folds[0].set_on), len(fpirs)))
    for fold in folds:
        (places,) = _places(fold, fpirs, np.ones((1, len(fold.set_on))))
        found[~fold.set_on] = fold.shares.false_positive[~fold.set_on][:, places]
    return found


def _places(fold: Fold, fpirs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The places [n, f] of the thresholds that a fold's half sets."""
    of = weights[:, fold.set_on]
    fpir = of @ fold.shares.false_positive[fold.set_on] / np.maximum(1, of.sum(axis=1))[:, None]
    return threshold_places(fpir, fpirs)


def threshold_places(fpir: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The first threshold at which the FPIR [n, t] is at most each `wanted` [f], as places [n, f]."""
    return np.stack([np.count_nonzero(fpir > one + 1e-9, axis=1) for one in wanted], axis=1)


class OpenSet(NamedTuple):
    """Of one direction: entries of metrics/evaluation.json and thresholds.json, and rows of open_set.csv.

    Where the people are too few for any FPIR there are no rows and no thresholds; where no query has a match
    in the gallery there are no rows.
    """

    figures: dict[str, Any]
    curve: list[dict[str, Any]]
    thresholds: DirectionThresholds | None


def open_set(search: Search, labels: Labels, distances: FeatureDistances, seed: int) -> OpenSet:
    """The open-set figures of a search (`open_set_of`)."""
    return open_set_of(search_scores(search, labels, distances), search.name, seed)


def open_set_of(scores: SearchScores, direction: str, seed: int) -> OpenSet:
    """The open-set figures of scores, in percent, with intervals from a bootstrap over the people.

    That of a DIR covers the choice of the people by whom thresholds are set and of those who are searched
    for. That of a measured FPIR is for the thresholds as they were set: where the true FPIR may lie.
    """
    people = len(np.unique(scores.people))
    figures: dict[str, Any] = {
        "people": people,
        "mated_people": len(np.unique(scores.people[np.isfinite(scores.mate)])),
        "gallery_people": scores.gallery_people,
        "gallery_images": scores.gallery_images,
        "least_fpir": round(100 * min(1.0, least_fpir(people)), 6),
    }
    if least_fpir(people) >= 1 or not scores.gallery_people:
        return OpenSet(figures, [], None)
    thresholds = thresholds_of(scores)
    if not figures["mated_people"]:
        return OpenSet(figures, [], thresholds)
    headline = {name: fpir for name, fpir in OPEN_SET_FPIRS.items() if fpir >= least_fpir(people)}
    fpirs = np.array([*headline.values(), *np.geomspace(least_fpir(people), 1, CURVE_POINTS)])
    folds = folds_of(scores, halves(people, seed))
    draws = generator(seed, _BOOTSTRAP)
    dirs = bootstrap(
        lambda weights: cross_fitted_dir(folds, fpirs, weights), people, RESAMPLES, CONFIDENCE, draws
    )
    false_positives = PeopleSums(cross_fitted_false_positives(folds, fpirs)[:, None], np.ones((people, 1)))
    measured = bootstrap_people(false_positives, RESAMPLES, CONFIDENCE, draws)
    dirs, measured = _percent(dirs), _not_below(_percent(measured), figures["least_fpir"])
    for number, name in enumerate(headline):
        figures[name] = {"dir": _interval(dirs, number), "fpir": _interval(measured, number)}
    curve = [
        {
            "direction": direction,
            "fpir": round(100 * float(fpirs[number]), 6),
            "fnir": round(100 - float(dirs.value[number]), 6),
            "low": round(100 - float(dirs.high[number]), 6),
            "high": round(100 - float(dirs.low[number]), 6),
            "measured_fpir": float(measured.value[number]),
        }
        for number in range(len(headline), len(fpirs))
    ]
    return OpenSet(figures, curve, thresholds)


def _percent(fractions: Intervals) -> Intervals:
    return Intervals(*(np.round(100 * values, 6) for values in fractions))


def _not_below(measured: Intervals, least: float) -> Intervals:
    """Measured rates with their intervals, none below `least`; a low end there is 0: not bounded from below.

    Raised to `least` it would exclude the true rate in half of all cases.
    """
    value, low, high = measured
    return Intervals(np.maximum(value, least), np.where(low > least, low, 0), np.maximum(high, least))


def _interval(intervals: Intervals, number: int) -> dict[str, float]:
    return {name: float(values[number]) for name, values in intervals._asdict().items()}


# Thresholds for use, set on all test people: evaluation/thresholds.json.


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class DirectionThresholds(_Part):
    """Rising thresholds, and the FPIR at each (0..1), on galleries of `gallery_people`."""

    people: Annotated[int, Field(ge=4)]  # of the unmated searches
    gallery_people: Annotated[int, Field(ge=1)]
    gallery_images: Annotated[int, Field(ge=1)]
    thresholds: Annotated[list[float], Field(min_length=1)]
    fpir: list[Annotated[float, Field(gt=0, le=1)]]

    @model_validator(mode="after")
    def _consistent(self) -> DirectionThresholds:
        if len(self.thresholds) != len(self.fpir):
            raise ValueError("thresholds and fpir differ in length")
        if any(one >= other for one, other in pairwise(self.thresholds)):
            raise ValueError("the thresholds do not rise")
        if any(one < other for one, other in pairwise(self.fpir)):
            raise ValueError("fpir rises")
        if self.fpir[-1] != least_fpir(self.people):
            raise ValueError(f"fpir does not end at 3 / people = {least_fpir(self.people)}")
        return self


def thresholds_of(scores: SearchScores) -> DirectionThresholds:
    """Thresholds by the FPIR of all people, down to the smallest FPIR that they support."""
    people = len(np.unique(scores.people))
    shares = person_shares(scores, np.ones(people, bool))
    fpir = shares.false_positive.mean(axis=0)
    least = least_fpir(people)
    last = int(threshold_places(fpir[None], np.array([least]))[0, 0])
    return DirectionThresholds(
        people=people,
        gallery_people=scores.gallery_people,
        gallery_images=scores.gallery_images,
        thresholds=shares.thresholds[: last + 1].tolist(),
        fpir=[*np.round(fpir[:last], 9).tolist(), least],
    )


class Thresholds(_Part):
    """The content of thresholds.json, for galleries and queries of one model."""

    format: Literal[1] = 1
    model: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]  # SHA-256 of model.safetensors
    flip_tta: bool
    directions: dict[Literal["infrared_to_visible", "visible_to_infrared"], DirectionThresholds]

    def gallery_people(self, query_modality: str) -> int:
        """The number of people in the galleries that the thresholds were set on. Raises UserError."""
        return self._direction(query_modality).gallery_people

    def threshold(
        self, query_modality: str, fpir: float, gallery_people: int, gallery_images: int = 0
    ) -> float:
        """The threshold for a wanted FPIR (0..1) in a gallery of so many people, with so many images of them.

        More images of a person than in the galleries that the thresholds were set on count as more people.
        For a larger gallery than the thresholds were set on, by the model of independent people
        (`fpir_at_size`), which was measured to err on the safe side there. For a smaller one it errs on the
        other side, so the threshold stays, and the FPIR is lower than wanted (docs/open-set.md). Raises
        UserError for an FPIR below what the test people support at that size, and for a modality without
        thresholds.
        """
        of = self._direction(query_modality)
        if not 0 < fpir < 1 or gallery_people < 1:
            raise UserError(
                f"an FPIR of {100 * fpir:g} % in a gallery of {gallery_people} people: the FPIR must lie "
                "between 0 and 100 %, and the gallery must have at least one person"
            )
        counted, size = math.ceil(gallery_images * of.gallery_people / of.gallery_images), ""
        if counted > gallery_people:
            size, gallery_people = f" (as which its {gallery_images} images count)", counted
        needed = fpir_at_size(fpir, max(gallery_people, of.gallery_people), of.gallery_people)
        least = least_fpir(of.people)
        if needed < least - 1e-9:
            here = fpir_at_size(least, of.gallery_people, max(gallery_people, of.gallery_people))
            most = math.floor(of.gallery_people * math.log1p(-fpir) / math.log1p(-least))
            smaller = f", search galleries of at most {most} people" if most >= of.gallery_people else ""
            raise UserError(
                f"no threshold for an FPIR of {100 * fpir:g} % in a gallery of {gallery_people} people"
                f"{size}: {of.people} test people in galleries of {of.gallery_people} support no less than "
                f"{_percent_up(here)} % there (3 / people); ask for that or more{smaller}, or evaluate "
                "with more test people"
            )
        place = next(place for place, value in enumerate(of.fpir) if value <= needed + 1e-9)
        return of.thresholds[place]

    def _direction(self, query_modality: str) -> DirectionThresholds:
        of = [found for name, found in self.directions.items() if name.startswith(f"{query_modality}_to_")]
        if not of:
            raise UserError(
                f"there are no thresholds for {query_modality} queries: the protocol has no such direction, "
                "or too few test people (evaluation.protocol, data.test_percent)"
            )
        return of[0]


def fpir_at_size(fpir: float, people: int, other: int) -> float:
    """The FPIR in a gallery of `other` people, at the threshold that has `fpir` among `people`.

    If each person of a gallery reaches the threshold independently, 1 - FPIR is a power of their number.
    """
    return -math.expm1(math.log1p(-fpir) * other / people)


def _percent_up(fraction: float) -> float:
    """Percent, rounded up to two digits."""
    return math.ceil(1e4 * fraction - 1e-6) / 100


ADVICE = "`dvc repro evaluate` makes it"


def write_thresholds(
    path: Path, model: str, flip_tta: bool, directions: Mapping[str, DirectionThresholds]
) -> None:
    """Write thresholds.json; model: SHA-256 of its model.safetensors."""
    thresholds = Thresholds.model_validate(
        {"model": model, "flip_tta": flip_tta, "directions": dict(directions)}
    )
    write_json(path, thresholds.model_dump(mode="json"))


def read_thresholds(path: str | Path) -> Thresholds:
    """Read thresholds.json. Raises UserError where it is missing, damaged or of another format."""
    value = read_json(path, ADVICE)
    try:
        return Thresholds.model_validate(value)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"])) or "its content"
        raise UserError(f"{path}: not usable, {where}: {fault['msg']}; {ADVICE}") from None
