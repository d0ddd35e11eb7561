"""A row of a plan becomes pixels: read, verify, decode, resize, crop.

A row comes from csdn.data.sampler. The readers below fetch its images out of the shards (csdn.data.shards),
compare the hash of each with the one that ingest recorded, decode it (csdn.data.images), resize and crop it
(csdn.data.augment). csdn.data.loader runs a reader in the processes of a DataLoader, csdn.cluster in the
tasks of Ray Data; csdn.data.views finishes their bytes on the training device.

Everything random in a row is a counter (csdn.data.rng), so any process may make any row. A reader needs
neither torch nor the index.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from csdn.data.augment import AugmentParams, crop_views, draw_views, resize
from csdn.data.images import EXTENSIONS, BadImage, decode
from csdn.data.rng import Stream, generator
from csdn.data.sampler import BatchPlan
from csdn.data.shards import Place, Range, damaged_image, open_shards
from csdn.runtime.errors import UserError

if TYPE_CHECKING:
    from csdn.data.catalog import SampleTable


VIEWS = (Stream.VISIBLE_VIEW1, Stream.VISIBLE_VIEW2, Stream.INFRARED_VIEW)


@dataclass(frozen=True)
class ImageFiles:
    """Where images are in the shards, and what ingest recorded of them: columns of
    csdn.data.catalog.SampleTable.
    """

    shard: np.ndarray
    shard_names: Sequence[str]
    offset: np.ndarray
    size: np.ndarray
    extension: np.ndarray
    digest: np.ndarray

    def take(self, indices: np.ndarray) -> ImageFiles:
        """These images alone, numbered from 0: all that a task on another machine needs to know."""
        shards, shard = np.unique(self.shard[indices], return_inverse=True)
        columns = (column[indices] for column in (self.offset, self.size, self.extension, self.digest))
        return ImageFiles(shard, [self.shard_names[n] for n in shards], *columns)


class ImageReader:
    """Decoded images by index, resized to (height, width); every process can have a copy."""

    def __init__(self, table: SampleTable, shards: Place, image_size: Sequence[int]) -> None:
        self.files = ImageFiles(
            table.shard, table.shard_names, table.offset, table.size, table.extension, table.digest
        )
        self.shards = open_shards(shards, [table.shard_names[n] for n in np.unique(table.shard)])
        self.image_size = tuple(image_size)

    def of(self, files: ImageFiles | None) -> ImageReader:
        """The same reader for other images; with None for none, which is small to send."""
        other = copy(self)
        other.files = self.files.take(np.empty(0, np.int64)) if files is None else files
        return other

    def __call__(self, indices: np.ndarray) -> list[np.ndarray]:
        """uint8 images [height, width, 3]; raises UserError where an image's bytes have changed since
        ingest.
        """
        return [self._image(index, data) for index, data in zip(indices, self.contents(indices), strict=True)]

    def contents(self, indices: np.ndarray | Sequence[int]) -> list[bytes]:
        """The files of the images, which are those that ingest recorded; raises UserError."""
        ranges = [self._place(index) for index in indices]
        contents = self.shards.read_all(ranges)
        return [self._recorded(*one) for one in zip(indices, ranges, contents, strict=True)]

    def _place(self, index: int) -> Range:
        files = self.files
        return files.shard_names[files.shard[index]], int(files.offset[index]), int(files.size[index])

    def _recorded(self, index: int, place: Range, data: bytes) -> bytes:
        if self._is_recorded(index, data):
            return data
        data = self.shards.read_again(place)  # altered on its way, in the cache, or in the shard
        if self._is_recorded(index, data):
            return data
        raise UserError(damaged_image(self.shards, *place[:2]))

    def _image(self, index: int, data: bytes) -> np.ndarray:
        try:
            return resize(decode(data, EXTENSIONS[self.files.extension[index]]), self.image_size)
        except BadImage as error:
            shard, offset, _ = self._place(index)
            raise UserError(
                f"{self.shards.where(shard)}: the image at byte {offset} is unchanged, but cannot be "
                f"decoded any more ({error.reason}); install the versions of constraints.txt, or delete "
                "data/index and run `dvc repro` again"
            ) from None

    def _is_recorded(self, index: int, data: bytes) -> bool:
        return hashlib.sha256(data).digest() == self.files.digest[index].tobytes()


@dataclass(frozen=True)
class RowViews:
    """The three views of a row: pixels uint8 [3, n, 3, H, W], cropped, and what else was drawn for them,
    boxes int64 [3, n, 4] and channels int64 [3, n] (csdn.data.augment.AugmentParams).
    """

    pixels: np.ndarray
    boxes: np.ndarray
    channels: np.ndarray


class TrainBatchReader:
    """Makes the views of a plan's rows; a visible image is decoded once for its two views."""

    def __init__(self, images: ImageReader, padding: int, seed: int) -> None:
        self.images, self.padding, self.seed = images, padding, seed

    def __call__(self, row: BatchPlan, out: np.ndarray | None = None) -> RowViews:
        """The row's views; out: memory of `shape(row)` to write their pixels into."""
        both = self.images(np.concatenate([row.visible, row.infrared]))  # read together
        visible, infrared = both[: row.visible.size], both[row.visible.size :]
        drawn = [self._drawn(row, stream) for stream in VIEWS]
        pixels = np.empty(self.shape(row), np.uint8) if out is None else out
        for images, params, view in zip((visible, visible, infrared), drawn, pixels, strict=True):
            crop_views(images, params, view)
        boxes, channels = ([getattr(params, name) for params in drawn] for name in ("box", "channels"))
        return RowViews(pixels, np.stack(boxes), np.stack(channels))

    def shape(self, row: BatchPlan) -> tuple[int, ...]:
        """The shape of the pixels of a row's views."""
        return len(VIEWS), len(row.visible), 3, *self.images.image_size

    def _drawn(self, row: BatchPlan, stream: Stream) -> AugmentParams:
        """What is drawn for the row's images of a view, which are some of those of the global batch."""
        rng = generator(self.seed, stream, row.epoch, row.step)
        size = self.images.image_size
        return draw_views(stream, row.global_images, size, self.padding, rng).take(row.positions)


class TestBatchReader:
    """Makes the images of a batch as they are."""

    __test__ = False  # not a test case

    def __init__(self, images: ImageReader) -> None:
        self.images = images

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        """The pixels, uint8 [b, 3, H, W]."""
        pixels = np.empty((len(indices), 3, *self.images.image_size), np.uint8)
        return np.stack([image.transpose(2, 0, 1) for image in self.images(indices)], out=pixels)
