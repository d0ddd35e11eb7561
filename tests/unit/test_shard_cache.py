"""The cache of shards: each is fetched once, verified, and what has no room is read by byte ranges."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import pickle
import time

import numpy as np
import pytest
from memory_bucket import fill

from csdn.data import shard_cache
from csdn.data.shard_cache import CachedShards
from csdn.data.shards import StoredShards
from csdn.runtime.errors import UserError

SIZE = 100_000
DATA = {}
for number in range(4):
    content = np.random.default_rng(number).bytes(SIZE)
    DATA[f"drop-{number:06d}-{hashlib.sha256(content).hexdigest()[:16]}.tar"] = content
NAMES = list(DATA)


@pytest.fixture
def asked(monkeypatch):
    """The ranges that the store was asked for: (shard, bytes)."""
    fill("shards", DATA)
    asked, intact = [], StoredShards.read_all

    def read_all(self, ranges):
        asked.extend((shard, size) for shard, _, size in ranges)
        return intact(self, ranges)

    monkeypatch.setattr(StoredShards, "read_all", read_all)
    return asked


def another_process() -> None:
    """What this process knows of caches is forgotten, as a new one knows nothing."""
    while shard_cache._IN_USE:
        os.close(shard_cache._IN_USE.popitem()[1])
    shard_cache._WITHOUT_ROOM.clear()


@pytest.fixture(autouse=True)
def new_process():
    another_process()


def cached(folder, limit=10 * SIZE, wanted=NAMES) -> CachedShards:
    return CachedShards(StoredShards("memory://shards"), folder, limit, wanted)


RANGES = [(name, start, 100) for start in (0, 5000, SIZE - 100) for name in NAMES]
EXPECTED = [DATA[name][start : start + size] for name, start, size in RANGES]


def shards_in(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name.endswith(".tar")}


def test_each_shard_is_fetched_once_and_whole(asked, tmp_path):
    reader = cached(tmp_path / "cache")
    assert reader.read_all(RANGES) == EXPECTED
    assert asked == [(name, SIZE) for name in NAMES]
    another_process()
    assert reader.read_all(RANGES) == cached(tmp_path / "cache").read_all(RANGES) == EXPECTED
    assert len(asked) == len(NAMES)
    assert shards_in(tmp_path / "cache") == DATA


def test_shards_without_room_are_read_by_ranges_and_never_exchanged(asked, tmp_path):
    reader = cached(tmp_path, limit=2 * SIZE)
    for _ in range(3):
        assert reader.read_all(RANGES) == EXPECTED
    whole = [shard for shard, size in asked if size == SIZE]
    assert sorted(whole) == sorted(shards_in(tmp_path)) == NAMES[:2]
    assert {shard for shard, size in asked if size == 100} == set(NAMES[2:])


def test_a_copy_in_another_process_reads_the_same_folder(asked, tmp_path):
    reader = cached(tmp_path)
    reader.read_all(RANGES)
    again = pickle.loads(pickle.dumps(reader))
    another_process()
    del asked[:]
    assert again.read_all(RANGES) == EXPECTED and asked == []


def test_shards_that_nobody_needs_make_room_when_a_run_begins(asked, tmp_path):
    cached(tmp_path).read_all(RANGES)
    old = NAMES[1]
    os.utime(tmp_path / old, (1, 1))
    new = "new-000000-0000000000000000.tar"
    fill("shards", {**DATA, new: bytes(SIZE)})
    another_process()
    cached(tmp_path, limit=4 * SIZE, wanted=[NAMES[3], new]).read_all([(NAMES[3], 0, 10)])
    assert sorted(shards_in(tmp_path)) == [name for name in NAMES if name != old]


def test_nothing_is_removed_while_another_run_reads(asked, tmp_path):
    cached(tmp_path).read_all(RANGES)
    another_process()
    with (tmp_path / ".used").open() as running:
        fcntl.flock(running, fcntl.LOCK_SH)
        cached(tmp_path, limit=SIZE, wanted=()).read_all([(NAMES[0], 0, 10)])
        assert shards_in(tmp_path) == DATA
    another_process()
    cached(tmp_path, limit=SIZE, wanted=()).read_all([(NAMES[0], 0, 10)])
    assert len(shards_in(tmp_path)) == 1


def test_an_altered_file_is_found_and_fetched_again(asked, tmp_path, fault):
    cached(tmp_path).read_all(RANGES)
    path = tmp_path / NAMES[2]
    path.write_bytes(b"x" * SIZE)
    reader = cached(tmp_path)
    (altered,) = reader.read_all([(NAMES[2], 0, 100)])
    assert altered == b"x" * 100  # its image's hash is not the recorded one, so csdn.data.batch asks again
    assert reader.read_again((NAMES[2], 0, 100)) == DATA[NAMES[2]][:100]
    assert reader.read_all(RANGES) == EXPECTED and shards_in(tmp_path) == DATA
    path.write_bytes(b"")
    assert cached(tmp_path).read_all(RANGES) == EXPECTED
    fault(
        "object stores",
        "a file in the cache of shards was altered or cut",
        "The hash of an image tells; the shard is fetched again, and the same batches are made.",
    )


def test_a_shard_that_the_store_sends_damaged_is_named_and_not_kept(asked, tmp_path, monkeypatch, fault):
    fill("shards", {**DATA, NAMES[0]: b"x" * SIZE})
    with pytest.raises(UserError, match=f"{NAMES[0]}: is not what ingest wrote") as error:
        cached(tmp_path).read_all(RANGES)
    assert shards_in(tmp_path) == {} and not list(tmp_path.glob("*.partial"))
    assert [size for _, size in asked] == [SIZE, SIZE]  # asked again once
    told = str(error.value).replace(NAMES[0], "HASH.tar")
    fault("object stores", "an object store sends a shard with other bytes", told)


def test_a_full_disk_is_no_reason_to_stop(asked, tmp_path, monkeypatch, fault, caplog):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for part in ("_download", "_reserve", "_begin"):
        with monkeypatch.context() as patch:
            patch.setattr(CachedShards, part, full)
            assert cached(tmp_path / part).read_all(RANGES) == EXPECTED
    assert not list(tmp_path.rglob("*.tar")) and not list(tmp_path.rglob(".*.partial"))
    assert caplog.text.count("the disk is full") == 3
    fault(
        "object stores",
        "the disk of the cache of shards is full",
        "The log says so; what is not in the cache is read from the store, by byte ranges.",
    )


def test_a_folder_that_cannot_be_used_is_an_error(asked, tmp_path, fault):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match=r"cannot keep shards .*scaling\.cache\.folder") as error:
        cached(tmp_path / "cache").read_all(RANGES)
    fault("object stores", "the folder of the cache of shards cannot be made", error.value)


def test_a_file_that_vanishes_while_sizes_are_added_up_is_no_error(asked, tmp_path, monkeypatch):
    cached(tmp_path).read_all(RANGES)
    (tmp_path / "gone.tar").symlink_to(tmp_path / "nothing")  # listed, and not there when it is looked at
    os.utime(tmp_path / NAMES[0])
    (tmp_path / NAMES[1]).unlink()
    assert cached(tmp_path).read_all(RANGES) == EXPECTED


def test_a_file_replaced_by_another_process_is_read_anew(asked, tmp_path):
    one, other = cached(tmp_path), cached(tmp_path)
    one.read_all(RANGES)
    (tmp_path / NAMES[0]).write_bytes(b"x" * SIZE)
    assert other.read_all([(NAMES[0], 0, 3)]) == [b"xxx"]
    assert one.read_again((NAMES[0], 0, 100)) == DATA[NAMES[0]][:100]
    assert one.read_all(RANGES) == EXPECTED
    assert other.read_again((NAMES[0], 0, 100)) == DATA[NAMES[0]][:100]
    assert other.read_all(RANGES) == EXPECTED


def test_what_a_killed_run_left_is_removed_by_the_next(asked, tmp_path):
    (tmp_path / f".{NAMES[0]}.partial").write_bytes(b"x" * 10)
    (tmp_path / f".{NAMES[0]}.lock").write_bytes(b"")
    assert cached(tmp_path).read_all(RANGES) == EXPECTED
    assert not list(tmp_path.glob(".*.partial"))
    assert time.time() - (tmp_path / NAMES[0]).stat().st_mtime < 60
