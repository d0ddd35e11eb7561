"""Rules on the data and the training: each gives a Step with the number it rests on, or None."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from csdn.report.step import Step
from csdn.report.words import percent

REFUSED = 0.005  # share of the images
FEW_PEOPLE = 0.05  # share of the training people with too few images for a batch
NAMING_POINTS = 10.0  # between fused texts on visible and on infrared images
FALL = 0.05  # of a loss, from the last fifth but one of the steps to the last fifth


def refused_images(refused: Mapping[str, int], images: int) -> Step | None:
    """When more than REFUSED of the images did not pass ingest."""
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
    """When more than FEW_PEOPLE of the training people lack images for a batch, which then repeats some."""
    short = int((train_images.min(axis=1) < needed).sum())
    if short <= FEW_PEOPLE * len(train_images):
        return None
    return Step(
        "People with few images",
        f"{short} of {len(train_images)} training people have fewer than {needed} images of one modality, "
        "so their batches repeat images: more images of them, or a smaller embedding.images.",
        "data",
    )


def train_image_counts(labels: np.ndarray, modality: np.ndarray) -> np.ndarray:
    """Images of each person, [people, 2]: visible, infrared; labels 0.. and modality codes of the images."""
    counts = np.zeros((int(labels.max()) + 1, 2), np.int64)
    np.add.at(counts, (labels, modality), 1)
    return counts


def naming_gap(naming: Mapping[str, float]) -> Step | None:
    """When the fused texts name one modality's images NAMING_POINTS better than the other's."""
    if naming.get("new_people") == 0:
        return None
    figures = {modality: naming[f"fused_names_{modality}"] for modality in ("visible", "infrared")}
    weak, strong = sorted(figures, key=lambda modality: figures[modality])
    if figures[strong] - figures[weak] <= NAMING_POINTS:
        return None
    return Step(
        f"Texts know {weak} images less well",
        f"The fused texts name {percent(figures[weak])} of the {weak} training images and "
        f"{percent(figures[strong])} of the {strong} ones. Stage 2 ties the image encoder to these texts.",
        "texts",
    )


def losses_still_fall(losses: Mapping[str, Sequence[float]]) -> Step | None:
    """Phases whose loss fell by more than FALL from the last fifth but one of the steps to the last."""
    falls = {name: fall for name, values in losses.items() if (fall := last_fall(values)) > FALL}
    if not falls:
        return None
    said = ", ".join(f"{name} by {percent(100 * fall)}" for name, fall in falls.items())
    return Step(
        "Losses still fall at the end",
        f"From the last fifth but one of the steps to the last fifth: {said}. More epochs may gain.",
        "training",
    )


def last_fall(values: Sequence[float]) -> float:
    """Relative fall of the mean from the last fifth but one to the last fifth; 0 where there is too little.

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
    """The whole loss of each phase, from the training logs."""
    found: dict[str, list[float]] = {}
    for row in prompts_log:
        found.setdefault(f"stage 1's {row['phase']} loss", []).append(float(row["loss"]))
    return found | {"stage 2's sum of losses": [float(row["total"]) for row in embedding_log]}
