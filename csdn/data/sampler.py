"""The P x K sampler: which images form which batch of an epoch, as a pure function of (samples, seed, epoch).

This is where a training batch begins. The sampler reads the columns of a table (csdn.data.catalog) and writes
a plan: arrays with a row for each batch. `csdn.data.loader` executes the rows of a plan on one machine, Ray
Data on a cluster (csdn.cluster), and csdn.data.batch turns a row into images. A worker takes a slice of each
row, and to resume means to start at row n.

A plan names images by their indices: positions in the table. Planning is vectorised over the batches of an
epoch; a table of 10 million images takes seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from csdn.data.rng import Stream, generator
from csdn.runtime.errors import UserError

VISIBLE, INFRARED = 0, 1
_LABELS_SHOWN = 5


@dataclass(frozen=True)
class BatchPlan:
    """One batch, or a worker's part of it: n visible and n infrared images, in pairs of one person.

    labels: of the people [n], grouped; visible, infrared: indices of images [n]; positions: [n], where these
    images are in the global batch, which has `global_images` of each modality (augmentation draws for all of
    them).
    """

    epoch: int
    step: int
    labels: np.ndarray
    visible: np.ndarray
    infrared: np.ndarray
    positions: np.ndarray
    global_images: int


@dataclass(frozen=True)
class EpochPlan:
    """All batches of an epoch, each of P people: identities [B, P], visible and infrared [B, P, K].

    Item n is the part of batch n that worker `rank` of `workers` takes: all of it, if there is only one.
    """

    epoch: int
    identities: np.ndarray
    visible: np.ndarray
    infrared: np.ndarray
    rank: int = 0
    workers: int = 1

    def __len__(self) -> int:
        return len(self.identities)

    def __getitem__(self, step: int) -> BatchPlan:
        people, images = self.visible.shape[1:]
        share = people * images // self.workers
        positions = np.arange(self.rank * share, (self.rank + 1) * share)
        return BatchPlan(
            epoch=self.epoch,
            step=step,
            labels=self.identities[step][positions // images],
            visible=self.visible[step].ravel()[positions],
            infrared=self.infrared[step].ravel()[positions],
            positions=positions,
            global_images=people * images,
        )

    def slice(self, rank: int, workers: int) -> EpochPlan:
        """The part of worker `rank`: successive images of each modality, which may begin and end within a
        person's. `workers` divides P x K (csdn.params).
        """
        return replace(self, rank=rank, workers=workers)


def epoch_batches(visible_count: int, infrared_count: int, people: int, images: int) -> int:
    """Batches of an epoch: floor(max(#visible, #infrared) / (P K)) + 1 (SYSU-MM01 696, RegDB 65)."""
    return max(visible_count, infrared_count) // (people * images) + 1


def epoch_plan(
    labels: np.ndarray, modalities: np.ndarray, people: int, images: int, seed: int, epoch: int
) -> EpochPlan:
    """The P x K batches of one epoch of stage 2; people: P, images: K.

    labels: [n] dense identities 0..C-1; modalities: [n], 0 visible, 1 infrared. A batch draws identities
    without replacement. It draws the images of an identity without replacement too, while there are enough;
    otherwise each is used equally often (give or take one). Raises UserError where an identity lacks a
    modality, or there are fewer than P.
    """
    visible, infrared = images_of_people(labels, modalities)
    if len(visible.counts) < people:
        raise UserError(
            f"{len(visible.counts)} people to train on, but a batch takes "
            f"embedding.identities_per_batch = {people}: add people or lower it"
        )
    batches = epoch_batches(visible.counts.sum(), infrared.counts.sum(), people, images)
    all_people = np.full(batches, len(visible.counts))
    identities = draw_without_replacement(all_people, people, generator(seed, Stream.IDENTITIES, epoch))
    return EpochPlan(
        epoch=epoch,
        identities=identities,
        visible=visible.draw(identities, images, generator(seed, Stream.VISIBLE_IMAGES, epoch)),
        infrared=infrared.draw(identities, images, generator(seed, Stream.INFRARED_IMAGES, epoch)),
    )


def pair_plan(
    labels: np.ndarray, modalities: np.ndarray, batch: int, seed: int, epoch: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Steps of stage 1, phase "prompts": indices (visible [b], infrared [b]); each pair is of one person.

    The shuffled visible images of a person are paired with the shuffled infrared ones, and the shorter list
    repeats. All pairs are shuffled into steps of `batch`; a last, shorter step is kept. Raises UserError
    where a person lacks a modality.
    """
    visible, infrared = images_of_people(labels, modalities)
    rng = generator(seed, Stream.PAIRS, epoch)
    pairs = np.maximum(visible.counts, infrared.counts)
    person = np.repeat(np.arange(len(pairs)), pairs)
    number = np.arange(len(person)) - np.repeat(np.cumsum(pairs) - pairs, pairs)  # of the pair, of its person
    both = [group.shuffled(rng).at(person, number % group.counts[person]) for group in (visible, infrared)]
    order = rng.permutation(len(person))
    return list(zip(*(_steps(indices[order], batch) for indices in both), strict=True))


def pooled_plan(count: int, batch: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Steps of stage 1, phase "integration": `count` indices once each, shuffled, `batch` at a time."""
    return _steps(generator(seed, Stream.POOL, epoch).permutation(count), batch)


def sequential_plan(count: int, batch: int) -> list[np.ndarray]:
    """Each of `count` indices once, in order, `batch` at a time; the last step may be shorter."""
    return _steps(np.arange(count), batch)


def _steps(indices: np.ndarray, batch: int) -> list[np.ndarray]:
    return [indices[start : start + batch] for start in range(0, len(indices), batch)]


# Images grouped by person, and drawing from groups of any sizes at once.


@dataclass(frozen=True)
class PeopleImages:
    """One modality's images by person: label c has the indices order[starts[c] : starts[c] + counts[c]]."""

    order: np.ndarray
    starts: np.ndarray
    counts: np.ndarray

    def at(self, identities: np.ndarray, number: np.ndarray) -> np.ndarray:
        """Indices of the images with these numbers (from 0) of the people `identities`; shapes broadcast."""
        return self.order[self.starts[identities] + number]

    def draw(self, identities: np.ndarray, images: int, rng: np.random.Generator) -> np.ndarray:
        """Indices of `images` images of each person: [..., images] for identities [...]."""
        return self.at(identities[..., None], draw_without_replacement(self.counts[identities], images, rng))

    def shuffled(self, rng: np.random.Generator) -> PeopleImages:
        """The same groups, the images of each person in random order."""
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
    for modality, group in (("visible", visible), ("infrared", infrared)):
        lacking = np.flatnonzero(group.counts == 0)
        if len(lacking):
            shown = ", ".join(map(str, lacking[:_LABELS_SHOWN]))
            more = ", ..." if len(lacking) > _LABELS_SHOWN else ""
            raise UserError(
                f"{len(lacking)} of {total} people to train on have no {modality} image "
                f"(labels {shown}{more}): each needs both modalities"
            )
    return visible, infrared


def _grouped(labels: np.ndarray, chosen: np.ndarray, total: int) -> PeopleImages:
    indices = np.flatnonzero(chosen)
    order = indices[np.argsort(labels[indices], kind="stable")]
    counts = np.bincount(labels[indices], minlength=total)
    return PeopleImages(order, np.cumsum(counts) - counts, counts)


def draw_without_replacement(counts: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """For each count n of `counts` [...], `size` numbers of 0..n-1, each floor(size/n) or ceil(size/n) times.

    Floyd's algorithm (Bentley and Floyd, CACM 30(9), 1987), in `size` rounds over whole arrays. The set is
    uniform; its order is not, and nothing depends on the order. Where n < size, whole copies of 0..n-1 come
    first and only the remainder is drawn.
    """
    drawn = np.empty((*np.shape(counts), size), dtype=np.int64)
    copied = size // counts * counts
    for place in range(size):
        last = np.maximum(counts - size + place, 0)
        number = rng.integers(0, last, endpoint=True)
        repeated = (drawn[..., :place] == number[..., None]) & (np.arange(place) >= copied[..., None])
        floyd = np.where(repeated.any(axis=-1), last, number)
        drawn[..., place] = np.where(place < copied, place % counts, floyd)
    return drawn
