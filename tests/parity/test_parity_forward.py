"""The network's outputs equal the published method's (golden vectors, float32, 1e-5)."""

import pytest
import torch
from golden_vectors import assert_near, network, tensors

from csdn.model.pooling import resize_positions

MODEL = network()
IMAGES = {"visible": tensors("inputs")["x_rgb_view1"], "infrared": tensors("inputs")["x_ir"]}
WANTED = tensors("outputs")


@pytest.mark.parametrize(("modality", "name"), [("visible", "stem_rgb"), ("infrared", "stem_ir")])
def test_each_modality_has_its_stem(modality, name):
    assert_near(MODEL.stems[modality](IMAGES[modality][:4]), WANTED[name], what=f"stem, {modality}")


def test_feature_map_gem_and_attention_pool():
    features = MODEL.feature_map({"visible": IMAGES["visible"]})
    assert_near(features[:4], WANTED["map_rgb"], what="feature map")
    assert_near(MODEL.gem(features), WANTED["gem_rgb"].flatten(1), what="GeM")
    assert_near(MODEL.attention_pool(features), WANTED["attnpool_rgb"], what="attention pool")


@pytest.mark.parametrize(("modality", "name"), [("visible", "rgb"), ("infrared", "ir")])
def test_test_features_and_raw_embeddings(modality, name):
    images = IMAGES[modality]
    what = f"test feature, {modality}"
    assert_near(MODEL.embed(images, modality), WANTED[f"test_{name}"], what=what)
    assert_near(MODEL.embed(images.flip(3), modality), WANTED[f"test_{name}_flip"], what=f"{what}, mirrored")
    what = f"raw image embedding, {modality}"
    assert_near(MODEL.image_embeddings(images, modality), WANTED[f"get_image_{name}"], what=what)


def test_similarity_of_infrared_queries_and_visible_gallery():
    features = [
        torch.cat([MODEL.embed(x, modality), MODEL.embed(x.flip(3), modality)], dim=1).double()
        for modality, x in IMAGES.items()
    ]
    wanted = WANTED["dist_sim_rgb_gallery_ir_query"]
    assert_near(features[1] @ features[0].T, wanted, what="similarity of queries and gallery")


def test_embeddings_with_batch_statistics():
    model = network().train()
    wanted = tensors("train_mode")
    what = "raw image embedding under batch statistics"
    for modality, name in (("visible", "rgb"), ("infrared", "ir")):
        found = model.image_embeddings(IMAGES[modality], modality)
        assert_near(found, wanted[f"get_image_{name}_trainBN"], what=what)


def test_text_features_of_each_modality_and_fused():
    assert_near(MODEL.text_features("visible"), WANTED["text_rgb_all"], what="text feature, visible")
    assert_near(MODEL.text_features("infrared"), WANTED["text_ir_all"], what="text feature, infrared")
    assert_near(MODEL.fused_text_features(), WANTED["fusion_text_all_eval"], what="fused text feature (SII)")


def test_sii_with_dropout_depends_on_the_mask_of_the_values_only():
    wanted = tensors("train_mode")
    keep = wanted["dropout_keep_mask_v"].bool()
    fused = MODEL.integration(WANTED["text_rgb_all"], WANTED["text_ir_all"], keep)
    assert_near(fused, wanted["fusion_text_all_dropout"], what="fused text feature under dropout")


@pytest.mark.parametrize("grid", [(18, 9), (4, 2)])
def test_positions_are_resized_as_published(grid):
    golden = tensors("posembed")
    wanted = golden[f"pos_{grid[0]}x{grid[1]}"]
    what = f"positions of the attention pool, 7x7 to {grid[0]}x{grid[1]}"
    assert_near(resize_positions(golden["pos_7x7"], grid), wanted, 1e-6, what)
