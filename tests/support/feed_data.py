"""A small data folder as ingest leaves it, made of the same parts."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from csdn.data.catalog import PEOPLE_SCHEMA, SAMPLES_SCHEMA, SampleTable, load_dataset, table_of, write_table
from csdn.data.loader import TrainSource
from csdn.data.shards import ShardWriter
from csdn.params import load_params

SHARDS = 3
PARAMS = load_params(Path(__file__).parents[2] / "params.yaml")


def train_source(
    table: SampleTable,
    shards: str | Path,
    people: int = 2,
    images: int = 2,
    size: tuple[int, int] = (64, 32),
    padding: int = 10,
    seed: int = 0,
) -> TrainSource:
    """Batches of so many people and images, and otherwise as in params.yaml."""
    batch = {"identities_per_batch": people, "images_per_identity": images, "padding": padding}
    embedding = PARAMS.embedding.model_copy(update=batch)
    model = PARAMS.model.model_copy(update={"image_size": size})
    params = PARAMS.model_copy(update={"embedding": embedding, "model": model, "seed": seed})
    return TrainSource(params, table, shards)


def write_data(
    root: Path,
    people: int = 6,
    visible: int = 4,
    infrared: int = 3,
    sizes: tuple[tuple[int, int], ...] = ((64, 32), (80, 40)),
) -> SampleTable:
    """Write `people` people with so many JPEGs of each modality, heights and widths in turn from `sizes`."""
    rng = np.random.default_rng(7)
    images = [
        (person, modality, number)
        for person in range(people)
        for modality, count in (("visible", visible), ("infrared", infrared))
        for number in range(count)
    ]
    (root / "shards").mkdir(parents=True)
    rows = []
    for part in range(SHARDS):
        temporary, placed = root / "shards" / "being-written", []
        with temporary.open("wb") as file, ShardWriter(file) as shard:
            for at, (person, modality, number) in enumerate(images[part::SHARDS]):
                data = jpeg(rng, *sizes[at % len(sizes)])
                key = hashlib.sha256(data).hexdigest()
                facts = {"person": str(person), "modality": modality}
                offset = shard.add(key, "jpg", data, facts)
                path = f"{modality}/c1/{person}/{number}.jpg"
                labels = (person, "train", modality, "c1", path, "drop", None)
                placed.append(((key, "jpg"), (offset, len(data), *labels)))
        name = f"{'0' * 16}-{part:06d}-{shard.hexdigest()[:16]}.tar"
        temporary.rename(root / "shards" / name)
        rows += [(*image, name, *rest) for image, rest in placed]
    counts = [(row, f"p{row}", 0, "train", "train", visible, infrared) for row in range(people)]
    write_table(root / "samples.parquet", table_of(sorted(rows, key=lambda row: row[9]), SAMPLES_SCHEMA))
    write_table(root / "people.parquet", table_of(counts, PEOPLE_SCHEMA))
    return load_dataset(root).train_table()


def jpeg(rng: np.random.Generator, height: int, width: int) -> bytes:
    """A JPEG of smooth colours with a little noise, about as dear to decode as a photograph."""
    coarse = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.int64)
    noisy = np.clip(smooth + rng.integers(-6, 7, smooth.shape), 0, 255).astype(np.uint8)
    return simplejpeg.encode_jpeg(noisy, quality=90, colorspace="RGB")
