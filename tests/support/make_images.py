"""Small drops of images for tests: folders in the layout `cameras`, each image different."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import struct
import sys
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from csdn.ingest.ledger import Drop, read_ledger, write_ledger
from csdn.ingest.pack import Packer, packed_shards
from csdn.ingest.run import ingest
from csdn.ingest.sync import open_drop
from csdn.params import DataParams, IngestParams
from csdn.synthetic.sets import MARKER, PeopleSet, images_of, png, write_files

ROOT = Path(__file__).parents[2]
CAMERAS = {"visible": ("north", "south"), "infrared": ("north",)}


def pixels(name: str, height: int = 16, width: int = 8) -> np.ndarray:
    """uint8 [height, width, 3] that depends on nothing but `name`: coarse blocks, as JPEG likes them."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return np.kron(blocks, np.ones((8, 8, 1), dtype=np.uint8))


def encoded(image: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(name: str, height: int = 16, width: int = 8) -> bytes:
    return encoded(pixels(name, height, width), "JPEG", quality=90)


def huge_png(side: int = 60_000) -> bytes:
    """A PNG of a few bytes whose header promises side x side pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def write_people(folder: Path, people: PeopleSet) -> None:
    """Write built-in people as a drop in the layout `cameras`."""
    images = ((image.path, png(image)) for image in images_of(people))
    write_files(itertools.chain(images, [(MARKER, b"")]), folder)


def make_drop(
    root: Path, people: Iterable[str], modalities: Iterable[str] = ("visible", "infrared"), images: int = 2
) -> Path:
    """A complete drop: `images` JPEGs of each person by each camera; returns its root."""
    for modality in modalities:
        for camera in CAMERAS[modality]:
            for person in people:
                for n in range(images):
                    path = f"{modality}/{camera}/{person}/{n}.jpg"
                    write(root / path, jpeg(path))
    write(root / "_SUCCESS", b"")
    return root


def people_named(count: int, prefix: str = "person") -> list[str]:
    return [f"{prefix} {n:03d}" for n in range(count)]


DEFAULTS = {"max_bad_fraction": 0.01, "max_pixels": 10**6, "shard_megabytes": 64, "trust_suggestions": False}


class Project:
    """A project folder with a ledger: add drops, ingest, look at what came out."""

    def __init__(self, root: Path, processes: int = 1) -> None:
        self.root, self.processes = root, processes
        self.data = root / "data"
        self.ledger = self.data / "drops.json"
        self.metrics = root / "metrics" / "ingest.json"
        self.aliases = root / "no-aliases.json"
        if not self.ledger.exists():
            write_ledger([], self.ledger)
            write(self.aliases, b"{}")

    def add(self, address: Path | str, layout: str = "cameras") -> Drop:
        drop, _ = open_drop(str(address), layout)
        write_ledger([*read_ledger(self.ledger), drop], self.ledger)
        return drop

    def ingest(
        self,
        minimum_people: int = 2,
        test_percent: int = 40,
        aliases: str | None = None,
        trial: int = 1,
        note: Callable[[str], None] = print,
        packer: Packer = packed_shards,
        **settings,
    ):
        who = DataParams(
            split_salt="csdn", test_percent=test_percent, aliases=aliases or str(self.aliases), trial=trial
        )
        return ingest(
            read_ledger(self.ledger),
            who,
            IngestParams(**DEFAULTS | settings),
            minimum_people=minimum_people,
            packer=packer,
            root=self.data,
            metrics=self.metrics,
            state=self.root / ".state",
            processes=self.processes,
            note=note,
        )

    def figures(self) -> dict:
        return json.loads(self.metrics.read_text())

    def outputs(self) -> dict[str, bytes]:
        """Every file that ingest wrote: path -> bytes."""
        files = [*self.data.rglob("*"), self.metrics]
        found = [path for path in files if path.is_file() and path != self.ledger]
        return {str(path.relative_to(self.root)): path.read_bytes() for path in found}


def stage_project(root: Path) -> Project:
    """A project in which the stage itself runs, with small shards."""
    project = Project(root)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["ingest"]["shard_megabytes"] = 1
    params["data"]["aliases"] = str(project.aliases)
    write(root / "params.yaml", yaml.safe_dump(params).encode())
    return project


def stage_command(project: Project) -> dict:
    """The stage as DVC starts it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return {"args": [sys.executable, "-m", "stages.ingest"], "cwd": project.root, "env": environment}


# EXIF's orientation -> how the stored rows are turned to stand upright.
UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored),
}
