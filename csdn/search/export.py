"""`csdn export`: a model as ONNX files that run without PyTorch and without this project.

    visible.onnx, infrared.onnx   images uint8 [n, 3, H, W] -> features float32 [n, D] of unit length
    visible_fp16.onnx, ...        with `half`: the same with convolutions and attention pool in float16
    preprocessing.json            how a file becomes a picture, the thresholds, the model's hash
    example.py                    embeds two image files (csdn/search/onnx_example.py)
    MODEL_CARD.md                 csdn.search.model_card

Normalisation, flip test-time augmentation and the scaling to unit length are inside the graph. A folder whose
files do not compute what `Embedder.embed` does under onnxruntime is never left behind. Integers of 8 bits are
not offered: what they cost in mAP has not been measured.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csdn.data.augment import NORMALIZATIONS
from csdn.data.catalog import load_dataset
from csdn.data.loader import ImageBatches
from csdn.data.shards import shards_at
from csdn.evaluation.distances import FeatureDistances
from csdn.evaluation.open_set import read_thresholds
from csdn.evaluation.protocols import Search
from csdn.evaluation.run import Experiment, prepare_from
from csdn.evaluation.scores import trial_metrics, trial_statistics
from csdn.model import MODALITIES
from csdn.params import Params
from csdn.runtime.errors import UserError
from csdn.runtime.files import atomic_folder, write_json
from csdn.search.embedder import Embedder
from csdn.search.model_card import CARD, THRESHOLDS, model_card
from csdn.synthetic.sets import SETS, images_of, png

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

FORMAT = 1
PREPROCESSING = "preprocessing.json"
EXAMPLE = Path(__file__).with_name("onnx_example.py")
PRECISIONS = {"float32": "", "float16": "_fp16"}  # and what the names of the files end in
TRACED = 2  # images of the example that PyTorch traces; the graph takes any number
CHECKED = 32  # built-in images of each modality that every export is checked on
# What onnxruntime's features must reach against Embedder's: the largest difference, the smallest cosine.
LIMITS = {"float32": (1e-4, 0.99999), "float16": (np.inf, 0.999)}

Progress = Callable[[str, str], AbstractContextManager[Callable[..., None]]]


def export(
    params: Params | None, root: Path, model: Path, out: Path, half: bool, progress: Progress
) -> dict[str, Any]:
    """Write the folder `out` atomically; returns the content of preprocessing.json.

    params: None outside a project: features with flip TTA, no ranges of 16-bit cameras, no measured mAP.
    root: the project, from which thresholds, model card and, for float16, test images are read; the mAP of
    float16 is measured where the project has test images. Raises UserError where packages are missing, `out`
    is somebody's folder, or a file does not compute the model's features.
    """
    _check_packages()
    if out.exists() and not (out / PREPROCESSING).is_file() and (out.is_file() or any(out.iterdir())):
        raise UserError(f"{out}: exists and is no export; name a new or an empty folder")
    flip_tta, threads = (params.evaluation.flip_tta, params.scaling.threads) if params else (True, 0)
    embedder = Embedder.open(model, flip_tta, "cpu", threads)
    with atomic_folder(out) as folder:
        for precision in PRECISIONS if half else ("float32",):
            for modality in MODALITIES:
                write_onnx(embedder, modality, precision, file_of(folder, modality, precision))
        cosines = check(folder, embedder)
        values = preprocessing(embedder, root, params.ingest.grey16_range if params else {})
        if half:
            change = map_change(params, root, embedder, folder, progress) if params else None
            values["float16"] = {"smallest_cosine": cosines["float16"], "mAP": change}
        write_json(folder / PREPROCESSING, values)
        shutil.copyfile(EXAMPLE, folder / "example.py")
        (folder / CARD).write_text(model_card(root, model), encoding="utf-8")
    return values


def _check_packages() -> None:
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"csdn export needs {error.name}: pip install 'csdn[export]'") from None


def file_of(folder: Path, modality: str, precision: str = "float32") -> Path:
    return folder / f"{modality}{PRECISIONS[precision]}.onnx"


# The graph.


class ImageEncoder(nn.Module):
    """What `Embedder.embed` computes, from pixels to features, for one modality.

    With float16, GeM, the batch norm and the lengths stay in float32: the third power of a feature and the
    square of a length exceed what float16 can hold.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, embedder: Embedder, modality: str, precision: str) -> None:
        super().__init__()
        network = embedder.network
        self.flip_tta, self.dtype = embedder.flip_tta, getattr(torch, precision)
        self.stem, self.layers, self.attention_pool = (
            copy.deepcopy(part).to(self.dtype)
            for part in (network.stems[modality], network.layers, network.attention_pool)
        )
        self.gem, self.norm = network.gem, network.gem_neck.norm
        mean, std = (torch.tensor(of).view(3, 1, 1) for of in NORMALIZATIONS[embedder.normalize])
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("shift", -mean / std)

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 [n, 3, H, W] -> float32 [n, D] of unit length."""
        images = pixels.float() * self.scale + self.shift
        if self.flip_tta:
            images = torch.cat([images, images.flip(-1)])
        cells = self.layers(self.stem(images.to(self.dtype)))
        f, g = self.norm(self.gem(cells.float())), self.attention_pool(cells).float()
        features = torch.cat([F.normalize(f), F.normalize(g)], dim=1)
        if self.flip_tta:
            features = features.unflatten(0, (2, -1)).transpose(0, 1).flatten(1)
        return F.normalize(features)


def write_onnx(embedder: Embedder, modality: str, precision: str, path: Path) -> None:
    """Write the graph of one modality; the same model gives the same bytes."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    with _default_tf32():
        program = torch.onnx.export(
            ImageEncoder(embedder, modality, precision).eval(),
            (torch.zeros(TRACED, 3, *embedder.image_size, dtype=torch.uint8),),
            dynamo=True,
            input_names=["images"],
            output_names=["features"],
            dynamic_shapes=({0: torch.export.Dim("n")},),
            verbose=False,
        )
    assert program is not None  # it is only without dynamo
    ClearMetadataAndDocStringPass()(program.model)  # where in this machine's files each line of code is
    program.model.metadata_props.update(model=embedder.model_hash, modality=modality)
    program.save(path)


