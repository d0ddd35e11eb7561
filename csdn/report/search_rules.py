"""Rules on what the search found: each gives a Step with the number it rests on, or None."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from csdn.report.cameras import pairs_by_rank1
from csdn.report.ranked_lists import by_direction
from csdn.report.step import Step
from csdn.report.words import Figures, bdi, direction_name, percent

Rows = Sequence[Mapping[str, Any]]  # of evaluation/queries.parquet

GAIN_IN_SPREADS = 2  # a gain over CLIP below so many spreads of the galleries is called small
PAIR_QUERIES = 20  # a pair of cameras with fewer queries says too little
PAIR_ERRORS = 2  # the weakest pair is named when it is so many standard errors below the mean of all pairs
NEVER_RANK = 10  # a person is "not found" when none of the queries has a right image so far up
GAP_POINTS = 5.0  # between the two directions
ERROR_POINTS = 2.0  # a standard error over people above so many points is worth knowing


def small_gain(figures: Figures) -> Step | None:
    """Where training gains less over CLIP as it is than GAIN_IN_SPREADS spreads of the galleries."""
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
    """The pair of cameras with the lowest rank-1, unless its number of queries alone explains it.

    The lowest of many pairs is low by chance too: the step states the figures and calls nothing broken.
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
    """People none of whose queries, in either direction, has a right image within NEVER_RANK."""
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
        Markup("{} of {} test people have no query with a right image among the first {}: {}.").format(
            len(never), len(best), NEVER_RANK, named
        ),
        "lists",
    )


def direction_gap(figures: Figures) -> Step | None:
    """When rank-1 of the directions differs by more than GAP_POINTS and than the spread."""
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
        "galleries differ in size and in images of a person, so part of the gap may be theirs.",
        "figures",
    )


def error_over_people(queries: Rows) -> Step | None:
    """When the choice of test people moves rank-1 by a standard error of more than ERROR_POINTS."""
    errors = {direction: standard_error(rows) for direction, rows in by_direction(queries).items()}
    direction = max(errors, key=lambda name: errors[name], default=None)
    if direction is None or errors[direction] <= ERROR_POINTS:
        return None
    people = len({row["person"] for row in by_direction(queries)[direction]})
    return Step(
        "Few test people",
        f"{direction_name(direction)}, rank-1 has a standard error of {errors[direction]:.1f} points over "
        f"the {people} test people; the spread over the galleries leaves it out. More test people would "
        "make it smaller.",
        "figures",
    )


def standard_error(rows: Rows) -> float:
    """Of rank-1 over people, in points: each person counts by the mean of their queries; 0 for one person."""
    of_people: dict[str, list[float]] = {}
    for row in rows:
        of_people.setdefault(row["person"], []).append(100.0 * (row["first_rank"] == 1))
    means = [float(np.mean(found)) for found in of_people.values()]
    return float(np.std(means, ddof=1)) / math.sqrt(len(means)) if len(means) > 1 else 0.0


def rule_never_fires(figures: Figures) -> Step | None:
    """When no query shares a camera with images of its own person; a benchmark's own rule is not counted."""
    if any(counts["excluded_pairs"] != 0 for counts in figures["counts"].values()):
        return None
    return Step(
        "No camera sees both modalities",
        "The rule that excludes images of a query's own person and camera takes 0 pairs away. If a camera "
        "takes both modalities, give both the same camera name.",
        "cameras",
    )
