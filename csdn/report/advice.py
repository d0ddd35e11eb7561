"""The advice of the report, "What to look at next": rules over the figures, each with its threshold.

A rule returns a Step that states the number it rests on, or None. A step says where to look, not what is
wrong: the figures of one run cannot separate causes. The most important rules come first.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from csdn.report.images import by_direction
from csdn.report.tables import pairs_by_rank1
from csdn.report.wording import Figures, bdi, direction_name, percent

STEPS = 6  # shown at most

Rows = Sequence[Mapping[str, Any]]  # of evaluation/queries.parquet

# Thresholds on the search.
GAIN_IN_SPREADS = 2  # a gain over CLIP of fewer standard deviations over the galleries is small
PAIR_QUERIES = 20  # a pair of cameras with fewer queries is not judged
PAIR_ERRORS = 2  # standard errors that the weakest pair must be below the mean of all pairs
NEVER_RANK = 10  # a person is "not found" if no query has a match at this rank or better
GAP_POINTS = 5.0  # of rank-1, between the two directions
ERROR_POINTS = 2.0  # of rank-1: a larger standard error over people is reported
# Thresholds on the data and the training.
REFUSED = 0.005  # share of all images
FEW_PEOPLE = 0.05  # share of training people with fewer images than a batch takes
NAMING_POINTS = 10.0  # between fused texts on visible and on infrared images
FALL = 0.05  # relative, of a loss, from the fourth fifth of the steps to the last


@dataclass(frozen=True)
class Step:
    """A piece of advice: `text` states its number; `where` is the section of the page that shows it.

    A text with names in it is Markup; csdn.report.wording.bdi encloses the names.
    """

    title: str
    text: str
    where: str


@dataclass(frozen=True)
class Evidence:
    """The figures that the rules use."""

    figures: Figures
    camera_pairs: Sequence[Mapping[str, str]]
    queries: Rows
    naming: Mapping[str, float]
    losses: Mapping[str, Sequence[float]]  # total loss of each phase, over its steps
    train_images: np.ndarray  # [people, 2]: visible and infrared images of each training person
    images_of_batch: int  # K, of each person and modality
    refused: Mapping[str, int]  # reason -> images
    images: int  # all, used or refused


def next_steps(evidence: Evidence) -> list[Step]:
    """The steps of the first STEPS rules that apply."""
    found = (
        small_gain(evidence.figures),
        refused_images(evidence.refused, evidence.images),
        few_images(evidence.train_images, evidence.images_of_batch),
        weakest_pair(evidence.camera_pairs),
        people_not_found(evidence.queries),
        naming_gap(evidence.naming),
        direction_gap(evidence.figures),
        losses_still_fall(evidence.losses),
        error_over_people(evidence.queries),
        rule_never_fires(evidence.figures),
    )
    return [step for step in found if step][:STEPS]


# Rules on the search.


def small_gain(figures: Figures) -> Step | None:
    """If training gains less over CLIP than GAIN_IN_SPREADS standard deviations over the galleries."""
    small = []
    for direction in figures["counts"]:
        trained, clip = (figures[method][direction]["rank1"] for method in ("trained", "clip"))
        if trained["mean"] is None or clip["mean"] is None:
            continue
        gain, spread = trained["mean"] - clip["mean"], max(trained["std"] or 0.0, clip["std"] or 0.0)
        if gain < GAIN_IN_SPREADS * spread or gain <= 0:
            small.append(
                f"{direction_name(direction).lower()} {gain:+.1f} points of rank-1 (spread {spread:.1f})"
            )
    if not small:
        return None
    return Step(
        "Training adds little to CLIP",
        f"Over CLIP as it is: {'; '.join(small)}. First see whether the losses have settled.",
        "training",
    )


def weakest_pair(camera_pairs: Sequence[Mapping[str, str]]) -> Step | None:
    """The pair of cameras with the lowest rank-1, unless its small number of queries explains it.

    The lowest of many pairs is also low by chance: the step states the figures and does not call it a fault.
    """
    pairs = pairs_by_rank1(camera_pairs, PAIR_QUERIES)
    if len(pairs) < 2:
        return None
    weakest, best = pairs[0], pairs[-1]
    mean = sum(pair["rank1"] for pair in pairs) / len(pairs)
    error = 100 * math.sqrt(mean / 100 * (1 - mean / 100) / weakest["queries"])
    if mean - weakest["rank1"] <= PAIR_ERRORS * error:
        return None
    return Step(
        "The weakest pair of cameras",
        Markup("{} has rank-1 {} over {} queries; the best, {}, {}.").format(
            _pair(weakest),
            percent(weakest["rank1"]),
            weakest["queries"],
            _pair(best),
            percent(best["rank1"]),
        ),
        "cameras",
    )


def _pair(pair: Mapping[str, Any]) -> Markup:
    return Markup("{} → {}").format(bdi(pair["query_camera"]), bdi(pair["gallery_camera"]))


def people_not_found(queries: Rows) -> Step | None:
    """People of whom no query, in either direction, has a match within NEVER_RANK."""
    best: dict[str, int] = {}
    for row in queries:
        if row["first_rank"] is not None:
            best[row["person"]] = min(row["first_rank"], best.get(row["person"], row["first_rank"]))
    late = {person: rank for person, rank in best.items() if rank > NEVER_RANK}
    never = sorted(late, key=lambda person: (-late[person], person))
    if not never:
        return None
    named = Markup(", ").join(map(bdi, never[:3])) + (" and others" if len(never) > 3 else "")
    return Step(
        "People who are not found",
        Markup("{} of {} test people have no query with a match among the first {}: {}.").format(
            len(never), len(best), NEVER_RANK, named
        ),
        "lists",
    )


def direction_gap(figures: Figures) -> Step | None:
    """If rank-1 of the directions differs by more than GAP_POINTS and their standard deviations."""
    known = {
        direction: figures["trained"][direction]["rank1"]
        for direction in figures["counts"]
        if figures["trained"][direction]["rank1"]["mean"] is not None
    }
    if len(known) < 2:
        return None
    weak, *_, strong = sorted(known, key=lambda direction: known[direction]["mean"])
    gap = known[strong]["mean"] - known[weak]["mean"]
    if gap <= max(GAP_POINTS, *(figure["std"] or 0.0 for figure in known.values())):
        return None
    return Step(
        "One direction is weaker",
        f"{direction_name(weak)} has a rank-1 {gap:.1f} points below {direction_name(strong).lower()}. Their "
        "galleries differ in size and in images per person, which may explain part of the gap.",
        "figures",
    )


def error_over_people(queries: Rows) -> Step | None:
    """If the choice of test people gives rank-1 a standard error of more than ERROR_POINTS."""
    errors = {direction: standard_error(rows) for direction, rows in by_direction(queries).items()}
    direction = max(errors, key=lambda name: errors[name], default=None)
    if direction is None or errors[direction] <= ERROR_POINTS:
        return None
    people = len({row["person"] for row in by_direction(queries)[direction]})
    return Step(
        "Few test people",
        f"{direction_name(direction)}, rank-1 has a standard error of {errors[direction]:.1f} points over "
        f"the {people} test people, which the spread over the galleries does not include. More test people "
        "would make it smaller.",
        "figures",
    )


def standard_error(rows: Rows) -> float:
    """Standard error of rank-1 over people, in points, from each person's mean; 0 for one person."""
    of_people: dict[str, list[float]] = {}
    for row in rows:
        of_people.setdefault(row["person"], []).append(100.0 * (row["first_rank"] == 1))
    means = [float(np.mean(found)) for found in of_people.values()]
    return float(np.std(means, ddof=1)) / math.sqrt(len(means)) if len(means) > 1 else 0.0


