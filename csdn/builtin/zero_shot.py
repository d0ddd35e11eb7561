"""How well the small CLIP reads people it has never seen, by text alone: attributes, and whole captions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from csdn.builtin.cameras import CAMERAS, Camera, cameras_of
from csdn.builtin.captions import PHRASES, attributes, caption, photo_of, shown
from csdn.builtin.people import FRESH, Person, person
from csdn.builtin.render import render, three_channels
from csdn.builtin.tower import SmallClip, to_input, unit

CHOICES = 100  # captions that one image chooses from


@dataclass(frozen=True)
class Score:
    """Accuracy of one question in 0..1; None where a modality cannot show the answer."""

    question: str
    chance: float
    visible: float
    infrared: float | None


@torch.no_grad()
def zero_shot(clip: SmallClip, cameras: tuple[Camera, ...] = CAMERAS, people: int = 400) -> list[Score]:
    """Scores on `people` fresh people (a multiple of CHOICES), one image each and modality."""
    crowd = [person(number) for number in FRESH[:people]]
    images = {
        infrared: _embed_people(clip, crowd, cameras_of(infrared, cameras)) for infrared in (False, True)
    }
    scores = []
    for name, phrases in PHRASES.items():
        truth = torch.tensor([attributes(who)[name] for who in crowd])
        accuracy = [None, None]
        for infrared in (False, True):
            if name in shown(infrared):
                texts = unit(clip.embed_texts([photo_of(infrared, phrase) for phrase in phrases]))
                accuracy[infrared] = _accuracy(images[infrared] @ texts.T, truth)
        scores.append(Score(name, 1 / len(phrases), *accuracy))
    captions = (_caption_accuracy(clip, crowd, images[infrared], infrared) for infrared in (False, True))
    return [*scores, Score(f"caption, 1 of {CHOICES}", 1 / CHOICES, *captions)]


def zero_shot_table(clip: SmallClip, cameras: tuple[Camera, ...] = CAMERAS, people: int = 400) -> str:
    """The scores as text, in percent."""
    names = ", ".join(camera.name for camera in cameras)
    lines = [f"zero-shot, {people} fresh people by {names}, %", f"{'':20} chance visible infrared"]
    for score in zero_shot(clip, cameras, people):
        infrared = "-" if score.infrared is None else f"{100 * score.infrared:.1f}"
        lines.append(
            f"{score.question:20} {100 * score.chance:6.1f} {100 * score.visible:7.1f} {infrared:>8}"
        )
    return "\n".join(lines)


def _embed_people(clip: SmallClip, people: list[Person], cameras: list[Camera]) -> Tensor:
    images = [render(who, cameras[place % len(cameras)], 0) for place, who in enumerate(people)]
    inputs = to_input(np.stack([three_channels(image) for image in images]))
    return unit(torch.cat([clip.embed_images(part) for part in inputs.split(100)]))


def _caption_accuracy(clip: SmallClip, people: list[Person], images: Tensor, infrared: bool) -> float:
    texts = unit(clip.embed_texts([caption(who, infrared) for who in people]))
    groups = zip(images.split(CHOICES), texts.split(CHOICES), strict=True)
    return float(np.mean([_accuracy(image @ text.T, torch.arange(len(image))) for image, text in groups]))


def _accuracy(scores: Tensor, truth: Tensor) -> float:
    return (scores.argmax(1) == truth).float().mean().item()
