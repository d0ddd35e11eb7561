"""What to look at next: rules over the numbers, each with its threshold, the weightiest first.

A rule says where to look, not what is wrong: the numbers of one run cannot tell causes apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from csdn.report import search_rules, training_rules
from csdn.report.search_rules import Rows
from csdn.report.step import Step
from csdn.report.words import Figures

STEPS = 6  # said at most


@dataclass(frozen=True)
class Evidence:
    """The numbers that the rules look at."""

    figures: Figures
    camera_pairs: Sequence[Mapping[str, str]]
    queries: Rows
    naming: Mapping[str, float]
    losses: Mapping[str, Sequence[float]]  # the whole loss of each phase, over its steps
    train_images: np.ndarray  # [people, 2]: visible and infrared images of each training person
    images_of_batch: int  # K, of each person and modality
    refused: Mapping[str, int]  # reason -> images
    images: int  # used and refused


def next_steps(evidence: Evidence) -> list[Step]:
    """The first STEPS rules that have something to say."""
    found = (
        search_rules.small_gain(evidence.figures),
        training_rules.refused_images(evidence.refused, evidence.images),
        training_rules.few_images(evidence.train_images, evidence.images_of_batch),
        search_rules.weakest_pair(evidence.camera_pairs),
        search_rules.people_not_found(evidence.queries),
        training_rules.naming_gap(evidence.naming),
        search_rules.direction_gap(evidence.figures),
        training_rules.losses_still_fall(evidence.losses),
        search_rules.error_over_people(evidence.queries),
        search_rules.rule_never_fires(evidence.figures),
    )
    return [step for step in found if step][:STEPS]
