"""Images grouped by person, and drawing from groups of any sizes at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from csdn.data.rng import Stream, generator
from csdn.runtime.errors import UserError

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


# The plan: which images stand in which batch of an epoch, as a pure function of (samples, seed, epoch).
#
# One plan feeds everything: a `DataLoader` or Ray Data executes its rows, a rank takes a slice of each, and
# resume is "start at row n". Images are ordinals: positions in the sample table. Vectorised over the batches
# of an epoch; a table of 10 million images takes seconds.


@dataclass(frozen=True)
class BatchPlan:
    """One batch, or a rank's part of it: images of p people, grouped by person, in the same order twice.

    identities: labels [p]; visible, infrared: ordinals [p, K]; positions [p * K]: where its images stand in
    the global batch, which has `global_images` of each modality (draws are made for all of them).
    """

    epoch: int
    step: int
    identities: np.ndarray
    visible: np.ndarray
    infrared: np.ndarray
    positions: np.ndarray
    global_images: int


@dataclass(frozen=True)
class EpochPlan:
    """All batches of an epoch: identities [B, p], visible and infrared [B, p, K].

    `people` is P of the global batch, of which this plan holds those from `first` on: all, or a rank's share.
    """

    epoch: int
    people: int
    first: int
    identities: np.ndarray
    visible: np.ndarray
    infrared: np.ndarray

    def __len__(self) -> int:
        return len(self.identities)

    def __getitem__(self, step: int) -> BatchPlan:
        shown, images = self.visible.shape[1:]
        return BatchPlan(
            epoch=self.epoch,
            step=step,
            identities=self.identities[step],
            visible=self.visible[step],
            infrared=self.infrared[step],
            positions=np.arange(self.first * images, (self.first + shown) * images),
            global_images=self.people * images,
        )

    def slice(self, rank: int, world: int) -> EpochPlan:
        """The people of each batch that `rank` of `world` workers takes; P % world == 0, or UserError."""
        if self.people % world:
            raise UserError(
                f"embedding.identities_per_batch = {self.people} cannot be split over scaling.workers = {world}: "
                f"choose a number of workers that divides it"
            )
        share = self.people // world
        mine = slice(rank * share, (rank + 1) * share)
        return EpochPlan(
            self.epoch,
            self.people,
            rank * share,
            self.identities[:, mine],
            self.visible[:, mine],
            self.infrared[:, mine],
        )


def epoch_batches(visible_count: int, infrared_count: int, people: int, images: int) -> int:
    """Batches of an epoch: floor(max(#visible, #infrared) / (P K)) + 1 (SYSU-MM01 696, RegDB 65)."""
    return max(visible_count, infrared_count) // (people * images) + 1


def epoch_plan(
    labels: np.ndarray, modalities: np.ndarray, people: int, images: int, seed: int, epoch: int
) -> EpochPlan:
    """The P x K batches of one epoch.

    labels: [n] dense identities 0..C-1; modalities: [n], 0 visible, 1 infrared. Identities are drawn without
    replacement in a batch; so are the images of a person while there are enough, else each stands equally
    often (give or take one). Raises UserError where a person lacks a modality or there are fewer than P.
    """
    visible, infrared = images_of_people(labels, modalities)
    if len(visible.counts) < people:
        raise UserError(
            f"{len(visible.counts)} people to train on, but a batch takes embedding.identities_per_batch = {people}: "
            "add people or lower it"
        )
    batches = epoch_batches(visible.counts.sum(), infrared.counts.sum(), people, images)
    everybody = np.full(batches, len(visible.counts))
    identities = draw_without_replacement(everybody, people, generator(seed, Stream.IDENTITIES, epoch))
    return EpochPlan(
        epoch=epoch,
        people=people,
        first=0,
        identities=identities,
        visible=visible.draw(identities, images, generator(seed, Stream.VISIBLE_IMAGES, epoch)),
        infrared=infrared.draw(identities, images, generator(seed, Stream.INFRARED_IMAGES, epoch)),
    )


def pair_plan(
    labels: np.ndarray, modalities: np.ndarray, batch: int, seed: int, epoch: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Steps of stage 1, phase "prompts": (visible [b], infrared [b]) ordinals, pair by pair the same person.

    For each person the shuffled visible images are paired with the shuffled infrared ones, the shorter list
    repeating; all pairs are shuffled into steps of `batch`. A last short step is kept. Raises UserError where
    a person lacks a modality.
    """
    visible, infrared = images_of_people(labels, modalities)
    rng = generator(seed, Stream.PAIRS, epoch)
    pairs = np.maximum(visible.counts, infrared.counts)
    person = np.repeat(np.arange(len(pairs)), pairs)
    place = np.arange(len(person)) - np.repeat(np.cumsum(pairs) - pairs, pairs)
    both = [side.shuffled(rng).at(person, place % side.counts[person]) for side in (visible, infrared)]
    order = rng.permutation(len(person))
    return list(zip(*(_steps(side[order], batch) for side in both), strict=True))


def pooled_plan(count: int, batch: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Steps of stage 1, phase "integration": `count` ordinals once each, shuffled, `batch` at a time."""
    return _steps(generator(seed, Stream.POOL, epoch).permutation(count), batch)


def sequential_plan(count: int, batch: int) -> list[np.ndarray]:
    """Each of `count` ordinals once, in order, `batch` at a time; the last step may be short."""
    return _steps(np.arange(count), batch)


def _steps(ordinals: np.ndarray, batch: int) -> list[np.ndarray]:
    return [ordinals[start : start + batch] for start in range(0, len(ordinals), batch)]
