"""The measurements of benchmarks/limits.py: plan, tables, merge, range reads, network."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from cost_model import FLOAT, Network
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from csdn.data.catalog import (
    INDEX_SCHEMA,
    MODALITIES,
    PEOPLE_SCHEMA,
    REFUSED_SCHEMA,
    SAMPLES_SCHEMA,
    load_dataset,
    table_of,
    write_table,
)
from csdn.data.sampler import BatchPlan, epoch_plan, images_of_people
from csdn.ingest.identities import SplitRule
from csdn.ingest.ledger import Drop, Status
from csdn.ingest.merge import IndexedDrop, merge
from csdn.losses import embedding_losses, wrt_loss
from csdn.model import CSDN, ModelConfig

SIZE, IDENTITIES, PEOPLE, IMAGES = (288, 144), 395, 8, 4
IMAGES_OF_A_PERSON, CAMERAS = 100, 6  # half of each modality
JPEG, SHARD = 20_000, 64 * 10**6  # bytes of an image and of a shard
GAPS = (0, 64, 256, 1024)  # KiB: largest gap between two images of a shard that one request reads
BATCHES = 500
# Columns of csdn.data.catalog.SampleTable, which all loader processes share.
COLUMNS = (
    "shard",
    "offset",
    "size",
    "extension",
    "label",
    "person_row",
    "modality",
    "camera",
    "digest",
    "path",
)


@contextmanager
def measured(found: dict[str, Any], name: str = "") -> Iterator[None]:
    """Record `name seconds` (processor time) and `name peak GiB` (peak increase of memory). Linux only."""
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before, began = memory("VmRSS"), time.process_time()  # processor time: other load does not count
    yield
    found[f"{name} seconds".strip()] = round(time.process_time() - began, 2)
    found[f"{name} peak GiB".strip()] = round((memory("VmHWM") - before) / 2**30, 2)


def memory(name: str) -> int:
    """Bytes of this process: VmRSS (now) or VmHWM (peak)."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.split(f"{name}:")[1].split()[0])


def plan(images: int) -> dict[str, Any]:
    """The plan of one epoch at P = 8 and P = 512; both include grouping the images by person."""
    labels, modalities = people_and_modalities(images)
    found: dict[str, Any] = {"rows": len(labels)}
    with measured(found, "grouping"):
        images_of_people(labels, modalities)
    for people in (PEOPLE, 512):
        with measured(found, f"P {people}"):
            made = epoch_plan(labels, modalities, people, IMAGES, seed=0, epoch=0)
        held = sum(part.nbytes for part in (made.identities, made.visible, made.infrared))
        found[f"P {people} batches"], found[f"P {people} held GiB"] = len(made), round(held / 2**30, 2)
        del made
    return found


