"""The small CLIP: the shipped files load through open_clip, and the weights recognise unseen people."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from csdn.model.clip import ASSETS, BUILT_IN, VOCABULARY, WEIGHTS, register
from csdn.model.pooling import GeM
from csdn.synthetic.people import COLOURS, FRESH, PRETRAINING, person
from tools.clip_small import pretrain
from tools.clip_small import pretrain as batches
from tools.clip_small.captions import PHRASES, caption
from tools.clip_small.pretrain import render_batch, zero_shot
from tools.clip_small.tower import LENGTH, SmallClip, to_input, unit
from tools.clip_small.vocabulary import vocabulary_bytes


@pytest.fixture(scope="module")
def shipped() -> SmallClip:
    return SmallClip().load(WEIGHTS).eval()


@pytest.fixture(scope="module")
def tokenizer(open_clip):
    register()
    return open_clip.get_tokenizer(BUILT_IN)


def test_the_template_is_12_tokens_with_the_learnable_ones_at_5_to_8(tokenizer) -> None:
    ids = tokenizer(["A photo of a X X X X person."])[0].tolist()
    x = tokenizer.encoder["x</w>"]
    assert [place for place, token in enumerate(ids) if token == x] == [5, 6, 7, 8]
    assert ids.index(tokenizer.eot_token_id) == 11
    assert not any(ids[12:])


def test_end_of_text_has_the_highest_id_of_all(tokenizer) -> None:
    """CLIP finds the end of a text by the largest token."""
    size = json.loads((ASSETS / f"{BUILT_IN}.json").read_text())["text_cfg"]["vocab_size"]
    assert tokenizer.vocab_size == size == tokenizer.eot_token_id + 1


def test_every_caption_fits_the_context_and_reads_back(tokenizer) -> None:
    for number in range(500):
        text = caption(person(number), infrared=number % 2 == 1)
        ids = tokenizer([text])[0].tolist()
        assert tokenizer.eot_token_id in ids
        words = ids[1 : ids.index(tokenizer.eot_token_id)]
        assert tokenizer.decode(words).split() == text.split()


def test_the_vocabulary_is_what_its_module_makes() -> None:
    # The header of gzip names the system, which Python 3.13 does differently.
    assert gzip.decompress(VOCABULARY.read_bytes()) == gzip.decompress(vocabulary_bytes())
    assert VOCABULARY.stat().st_size < 1024


def test_a_caption_of_an_infrared_image_names_no_colour() -> None:
    words = set(" ".join(caption(person(number), infrared=True) for number in range(300)).split())
    assert words.isdisjoint(COLOURS)


def test_the_weights_are_small_and_half_precision() -> None:
    assert WEIGHTS.stat().st_size < 5_000_000
    assert {tensor.dtype for tensor in load_file(WEIGHTS).values()} <= {torch.float16, torch.int64}


def test_open_clip_loads_the_weights_and_embeds_texts_as_we_do(
    shipped: SmallClip, tokenizer, open_clip
) -> None:
    theirs = open_clip.create_model(BUILT_IN, pretrained=str(WEIGHTS)).eval()
    texts = ["A photo of a X X X X person.", "a striped garment", caption(person(1), infrared=False)]
    with torch.inference_mode():
        expected, ours = theirs.encode_text(tokenizer(texts)), shipped.embed_texts(texts)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_the_image_tower_is_open_clips_with_the_last_stride_removed(shipped: SmallClip, open_clip) -> None:
    visual = open_clip.create_model(BUILT_IN, pretrained=str(WEIGHTS)).eval().visual
    visual.layer4[0].avgpool = torch.nn.Identity()
    visual.layer4[0].downsample[0] = torch.nn.Identity()
    visual.attnpool.positional_embedding = torch.nn.Parameter(shipped.attnpool.positions.detach())
    images = to_input(render_batch(0)[0].images[:4])
    with torch.inference_mode():
        torch.testing.assert_close(shipped.embed_images(images), visual(images), rtol=1e-4, atol=1e-4)


def test_plain_dot_products_are_the_logits_of_pre_training(shipped: SmallClip) -> None:
    """Stage 1 uses raw embeddings at temperature 1: lengths multiply to the logit scale."""
    batch = render_batch(1)
    images = torch.cat([to_input(shots.images) for shots in batch])
    with torch.inference_mode():
        maps = shipped.layers(shipped.stem(images))
        embedded = shipped.attnpool(maps)
        texts = shipped.embed_texts([text for shots in batch for text in shots.captions])
    scale = shipped.text.logit_scale.exp().item()
    assert GeM()(maps).norm(dim=1).mean().item() == pytest.approx(LENGTH, rel=0.1)
    assert embedded.norm(dim=1).mean().item() == pytest.approx(LENGTH, rel=0.1)
    assert texts.norm(dim=1).mean().item() == pytest.approx(scale / LENGTH, rel=0.1)


def test_plain_lengths_change_no_direction() -> None:
    torch.manual_seed(0)
    clip, images, texts = SmallClip().eval(), torch.randn(4, 3, 64, 32), ["a red garment", "a cap"]
    with torch.inference_mode():
        before = unit(clip.embed_images(images)), unit(clip.embed_texts(texts))
        clip.calibrate(images, texts)
        after = unit(clip.embed_images(images)), unit(clip.embed_texts(texts))
    torch.testing.assert_close(after, before)


def test_the_weights_recognise_unseen_people(shipped: SmallClip) -> None:
    for score in zero_shot(shipped, people=100):
        if score.question in ("lower", "upper", "pattern", "lower colour", "caption, 1 of 100"):
            for accuracy in filter(None, (score.visible, score.infrared)):
                assert accuracy > 1.5 * score.chance, score


def test_saving_and_loading_keeps_the_values_to_half_precision(tmp_path: Path) -> None:
    torch.manual_seed(0)
    clip = SmallClip().eval()
    clip.save(tmp_path / "clip.safetensors")
    again = SmallClip().load(tmp_path / "clip.safetensors").eval()
    for (name, value), (_, read) in zip(clip.state_dict().items(), again.state_dict().items(), strict=True):
        torch.testing.assert_close(read, value, rtol=1e-3, atol=1e-6, msg=name)


def test_a_batch_of_pre_training_is_a_function_of_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "PEOPLE", 4)
    for one, again, later in zip(render_batch(5), render_batch(5), render_batch(6), strict=True):
        assert np.array_equal(one.images, again.images)
        assert np.array_equal(one.labels, again.labels)
        assert one.captions == again.captions
        assert not np.array_equal(one.images, later.images)
        assert one.images.shape == (4, 64, 32, 3)


def test_the_two_modalities_of_a_batch_show_the_same_people() -> None:
    visible, infrared = render_batch(5)
    assert np.array_equal(visible.labels[:, : infrared.labels.shape[1]], infrared.labels)
    assert visible.labels.shape[1] == infrared.labels.shape[1] + 2  # the colours


def test_pre_training_excludes_the_people_of_the_zero_shot_figures() -> None:
    steps = 100_000  # far more than a run has
    assert PRETRAINING.start + steps * batches.PEOPLE <= PRETRAINING.stop <= FRESH.start


def test_the_rate_warms_up_twice_and_ends_near_zero() -> None:
    rates = [pretrain.learning_rate(step, 300, 1000) for step in range(1000)]
    assert rates[0] == pytest.approx(rates[99] / 100, rel=0.1)
    assert rates[300] < rates[299] / 50
    assert max(rates) <= pretrain.LEARNING_RATE
    assert rates[-1] < 1e-4 * pretrain.LEARNING_RATE


def test_attribute_losses_are_the_plain_mean_over_attributes() -> None:
    """Even scores for every value: the loss of an attribute with n values is log n."""
    labels = torch.zeros(3, len(PHRASES), dtype=torch.long)
    expected = np.mean([np.log(len(phrases)) for phrases in PHRASES.values()])
    loss = pretrain.attribute_loss(torch.zeros(3, len(pretrain.phrases_of(infrared=False))), labels)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_the_same_threads_make_the_same_weights(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name in ("one", "two"):
            pretrain.pretrain(first_steps=2, second_steps=2).save(tmp_path / name)
    finally:
        torch.set_num_threads(threads)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
