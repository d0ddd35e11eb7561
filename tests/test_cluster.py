"""Ray Data executes the same plan: the DataLoader's tensors, whole epochs, each part, bounded memory."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from feed_data import write_data

from csdn.cluster.guard import MARK
from csdn.cluster.session import _own_folder, ray_session
from csdn.data.batches import train_batch
from csdn.data.dataset import load_dataset
from csdn.data.feed import TrainFeed, TrainSource
from csdn.errors import UserError

SIZE = (64, 32)
EPOCHS = 4
VIEWS = ("visible_view1", "visible_view2", "infrared", "labels")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_data(root)
    return root


@pytest.fixture(scope="module")
def ray_instance():
    """One Ray instance for all tests here."""
    with ray_session(None, cpus=3):
        yield


def source(data, people=2, size=SIZE):
    return TrainSource(load_dataset(data).train_table(), data / "shards", people, 2, size, "imagenet", 10, 0)


def assert_same(one, other):
    assert (one.epoch, one.step, one.instances) == (other.epoch, other.step, other.instances)
    for name in VIEWS:
        assert torch.equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.slow
@pytest.mark.parametrize("start", [(0, 0), (2, 4)])
def test_ray_data_gives_the_tensors_of_the_dataloader_bit_for_bit(ray_instance, data, start, monkeypatch):
    from csdn.cluster import stretch
    from csdn.cluster.feed import RayFeed

    monkeypatch.setattr(stretch, "TASKS_OF_STRETCH", 3)  # a data set ends in the middle of an epoch
    monkeypatch.setattr(stretch, "ROWS_OF_TASK", 3)
    plain, over_ray = TrainFeed(source(data), 0), RayFeed(source(data), EPOCHS)
    assert over_ray.steps_per_epoch == plain.steps_per_epoch == 7
    first, row = start
    for epoch in range(first, EPOCHS):
        batches = list(over_ray.epoch(epoch, row))
        assert len(batches) == plain.steps_per_epoch - row
        for one, other in zip(plain.epoch(epoch, row), batches, strict=True):
            assert_same(one, other)
        row = 0


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_the_parts_of_the_workers_make_up_each_batch(ray_instance, data, size):
    from csdn.cluster.stretch import Stretch, stretch_dataset

    made = source(data, people=6)
    stretch = Stretch(made, 0, 2 * made.steps_per_epoch, size)
    found = iterate_together(stretch_dataset(stretch, made.rows).streaming_split(size))
    for rank, rows in enumerate(found):
        assert [row["step"].item() for row in rows] == list(range(stretch.first, stretch.last))
        assert {row["rank"].item() for row in rows} == {rank}
    plain = TrainFeed(made, 0)
    whole = [batch for epoch in (0, 1) for batch in plain.epoch(epoch)]
    for step, batch in enumerate(whole):
        parts = []
        for rank in range(size):
            row = stretch.row(step, rank)
            filled = np.empty((3, len(row.positions), 3, *SIZE), np.float32)
            made.rows.augment(row, *found[rank][step]["pixels"][0], filled)
            parts.append(train_batch(row, filled))
        for name in VIEWS:
            assert torch.equal(getattr(batch, name), torch.cat([getattr(part, name) for part in parts])), name


def iterate_together(parts):
    """The rows of each part of a split data set, which waits for all of its readers."""
    found = [[] for _ in parts]

    def read(rank):
        found[rank] += parts[rank].iter_batches(batch_size=1, batch_format="numpy")

    readers = [threading.Thread(target=read, args=[rank]) for rank in range(len(parts))]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(timeout=60)
    return found


@pytest.mark.slow
def test_the_object_store_holds_a_few_blocks_of_a_feed_many_times_larger(ray_instance, data, monkeypatch):
    from csdn.cluster import stretch
    from csdn.cluster.feed import RayFeed

    monkeypatch.setattr(stretch, "ROWS_OF_TASK", 4)
    epochs = 200
    made = source(data, people=6, size=(288, 144))
    feed = RayFeed(made, epochs)
    count = sum(1 for epoch in range(epochs) for _ in feed.epoch(epoch))
    assert count == epochs * feed.steps_per_epoch
    # What tasks are writing and the consumer reads ahead comes on top of Ray's limit.
    block = stretch.block_bytes(made.rows, 1)
    bound = 4 * stretch.BLOCKS_STORED * block
    assert count / stretch.ROWS_OF_TASK * block > 4 * bound
    assert 0 < most_stored() < bound


@pytest.mark.parametrize(
    ("images", "rows"),
    # A row is twice as many images of 288 x 144 x 3 bytes, and 128 MiB hold 539 of those.
    [(1, 16), (33, 16), (34, 15), (64, 8), (134, 4), (135, 3), (256, 2), (269, 2), (270, 1), (10_000, 1)],
)
@pytest.mark.parametrize("size", [1, 2, 8])
def test_a_task_reads_as_many_rows_as_ray_data_does_not_cut(images, rows, size):
    from csdn.cluster.stretch import block_bytes, rows_of_task, stretch_steps

    made = SimpleNamespace(shape=(3, size * images, 3, 288, 144))
    assert rows_of_task(made, size) == rows
    assert block_bytes(made, size) == rows * 2 * images * 288 * 144 * 3
    assert block_bytes(made, size) <= 128 * 2**20 or rows == 1
    assert stretch_steps(made, size) == 2000 // size * rows


@pytest.mark.slow
@pytest.mark.parametrize(("images", "steps"), [(64, 14), (256, 4)])
def test_each_worker_gets_its_rows_of_large_batches(ray_instance, tmp_path, images, steps, monkeypatch):
    """At 288x144, `images` of a modality for each worker: 14 rows of the plan have 213 MiB, 4 have 243."""
    from csdn.cluster import feed
    from csdn.cluster.feed import RayFeed

    write_data(tmp_path, sizes=((288, 144),))
    table = load_dataset(tmp_path).train_table()
    workers, people = 2, 4
    made = TrainSource(
        table, tmp_path / "shards", people, workers * images // people, (288, 144), "imagenet", 10, 0
    )
    assert made.steps_per_epoch == 1
    given, all_there = [], threading.Barrier(workers)

    def broadcast(parts):
        """What Ray Train does for its workers, which are threads here: all get what the first one gives."""
        given.extend(parts or ())
        all_there.wait(timeout=60)
        return given

    monkeypatch.setattr(feed.ray.train.collective, "broadcast_from_rank_zero", broadcast)

    def work(rank):
        over_ray = RayFeed(made, steps, rank, workers)
        row, out = None, np.empty((3, images, 3, 288, 144), np.float32)
        for epoch in range(steps):
            (batch,) = over_ray.epoch(epoch)
            row = made.plan(epoch).slice(rank, workers)[0]
            assert batch.labels.tolist() == np.repeat(row.identities, workers * images // people).tolist()
        made.rows.fill(row, out)
        assert_same(batch, train_batch(row, out))

    with ThreadPoolExecutor(workers) as threads:
        list(threads.map(work, range(workers)))


def most_stored() -> int:
    """Bytes of the object store's file that were ever used: what it allocated once it gives out again."""
    for folder in Path("/proc").glob("[0-9]*/fd"):
        with suppress(OSError):
            for file in folder.iterdir():
                if b"plasma" in os.fsencode(file.readlink()) and of_this_run(folder.parent):
                    return file.stat().st_blocks * 512
    raise AssertionError("no process has the object store's file open")