def people_and_modalities(images: int) -> tuple[np.ndarray, np.ndarray]:
    """labels and modalities [images] in the order of paths: modality, camera, person, image."""
    people = images // IMAGES_OF_A_PERSON
    of_camera = IMAGES_OF_A_PERSON // (2 * CAMERAS) + 1
    order = np.repeat(np.tile(np.arange(people), 2 * CAMERAS), of_camera)
    modalities = np.repeat(np.arange(2, dtype=np.int8), len(order) // 2)
    return order, modalities


def samples(images: int) -> dict[str, Any]:
    """Bytes per row of samples.parquet: in the file, in Arrow, and as the loader's arrays."""
    table = table_of_images(images, SAMPLES_SCHEMA)
    rows = len(table)
    found: dict[str, Any] = {"rows": rows, "arrow bytes a row": round(table.nbytes / rows)}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_table(root / "samples.parquet", table)
        write_table(root / "people.parquet", table_of([], PEOPLE_SCHEMA))
        found["file bytes a row"] = round((root / "samples.parquet").stat().st_size / rows, 1)
        with measured(found, "load"):
            loaded = load_dataset(root).train_table()
    bytes_of = {name: getattr(loaded, name).nbytes for name in COLUMNS}
    found["loader's bytes a row"] = round(sum(bytes_of.values()) / rows)
    found["of which paths"] = round(bytes_of["path"] / rows)
    return found


def merged(images: int) -> dict[str, Any]:
    """Merge the index of one drop, as ingest does whenever the ledger changes."""
    index = table_of_images(images, INDEX_SCHEMA)
    drop = Drop(id="d" * 64, address="/drop", layout="cameras", status=Status.ACCEPTED)
    indexed = IndexedDrop(drop, index, table_of([], REFUSED_SCHEMA), ignored=0)
    found: dict[str, Any] = {"rows": len(index)}
    with measured(found):
        merge([indexed], SplitRule(salt="", test_percent=40), max_bad_fraction=0.01)
    return found


def table_of_images(images: int, schema: pa.Schema) -> pa.Table:
    """About `images` rows of an index or of samples.parquet, sorted by path."""
    labels, modalities = people_and_modalities(images)
    rows = np.arange(len(labels))
    shard = rows // (SHARD // JPEG)
    names = [f"{'a' * 16}-{number:06d}-{digest(number)[:16]}.tar" for number in range(shard[-1] + 1)]
    cameras = rows * 2 * CAMERAS // len(rows)
    places = zip(modalities, cameras, labels, rows, strict=True)
    known = {
        "key": [digest(row) for row in rows],
        "extension": ["jpg"] * len(rows),
        "shard": np.array(names, dtype=object)[shard],
        "offset": rows % (SHARD // JPEG) * JPEG,
        "size": np.random.default_rng(0).integers(JPEG // 2, JPEG, len(rows)),
        "person": [f"p{label:07d}" for label in labels],
        "person_row": labels,
        "side": ["train"] * len(rows),
        "modality": np.array(["visible", "infrared"], dtype=object)[modalities],
        "camera": [f"c{camera:02d}" for camera in cameras],
        "path": [f"{MODALITIES[m]}/c{camera:02d}/p{p:07d}/{n:09d}.jpg" for m, camera, p, n in places],
        "drop": ["d" * 64] * len(rows),
        "width": [SIZE[1]] * len(rows),
        "height": [SIZE[0]] * len(rows),
    }
    columns = [pa.array(known.get(field.name, [None] * len(rows)), field.type) for field in schema]
    return pa.table(columns, schema=schema)


def digest(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def requests(images: int) -> dict[str, Any]:
    """Range reads per batch if one request reads neighbouring images of a shard.

    For shards ordered by path, as ingest writes them, and ordered by person.
    """
    labels, modalities = people_and_modalities(images)
    made = epoch_plan(labels, modalities, PEOPLE, IMAGES, seed=0, epoch=0)
    by_person = np.empty(len(labels), dtype=np.int64)
    by_person[np.lexsort((modalities, labels))] = np.arange(len(labels))
    found: dict[str, Any] = {"images": 2 * PEOPLE * IMAGES}
    for name, places in (("path", np.arange(len(labels))), ("person", by_person)):
        for gap in GAPS:
            counts, over = zip(
                *(ranges(made[step], places, gap * 1024) for step in range(BATCHES)), strict=True
            )
            shown = f"{np.mean(counts):.1f} requests, {np.mean(over):.2f} x the bytes"
            found[f"by {name}, gap {gap} KiB"] = shown
    return found


def ranges(row: BatchPlan, places: np.ndarray, gap: int) -> tuple[int, float]:
    """(requests, bytes read / bytes needed) of one batch; places: positions of the images in the shards."""
    at = np.unique(places[np.concatenate([row.visible, row.infrared])])
    per_shard = SHARD // JPEG
    between = (np.diff(at) - 1) * JPEG
    joined = (between <= gap) & (at[1:] // per_shard == at[:-1] // per_shard)
    needed = len(at) * JPEG
    return len(at) - int(joined.sum()), (needed + between[joined].sum()) / needed


def kept_matrices() -> float:
    """Float matrices [rows, rows] that WRT of both branches keeps for the backward pass."""
    rows = 3 * PEOPLE * IMAGES
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape == (rows, rows):
            kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    labels = torch.arange(PEOPLE).repeat_interleave(IMAGES).repeat(3)
    features = torch.randn(rows, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = wrt_loss(features, labels)
    assert loss.requires_grad  # keeps the saved tensors alive until here
    return 2 * sum(kept.values()) / (rows * rows * FLOAT)


def network(_: int = 0) -> Network:
    """Sizes of the RN50 network at 288x144, and the operations of a step, counted on the meta device."""
    with torch.device("meta"):
        sizes = {"depths": (3, 4, 6, 3), "width": 64, "pool_heads": 32, "embed_dim": 1024}
        text = {"text_width": 512, "text_heads": 8, "text_layers": 12}
        model = CSDN(ModelConfig(identities=IDENTITIES, image_size=SIZE, **sizes, **text)).train()
        views = [torch.empty(PEOPLE * IMAGES, 3, *SIZE) for _ in range(3)]
        labels = torch.empty(PEOPLE * IMAGES, dtype=torch.long)
        table = torch.empty(IDENTITIES, model.config.embed_dim)
        with FlopCounterMode(display=False) as counter:
            embedding_losses(model, *views, labels, table, instances=IMAGES)["total"].backward()
    features = model.config.map_channels + model.config.embed_dim
    norms = [module.num_features for module in model.modules() if isinstance(module, _BatchNorm)]
    return Network(
        parameters=sum(parameter.numel() for parameter in model.image_parameters()),
        norm_channels=sum(norms),
        norms=len(norms),
        features=features,
        embed=model.config.embed_dim,
        operations=counter.get_total_flops(),
        people=IDENTITIES,
        rows=3 * PEOPLE * IMAGES,
        kept_matrices=kept_matrices(),
    )
