"""The measurements of benchmarks/limits.py: plan, tables, merge, range reads, network."""

from __future__ import annotations

import binascii
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from cost_model import FLOAT, Network
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from csdn.data.catalog import (
    INDEX_SCHEMA,
    MODALITIES,
    REFUSED_SCHEMA,
    SAMPLES_SCHEMA,
    load_dataset,
    open_table,
    write_batches,
    write_table,
)
from csdn.data.sampler import BatchPlan, epoch_plan, images_of_people
from csdn.ingest.counts import summary
from csdn.ingest.identities import SplitRule
from csdn.ingest.ledger import Drop
from csdn.ingest.merge import IndexedDrop, merge
from csdn.losses import embedding_losses, wrt_loss
from csdn.model import CSDN, ModelConfig

SIZE, IDENTITIES, PEOPLE, IMAGES = (288, 144), 395, 8, 4
IMAGES_OF_A_PERSON, CAMERAS = 100, 6  # half of each modality
JPEG, SHARD = 20_000, 64 * 10**6  # bytes of an image and of a shard
GAPS = (0, 64, 256, 1024)  # KiB: largest gap between two images of a shard that one request reads
BATCHES = 500
# Columns of csdn.data.catalog.SampleTable: those of csdn.data.batch.ImageReader, and the others.
READER = ("shard", "offset", "size", "extension", "digest")
OTHERS = ("label", "person_row", "modality", "camera")


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


def plan(images: int, _: Path) -> dict[str, Any]:
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


# Tables: a process writes the indexes of some drops, the next one merges them, a third one loads the result.


DROPS = 10
TWICE = 100  # one image of so many is there twice
RULE = SplitRule(salt="", test_percent=1)


def indexed(images: int, root: Path) -> dict[str, Any]:
    """Write the indexes of DROPS drops with about `images` images in all, as ingest leaves them."""
    written = [write_index(number, images // DROPS, root) for number in range(DROPS)]
    return {"rows": sum(written)}


def write_index(number: int, images: int, root: Path) -> int:
    """The index of one drop, sorted by path; returns its rows. A tenth of its people are in the next one."""
    labels, modalities = people_and_modalities(images)
    rows = np.arange(len(labels))
    shard = rows // (SHARD // JPEG)
    cameras = rows * 2 * CAMERAS // len(rows)
    draws = np.random.default_rng(number)
    content = np.where(rows % TWICE == 1, rows - 1, rows)
    keys = np.frombuffer(draws.bytes(32 * len(rows)), "V32")[content]
    person = numbered("p", 7, labels + labels[-1] * number * 9 // 10)
    modality = pa.array(list(map(str, MODALITIES))).take(pa.array(modalities))
    camera = numbered("c", 2, cameras)
    names = pc.binary_join_element_wise(numbered("", 9, rows), "jpg", ".")
    shards = [f"{number:016x}-{n:06d}-{draws.bytes(8).hex()}.tar" for n in range(shard[-1] + 1)]
    known = {
        "key": hexadecimal(keys),
        "extension": pa.repeat("jpg", len(rows)),
        "shard": pa.array(shards).take(pa.array(shard)),
        "offset": rows % (SHARD // JPEG) * JPEG,
        "size": draws.integers(JPEG // 2, JPEG, len(rows)),
        "person": person,
        "modality": modality,
        "camera": camera,
        "path": pc.binary_join_element_wise(modality, camera, person, names, "/"),
        "width": pa.repeat(SIZE[1], len(rows)),
        "height": pa.repeat(SIZE[0], len(rows)),
    }
    columns = [pa.array(known.get(f.name, pa.nulls(len(rows), f.type)), f.type) for f in INDEX_SCHEMA]
    write_table(root / f"{number}.parquet", pa.table(columns, schema=INDEX_SCHEMA))
    return len(rows)


def numbered(letter: str, digits: int, numbers: np.ndarray) -> pa.Array:
    """Names such as p0000017."""
    texts = pc.utf8_lpad(pa.array(numbers).cast(pa.string()), digits, padding="0")
    return pc.binary_join_element_wise(letter, texts, "")


def hexadecimal(keys: np.ndarray) -> pa.Array:
    """Keys of 32 bytes as texts of 64 hex digits."""
    starts = np.arange(0, 64 * len(keys) + 1, 64, dtype=np.int32)
    text = binascii.hexlify(keys.tobytes())
    return pa.StringArray.from_buffers(len(keys), pa.py_buffer(starts), pa.py_buffer(text))


def merged(images: int, root: Path) -> dict[str, Any]:
    """Merge the indexes and write the tables, as ingest does whenever the ledger changes."""
    found: dict[str, Any] = {}
    with measured(found):
        drops = [
            IndexedDrop(
                Drop(id=f"{number:064x}", address=f"/drop/{number}", layout="cameras"),
                open_table(root / f"{number}.parquet", INDEX_SCHEMA),
                REFUSED_SCHEMA.empty_table(),
                ignored=0,
            )
            for number in range(DROPS)
        ]
        together = merge(drops, RULE, max_bad_fraction=0.01)
        write_batches(root / "samples.parquet", SAMPLES_SCHEMA, together.samples())
        write_table(root / "people.parquet", together.people)
        counted = summary(drops, together, {})
    found["rows"] = sum(drop.index.count_rows() for drop in drops)
    found["rows of samples.parquet"] = sum(sum(of.values()) for of in counted["images"].values())
    found["twice"] = counted["duplicates"]
    found["held drops"] = len(counted["drops"]["held"])
    return found


def loaded(images: int, root: Path) -> dict[str, Any]:
    """Load the training images, as each training stage does; bytes per row of the file and of the arrays."""
    found: dict[str, Any] = {}
    with measured(found):
        table = load_dataset(root).train_table()
    found["rows"] = len(table)
    bytes_of = {name: getattr(table, name).nbytes / len(table) for name in (*READER, *OTHERS)}
    size = (root / "samples.parquet").stat().st_size
    found["file bytes a row"] = round(
        size / open_table(root / "samples.parquet", SAMPLES_SCHEMA).count_rows(), 1
    )
    found["bytes a row"] = round(sum(bytes_of.values()))
    found["of which in each process of the loader"] = round(sum(bytes_of[name] for name in READER))
    return found


def requests(images: int, _: Path) -> dict[str, Any]:
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
