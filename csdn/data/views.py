"""Bytes become the images that the network reads, on its device: normalise, erase, copy channels.

Processes of the loader (csdn.data.batch) hand over uint8 pixels and the numbers that were drawn, a quarter of
the bytes of float images. `on_device` copies them to the device, one batch ahead, and finishes them there.

Each pixel goes through single IEEE operations in a fixed order, so a CPU and a GPU, and any number of
workers, make the same images bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from csdn.data.augment import ERASED_FILL, GREY, GREY_WEIGHTS, NORMALIZATIONS, UNCHANGED

T = TypeVar("T")
Row = TypeVar("Row", "ViewBytes", "ImageBytes")


class ViewBytes(NamedTuple):
    """A row of the plan before it is finished: the three views of its n images of each modality.

    pixels: uint8 [3, n, 3, H, W], cropped and mirrored; boxes: int64 [3, n, 4] and channels: int64 [3, n], as
    in csdn.data.augment.AugmentParams; labels: int64 [n]. `epoch`, `step`: as in TrainBatch.

    Only the pixels are a tensor: a tensor passes between processes as a file in shared memory, which for a
    few hundred numbers takes longer than a copy.
    """

    pixels: Tensor
    boxes: np.ndarray
    channels: np.ndarray
    labels: np.ndarray
    epoch: int
    step: int


class ImageBytes(NamedTuple):
    """Images as they are: pixels uint8 [b, 3, H, W], and their indices int64 [b] in the table."""

    indices: np.ndarray
    pixels: Tensor


def normalised(pixels: Tensor, normalize: str, out: Tensor | None = None) -> Tensor:
    """(pixels / 255 - mean) / deviation, a product and a sum: uint8 [..., 3, H, W] -> float32 of that shape.

    normalize: a key of NORMALIZATIONS. out: memory for the images.
    """
    scale, shift, _ = _constants(normalize, pixels.device)
    images = _empty_images(pixels) if out is None else out
    return images.copy_(pixels).mul_(scale).add_(shift)


def _empty_images(pixels: Tensor) -> Tensor:
    """Memory for float32 images of these pixels [n, 3, H, W], in the layout that the device's networks read.

    A CPU reads both layouts equally fast, and is faster here with planes.
    """
    layout = torch.contiguous_format if pixels.is_cpu else torch.channels_last
    return torch.empty(pixels.shape, device=pixels.device, memory_format=layout)


@cache
def _constants(normalize: str, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Scale, shift and fill of the channels, float32 [3, 1, 1]."""
    mean, deviation = torch.tensor(NORMALIZATIONS[normalize], dtype=torch.float64)
    three = 1 / (255 * deviation), -mean / deviation, torch.from_numpy(ERASED_FILL)
    scale, shift, fill = (values.float().to(device)[:, None, None] for values in three)
    return scale, shift, fill


def finish_views(pixels: Tensor, boxes: Tensor, channels: Tensor, normalize: str) -> list[Tensor]:
    """The three views that csdn.data.augment drew, of the pixels of ViewBytes: float32 [n, 3, H, W] each.

    On a CPU each view is allocated alone: malloc reuses freed blocks of up to 32 MiB. A larger block would be
    new pages in each batch, and getting them takes longer than filling them.
    """
    finish = _one_by_one if pixels.is_cpu else _at_once
    views = [_empty_images(view) for view in pixels]
    for drawn in zip(views, pixels, boxes, channels, strict=True):
        finish(*drawn, normalize)
    return views


def _one_by_one(out: Tensor, pixels: Tensor, boxes: Tensor, channels: Tensor, normalize: str) -> None:
    """As `_at_once`, for a CPU: a view stays in its cache, and replaced channels are left out."""
    scale, shift, fill = _constants(normalize, out.device)
    drawn = zip(out, pixels, boxes.tolist(), channels.tolist(), strict=True)
    for image, view, (top, left, height, width), channel in drawn:
        read = slice(None) if channel >= GREY else slice(channel, channel + 1)
        planes = image[read].copy_(view[read]).mul_(scale[read]).add_(shift[read])
        planes[:, top : top + height, left : left + width] = fill[read]
        if channel == GREY:
            image.copy_(_grey(image))
        elif channel < GREY:
            for other in {0, 1, 2} - {channel}:
                image[other].copy_(planes[0])


def _at_once(out: Tensor, pixels: Tensor, boxes: Tensor, channels: Tensor, normalize: str) -> None:
    """Write the views of pixels [m, 3, H, W] into `out`; boxes: [m, 4]; channels: [m]. Reads no value."""
    normalised(pixels, normalize, out)
    _, _, fill = _constants(normalize, out.device)
    torch.where(_inside(boxes, *out.shape[-2:])[:, None], fill, out, out=out)
    plane = out[torch.arange(len(out), device=out.device), channels.clamp(max=2)]
    copied = torch.where((channels == GREY)[:, None, None], _grey(out), plane)
    torch.where((channels == UNCHANGED)[:, None, None, None], out, copied[:, None], out=out)


def _inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """bool [m, H, W]: the pixels of the boxes [m, 4]."""
    top, left, box_height, box_width = boxes.unsqueeze(-1).unbind(1)
    rows = torch.arange(height, device=boxes.device)
    columns = torch.arange(width, device=boxes.device)
    in_rows = (rows >= top) & (rows < top + box_height)
    in_columns = (columns >= left) & (columns < left + box_width)
    return in_rows[:, :, None] & in_columns[:, None, :]


def _grey(images: Tensor) -> Tensor:
    """0.2989 red + 0.5870 green + 0.1140 blue of images [..., 3, H, W], as [..., H, W]."""
    red, green, blue = (
        plane * weight for plane, weight in zip(images.unbind(-3), GREY_WEIGHTS.tolist(), strict=True)
    )
    return red + green + blue


def on_device(items: Iterable[Row], device: torch.device, finish: Callable[[Row], T]) -> Iterator[T]:
    """`finish(item)` for each item, whose tensors (but not its arrays) are then on the device.

    On a GPU the next item is copied and finished by a stream of its own while the consumer computes; that
    needs pinned memory to be of use.
    """
    if device.type != "cuda":
        yield from map(finish, items)
        return
    stream = _copy_stream(device)
    waiting: tuple[T, torch.cuda.Event] | None = None
    for item in items:
        with torch.cuda.stream(stream):
            moved = type(item)(*(_moved(value, device) for value in item))
            following = finish(moved), stream.record_event()
        if waiting:
            yield _received(*waiting)
        waiting = following
    if waiting:
        yield _received(*waiting)


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all epochs: torch keeps the freed memory of each stream for that stream."""
    return torch.cuda.Stream(device)


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value


def beside(pixels: Tensor, array: np.ndarray) -> Tensor:
    """The array as a tensor on the pixels' device; on a GPU the copy runs in the current stream."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(pixels.device, non_blocking=True) if pixels.is_cuda else tensor


def _received(item: T, ready: torch.cuda.Event) -> T:
    """The item, for the consumer's stream; its memory is not used again before that stream is done."""
    current = torch.cuda.current_stream()
    current.wait_event(ready)
    for value in item if isinstance(item, tuple) else vars(item).values():
        if isinstance(value, Tensor):
            value.record_stream(current)
    return item
