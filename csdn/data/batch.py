"""A row of a plan becomes images: read, verify, decode, resize, augment.

A row comes from csdn.data.sampler. The readers below fetch its images out of the shards (csdn.data.shards),
compare the hash of each with the one that ingest recorded, decode it (csdn.data.images), resize and augment
it (csdn.data.augment). csdn.data.loader runs a reader in the processes of a DataLoader, csdn.cluster in the
tasks of Ray Data.

Everything random in a row is a counter (csdn.data.rng), so any process may make any row. A reader needs
neither torch nor the index.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from csdn.data.augment import TestTransform, TrainTransform, draw_views, resize
from csdn.data.images import EXTENSIONS, BadImage, decode
from csdn.data.rng import Stream, generator
from csdn.data.sampler import BatchPlan
from csdn.data.shards import Place, Range, damaged_image, open_shards
from csdn.runtime.errors import UserError

if TYPE_CHECKING:
    from csdn.data.catalog import SampleTable


VIEWS = (Stream.VISIBLE_VIEW1, Stream.VISIBLE_VIEW2, Stream.INFRARED_VIEW)


class ImageReader:
    """Decoded images by index, resized to (height, width); every process can have a copy."""

    def __init__(self, table: SampleTable, shards: Place, image_size: Sequence[int]) -> None:
        self.shard, self.shard_names = table.shard, table.shard_names
        self.offset, self.size, self.extension = table.offset, table.size, table.extension
        self.digest = table.digest
        self.shards = open_shards(shards, [table.shard_names[n] for n in np.unique(table.shard)])
        self.image_size = tuple(image_size)

    def __call__(self, indices: np.ndarray) -> list[np.ndarray]:
        """uint8 images [height, width, 3]; raises UserError where an image's bytes have changed since
        ingest.
        """
        return [self._image(index, data) for index, data in zip(indices, self.contents(indices), strict=True)]

    def contents(self, indices: np.ndarray) -> list[bytes]:
        """The files of the images, which are those that ingest recorded; raises UserError."""
        ranges = [self._place(index) for index in indices]
        contents = self.shards.read_all(ranges)
        return [self._recorded(*one) for one in zip(indices, ranges, contents, strict=True)]

    def _place(self, index: int) -> Range:
        return self.shard_names[self.shard[index]], int(self.offset[index]), int(self.size[index])

    def _recorded(self, index: int, place: Range, data: bytes) -> bytes:
        if self._is_recorded(index, data):
            return data
        data = self.shards.read_again(place)  # altered on its way, in the cache, or in the shard
        if self._is_recorded(index, data):
            return data
        raise UserError(damaged_image(self.shards, *place[:2]))

    def _image(self, index: int, data: bytes) -> np.ndarray:
        try:
            return resize(decode(data, EXTENSIONS[self.extension[index]]), self.image_size)
        except BadImage as error:
            shard, offset, _ = self._place(index)
            raise UserError(
                f"{self.shards.where(shard)}: the image at byte {offset} is unchanged, but cannot be "
                f"decoded any more ({error.reason}); install the versions of constraints.txt, or delete "
                "data/index and run `dvc repro` again"
            ) from None

    def _is_recorded(self, index: int, data: bytes) -> bool:
        return hashlib.sha256(data).digest() == self.digest[index].tobytes()


class TrainBatchReader:
    """Makes the images of a plan's rows; a visible image is decoded once for its two views.

    `count` is P*K, the images of a modality; `shape` is [3 views, P*K, 3, height, width].
    """

    def __init__(self, images: ImageReader, normalize: str, padding: int, seed: int, count: int) -> None:
        self.images, self.padding = images, padding
        self.transform = TrainTransform(images.image_size, normalize)
        self.seed = seed
        self.shape = (len(VIEWS), count, 3, *images.image_size)

    def fill(self, row: BatchPlan, out: np.ndarray) -> None:
        """Write the row's images into `out`, float32 of `shape`."""
        self.augment(row, *self.read(row), out)

    def read(self, row: BatchPlan) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The row's visible and infrared images before augmentation, uint8 [height, width, 3]."""
        both = self.images(np.concatenate([row.visible.ravel(), row.infrared.ravel()]))  # read together
        return both[: row.visible.size], both[row.visible.size :]

    def augment(
        self, row: BatchPlan, visible: Sequence[np.ndarray], infrared: Sequence[np.ndarray], out: np.ndarray
    ) -> None:
        """Write the views of the images that `read` returned, in this process or another, into `out`."""
        for stream, images, view in zip(VIEWS, (visible, visible, infrared), out, strict=True):
            rng = generator(self.seed, stream, row.epoch, row.step)
            params = draw_views(stream, row.global_images, self.images.image_size, self.padding, rng)
            self.transform(images, params.take(row.positions), view)


class TestBatchReader:
    """Makes up to `count` images without augmentation; `shape` is [count, 3, height, width]."""

    __test__ = False  # not a test case

    def __init__(self, images: ImageReader, normalize: str, count: int) -> None:
        self.images = images
        self.transform = TestTransform(normalize)
        self.shape = (count, 3, *images.image_size)

    def fill(self, indices: np.ndarray, out: np.ndarray) -> None:
        self.transform(self.images(indices), out[: len(indices)])
