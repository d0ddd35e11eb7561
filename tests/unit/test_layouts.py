"""Memory layouts and fused batch norms change speed only."""

import torch
from golden_vectors import assert_near, network, tensors

from csdn.model import fuse_batch_norms

IMAGES = {"visible": tensors("inputs")["x_rgb_view1"], "infrared": tensors("inputs")["x_ir"]}


def test_channels_last_trains_the_same_network():
    plain, fast = network().double().train(), network().double().train().channels_last()
    assert fast.layers[0][0].conv2.weight.is_contiguous(memory_format=torch.channels_last)
    images = {modality: x.double() for modality, x in IMAGES.items()}
    for model in (plain, fast):
        sum(output.square().sum() for output in model(images)).backward()
    for (name, one), (_, other) in zip(plain.named_parameters(), fast.named_parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None:
            assert_near(other.grad, one.grad, 1e-9)


def test_fused_batch_norms_give_the_same_features():
    model = network()
    fast = fuse_batch_norms(model)
    for modality, images in IMAGES.items():
        assert_near(fast.embed(images, modality), model.embed(images, modality))
        assert_near(fast.image_embeddings(images, modality), model.image_embeddings(images, modality))
    for part in (fast.stems, fast.layers):
        assert not [m for m in part.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert [m for m in model.layers.modules() if isinstance(m, torch.nn.BatchNorm2d)], (
        "it changed the original"
    )
