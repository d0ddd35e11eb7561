"""Make the small CLIP again: `python -m csdn.builtin.pretrain --out FILE`, about 7 minutes of two cores.

People are rendered as they are needed and seen once, in one visible and one infrared image. First the image
tower alone learns to read attributes; then both towers learn from captions and phrases (contrast from nothing
does not get off the ground with batches of this size). Deterministic for a given number of threads.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csdn.builtin.batches import PEOPLE, SEED, Batch, Shots, batches
from csdn.builtin.cameras import PHOTOGRAPHERS
from csdn.builtin.captions import PHRASES, photo_of, shown
from csdn.builtin.tower import SmallClip, to_input, unit
from csdn.builtin.zero_shot import zero_shot_table
from csdn.console import progress

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
    """Cosine over the whole run, warmed up at its start and again when the text joins."""
    since = step if step < first_steps else step - first_steps
    return LEARNING_RATE * min(1.0, (since + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * step / total))


def batch_losses(clip: SmallClip, heads: nn.ModuleList, batch: Batch, with_text: bool) -> dict[str, Tensor]:
    """Mean losses of the two modalities, scalars; each has heads and texts of its own."""
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
    """Every phrase about what this modality shows, attribute by attribute."""
    return [photo_of(infrared, phrase) for name in shown(infrared) for phrase in PHRASES[name]]


def attribute_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the attributes; scores [n, phrases], labels [n, attributes]."""
    sizes = [len(phrases) for phrases in PHRASES.values()][: labels.shape[1]]
    parts = zip(scores.split(sizes, dim=1), labels.T, strict=True)
    return torch.stack([F.cross_entropy(part, label) for part, label in parts]).mean()


def contrast(logits: Tensor) -> Tensor:
    """CLIP's loss: which text is this image's, and which image this text's; logits [n, n]."""
    target = torch.arange(len(logits))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m csdn.builtin.pretrain", description=__doc__.splitlines()[0]
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