def of_this_run(process: Path) -> bool:
    entry = f"{MARK}={os.environ[MARK]}".encode()
    return entry in (process / "environ").read_bytes().split(b"\0")


@pytest.mark.slow
def test_a_shard_damaged_after_ingest_is_named_by_ray_data_too(ray_instance, tmp_path):
    from csdn.cluster.feed import RayFeed

    write_data(tmp_path)
    damaged = RayFeed(source(tmp_path), 1)
    for shard in (tmp_path / "shards").iterdir():
        shard.write_bytes(shard.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"shards/.*\.tar: ends before byte"):
        list(damaged.epoch(0))


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
@pytest.mark.parametrize(("length", "own"), [(39, False), (40, True), (300, True)])
def test_ray_gets_a_folder_of_its_own_where_a_socket_s_path_would_be_too_long(
    monkeypatch, variable, length, own
):
    """A socket's path has 107 bytes at most, of which Ray's own part may take 68."""
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(variable, "/" + "é" * ((length - 1) // 2) + "x" * ((length - 1) % 2))
    folder = _own_folder()
    assert (folder is not None) == own
    if own:
        Path(folder).rmdir()


@pytest.mark.parametrize("path", ["tmp", "./tmp", ""])
def test_a_relative_temporary_folder_is_none_for_ray(monkeypatch, path):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", path)
    folder = _own_folder()
    assert Path(folder).is_absolute()
    Path(folder).rmdir()


def test_ray_that_does_not_start_here_is_not_blamed_on_an_address(monkeypatch, tmp_path):
    from csdn.cluster.session import _unusable

    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    said = str(_unusable(None, Exception("The current node timed out during startup")))
    assert "timed out" in said and f"{tmp_path}/ray" in said and "scaling.workers" in said
    assert "RAY_ADDRESS" not in said


def test_where_ray_can_have_no_short_folder_the_variable_to_set_is_named(monkeypatch, fault):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    monkeypatch.setenv("RAY_TMPDIR", "/scratch/" + "x" * 90)
    with pytest.raises(UserError, match="RAY_TMPDIR") as error:
        _own_folder()
    fault("processes", "TMPDIR has too long a path for Ray's sockets, and /tmp refuses a folder", error.value)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_ray_runs_where_the_path_of_tmpdir_is_long_and_leaves_nothing(tmp_path, killed):
    """Whether the run comes to its end or is killed."""
    code = f"""
import os, time
from csdn.cluster.session import _own_folder, ray_session
with ray_session(None, cpus=1):
    import ray
    print(ray.get(ray.remote(lambda: "works").remote()), os.environ["RAY_TMPDIR"], flush=True)
    time.sleep({60 if killed else 0})
"""
    long = tmp_path / ("x" * 60) / ("y" * 60)
    long.mkdir(parents=True)
    environment = {**os.environ, "TMPDIR": str(long)}
    command = [sys.executable, "-c", code]
    started = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    said, folder = started.stdout.readline().split()
    if killed:
        started.kill()
    started.wait()
    assert said == "works" and folder.startswith("/tmp/csdn-ray-")
    ended = time.monotonic() + 20
    while Path(folder).exists():
        assert time.monotonic() < ended
        time.sleep(0.1)
    assert list(long.iterdir()) == []


def test_a_cluster_that_does_not_answer_is_a_clear_error(fault):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers there
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with (
            pytest.raises(UserError, match=f"{address} does not answer.*\n.*scaling.workers") as error,
            ray_session(address, cpus=1),
        ):
            raise AssertionError
    fault("processes", "a Ray cluster that does not answer", str(error.value).replace(address, "HOST:PORT"))


def test_a_loss_is_told_with_each_worker_and_its_error():
    from csdn.cluster.lost_workers import sentence

    note = sentence({2: RuntimeError("x"), 0: OSError()})
    assert note == "lost worker 0 (OSError), 2 (RuntimeError): back to the last checkpoint"
