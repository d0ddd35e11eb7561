"""The parts that benchmarks/speed.py measures: each as the plain computation and as our implementation."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
import plain

from csdn.evaluation import embed_with_flip_tta, rank_metrics
from csdn.losses import embedding_losses
from csdn.model import CSDN, MODALITIES, ModelConfig, fuse_batch_norms
from csdn.training.prompts import contrastive_losses

SIZE, IDENTITIES = (288, 144), 395
PEOPLE, IMAGES = 4, 4  # of a stage-2 batch: half of the published one, so that 24 GiB hold the plain step
QUERIES, GALLERY = 3803, 301  # SYSU-MM01, all-search, single-shot


@dataclass(frozen=True)
class Part:
    """One line of the table; both sides return tensors that must agree."""

    name: str
    aim: float | None
    plain: Callable[[], object]
    ours: Callable[[], object]
    rounds: int
    tolerance: float = 1e-4  # relative; float32 sums in another order


def rn50(identities: int = IDENTITIES, text_layers: int = 12) -> CSDN:
    """RN50 with random weights; `text_layers` may be 1 if the texts come from a table."""
    sizes = {"depths": (3, 4, 6, 3), "width": 64, "pool_heads": 32, "embed_dim": 1024}
    text = {"text_width": 512, "text_heads": 8, "text_layers": text_layers}
    return CSDN(ModelConfig(identities=identities, image_size=SIZE, **sizes, **text)).eval()


def parts(model: CSDN, device: torch.device) -> list[Part]:
    return [
        prompt_step(model, device),
        integration_step(model, device),
        embedding_step(model, device),
        test_time_embedding(model, device),
        mirror_image(model, device),
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
        contrastive_losses(images, texts, labels.repeat(2))["loss"].backward()
        return torch.cat([tokens.grad[labels] for tokens in model.prompts.tokens.values()])

    return Part(
        "stage 1, prompts: a step",
        14,
        lambda: step(lambda m: plain.text_features(trainable, model.prompts(m, labels))),
        lambda: step(lambda m: model.text_features(m, labels)),
        rounds=2,
    )


def integration_step(model: CSDN, device: torch.device) -> Part:
    """Stage 1, phase "integration": 64 images. Plain: both texts of each image's person are encoded again."""
    labels = torch.arange(64, device=device)
    images = torch.randn(64, model.config.embed_dim, device=device) / 32
    with torch.no_grad():
        table = {modality: model.text_features(modality) for modality in MODALITIES}

    def step(text: Callable[[str], torch.Tensor]) -> torch.Tensor:
        model.zero_grad(set_to_none=True)
        fused = model.integration(*(text(modality) for modality in MODALITIES))
        contrastive_losses(images, fused, labels)["loss"].backward()
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
    """Stage 2: forward, losses, backward, Adam. Plain: every cell a query, default layout, unfused Adam."""
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


def test_time_embedding(model: CSDN, device: torch.device) -> Part:
    """32 images and their mirror images. Plain: one after the other, batch norms not fused."""
    images = torch.randn(32, 3, *SIZE, device=device)
    slow, fast = with_plain_pool(model), fuse_batch_norms(model)

    def embed() -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([slow.embed(x, "visible") for x in (images, images.flip(-1))], dim=1)

    def embed_fast() -> torch.Tensor:
        with torch.inference_mode():
            return embed_with_flip_tta(fast, images, "visible")

    return Part("test: embedding of 32 images", 1.4, embed, embed_fast, rounds=2)


def mirror_image(model: CSDN, device: torch.device) -> Part:
    """Of the previous part, what one batch of twice the size saves; both sides have fused batch norms."""
    images = torch.randn(32, 3, *SIZE, device=device)
    fast = fuse_batch_norms(model)

    @torch.inference_mode()
    def one_after_the_other() -> torch.Tensor:
        return torch.cat([fast.embed(x, "visible") for x in (images, images.flip(-1))], dim=1)

    @torch.inference_mode()
    def together() -> torch.Tensor:
        return embed_with_flip_tta(fast, images, "visible")

    return Part("  of it: mirror image in same batch", None, one_after_the_other, together, rounds=3)


def metrics() -> list[Part]:
    """CMC, mAP and mINP of a SYSU-MM01 trial. Plain: the definition of the protocol, in Python loops."""
    rng = np.random.default_rng(0)
    distances = rng.random((QUERIES, GALLERY), np.float32)
    arguments = (
        distances,
        rng.integers(0, 96, QUERIES),
        rng.integers(0, 96, GALLERY),
        rng.choice([3, 6], QUERIES),
        rng.choice([1, 2, 4, 5], GALLERY),
    )

    def by_definition() -> torch.Tensor:
        rows, people, gallery, cameras, gallery_cameras = (values.tolist() for values in arguments)
        queries = zip(rows, people, cameras, strict=True)
        found = [plain.query_metrics(*query, gallery, gallery_cameras, "sysu") for query in queries]
        return torch.tensor([one[1] for one in found if one], dtype=torch.float64).mean()

    def ours() -> torch.Tensor:
        return torch.tensor(rank_metrics(*arguments, "sysu").mean_ap, dtype=torch.float64)

    def numpy_loop() -> torch.Tensor:
        return torch.tensor(plain.rank_metrics(*arguments)[1], dtype=torch.float64)

    return [
        Part("test: figures of a trial", 30, by_definition, ours, rounds=3),
        Part("  against NumPy, query by query", None, numpy_loop, ours, rounds=3),
    ]


def with_plain_pool(model: CSDN) -> CSDN:
    network = copy.deepcopy(model)
    pool = network.attention_pool
    pool.forward = lambda features: plain.attention_pool(pool, features)
    return network
