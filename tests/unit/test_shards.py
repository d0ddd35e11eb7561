"""Shards are plain tars that WebDataset reads, the same bytes each time, and can be read by range."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import tarfile
from pathlib import Path

import pytest
from make_images import Project, jpeg, make_drop, people_named

from csdn.data.catalog import SAMPLES_SCHEMA, ImageRecord, read_table
from csdn.data.images import decode
from csdn.data.shards import ShardReader, ShardWriter
from csdn.ingest.pack import SHARD_IMAGES, cut_shards
from csdn.runtime.errors import UserError

MEMBERS = [(f"{n:064x}", bytes([n]) * size) for n, size in enumerate((0, 1, 511, 512, 513, 70_000))]


@pytest.fixture
def shard(tmp_path):
    """A shard of MEMBERS in a folder; gives (path, offsets)."""
    path = tmp_path / "a.tar"
    with path.open("wb") as file, ShardWriter(file) as writer:
        offsets = [
            writer.add(key, "jpg", data, {"person": "Ünal", "size": len(data)}) for key, data in MEMBERS
        ]
    assert writer.hexdigest() == hashlib.sha256(path.read_bytes()).hexdigest()
    return path, offsets


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = tmp_path_factory.mktemp("shards")
    made = Project(root)
    made.add(make_drop(root / "drop", people_named(10)))
    made.ingest()
    return made


def test_a_shard_is_the_tar_that_tarfile_writes(shard):
    path, _ = shard
    with tarfile.open(path.with_name("b.tar"), "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, data in MEMBERS:
            about = json.dumps({"person": "Ünal", "size": len(data)}, ensure_ascii=False).encode()
            for name, content in ((f"{key}.jpg", data), (f"{key}.json", about)):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    assert path.read_bytes() == path.with_name("b.tar").read_bytes()


def test_images_are_read_back_by_range(shard):
    path, offsets = shard
    reader = ShardReader(path.parent)
    for (_, data), offset in zip(MEMBERS, offsets, strict=True):
        assert reader.read("a.tar", offset, len(data)) == data


def test_a_reader_travels_to_other_processes_and_keeps_few_files_open(tmp_path):
    for n in range(5):
        (tmp_path / f"{n}.tar").write_bytes(bytes([n]))
    reader = ShardReader(tmp_path, open_files=2)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for n in (0, 1, 2, 3, 4, 0, 1):
        assert reader.read(f"{n}.tar", 0, 1) == bytes([n])
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2
    assert pickle.loads(pickle.dumps(reader)).read("3.tar", 0, 1) == b"\3"


def test_a_shard_that_is_missing_short_or_elsewhere_is_an_error_that_names_it(shard, fault):
    path, offsets = shard
    reader = ShardReader(path.parent)
    with pytest.raises(UserError, match="no such shard") as error:
        reader.read("none.tar", 0, 1)
    fault("shards and index", "a shard is gone, and ingest did not run again", error.value)
    with pytest.raises(UserError, match=r"a\.tar: ends before") as error:
        reader.read("a.tar", path.stat().st_size - 1, 2)
    fault("shards and index", "a shard is cut, and ingest did not run again", error.value)
    (path.parent / "below").mkdir()
    with pytest.raises(UserError, match="is not a shard's name"):
        ShardReader(path.parent / "below").read("../a.tar", offsets[1], 1)


def test_plain_webdataset_reads_an_ingested_shard(project):
    import webdataset

    (shard,) = (project.data / "shards").iterdir()
    found = list(webdataset.WebDataset(str(shard), shardshuffle=False))
    assert len(found) == 60
    for sample in found:
        facts = json.loads(sample["json"])
        assert sample["__key__"] == hashlib.sha256(sample["jpg"]).hexdigest()
        assert sample["jpg"] == jpeg(facts["path"])
        assert facts == {
            "person": facts["path"].split("/")[2],
            "modality": facts["path"].split("/")[0],
            "camera": facts["path"].split("/")[1],
            "path": facts["path"],
            "size": len(sample["jpg"]),
            "captured_at": None,
        }


def test_a_shards_name_has_drop_number_and_content(project):
    (shard,) = (project.data / "shards").iterdir()
    drop, number, content = shard.stem.split("-")
    (index,) = {path.name.partition(".")[0] for path in (project.data / "index").iterdir()}
    assert (drop, number) == (index[:16], "000000")
    assert content == hashlib.sha256(shard.read_bytes()).hexdigest()[:16]


def test_every_sample_is_found_where_the_table_says(project):
    samples = read_table(project.data / "samples.parquet", SAMPLES_SCHEMA).to_pylist()
    reader = ShardReader(project.data / "shards")
    assert len(samples) == 60
    for sample in samples:
        data = reader.read(sample["shard"], sample["offset"], sample["size"])
        assert hashlib.sha256(data).hexdigest() == sample["key"]
        assert decode(data, sample["extension"]).shape == (16, 8, 3)


def records(*sizes: int) -> list[ImageRecord]:
    return [ImageRecord(f"{n:06d}", "p", "visible", "c", size) for n, size in enumerate(sizes)]


@pytest.mark.parametrize(
    "sizes, expected",
    [
        ([], [0]),
        ([5, 5], [2]),
        ([5, 6], [1, 1]),
        ([11, 1], [1, 1]),
        ([1, 11, 1], [1, 1, 1]),
        ([4, 3, 3, 4, 3, 3, 1], [3, 3, 1]),
        ([0] * (2 * SHARD_IMAGES + 1), [SHARD_IMAGES, SHARD_IMAGES, 1]),
    ],
)
def test_a_listing_is_cut_by_bytes_and_by_images(sizes, expected):
    parts = cut_shards(records(*sizes), shard_bytes=10)
    assert [len(part) for part in parts] == expected
    assert [record for part in parts for record in part] == records(*sizes)