def rule_never_fires(figures: Figures) -> Step | None:
    """If the rule on the query's own person and camera removes nothing; other rules are not checked."""
    if any(counts["excluded_pairs"] != 0 for counts in figures["counts"].values()):
        return None
    return Step(
        "No camera sees both modalities",
        "The rule that excludes images of a query's own person and camera removes 0 pairs. If a camera takes "
        "both modalities, give both the same camera name.",
        "cameras",
    )


# Rules on the data and the training.


def refused_images(refused: Mapping[str, int], images: int) -> Step | None:
    """If ingest refused more than REFUSED of the images."""
    total = sum(refused.values())
    if total <= REFUSED * images:
        return None
    reason, count = Counter(refused).most_common(1)[0]
    return Step(
        "Images were refused",
        f"{total} of {images} images were refused; most often ({count}): {reason}.",
        "data",
    )


def few_images(train_images: np.ndarray, needed: int) -> Step | None:
    """If more than FEW_PEOPLE of the training people have too few images, so that batches repeat some."""
    short = int((train_images.min(axis=1) < needed).sum())
    if short <= FEW_PEOPLE * len(train_images):
        return None
    return Step(
        "People with few images",
        f"{short} of {len(train_images)} training people have fewer than {needed} images of one modality, "
        "so their batches repeat images: more images of them, or a smaller embedding.images_per_identity.",
        "data",
    )


