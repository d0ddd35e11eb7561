"""What the method's exact short forms save: each part against the plain computation, in one run.

    python benchmarks/speed.py                   one core, CLIP RN50's sizes, 288x144
    python benchmarks/speed.py --device cuda     the same on a GPU

"Plain" is tests/plain.py: the method as it is written down. Both sides have the same weights (random) and
inputs, and their results are compared before the clock starts. The floor is the floating-point operations of
our side over the rate of a large matrix product on this machine: no code does better without doing less.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import plain
from machine import machine

from csdn.evaluation import embed_with_mirror, rank_metrics
from csdn.model import CSDN, MODALITIES, ModelConfig, folded
from csdn.training import embedding_losses
from csdn.training.prompt_stage import contrast

SIZE, IDENTITIES = (288, 144), 395
PEOPLE, IMAGES = 4, 4  # of a stage-2 batch: half of the published one, so that 24 GiB hold the plain step
QUERIES, GALLERY = 3803, 301  # SYSU-MM01, all-search, single-shot
MATRIX = 2048


@dataclass(frozen=True)
class Part:
    """One line of the table; both sides return tensors or numbers that must agree."""

    name: str
    aim: float | None
    plain: Callable[[], object]
    ours: Callable[[], object]
    rounds: int
    tolerance: float = 1e-4  # relative, float32 summed in another order


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    device = torch.device(parser.parse_args().device)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rate = matrix_rate(device)
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{machine()}, one thread"
    print(f"{date.today()}  {where}; torch {torch.__version__}")
    print(f"matrix product: {rate / 1e9:.0f} GFLOP/s, float32\n")
    print(f"{'':34}{'plain':>10}{'ours':>10}{'ratio':>8}{'aim':>6}{'floor':>10}")
    for part in parts(rn50().to(device), device):
        check(part)
        times = [best(side, part.rounds, device) for side in (part.plain, part.ours)]
        floor = operations(part.ours) / rate
        cells = "".join(f"{seconds * 1e3:8.1f}ms" for seconds in times)
        bound = f"{floor * 1e3:8.1f}ms" if floor else f"{'':>10}"
        print(f"{part.name:34}{cells}{times[0] / times[1]:8.2f}{part.aim or '':>6}{bound}", flush=True)


def rn50() -> CSDN:
    """CLIP RN50's sizes with random weights."""
    sizes = {"depths": (3, 4, 6, 3), "width": 64, "pool_heads": 32, "embed_dim": 1024}
    text = {"text_width": 512, "text_heads": 8, "text_layers": 12}
    return CSDN(ModelConfig(identities=IDENTITIES, image_size=SIZE, **sizes, **text)).eval()


def parts(model: CSDN, device: torch.device) -> list[Part]:
    return [
        prompt_step(model, device),
        integration_step(model, device),
        embedding_step(model, device),
        test_embedding(model, device),
        *metrics(),
    ]


def prompt_step(model: CSDN, device: torch.device) -> Part:
    """Stage 1, phase "prompts": 32 pairs. Plain: 77 tokens, autograd through the encoder's weights too."""
    labels = torch.arange(32, device=device)
    images = torch.randn(64, model.config.embed_dim, device=device) / 32
    trainable = copy.deepcopy(model.text_encoder).requires_grad_()

    def step(text: Callable[[str], torch.Tensor]) -> torch.Tensor:
        model.zero_grad(set_to_none=True)
        texts = torch.cat([text(modality) for modality in MODALITIES])
        contrast(images, texts, labels.repeat(2))["loss"].backward()
        return torch.cat([tokens.grad[labels] for tokens in model.prompts.tokens.values()])

    return Part(
        "stage 1, prompts: a step",
        14,
        lambda: step(lambda m: plain.text_features(trainable, model.prompts(m, labels))),
        lambda: step(lambda m: model.text_features(m, labels)),
        rounds=2,
    )


def integration_step(model: CSDN, device: torch.device) -> Part:
    """Stage 1, phase "integration": 64 images. Plain: both texts of each image's person encoded again."""
    labels = torch.arange(64, device=device)
    images = torch.randn(64, model.config.embed_dim, device=device) / 32
    with torch.no_grad():
        table = {modality: model.text_features(modality) for modality in MODALITIES}

    def step(text: Callable[[str], torch.Tensor]) -> torch.Tensor:
        model.zero_grad(set_to_none=True)
        fused = model.integration(*(text(modality) for modality in MODALITIES))
        contrast(images, fused, labels)["loss"].backward()
        return model.integration.output.weight.grad

    @torch.no_grad()
    def encoded(modality: str) -> torch.Tensor:
        return plain.text_features(model.text_encoder, model.prompts(modality, labels))

    return Part(
        "stage 1, integration: a step",
        500,
        lambda: step(encoded),
        lambda: step(lambda m: table[m][labels]),
        rounds=3,
    )


