"""CSDN's augmentation: what is drawn for each view, and the pixels of its crop.

csdn.data.batch decodes images (csdn.data.images), resizes them here, draws the parameters of the augmentation
for a whole global batch (`draw_views`), and crops its own positions (`crop_views`). csdn.data.views applies
the rest of what was drawn where the network is.
"""

from __future__ import annotations

from collections.abc import Sequence
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

Area = tuple[slice, slice]  # rows, columns


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


def crop_views(images: Sequence[np.ndarray], params: AugmentParams, out: np.ndarray) -> None:
    """Write each uint8 image [h, w, 3], shifted, on black, and mirrored, into `out` uint8 [n, 3, h, w].

    Of a view that copies one channel to all three only that channel is written; the others are black.
    """
    drawn = (values.tolist() for values in (params.dy, params.dx, params.flip, params.channels))
    for image, view, dy, dx, flip, channels in zip(images, out, *drawn, strict=True):
        source, target = _overlap(dy, dx, flip, view.shape[1:])
        view.fill(0)
        for channel in range(3) if channels >= GREY else (channels,):
            view[channel][target] = image[:, :, channel][source]


def _overlap(dy: int, dx: int, flip: bool, size: Sequence[int]) -> tuple[Area, Area]:
    """What of the image a crop shifted by (dy, dx) shows, and where in the view that goes."""
    height, width = size
    source = slice(max(dy, 0), min(height + dy, height)), slice(max(dx, 0), min(width + dx, width))
    rows = slice(max(-dy, 0), min(height - dy, height))
    start, stop = max(-dx, 0), min(width - dx, width)
    if not flip:
        return source, (rows, slice(start, stop))
    before = width - 1 - stop
    return source, (rows, slice(width - 1 - start, before if before >= 0 else None, -1))
