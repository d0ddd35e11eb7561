"""The network computes less than the plain method, with the same values."""

import plain
import pytest
import torch
import torch.nn.functional as F
from golden_vectors import assert_near, network, tensors

from csdn.model.pooling import AttentionPool
from csdn.model.sii import build_integration
from csdn.model.text import PREFIX

PUBLISHED = tensors("state_dict")


@pytest.mark.parametrize("length", [12, 77])
def test_text_encoder_equals_all_tokens_through_all_layers(length):
    encoder = network().text_encoder.double()
    encoder.cache_prefix()
    context = PUBLISHED["prompt_learner1.cls_ctx"].double().requires_grad_()
    weights = torch.randn(12, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    results = [encoder(context), plain.text_features(encoder, context, length)]
    gradients = [torch.autograd.grad((result * weights).sum(), context)[0] for result in results]
    assert_near(results[0], results[1], 1e-12)
    assert_near(gradients[0], gradients[1], 1e-12)


def test_only_the_learnable_tokens_get_a_gradient_from_text():
    model = network()
    model.text_features("visible").sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["prompts.tokens.visible"]


def test_text_of_selected_identities_equals_their_rows_in_the_whole_table():
    model, people = network(), torch.tensor([7, 2, 7])
    assert_near(model.text_features("infrared", people), model.text_features("infrared")[people], 1e-6)


def test_loading_weights_updates_the_prefix_cache():
    model = network()
    other = {name: 1.1 * value for name, value in model.text_encoder.state_dict().items()}
    before = model.text_encoder.prefix_cache.clone()
    model.text_encoder.load_state_dict(other)
    assert model.text_encoder.prefix_cache.shape == (2, 2, 2, PREFIX.stop, 16)
    assert not torch.equal(model.text_encoder.prefix_cache, before)


@pytest.mark.parametrize("seed", range(3))
def test_attention_pool_equals_full_attention_for_any_key_bias(seed):
    torch.manual_seed(seed)
    pool = AttentionPool(channels=24, heads=3, embed_dim=5, grid=(3, 2)).double()
    features = torch.randn(4, 24, 3, 2, dtype=torch.float64, requires_grad=True)
    key_bias = torch.randn(24, dtype=torch.float64)
    wanted = [features, *pool.parameters()]
    short, written_out = pool(features), plain.attention_pool(pool, features, key_bias)
    assert_near(short, written_out, 1e-12)
    loss = torch.randn_like(short)
    pairs = zip(
        torch.autograd.grad(short, wanted, loss), torch.autograd.grad(written_out, wanted, loss), strict=True
    )
    for ours, theirs in pairs:
        assert_near(ours, theirs, 1e-10)


def test_sii_equals_attention_with_a_single_key():
    part = {n.removeprefix("attention_fusion.embedding_"): v for n, v in PUBLISHED.items()}
    visible, infrared = (tensors("outputs")[f"text_{name}_all"] for name in ("rgb", "ir"))

    def embedded(x, name):
        return F.linear(x, part[f"{name}.0.weight"], part[f"{name}.0.bias"])

    query, key, value = (
        torch.tanh(embedded(x, n)) for x, n in ((visible, "q"), (infrared, "k"), (infrared, "v"))
    )
    attention = (query * key).sum(1, keepdim=True).softmax(dim=1)
    wanted = visible + embedded(attention * value, "common")
    assert_near(network().integration(visible, infrared), wanted, 1e-6)


@pytest.mark.parametrize(
    ("name", "wanted"), [("sum", 5.0), ("visible", 2.0), ("infrared", 3.0), ("shared", 2.0)]
)
def test_variants_without_weights(name, wanted):
    integration = build_integration(name, embed_dim=4)
    assert list(integration.parameters()) == []
    fused = integration(torch.full((6, 4), 2.0), torch.full((6, 4), 3.0))
    assert torch.equal(fused, torch.full((6, 4), wanted))


def test_concat_is_linear_in_both_texts():
    integration = build_integration("concat", embed_dim=4)
    visible, infrared = torch.randn(2, 6, 4)
    weight, bias = integration.output.weight, integration.output.bias
    assert_near(integration(visible, infrared), visible @ weight[:, :4].T + infrared @ weight[:, 4:].T + bias)


def test_dropout_applies_the_mask_and_rescales():
    integration = build_integration("sii", embed_dim=4)
    visible, infrared = torch.randn(2, 6, 4)
    nothing = integration(visible, infrared, keep=torch.zeros(6, 4, dtype=torch.bool))
    assert_near(nothing, visible + integration.output.bias)
    everything = integration(visible, infrared, keep=torch.ones(6, 4, dtype=torch.bool))
    scaled = torch.tanh(integration.value(infrared)) / 0.9
    assert_near(everything, visible + integration.output(scaled))