@contextmanager
def _default_tf32() -> Iterator[None]:
    """PyTorch's default for convolutions on GPUs, which tracing does not run.

    torch.export raises RuntimeError where the flag was set by its new name, as csdn.model.device does
    (pytorch/pytorch issue 179445).
    """
    conv = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # it exists
    before, conv.fp32_precision = conv.fp32_precision, "tf32"
    try:
        yield
    finally:
        conv.fp32_precision = before


# The check of what was written.


def check(folder: Path, embedder: Embedder) -> dict[str, float]:
    """The smallest cosine of each precision, over images of built-in people.

    Raises UserError where a file misses LIMITS.
    """
    found: dict[str, float] = {}
    for modality in MODALITIES:
        pictures = np.stack([embedder.prepare(data, "png") for data in _built_in(modality)])
        expected = embedder.embed(pictures, modality)
        for precision, (most, least) in LIMITS.items():
            path = file_of(folder, modality, precision)
            if not path.exists():
                continue
            features = run(open_session(path), pictures)
            difference = float(np.abs(features - expected).max())
            cosine = float((features * expected).sum(axis=1).min())
            if not (difference <= most and cosine >= least):
                raise UserError(
                    f"{path.name}: under onnxruntime a feature differs by {difference:.1e} from the model's "
                    f"(allowed: {most:.0e}), cosine {cosine:.6f} (needed: {least}); nothing was written. "
                    + ("Export without --half" if precision == "float16" else "Train the model again")
                )
            found[precision] = min(round(cosine, 6), found.get(precision, 1.0))
    return found


