"""Train the small CLIP again: `python -m tools.clip_small.pretrain --out FILE`, about 7 minutes of two cores.

Another process renders synthetic people during training; each is seen once, in one visible and one infrared
image. First the image tower alone learns to predict attributes; then both towers learn from captions and
phrases (with batches of this size, contrastive learning from random weights does not start). The result is
deterministic for a given number of threads.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csdn.runtime.console import progress
from csdn.synthetic.people import FRESH, PRETRAINING, Person, person
from csdn.synthetic.rendering import CAMERAS, Camera, cameras_of, render
from tools.clip_small.captions import PHRASES, attributes, caption, photo_of, shown
from tools.clip_small.photographers import PHOTOGRAPHERS, three_channels
from tools.clip_small.tower import SmallClip, to_input, unit

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
    """The batch of a step, a pure function of its number; every batch has other people."""
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


# Zero-shot accuracy on people that the small CLIP has never seen: attributes, and whole captions.


CHOICES = 100  # captions of which one belongs to the image


@dataclass(frozen=True)
class Score:
    """Accuracy of one question in 0..1; None where images of a modality cannot show the answer."""

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


# Training.


LEARNING_RATE, WEIGHT_DECAY = 2e-3, 0.02
MAX_GRADIENT, MAX_SCALE = 5.0, 50.0
SAMPLES = 2 * PEOPLE  # of a step
WARMUP = 100  # steps, at the start of each half


def pretrain(first_steps: int, second_steps: int) -> SmallClip:
    """Train for `first_steps` on attribute labels, then for `second_steps` on texts as well."""
    torch.manual_seed(SEED)
    clip = SmallClip().train()
    heads = nn.ModuleList(nn.Linear(clip.dimension, len(phrases_of(infrared))) for infrared in (False, True))
    optimiser = _optimiser([*clip.parameters(), *heads.parameters()])
    steps = first_steps + second_steps
    with progress("pretrain", "pretrain", "images") as report:
        for step, batch in enumerate(batches(steps)):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(step, first_steps, steps)
            losses = batch_losses(clip, heads, batch, with_text=step >= first_steps)
            _update(clip, optimiser, sum(losses.values()))
            values = {name: loss.item() for name, loss in losses.items()}
            report((step + 1) * SAMPLES, steps * SAMPLES, values)
    clip.eval()
    clip.calibrate(_inputs(batch), [text for shots in batch for text in shots.captions])
    return clip


def _optimiser(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW; weights decay, biases and norms do not."""
    decayed, others = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, fused=True)


def _update(clip: SmallClip, optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_([p for group in optimiser.param_groups for p in group["params"]], MAX_GRADIENT)
    optimiser.step()
    with torch.no_grad():
        clip.text.logit_scale.clamp_(0, math.log(MAX_SCALE))


def learning_rate(step: int, first_steps: int, total: int) -> float:
    """A cosine schedule over the whole run, with warm-up at its start and when the text joins."""
    since = step if step < first_steps else step - first_steps
    return LEARNING_RATE * min(1.0, (since + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * step / total))


def batch_losses(clip: SmallClip, heads: nn.ModuleList, batch: Batch, with_text: bool) -> dict[str, Tensor]:
    """The losses, scalars, as means of the two modalities; each modality has its own heads and texts."""
    features = clip.embed_images(_inputs(batch)).chunk(2)  # one pass: batch norm sees both modalities
    parts = zip(heads, features, batch, (False, True), strict=True)
    losses = [shot_losses(clip, *part, with_text) for part in parts]
    return {name: (losses[0][name] + losses[1][name]) / 2 for name in losses[0]}


def _inputs(batch: Batch) -> Tensor:
    return torch.cat([to_input(shots.images) for shots in batch])


def shot_losses(
    clip: SmallClip, head: nn.Linear, features: Tensor, shots: Shots, infrared: bool, with_text: bool
) -> dict[str, Tensor]:
    labels = torch.from_numpy(shots.labels)
    losses = {"heads": attribute_loss(head(features), labels)}
    if with_text:
        images, scale = unit(features), clip.text.logit_scale.exp()
        losses["captions"] = contrast(scale * images @ unit(clip.embed_texts(shots.captions)).T)
        phrases = unit(clip.embed_texts(phrases_of(infrared)))
        losses["phrases"] = attribute_loss(scale * images @ phrases.T, labels)
    return losses


def phrases_of(infrared: bool) -> list[str]:
    """The phrases of the attributes that this modality shows, attribute by attribute."""
    return [photo_of(infrared, phrase) for name in shown(infrared) for phrase in PHRASES[name]]


def attribute_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the attributes; scores [n, phrases], labels [n, attributes]."""
    sizes = [len(phrases) for phrases in PHRASES.values()][: labels.shape[1]]
    parts = zip(scores.split(sizes, dim=1), labels.T, strict=True)
    return torch.stack([F.cross_entropy(part, label) for part, label in parts]).mean()


def contrast(logits: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy over images and texts; logits [n, n]."""
    target = torch.arange(len(logits))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.clip_small.pretrain", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    parser.add_argument(
        "--steps", type=int, nargs=2, default=(1000, 500), help="on labels alone, then with text"
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="of torch; other numbers change the last digits"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clip = pretrain(*arguments.steps)
    clip.save(arguments.out)
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1e6:.2f} MB")
    print(zero_shot_table(clip, PHOTOGRAPHERS), zero_shot_table(clip), sep="\n")


if __name__ == "__main__":
    main()
