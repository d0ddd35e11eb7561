"""Shortcuts between the parts of the network change no value (the parts: test_model_exact.py)."""

import numpy as np
import pytest
import torch
from golden_vectors import assert_near, network, tensors

from csdn.evaluation import embed_with_flip_tta, protocol
from csdn.losses import embedding_losses
from csdn.model import MODALITIES, fuse_batch_norms
from csdn.params import EmbeddingParams
from csdn.training.embedding import build_optimizer
from csdn.training.prompts import IntegrationPhase, PromptPhase, contrastive_losses

INPUTS = tensors("inputs")
VIEWS = [INPUTS[name] for name in ("x_rgb_view1", "x_rgb_view2", "x_ir")]


def in_double():
    model = network().double()
    model.text_encoder.cache_prefix()
    return model


def test_fused_adam_equals_plain_adam():
    ours, plain = in_double().train(), in_double().train()
    rates = {"learning_rate": 3e-4, "head_learning_rate": 1e-3, "weight_decay": 5e-4}
    fused = build_optimizer(ours, EmbeddingParams.model_construct(**rates))
    heads = list(plain.head_parameters())
    backbone = [p for p in plain.image_parameters() if not any(p is head for head in heads)]
    groups = [{"params": backbone}, {"params": heads, "lr": 1e-3}]
    unfused = torch.optim.Adam(groups, lr=3e-4, weight_decay=5e-4, foreach=False)
    assert fused.defaults["fused"] and not unfused.defaults["fused"]
    # The same gradients for both: a step of Adam magnifies the last digits of a small one.
    draws = torch.Generator().manual_seed(0)
    for _ in range(3):
        for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
            one.grad = torch.randn(one.shape, generator=draws, dtype=torch.float64)
            other.grad = one.grad.clone()
        fused.step()
        unfused.step()
    for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
        assert_near(one, other, 1e-12)


def gradients_of(losses, parameters):
    return [losses["loss"], *torch.autograd.grad(losses["loss"], parameters)]


def test_precomputed_texts_give_the_same_step_as_texts_encoded_for_each_image():
    model, labels = in_double(), INPUTS["stage2_labels"]
    images = INPUTS["stage2_img"].double()
    model.integration.dropout = 0.0
    texts = [model.text_features(modality).detach() for modality in MODALITIES]
    phase = IntegrationPhase(model, images, labels, *texts, plan=lambda epoch: [], seed=0)
    short = gradients_of(phase.loss(np.arange(len(labels)), epoch=0, step=0), phase.parameters())
    encoded = [model.text_features(modality, labels).detach() for modality in MODALITIES]
    written_out = gradients_of(
        contrastive_losses(images, model.integration(*encoded), labels), phase.parameters()
    )
    for one, other in zip(short, written_out, strict=True):
        assert_near(one, other, 1e-12)


def test_encoding_a_repeated_identity_once_gives_the_same_step():
    model, labels = in_double(), torch.tensor([3, 1, 3, 3])
    images = torch.randn(8, model.config.embed_dim, generator=torch.Generator().manual_seed(0)).double()
    phase = PromptPhase(model, images, labels.repeat(2), plan=lambda epoch: [])
    short = gradients_of(phase.loss((np.arange(4), np.arange(4, 8)), epoch=0, step=0), phase.parameters())
    texts = torch.cat([model.text_features(modality, labels) for modality in MODALITIES])
    written_out = gradients_of(contrastive_losses(images, texts, labels.repeat(2)), phase.parameters())
    for one, other in zip(short, written_out, strict=True):
        assert_near(one, other, 1e-12)


@pytest.mark.parametrize("modality", MODALITIES)
def test_optimised_inference_gives_the_plain_features(modality):
    """Fused batch norms, inference mode, and the flipped image in the same batch."""
    model, images = network(), VIEWS[0]
    plain = torch.cat([model.embed(one, modality) for one in (images, images.flip(3))], dim=1)
    with torch.inference_mode():
        assert_near(embed_with_flip_tta(fuse_batch_norms(model), images, modality).clone(), plain)


def test_features_extracted_once_serve_every_trial():
    """A feature depends on its image only, whatever else is in the batch."""
    model, images = network(), torch.cat(VIEWS)
    index = {
        "person": [number % 3 for number in range(len(images))],
        "modality": ["visible"] * len(images),
        "camera": [1 + number % 2 for number in range(len(images))],
        "path": [f"{number:02}" for number in range(len(images))],
    }
    once = model.embed(images, "visible")
    (search,) = protocol("sysu", index)
    assert len({tuple(rows.tolist()) for rows in search.galleries}) > 1
    for rows in search.galleries:
        assert_near(model.embed(images[rows], "visible"), once[rows])


def test_a_training_step_has_the_same_losses_in_either_memory_layout():
    model, fast = in_double().train(), in_double().train().channels_last()
    table = tensors("phase3")["text_features"].double()
    arguments = [*(view.double() for view in VIEWS), INPUTS["pids"], table]
    losses = [embedding_losses(one, *arguments) for one in (model, fast)]
    for name, value in losses[0].items():
        assert losses[1][name].item() == pytest.approx(value.item(), rel=1e-9), name