def _built_in(modality: str) -> Iterator[bytes]:
    """PNG files of built-in people."""
    return islice((png(image) for image in images_of(SETS["tiny"]) if image.modality == modality), CHECKED)


def open_session(path: Path) -> InferenceSession:
    from onnxruntime import InferenceSession

    return InferenceSession(path, providers=["CPUExecutionProvider"])


def run(session: InferenceSession, pictures: np.ndarray) -> np.ndarray:
    """Features float32 [n, D] of pictures uint8 [n, 3, H, W]."""
    return session.run(["features"], {"images": pictures})[0]


def map_change(
    params: Params, root: Path, embedder: Embedder, folder: Path, progress: Progress
) -> dict[str, dict[str, float | None]] | None:
    """mAP of both precisions in percent, by direction, on the project's test images; None without images."""
    data = root / "data"
    if not (data / "samples.parquet").is_file():
        return None
    experiment = prepare_from(params, load_dataset(data))
    batches = ImageBatches(
        experiment.table,
        shards_at(params, data),
        embedder.image_size,
        embedder.normalize,
        params.evaluation.batch_size,
    )
    read, count = batches.rows(), len(experiment.table)
    features = {name: np.empty((count, embedder.dimension), np.float32) for name in PRECISIONS}
    sessions = {
        (modality, name): open_session(file_of(folder, modality, name))
        for modality in MODALITIES
        for name in PRECISIONS
    }
    with progress("measure", "images") as report:
        done = 0
        for rows, modality in batches.steps():
            pictures = read(rows)
            for name, of in features.items():
                of[rows] = run(sessions[modality, name], pictures)
            report(done := done + len(rows), count)
    return {
        search.name: {name: _mean_ap(search, experiment, of) for name, of in features.items()}
        for search in experiment.searches
    }


def _mean_ap(search: Search, experiment: Experiment, features: np.ndarray) -> float | None:
    """Percent, mean over the trials, as in metrics/evaluation.json; None without a valid query."""
    trials = trial_metrics(search, experiment.labels, FeatureDistances(features))
    return trial_statistics(trials)["mAP"]["mean"]


# What a user of the files must know.


def preprocessing(
    embedder: Embedder, root: Path, grey16_range: Mapping[str, Sequence[int]]
) -> dict[str, Any]:
    """The content of preprocessing.json."""
    height, width = embedder.image_size
    return {
        "format": FORMAT,
        "model": embedder.model_hash,
        "image": {
            "height": height,
            "width": width,
            "type": "uint8",
            "layout": "[n, 3, height, width]",
            "colours": "red, green, blue; a grey image has three equal channels",
            "orientation": "upright: the EXIF orientation is applied before resizing",
            "resize": "Pillow's BILINEAR, which averages when shrinking; the aspect ratio is not kept",
            "transparency": "composited on black",
            "bits": "of 16 bits the high byte is kept, unless grey16_range has the camera",
            "grey16_range": {camera: list(ends) for camera, ends in grey16_range.items()},
            "normalisation": f"in the graph ({embedder.normalize})",
        },
        "features": {
            "numbers": embedder.dimension,
            "length": 1,
            "flip_tta": embedder.flip_tta,
            "score": "the dot product of two features, their cosine: -1 to 1, larger is more alike",
        },
        "thresholds": _thresholds(embedder, root),
    }


def _thresholds(embedder: Embedder, root: Path) -> Mapping[str, Any] | None:
    """The project's or the fetched champion's thresholds if their scores are those of this export."""
    for path in (root / THRESHOLDS, root / "champion" / THRESHOLDS):
        if path.is_file():
            found = read_thresholds(path)
            if (found.model, found.flip_tta) == (embedder.model_hash, embedder.flip_tta):
                return found.model_dump(mode="json")
    return None
