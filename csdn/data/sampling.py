"""Images grouped by person, and drawing from groups of any sizes at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from csdn.errors import UserError

VISIBLE, INFRARED = 0, 1
_LABELS_SHOWN = 5


@dataclass(frozen=True)
class PeopleImages:
    """Images of one modality by person: those of label c are order[starts[c] : starts[c] + counts[c]]."""

    order: np.ndarray
    starts: np.ndarray
    counts: np.ndarray

    def at(self, identities: np.ndarray, place: np.ndarray) -> np.ndarray:
        """Ordinals of the images number `place` of the people `identities` (shapes broadcast)."""
        return self.order[self.starts[identities] + place]

    def draw(self, identities: np.ndarray, images: int, rng: np.random.Generator) -> np.ndarray:
        """`images` ordinals of each person: [..., images] for identities [...]."""
        return self.at(identities[..., None], draw_without_replacement(self.counts[identities], images, rng))

    def shuffled(self, rng: np.random.Generator) -> PeopleImages:
        """The same, each person's images in random order."""
        person = np.repeat(np.arange(len(self.counts)), self.counts)
        order = np.lexsort((rng.random(len(person)), person))
        return PeopleImages(self.order[order], self.starts, self.counts)


def images_of_people(labels: np.ndarray, modalities: np.ndarray) -> tuple[PeopleImages, PeopleImages]:
    """Visible and infrared images by person.

    labels: [n] dense identities 0..C-1; modalities: [n], 0 visible, 1 infrared. Raises UserError naming the
    labels that lack one of them.
    """
    if not len(labels):
        raise UserError("there is no image to train on")
    total = int(labels.max()) + 1
    visible, infrared = (_grouped(labels, modalities == code, total) for code in (VISIBLE, INFRARED))
    for name, side in (("visible", visible), ("infrared", infrared)):
        lacking = np.flatnonzero(side.counts == 0)
        if len(lacking):
            shown = ", ".join(map(str, lacking[:_LABELS_SHOWN]))
            more = ", ..." if len(lacking) > _LABELS_SHOWN else ""
            raise UserError(
                f"{len(lacking)} of {total} people to train on have no {name} image (labels {shown}{more}): "
                "each needs both modalities"
            )
    return visible, infrared


def draw_without_replacement(counts: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """For each count n of `counts` [...], `size` numbers of 0..n-1, each floor(size/n) or ceil(size/n) times.

    Floyd's algorithm (Bentley and Floyd, CACM 30(9), 1987), `size` rounds over whole arrays: the set is
    uniform, its order is not, and nothing depends on it. Where n < size, whole copies of 0..n-1 come first,
    the rest is drawn.
    """
    drawn = np.empty((*np.shape(counts), size), dtype=np.int64)
    copied = size // counts * counts
    for place in range(size):
        last = np.maximum(counts - size + place, 0)
        number = rng.integers(0, last, endpoint=True)
        taken = (drawn[..., :place] == number[..., None]) & (np.arange(place) >= copied[..., None])
        floyd = np.where(taken.any(axis=-1), last, number)
        drawn[..., place] = np.where(place < copied, place % counts, floyd)
    return drawn


def _grouped(labels: np.ndarray, chosen: np.ndarray, total: int) -> PeopleImages:
    ordinals = np.flatnonzero(chosen)
    order = ordinals[np.argsort(labels[ordinals], kind="stable")]
    counts = np.bincount(labels[ordinals], minlength=total)
    return PeopleImages(order, np.cumsum(counts) - counts, counts)