def embedding_step(model: CSDN, device: torch.device) -> Part:
    """Stage 2: forward, losses, backward, Adam. Plain: every cell asks, usual layout, unfused Adam."""
    labels = torch.arange(PEOPLE, device=device).repeat_interleave(IMAGES)
    views = [torch.randn(len(labels), 3, *SIZE, device=device) for _ in range(3)]
    table = torch.randn(IDENTITIES, model.config.embed_dim, device=device) / 32

    def side(network: CSDN, fused: bool) -> Callable[[], torch.Tensor]:
        network.train()
        options = {"fused": True} if fused else {"foreach": False}
        optimizer = torch.optim.Adam(list(network.image_parameters()), lr=1e-9, weight_decay=5e-4, **options)

        def step() -> torch.Tensor:
            losses = embedding_losses(network, *views, labels, table)
            optimizer.zero_grad(set_to_none=True)
            losses["total"].backward()
            optimizer.step()
            return losses["total"].detach()

        return step

    return Part(
        f"stage 2: a step of {3 * len(labels)} images",
        1.35,
        side(with_plain_pool(model), fused=False),
        side(copy.deepcopy(model).channels_last(), fused=True),
        rounds=2,
        tolerance=1e-3,  # a random deep network in training mode amplifies rounding
    )


def test_embedding(model: CSDN, device: torch.device) -> Part:
    """32 images and their mirror images. Plain: one after the other, batch norms apart."""
    images = torch.randn(32, 3, *SIZE, device=device)
    slow, fast = with_plain_pool(model), folded(model)

    def embed() -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([slow.embed(x, "visible") for x in (images, images.flip(-1))], dim=1)

    def embed_fast() -> torch.Tensor:
        with torch.inference_mode():
            return embed_with_mirror(fast, images, "visible")

    return Part("test: embedding of 32 images", 1.4, embed, embed_fast, rounds=2)


def metrics() -> list[Part]:
    """CMC, mAP and mINP of a SYSU-MM01 trial. Plain: as the protocol is written down, in Python."""
    rng = np.random.default_rng(0)
    distances = rng.random((QUERIES, GALLERY), np.float32)
    arguments = (
        distances,
        rng.integers(0, 96, QUERIES),
        rng.integers(0, 96, GALLERY),
        rng.choice([3, 6], QUERIES),
        rng.choice([1, 2, 4, 5], GALLERY),
    )

    def written_down() -> torch.Tensor:
        rows, people, gallery, cameras, gallery_cameras = (values.tolist() for values in arguments)
        queries = zip(rows, people, cameras, strict=True)
        found = [plain.query_metrics(*query, gallery, gallery_cameras, "sysu") for query in queries]
        return torch.tensor([one[1] for one in found if one], dtype=torch.float64).mean()

    def ours() -> torch.Tensor:
        return torch.tensor(rank_metrics(*arguments, "sysu").mean_ap, dtype=torch.float64)

    def numpy_loop() -> torch.Tensor:
        return torch.tensor(plain.rank_metrics(*arguments)[1], dtype=torch.float64)

    return [
        Part("test: figures of a trial", 30, written_down, ours, rounds=3),
        Part("  against NumPy, query by query", None, numpy_loop, ours, rounds=3),
    ]


def with_plain_pool(model: CSDN) -> CSDN:
    network = copy.deepcopy(model)
    pool = network.attention_pool
    pool.forward = lambda features: plain.attention_pool(pool, features)
    return network


def check(part: Part) -> None:
    """Both sides once (they are warm then); raises AssertionError where they differ."""
    one, other = part.plain(), part.ours()
    torch.testing.assert_close(other, one, rtol=part.tolerance, atol=part.tolerance * float(one.abs().max()))


def best(side: Callable[[], object], rounds: int, device: torch.device) -> float:
    """Seconds of the fastest of `rounds` calls."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        side()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times)


def operations(side: Callable[[], object]) -> int:
    """Floating-point operations of one call, those of matrix products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        side()
    return counter.get_total_flops()


def matrix_rate(device: torch.device) -> float:
    """Floating-point operations a second of a large float32 matrix product."""
    a, b = torch.randn(2, MATRIX, MATRIX, device=device)
    torch.mm(a, b)
    return 2 * MATRIX**3 / best(lambda: torch.mm(a, b), 5, device)


if __name__ == "__main__":
    main()
