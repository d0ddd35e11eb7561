"""The augmentation of CSDN's training, step by step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from csdn.data.augment import (
    ERASED_FILL,
    GREY,
    UNCHANGED,
    AugmentParams,
    crop_views,
    draw_views,
    resize,
)
from csdn.data.rng import Stream, generator
from csdn.data.views import finish_views, normalised

SIZE, PADDING = (48, 24), 10
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def images(count, seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (count, *SIZE, 3), dtype=np.uint8))


def draws(dy=0, dx=0, flip=False, box=(0, 0, 0, 0), channels=UNCHANGED):
    return AugmentParams(*(np.array([value]) for value in (dy, dx, flip, box, channels)))


def augment(image, drawn):
    return augmented([image], drawn)[0]


def augmented(images, drawn):
    """Views float32 [n, 3, H, W], as of a batch of one kind of views."""
    height, width, _ = images[0].shape
    pixels = np.empty((len(images), 3, height, width), np.uint8)
    crop_views(images, drawn, pixels)
    arrays = (torch.from_numpy(array)[None] for array in (pixels, drawn.box, drawn.channels))
    return finish_views(*arrays, "imagenet")[0].numpy()


def by_definition(image, dy, dx, flip):
    """Pad with zeros, crop, mirror, normalise: as the words say."""
    padded = np.pad(image, ((PADDING, PADDING), (PADDING, PADDING), (0, 0)))
    top, left = PADDING + dy, PADDING + dx
    crop = padded[top : top + SIZE[0], left : left + SIZE[1]]
    crop = crop[:, ::-1] if flip else crop
    return ((crop / 255 - MEAN) / DEVIATION).transpose(2, 0, 1)


def test_test_images_are_normalised_only():
    image = images(1)[0]
    out = normalised(torch.from_numpy(image).permute(2, 0, 1), "imagenet").numpy()
    np.testing.assert_allclose(out, by_definition(image, 0, 0, False), atol=1e-6)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("dy", [-10, -3, 0, 10])
@pytest.mark.parametrize("dx", [-10, -7, 0, 10])
def test_crops_and_mirror_images_are_those_of_the_padded_image(dy, dx, flip):
    image = images(1)[0]
    out = augment(image, draws(dy, dx, flip))
    np.testing.assert_allclose(out, by_definition(image, dy, dx, flip), atol=1e-6)


def test_an_image_narrower_than_the_padding_can_be_cropped_away_altogether():
    image = np.full((8, 4, 3), 255, np.uint8)
    for dx in (-10, 10):
        out = augmented([image], draws(dx=dx))
        np.testing.assert_allclose(out[0, :, 0, 0], -MEAN / DEVIATION, rtol=1e-6)
        assert (out == out[:, :, :1, :1]).all()


def test_erased_pixels_have_the_fill_after_normalisation_and_the_others_are_as_they_were():
    image = images(1)[0]
    out, whole = augment(image, draws(box=(5, 2, 20, 9))), augment(image, draws())
    erased = np.zeros(SIZE, bool)
    erased[5:25, 2:11] = True
    assert (out[:, erased] == ERASED_FILL[:, None]).all()
    np.testing.assert_array_equal(out[:, ~erased], whole[:, ~erased])


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_a_channel_is_copied_to_all_three_after_erasing(channel):
    image = images(1)[0]
    whole = augment(image, draws(3, 4, True, (5, 2, 20, 9)))
    out = augment(image, draws(3, 4, True, (5, 2, 20, 9), channel))
    np.testing.assert_array_equal(out, np.broadcast_to(whole[channel], out.shape))


def test_grey_weighs_the_normalised_channels():
    image = images(1)[0]
    whole, out = augment(image, draws()), augment(image, draws(channels=GREY))
    expected = np.tensordot([0.2989, 0.5870, 0.1140], whole, 1)
    np.testing.assert_allclose(out, np.broadcast_to(expected, out.shape), atol=1e-6)


def test_views_are_drawn_with_the_stated_frequencies():
    count = 20000
    drawn = {stream: draw_views(stream, count, (288, 144), PADDING, generator(0, stream)) for stream in VIEWS}
    shares = {stream: np.bincount(views.channels, minlength=5) / count for stream, views in drawn.items()}
    near = {"atol": 5 * np.sqrt(0.25 / count)}
    np.testing.assert_allclose(shares[Stream.VISIBLE_VIEW1], [0, 0, 0, 0, 1], **near)
    np.testing.assert_allclose(shares[Stream.VISIBLE_VIEW2], [1 / 3, 1 / 3, 1 / 3, 0, 0], **near)
    np.testing.assert_allclose(shares[Stream.INFRARED_VIEW], [1 / 4, 1 / 4, 1 / 4, 1 / 8, 1 / 8], **near)
    for views in drawn.values():
        np.testing.assert_allclose(views.flip.mean(), 0.5, **near)
        np.testing.assert_allclose((views.box[:, 2] > 0).mean(), 0.5, **near)
        for corner in (views.dy, views.dx):
            np.testing.assert_allclose(np.bincount(corner + PADDING) / count, np.full(21, 1 / 21), **near)


@pytest.mark.parametrize("size", [(288, 144), (64, 32), (48, 48)])
def test_erased_boxes_fit_and_have_the_stated_area_and_aspect(size):
    box = draw_views(Stream.VISIBLE_VIEW1, 5000, size, PADDING, generator(1, 1)).box
    top, left, height, width = box[box[:, 2] > 0].T
    assert (height < size[0]).all() and (width < size[1]).all()
    assert (top >= 0).all() and (top + height <= size[0]).all()
    assert (left >= 0).all() and (left + width <= size[1]).all()
    # Sides are rounded to pixels: half a pixel each way.
    assert ((height + 0.5) * (width + 0.5) >= 0.02 * size[0] * size[1]).all()
    assert ((height - 0.5) * (width - 0.5) <= 0.4 * size[0] * size[1]).all()
    assert ((height + 0.5) / (width - 0.5) >= 0.3).all() and ((height - 0.5) / (width + 0.5) <= 3.33).all()


def test_a_rank_s_images_are_those_of_the_whole_batch():
    """Bit for bit: who computes an image, and beside which others, changes nothing."""
    batch = images(12)
    drawn = draw_views(Stream.INFRARED_VIEW, 12, SIZE, PADDING, generator(2, 3))
    whole = augmented(batch, drawn)
    part = augmented(batch[5:9], drawn.take(np.arange(5, 9)))
    np.testing.assert_array_equal(part, whole[5:9])


def test_an_image_of_the_right_size_passes_untouched():
    image = images(1)[0]
    assert resize(image, SIZE) is image


def test_other_sizes_are_resized_bilinearly_by_pillow():
    image = np.random.default_rng(0).integers(0, 256, (100, 70, 3), dtype=np.uint8)
    expected = Image.fromarray(image).resize((SIZE[1], SIZE[0]), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(resize(image, SIZE), np.asarray(expected))


VIEWS = (Stream.VISIBLE_VIEW1, Stream.VISIBLE_VIEW2, Stream.INFRARED_VIEW)