def train_image_counts(labels: np.ndarray, modality: np.ndarray) -> np.ndarray:
    """Images of each person, [people, 2]: visible, infrared; labels 0.. and modality codes of the images."""
    counts = np.zeros((int(labels.max()) + 1, 2), np.int64)
    np.add.at(counts, (labels, modality), 1)
    return counts


def naming_gap(naming: Mapping[str, float]) -> Step | None:
    """If the fused texts name one modality's images more than NAMING_POINTS better than the other's."""
    if naming.get("new_people") == 0:
        return None
    figures = {modality: naming[f"fused_names_{modality}"] for modality in ("visible", "infrared")}
    weak, strong = sorted(figures, key=lambda modality: figures[modality])
    if figures[strong] - figures[weak] <= NAMING_POINTS:
        return None
    return Step(
        f"Texts name {weak} images less well",
        f"The fused texts name {percent(figures[weak])} of the {weak} training images and "
        f"{percent(figures[strong])} of the {strong} ones. Stage 2 ties the image encoder to these texts.",
        "texts",
    )


def losses_still_fall(losses: Mapping[str, Sequence[float]]) -> Step | None:
    """Phases whose loss fell by more than FALL from the fourth fifth of the steps to the last."""
    falls = {name: fall for name, values in losses.items() if (fall := last_fall(values)) > FALL}
    if not falls:
        return None
    said = ", ".join(f"{name} by {percent(100 * fall)}" for name, fall in falls.items())
    return Step(
        "Losses still fall at the end",
        f"From the fourth to the last fifth of the steps: {said}. More epochs may help.",
        "training",
    )


def last_fall(values: Sequence[float]) -> float:
    """Relative fall of the mean from the fourth to the last fifth of the values; 0 for fewer than five.

    >>> last_fall([9, 9, 9, 8, 6])
    0.25
    """
    fifth = len(values) // 5
    if not fifth:
        return 0.0
    before, after = np.mean(values[-2 * fifth : -fifth]), np.mean(values[-fifth:])
    return float(1 - after / before) if before > 0 else 0.0


def phase_losses(
    prompts_log: Sequence[Mapping[str, str]], embedding_log: Sequence[Mapping[str, str]]
) -> dict[str, list[float]]:
    """The total loss of each phase, from the training logs."""
    found: dict[str, list[float]] = {}
    for row in prompts_log:
        found.setdefault(f"stage 1's {row['phase']} loss", []).append(float(row["loss"]))
    return found | {"stage 2's sum of losses": [float(row["total"]) for row in embedding_log]}
