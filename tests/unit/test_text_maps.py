"""Maps of a person's text over an image: against the network's own forward pass, and a plain computation."""

import numpy as np
import torch
import torch.nn.functional as F
from small_network import SMALL

from csdn.evaluation.text_maps import cells_as_texts, examples, pool_attention, text_maps
from csdn.model import CSDN
from csdn.model.pooling import AttentionPool


def test_with_one_head_the_pool_is_its_attention_over_cells_in_the_space_of_texts():
    torch.manual_seed(0)
    pool, features = AttentionPool(12, 1, 6, (3, 2)), torch.randn(2, 12, 3, 2)
    attention = pool_attention(pool, features)
    mean_token = features.mean(dim=(2, 3)) + pool.positions[0]
    values = torch.cat([pool.c_proj(pool.v_proj(mean_token))[:, None], cells_as_texts(pool, features)], dim=1)
    torch.testing.assert_close((attention[:, :, None] * values).sum(dim=1), pool(features))


def test_attention_of_several_heads_is_their_mean_and_sums_to_one():
    torch.manual_seed(0)
    pool, features = AttentionPool(8, 2, 6, (2, 1)), torch.randn(1, 8, 2, 1)
    cells = features[0].flatten(1).T
    tokens = torch.cat([cells.mean(dim=0)[None], cells]) + pool.positions
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        query, keys = pool.q_proj(tokens[0])[head], pool.k_proj(tokens)[:, head]
        heads.append(torch.stack([(query * key).sum() / 2 for key in keys]).softmax(dim=0))
    found = pool_attention(pool, features)
    torch.testing.assert_close(found[0], (heads[0] + heads[1]) / 2)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(1))


def test_maps_equal_each_cell_against_each_text_one_by_one():
    model = CSDN(SMALL).eval()
    images, texts, labels = torch.rand(2, 3, 64, 32), torch.randn(3, 16), torch.tensor([2, 0])
    found = text_maps(model, images, "infrared", texts, labels)
    with torch.no_grad():
        features = model.feature_map({"infrared": images})
    pool = model.attention_pool
    for image, label in enumerate(labels.tolist()):
        for place in range(8):
            row, column = divmod(place, 2)
            cell = features[image, :, row, column] + pool.positions[1 + place]
            alike = [F.cosine_similarity(pool.c_proj(pool.v_proj(cell)), text, dim=0) for text in texts]
            others = [value for person, value in enumerate(alike) if person != label]
            torch.testing.assert_close(found.own[image, row, column], alike[label])
            torch.testing.assert_close(found.others[image, row, column], sum(others) / 2)
    assert found.attention.shape == (2, 4, 2)


def test_one_person_alone_has_no_others_to_compare_with():
    model = CSDN(SMALL).eval()
    found = text_maps(
        model, torch.rand(1, 3, 64, 32), "visible", torch.randn(1, 16), torch.zeros(1, dtype=torch.long)
    )
    torch.testing.assert_close(found.others, torch.zeros(1, 4, 2), atol=1e-6, rtol=0)


def test_examples_are_evenly_chosen_people_with_an_image_of_each_modality():
    labels, modality = np.repeat(np.arange(11), 4), np.tile([0, 0, 1, 1], 11)
    assert examples(labels, modality, people=3).tolist() == [0, 2, 20, 22, 40, 42]
    assert examples(labels[:4], modality[:4], people=3).tolist() == [0, 2]
