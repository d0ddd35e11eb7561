"""Decoded images become the normalised float images that the network reads, with CSDN's augmentation.

csdn.data.batch decodes images (csdn.data.images), resizes them here, draws the parameters of the augmentation
for a whole global batch (`draw_views`), and applies those of its own positions (`TrainTransform`).

Each pixel goes through single IEEE operations in a fixed order, so the result does not depend, bit for bit,
on the number of processes or images, or on the width of vector instructions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from csdn.data.rng import Stream

# Mean and standard deviation of the channels (red, green, blue) of pixels in 0..1.
NORMALIZATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}
ERASED_SHARE, ERASED_AREA, ERASED_ASPECT = 0.5, (0.02, 0.4), (0.3, 3.33)
ERASED_FILL = np.array([0.4914, 0.4822, 0.4465], np.float32)
# A box that does not fit is drawn again. On an image twice as high as wide, all sixteen fail once in 1e12.
ERASED_ATTEMPTS = 16
GREY_WEIGHTS = np.array([0.2989, 0.5870, 0.1140], np.float32)
# Codes of what the channels of a view become: c < 3 copies channel c to all three.
GREY, UNCHANGED = 3, 4


@dataclass(frozen=True)
class AugmentParams:
    """The augmentation of n views, as drawn; `take` gives a worker its own.

    dy, dx: [n] pixels by which the crop is shifted down and right; flip: [n] bool, whether it is mirrored;
    box: [n, 4] top, left, height, width of the erased rectangle (height 0: none);
    channels: [n] codes 0, 1, 2, GREY, UNCHANGED.
    """

    dy: np.ndarray
    dx: np.ndarray
    flip: np.ndarray
    box: np.ndarray
    channels: np.ndarray

    def take(self, positions: np.ndarray) -> AugmentParams:
        return AugmentParams(*(values[positions] for values in vars(self).values()))

    def __iter__(self) -> Iterator[tuple]:
        return zip(*(values.tolist() for values in vars(self).values()), strict=True)


def draw_views(
    stream: Stream, count: int, image_size: Sequence[int], padding: int, rng: np.random.Generator
) -> AugmentParams:
    """Draw for `count` views of the kind that `stream` names (VISIBLE_VIEW1, VISIBLE_VIEW2, INFRARED_VIEW).

    The crop of `image_size` lies anywhere in the image padded with `padding` black pixels on each side.
    """
    return AugmentParams(
        dy=rng.integers(-padding, padding, count, endpoint=True),
        dx=rng.integers(-padding, padding, count, endpoint=True),
        flip=rng.random(count) < 0.5,
        box=_draw_boxes(count, image_size, rng),
        channels=_draw_channels(stream, count, rng),
    )


def _draw_boxes(count: int, image_size: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    height, width = image_size
    area = rng.uniform(*ERASED_AREA, (count, ERASED_ATTEMPTS)) * height * width
    aspect = rng.uniform(*ERASED_ASPECT, (count, ERASED_ATTEMPTS))
    heights = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    widths = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    fits = (heights < height) & (widths < width)
    first = (np.arange(count), fits.argmax(axis=1))
    erased = (rng.random(count) < ERASED_SHARE) & fits.any(axis=1)
    h, w = np.where(erased, heights[first], 0), np.where(erased, widths[first], 0)
    top = np.floor(rng.random(count) * (height - h + 1)).astype(np.int64)
    left = np.floor(rng.random(count) * (width - w + 1)).astype(np.int64)
    return np.stack([top, left, h, w], axis=1)


def _draw_channels(stream: Stream, count: int, rng: np.random.Generator) -> np.ndarray:
    if stream == Stream.VISIBLE_VIEW1:
        return np.full(count, UNCHANGED)
    if stream == Stream.VISIBLE_VIEW2:
        return rng.integers(0, 3, count)
    eighths = np.array([0, 0, 1, 1, 2, 2, GREY, UNCHANGED])
    return eighths[rng.integers(0, 8, count)]


def resize(image: np.ndarray, image_size: Sequence[int]) -> np.ndarray:
    """A uint8 image [H, W, 3] resized to (height, width) by Pillow's bilinear filter, which averages when
    shrinking.

    Pillow computes in integers, so every machine gets the same bytes. An image of that size is returned as it
    is.
    """
    height, width = image_size
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


class TestTransform:
    """uint8 images [h, w, 3] -> normalised float32 [n, 3, h, w], written into `out` and returned."""

    __test__ = False  # not a test case

    def __init__(self, normalize: str) -> None:
        mean, deviation = np.array(NORMALIZATIONS[normalize])
        self.scale = (1 / (255 * deviation)).astype(np.float32)
        self.shift = (-mean / deviation).astype(np.float32)

    def __call__(self, images: Sequence[np.ndarray], out: np.ndarray) -> np.ndarray:
        for image, view in zip(images, out, strict=True):
            for channel in range(3):
                self.normalize(np.ascontiguousarray(image[:, :, channel]), channel, view[channel])
        return out

    def normalize(self, pixels: np.ndarray, channel: int, out: np.ndarray) -> None:
        """(pixels / 255 - mean) / deviation of one channel: a product and a sum, each rounded once."""
        np.multiply(pixels, self.scale[channel], out=out)
        np.add(out, self.shift[channel], out=out)


class TrainTransform:
    """uint8 images [h, w, 3] -> augmented float32 [n, 3, h, w]: crop, flip, normalise, erase, mix
    channels.
    """

    def __init__(self, image_size: Sequence[int], normalize: str) -> None:
        self.plain = TestTransform(normalize)
        self.image_size = tuple(image_size)

    def __call__(self, images: Sequence[np.ndarray], params: AugmentParams, out: np.ndarray) -> np.ndarray:
        pixels = np.empty(self.image_size, np.uint8)
        for image, view, of_image in zip(images, out, params, strict=True):
            self._augment(image, view, pixels, *of_image)
        return out

    def _augment(
        self,
        image: np.ndarray,
        view: np.ndarray,
        pixels: np.ndarray,
        dy: int,
        dx: int,
        flip: bool,
        box: list,
        channels: int,
    ) -> None:
        """Write the augmented image into `view` [3, h, w]; `pixels` uint8 [h, w] is scratch memory."""
        source, target = _overlap(dy, dx, flip, self.image_size)
        top, left, h, w = box
        pixels.fill(0)
        # A view that copies one channel to all three computes that channel alone.
        for channel in range(3) if channels >= GREY else (channels,):
            pixels[target] = image[:, :, channel][source]
            self.plain.normalize(pixels, channel, view[channel])
            view[channel, top : top + h, left : left + w] = ERASED_FILL[channel]
        if channels == GREY:
            view[:] = grey(view)
        elif channels < GREY:
            view[(channels + 1) % 3] = view[(channels + 2) % 3] = view[channels]


def grey(view: np.ndarray) -> np.ndarray:
    """0.2989 red + 0.5870 green + 0.1140 blue of a view [3, h, w], as [h, w]."""
    red, green, blue = (plane * weight for plane, weight in zip(view, GREY_WEIGHTS, strict=True))
    return red + green + blue


def _overlap(dy: int, dx: int, flip: bool, size: Sequence[int]) -> tuple[tuple, tuple]:
    """(rows, columns) of the image that a crop shifted by (dy, dx) shows, and where in the view they go."""
    height, width = size
    source = slice(max(dy, 0), min(height + dy, height)), slice(max(dx, 0), min(width + dx, width))
    rows = slice(max(-dy, 0), min(height - dy, height))
    start, stop = max(-dx, 0), min(width - dx, width)
    if not flip:
        return source, (rows, slice(start, stop))
    before = width - 1 - stop
    return source, (rows, slice(width - 1 - start, before if before >= 0 else None, -1))
