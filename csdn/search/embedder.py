"""A saved model that embeds image files, decoded, resized and normalised as ingest and evaluation do.

`Embedder` is what galleries, searches, exports and the service compute features with. `load` is `csdn.load`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from csdn.evaluation.baselines import with_flip_tta
from csdn.model import CSDN, fuse_batch_norms, read_config
from csdn.model import load as load_network
from csdn.model.device import configure_torch
from csdn.runtime.errors import UserError, explain_os_error
from csdn.runtime.files import file_sha256

BATCH = 128  # images of a forward pass
MAX_PIXELS = 50_000_000  # of an image, as `ingest.max_pixels` allows by default
READERS = 2  # threads that read and decode; more of them take the cores from the network
CPU = torch.device("cpu")

T = TypeVar("T")
R = TypeVar("R")


class Embedder:
    """A network with all that turns the bytes of an image file into its feature.

    The feature is the test feature of csdn.evaluation scaled to unit length, so the dot product of two
    features is their cosine, -1 to 1. model_hash: SHA-256 of the model's weights, which galleries carry.
    """

    def __init__(
        self,
        network: CSDN,
        normalize: str,
        model_hash: str,
        flip_tta: bool = True,
        device: torch.device = CPU,
    ) -> None:
        self.network = network.to(device).eval()
        self.normalize, self.model_hash, self.flip_tta, self.device = normalize, model_hash, flip_tta, device

    @classmethod
    def open(
        cls, folder: str | Path, flip_tta: bool = True, device: str = "auto", threads: int = 0
    ) -> Embedder:
        """The model saved in `folder`; raises UserError where there is none."""
        network = fuse_batch_norms(load_network(folder))
        used = configure_torch(threads, device)
        return cls(network, _normalize(folder), hash_of_model(folder), flip_tta, used)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.network.config.image_size

    @property
    def dimension(self) -> int:
        """Numbers of a feature."""
        config = self.network.config
        return (config.map_channels + config.embed_dim) * (2 if self.flip_tta else 1)

    def prepare(self, data: bytes, extension: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
        """The network's picture of an image file, uint8 [3, H, W]; raises BadImage, whose `reason` says why.

        extension: one of csdn.data.images.EXTENSIONS, by which the file is decoded.
        """
        from csdn.data.augment import resize
        from csdn.data.images import decode

        image = resize(decode(data, extension, max_pixels), self.image_size)
        return np.ascontiguousarray(image.transpose(2, 0, 1))

    @torch.inference_mode()
    def embed(self, pixels: np.ndarray | Tensor, modality: str) -> np.ndarray:
        """Features float32 [n, D] of unit length, of pictures uint8 [n, 3, H, W] of one modality."""
        from csdn.data.views import normalised

        images = normalised(torch.as_tensor(pixels).to(self.device), self.normalize)
        embed = self.network.embed
        features = with_flip_tta(embed, images, modality) if self.flip_tta else embed(images, modality)
        return F.normalize(features.float()).cpu().numpy()

    def embed_files(self, paths: Sequence[str | Path], modality: str) -> np.ndarray:
        """Features float32 [n, D] of unit length, of image files of one modality, in their order.

        modality: "visible" or "infrared". Raises UserError for a file that is missing or no good image.
        """
        features = np.empty((len(paths), self.dimension), np.float32)
        for start, (_, pictures) in zip(
            range(0, len(paths), BATCH), read_batches(paths, self.read_file), strict=True
        ):
            features[start : start + len(pictures)] = self.embed(np.stack(pictures), modality)
        return features

    def read_file(self, path: str | Path) -> np.ndarray:
        """`prepare` of a file; raises UserError where it is missing or no good image."""
        from csdn.data.images import EXTENSIONS, BadImage, extension_of

        if (extension := extension_of(str(path))) is None:
            raise UserError(f"{path}: not an image file; its name must end in {', '.join(EXTENSIONS)}")
        try:
            return self.prepare(Path(path).read_bytes(), extension)
        except FileNotFoundError:
            raise UserError(f"{path}: no such file") from None
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {explain_os_error(error) or error}") from error
        except BadImage as error:
            raise UserError(f"{path}: {error.reason}") from None


def read_batches(
    items: Iterable[T], read: Callable[[T], R], size: int = BATCH, readers: int = READERS
) -> Iterator[tuple[list[T], list[R]]]:
    """Up to `size` items at a time with what `read` returns of each, read by threads one batch ahead.

    A thread reads several items, since handing over small images one by one costs as much as decoding them.
    """
    rest, each = iter(items), -(-size // readers)

    def read_all(some: list[T]) -> list[R]:
        return [read(item) for item in some]

    with ThreadPoolExecutor(readers) as pool:
        waiting: deque[tuple[list[T], list[Future[list[R]]]]] = deque()
        try:
            while batch := list(islice(rest, size)):
                starts = range(0, len(batch), each)
                waiting.append((batch, [pool.submit(read_all, batch[n : n + each]) for n in starts]))
                if len(waiting) == 2:
                    yield _finished(*waiting.popleft())
            if waiting:
                yield _finished(*waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)


def _finished(batch: list[T], parts: list[Future[list[R]]]) -> tuple[list[T], list[R]]:
    return batch, [found for part in parts for found in part.result()]


class LoadedModel(CSDN):
    """The network as `csdn.load` returns it: CSDN that embeds image files too."""

    normalize: str
    model_hash: str

    def embed_files(self, paths: Sequence[str | Path], modality: str, flip_tta: bool = True) -> np.ndarray:
        """See `Embedder.embed_files`: features float32 [n, D] of unit length; on the network's device."""
        device = next(self.parameters()).device
        return Embedder(self, self.normalize, self.model_hash, flip_tta, device).embed_files(paths, modality)


def load(folder: str | Path) -> LoadedModel:
    """The network saved in `folder`, on the CPU, in evaluation mode; raises UserError if it does not fit."""
    model = load_network(folder, LoadedModel)
    model.normalize, model.model_hash = _normalize(folder), hash_of_model(folder)
    return model


# Where a project has its models: the fetched champion, and what the stages made last.
MODELS = (Path("champion/embedding"), Path("models/embedding"))


def models_in(root: Path) -> dict[str, Path]:
    """SHA-256 of the weights -> folder, of the models of the project in `root`, in the order of MODELS."""
    folders = (root / folder for folder in MODELS if (root / folder / "model.safetensors").exists())
    found: dict[str, Path] = {}
    for folder in folders:
        found.setdefault(hash_of_model(folder), folder)
    return found


def hash_of_model(folder: str | Path) -> str:
    """SHA-256 of the weights of the model in `folder`, by which galleries, thresholds and exports name it."""
    return file_sha256(Path(folder) / "model.safetensors")


def _normalize(folder: str | Path) -> str:
    """The statistics that the model's images are normalised with; ImageNet's where none are written."""
    return read_config(folder).get("normalize", "imagenet")
