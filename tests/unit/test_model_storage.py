"""A saved network loads as the same network; files that do not fit are refused by name and shape."""

import json

import pytest
import torch
from golden_vectors import IMAGE_SIZE, network, tensors

from csdn.model import CSDN, ModelConfig, load, read_config, save
from csdn.runtime.errors import UserError


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_save_load_save_gives_the_same_bytes(tmp_path):
    save(network(), tmp_path / "first", normalize="imagenet")
    save(load(tmp_path / "first"), tmp_path / "second", normalize="imagenet")
    assert contents(tmp_path / "first") == contents(tmp_path / "second")
    assert set(contents(tmp_path / "first")) == {"model.safetensors", "config.json"}


def test_a_loaded_network_gives_the_same_outputs(tmp_path):
    model, images = network(), tensors("inputs")["x_ir"]
    save(model.train(), tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert not loaded.training
    assert torch.equal(loaded.embed(images, "infrared"), model.eval().embed(images, "infrared"))
    assert torch.equal(loaded.fused_text_features(), model.fused_text_features())


def test_config_is_plain_json_with_the_extra_config(tmp_path):
    save(network(), tmp_path / "model", normalize="imagenet")
    config = read_config(tmp_path / "model")
    assert config["normalize"] == "imagenet"
    assert config["model"]["image_size"] == list(IMAGE_SIZE)
    assert ModelConfig.from_json(config["model"]) == network().config


def test_a_folder_that_does_not_fit_its_config_is_refused(tmp_path, fault):
    save(network(), tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    config["model"]["identities"] = 99
    path.write_text(json.dumps(config))
    with pytest.raises(
        UserError, match=r"gem_neck.classifier.weight: \[12, 512\] found, \[99, 512\] needed"
    ) as error:
        load(tmp_path / "model")
    fault("weights and checkpoints", "config.json says another number of people", error.value)


@pytest.mark.parametrize(
    ("text", "reason", "what"),
    [
        ("not json", "not valid JSON", "a saved network's config.json is no JSON"),
        ("[]", "not a network of format", "a saved network's config.json is a list"),
        ('{"format": 1, "model": {"depth": 3}}', "unknown keys depth", "config.json with a key unknown"),
        ('{"format": 1, "model": {"identities": 3}}', "incomplete", "config.json without most keys"),
    ],
)
def test_a_broken_config_is_explained(tmp_path, text, reason, what, fault):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=reason) as error:
        load(tmp_path)
    fault("weights and checkpoints", what, error.value)


def test_a_missing_folder_or_broken_weights_are_explained(tmp_path, fault):
    with pytest.raises(UserError, match=r"no saved network") as error:
        load(tmp_path / "none")
    fault("weights and checkpoints", "a folder without a saved network", error.value)
    save(network(), tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match="not readable as safetensors") as error:
        load(tmp_path / "model")
    fault("weights and checkpoints", "a saved network's weights are cut", error.value)


@pytest.mark.parametrize(
    ("change", "reason", "what"),
    [
        (
            {"image_size": (60, 32)},
            "60x32: height and width must be",
            "an image size that is no multiple of 16",
        ),
        ({"stem": "new"}, "stem 'new': allowed are clip, published", "a network of an unknown stem"),
        ({"integration": "mean"}, "'mean': allowed are sii", "a network of an unknown integration"),
    ],
)
def test_a_configuration_without_a_network_is_refused(change, reason, what, fault):
    values = {**network().config.to_json(), **change}
    with pytest.raises(UserError, match=reason) as error:
        ModelConfig.from_json(values)
    fault("weights and checkpoints", what, error.value)


def test_sizes_for_395_people_are_the_published_ones():
    """Of RN50 at 288x144: less the key bias, half of SII and the text positions that have no effect."""
    config = ModelConfig(
        identities=395,
        image_size=(288, 144),
        depths=(3, 4, 6, 3),
        width=64,
        pool_heads=32,
        embed_dim=1024,
        text_width=512,
        text_heads=8,
        text_layers=12,
    )
    with torch.device("meta"):
        model = CSDN(config)
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert sizes["stems"] == 2 * 28_768
    assert sizes["layers"] == 23_498_496
    assert sizes["attention_pool"] == 15_021_056 - 2_048
    assert sizes["gem"] + sizes["gem_neck"] == 813_057
    assert sizes["pool_neck"] == 406_528
    assert sizes["prompts"] == 2 * 808_960
    assert sizes["integration"] == 4_198_400 // 2
    assert sizes["text_encoder"] == 38_393_344 - (77 - 12) * 512 + (5 + 3) * 512  # and the template's words
