"""Published checkpoints are converted into our network; others are refused by name and shape."""

import pytest
import torch
from golden_vectors import IMAGE_SIZE, network, tensors

from csdn.model import import_published, load_published
from csdn.runtime.errors import UserError

CHECKPOINT = tensors("state_dict")


def same_weights(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_names_may_have_the_prefix_of_data_parallel():
    prefixed = {f"module.{name}": tensor for name, tensor in CHECKPOINT.items()}
    assert same_weights(load_published(prefixed, IMAGE_SIZE), network())


def test_a_file_gives_the_same_network_in_evaluation_mode(tmp_path):
    torch.save(CHECKPOINT, tmp_path / "checkpoint.pth")
    model = load_published(tmp_path / "checkpoint.pth", IMAGE_SIZE)
    assert same_weights(model, network())
    assert not model.training
    assert model.config.stem == "published"


def test_every_tensor_is_used_or_dropped_with_a_reason():
    _, report = import_published(CHECKPOINT, IMAGE_SIZE)
    whole = {name for name in report.dropped if name not in report.used}
    assert set(report.used) | whole == set(CHECKPOINT)
    assert whole == {
        "attnpool.k_proj.bias",
        "prompt_learner2.token_prefix",
        "prompt_learner2.token_suffix",
        *(f"attention_fusion.embedding_{x}.0.{y}" for x in "qk" for y in ("weight", "bias")),
    }
    assert "SII has one key" in str(report)


def without(name):
    return {key: value for key, value in CHECKPOINT.items() if key != name}


@pytest.mark.parametrize(
    ("checkpoint", "reason"),
    [
        (
            without("image_encoder.2.0.conv2.weight"),
            r"image_encoder.2.0.conv2.weight: missing, \[64, 64, 3, 3\]",
        ),
        ({**CHECKPOINT, "extra.weight": torch.zeros(2)}, r"extra.weight: \[2\] found, no such tensor"),
        (
            {**CHECKPOINT, "classifier2.classifier.weight": torch.zeros(13, 32)},
            r"classifier2.classifier.weight: \[13, 32\] found, \[12, 32\] needed",
        ),
        (
            {**CHECKPOINT, "prompt_learner2.token_prefix": torch.zeros(1, 5, 32)},
            "prompt_learner2.token_prefix: differs",
        ),
        (without("text_encoder.text_projection"), "text_encoder.text_projection"),
        ({**CHECKPOINT, "epoch": 60}, "no tensors are epoch"),
        ({}, "not a checkpoint of this method"),
    ],
    ids=["missing", "extra", "misshapen", "two templates", "no text", "not a tensor", "empty"],
)
def test_a_checkpoint_that_does_not_fit_is_refused(checkpoint, reason):
    with pytest.raises(UserError, match=reason):
        load_published(checkpoint, IMAGE_SIZE)


def test_another_image_size_does_not_fit_the_positions():
    with pytest.raises(
        UserError, match=r"attnpool.positional_embedding: \[9, 512\] found, \[163, 512\] needed"
    ):
        load_published(CHECKPOINT)
