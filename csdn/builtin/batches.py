"""What the small CLIP is trained on: people rendered as they are needed, by another process."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np

from csdn.builtin.cameras import cameras_of
from csdn.builtin.captions import COLOUR_ATTRIBUTES, PHRASES, attributes, caption
from csdn.builtin.people import PRETRAINING, Person, person
from csdn.builtin.render import render, three_channels
from csdn.randomness import generator

SEED = 2401
PEOPLE = 64  # of a batch
AHEAD = 6  # batches rendered before they are needed
NOT_SHOWN = -100  # the label that cross-entropy leaves out


@dataclass(frozen=True)
class Batch:
    """First the visible images of PEOPLE people, then the infrared ones of the same people."""

    images: np.ndarray  # uint8 [2n, 64, 32, 3]
    labels: np.ndarray  # int64 [2n, attributes]; NOT_SHOWN where the image cannot show it
    captions: list[str]  # 2n


def render_batch(step: int) -> Batch:
    """The batch of a step, a pure function of its number: nobody is in two of them."""
    rng = generator(SEED, step)
    first = PRETRAINING.start + step * PEOPLE
    people = [person(number) for number in range(first, first + PEOPLE)]
    images, labels, captions = [], [], []
    for infrared in (False, True):
        devices = cameras_of(infrared)
        for who in people:
            images.append(three_channels(render(who, int(rng.choice(devices)), 0)))
            labels.append(_labels(who, infrared))
            # Half the visible captions leave colours out, as infrared ones must: texts name shape in both.
            captions.append(caption(who, coloured=not infrared and rng.random() < 0.5))
    return Batch(np.stack(images), np.asarray(labels), captions)


def _labels(who: Person, infrared: bool) -> list[int]:
    values = attributes(who)
    return [NOT_SHOWN if infrared and name in COLOUR_ATTRIBUTES else values[name] for name in PHRASES]


def batches(steps: int) -> Iterator[Batch]:
    """The batches of steps 0, 1, ... in order, rendered by one other process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(render_batch, step) for step in range(min(AHEAD, steps))]
        for step in range(steps):
            batch = waiting.pop(0).result()
            if step + AHEAD < steps:
                waiting.append(pool.submit(render_batch, step + AHEAD))
            yield batch
