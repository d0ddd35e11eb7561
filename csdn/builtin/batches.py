"""What the small CLIP is trained on: people rendered as they are needed, by another process."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np

from csdn.builtin.cameras import PHOTOGRAPHERS, cameras_of
from csdn.builtin.captions import attributes, caption, shown
from csdn.builtin.people import PRETRAINING, Person, person
from csdn.builtin.render import render, three_channels

SEED = 2401
PEOPLE = 64  # of a batch
AHEAD = 6  # batches rendered before they are needed


@dataclass(frozen=True)
class Shots:
    """One image of each of n people by cameras of one modality."""

    images: np.ndarray  # uint8 [n, 64, 32, 3]
    labels: np.ndarray  # int64 [n, attributes that the modality shows]
    captions: list[str]


# The visible images of PEOPLE people and the infrared images of the same people.
Batch = tuple[Shots, Shots]


def render_batch(step: int) -> Batch:
    """The batch of a step, a pure function of its number: nobody is in two of them."""
    first = PRETRAINING.start + step * PEOPLE
    people = [person(number) for number in range(first, first + PEOPLE)]
    return _shots(people, False), _shots(people, True)


def _shots(people: list[Person], infrared: bool) -> Shots:
    (camera,) = cameras_of(infrared, PHOTOGRAPHERS)
    images = [render(who, camera, 0) for who in people]
    return Shots(
        images=np.stack([three_channels(image) for image in images]),
        labels=np.array([[attributes(who)[name] for name in shown(infrared)] for who in people]),
        captions=[caption(who, infrared) for who in people],
    )


def batches(steps: int) -> Iterator[Batch]:
    """The batches of steps 0, 1, ... in order, rendered by one other process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(render_batch, step) for step in range(min(AHEAD, steps))]
        for step in range(steps):
            batch = waiting.pop(0).result()
            if step + AHEAD < steps:
                waiting.append(pool.submit(render_batch, step + AHEAD))
            yield batch
