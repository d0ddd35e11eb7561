"""Ray Data executes the same plan: the DataLoader's tensors, the workers' parts, bounded memory; sessions."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from feed_data import train_source, write_data
from processes import descendants

from csdn.cluster.session import _short_temp_folder, ray_session
from csdn.data.catalog import load_dataset
from csdn.data.loader import TrainLoader, row_bytes, view_bytes
from csdn.runtime.errors import ServiceUnavailable, UserError

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
    return train_source(load_dataset(data).train_table(), data / "shards", people, 2, size)


def assert_same(one, other):
    assert (one.epoch, one.step) == (other.epoch, other.step)
    for name in VIEWS:
        assert torch.equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.slow
@pytest.mark.parametrize("start", [(0, 0), (2, 4)])
def test_ray_data_gives_the_tensors_of_the_dataloader_bit_for_bit(ray_instance, data, start, monkeypatch):
    from csdn.cluster import ray_data
    from csdn.cluster.ray_loader import RayTrainLoader

    monkeypatch.setattr(ray_data, "TASKS_PER_CHUNK", 3)  # a chunk ends in the middle of an epoch
    monkeypatch.setattr(ray_data, "STEPS_PER_TASK", 3)
    plain, over_ray = TrainLoader(source(data), 0), RayTrainLoader(source(data), EPOCHS)
    assert over_ray.steps_per_epoch == plain.steps_per_epoch == 7
    first, step = start
    for epoch in range(first, EPOCHS):
        batches = list(over_ray.epoch(epoch, step))
        assert len(batches) == plain.steps_per_epoch - step
        for one, other in zip(plain.epoch(epoch, step), batches, strict=True):
            assert_same(one, other)
        step = 0


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])  # four workers share six people
def test_the_parts_of_the_workers_make_up_each_batch(ray_instance, data, size):
    from csdn.cluster.ray_data import PlanChunk, chunk_dataset

    made = source(data, people=6)
    chunk = PlanChunk(made, 0, 2 * made.steps_per_epoch, size)
    found = iterate_together(chunk_dataset(chunk, made).streaming_split(size))
    for rank, rows in enumerate(found):
        assert [row["step"].item() for row in rows] == list(range(chunk.first, chunk.last))
        assert {row["rank"].item() for row in rows} == {rank}
    plain = TrainLoader(made, 0)
    whole = [batch for epoch in (0, 1) for batch in plain.epoch(epoch)]
    for step, batch in enumerate(whole):
        parts = []
        for rank in range(size):
            row = chunk.batch(step, rank)
            views = (found[rank][step][name][0].copy() for name in ("pixels", "boxes", "channels"))
            parts.append(made.finished(view_bytes(row, *views)))
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
def test_the_object_store_holds_a_few_blocks_however_long_the_training(ray_instance, data, monkeypatch):
    from csdn.cluster import ray_data
    from csdn.cluster.ray_loader import RayTrainLoader

    monkeypatch.setattr(ray_data, "STEPS_PER_TASK", 4)
    epochs = 200
    made = source(data, people=6, size=(288, 144))
    ray_loader = RayTrainLoader(made, epochs)
    count = sum(1 for epoch in range(epochs) for _ in ray_loader.epoch(epoch))
    assert count == epochs * ray_loader.steps_per_epoch
    # What tasks are writing and the consumer reads ahead comes on top of Ray's limit.
    block = ray_data.block_bytes(made, 1)
    bound = 4 * ray_data.BLOCKS_STORED * block
    assert count / ray_data.STEPS_PER_TASK * block > 4 * bound
    assert 0 < most_stored() < bound


@pytest.mark.parametrize(
    ("images", "rows"),
    # A row is three times as many images of 288 x 144 x 3 bytes, and 128 MiB hold 359 of those.
    [(1, 16), (22, 16), (23, 15), (44, 8), (89, 4), (90, 3), (179, 2), (180, 1), (10_000, 1)],
)
@pytest.mark.parametrize("size", [1, 2, 8])
def test_a_task_reads_as_many_steps_as_ray_data_does_not_split(images, rows, size):
    from csdn.cluster.ray_data import block_bytes, chunk_length, steps_per_task

    made = SimpleNamespace(people=size, images=images, image_size=(288, 144))
    assert steps_per_task(made, size) == rows
    assert block_bytes(made, size) == rows * 3 * images * 288 * 144 * 3
    assert block_bytes(made, size) <= 128 * 2**20 or rows == 1
    assert chunk_length(made, size) == 2000 // size * rows


@pytest.mark.slow
@pytest.mark.parametrize(("images", "steps"), [(64, 14), (256, 4)])
def test_each_worker_gets_its_part_of_large_batches(ray_instance, tmp_path, images, steps, monkeypatch):
    """At 288x144, `images` of a modality for each worker: 14 steps of the plan have 319 MiB, 4 have 364."""
    from csdn.cluster import ray_loader
    from csdn.cluster.ray_loader import RayTrainLoader

    write_data(tmp_path, sizes=((288, 144),))
    table = load_dataset(tmp_path).train_table()
    workers, people = 2, 4
    made = train_source(table, tmp_path / "shards", people, workers * images // people, (288, 144))
    assert made.steps_per_epoch == 1
    given, all_there = [], threading.Barrier(workers)

    def broadcast(parts):
        """What Ray Train does for its workers, which are threads here: all get what the first one gives."""
        given.extend(parts or ())
        all_there.wait(timeout=60)
        return given

    monkeypatch.setattr(ray_loader.ray.train.collective, "broadcast_from_rank_zero", broadcast)

    def work(rank):
        over_ray = RayTrainLoader(made, steps, rank, workers)
        for epoch in range(steps):
            (batch,) = over_ray.epoch(epoch)
            row = made.plan(epoch).slice(rank, workers)[0]
            assert batch.labels.tolist() == row.labels.tolist()
        assert_same(batch, made.finished(row_bytes(made.rows, row)))

    with ThreadPoolExecutor(workers) as threads:
        list(threads.map(work, range(workers)))


def most_stored() -> int:
    """Bytes of the object store's file that were ever used: what it allocated once it gives out again."""
    for process in descendants():
        with suppress(OSError):
            for file in Path(f"/proc/{process.pid}/fd").iterdir():
                if b"plasma" in os.fsencode(file.readlink()):
                    return file.stat().st_blocks * 512
    raise AssertionError("no process has the object store's file open")


@pytest.mark.slow
def test_a_shard_damaged_after_ingest_is_named_by_ray_data_too(ray_instance, tmp_path):
    from csdn.cluster.ray_loader import RayTrainLoader

    write_data(tmp_path)
    damaged = RayTrainLoader(source(tmp_path), 1)
    for shard in (tmp_path / "shards").iterdir():
        shard.write_bytes(shard.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"shards/.*\.tar: ends before byte"):
        list(damaged.epoch(0))


@pytest.mark.slow
def test_an_outage_in_a_task_of_ray_data_is_one_here_too(ray_instance):
    from csdn.cluster.ray_data import checked, in_order

    def unavailable(number):
        try:
            raise ServiceUnavailable("the store is away")
        except ServiceUnavailable as error:
            raise UserError(f"task {number}") from error

    blocks = in_order(1, unavailable).iter_batches(batch_size=None, batch_format="numpy")
    with pytest.raises(ServiceUnavailable, match="task 0"):
        list(map(checked, blocks))


def test_stages_import_ray_only_in_a_session():
    """Ray reads the token, and whether there is one, from the environment when it is imported."""
    modules = "csdn.cluster.extract, csdn.cluster.ingest, csdn.cluster.train"
    program = f"import sys, {modules}; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
@pytest.mark.parametrize(("length", "own"), [(39, False), (40, True), (300, True)])
def test_ray_gets_a_short_temporary_folder_if_the_path_of_a_socket_would_be_too_long(
    monkeypatch, variable, length, own
):
    """A socket's path has 107 bytes at most, of which Ray's own part may take 68."""
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(variable, "/" + "é" * ((length - 1) // 2) + "x" * ((length - 1) % 2))
    default = os.environ.get("RAY_TMPDIR")
    with _short_temp_folder():
        assert (os.environ.get("RAY_TMPDIR") != default) == own
    assert os.environ.get("RAY_TMPDIR") == default


@pytest.mark.parametrize("path", ["tmp", "./tmp", ""])
def test_ray_gets_an_absolute_temporary_folder(monkeypatch, path):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", path)
    with _short_temp_folder():
        assert Path(os.environ["RAY_TMPDIR"]).is_absolute()


def test_the_error_of_a_local_instance_names_its_logs_and_no_address(monkeypatch, tmp_path):
    from csdn.cluster.session import _unusable

    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    said = str(_unusable(None, Exception("The current node timed out during startup")))
    assert "timed out" in said and f"{tmp_path}/ray" in said and "scaling.workers" in said
    assert "RAY_ADDRESS" not in said


def test_without_a_short_folder_the_error_names_the_variable_to_set(monkeypatch, fault):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryDirectory", refuse)
    monkeypatch.setenv("RAY_TMPDIR", "/scratch/" + "x" * 90)
    with pytest.raises(UserError, match="RAY_TMPDIR") as error, _short_temp_folder():
        raise AssertionError
    fault("processes", "TMPDIR has too long a path for Ray's sockets, and /tmp refuses a folder", error.value)


@pytest.mark.slow
def test_ray_runs_with_a_long_tmpdir_and_leaves_nothing(tmp_path):
    code = """
import os
from csdn.cluster.session import ray_session
with ray_session(None, cpus=1):
    import ray
    print(ray.get(ray.remote(lambda: "works").remote()), os.environ["RAY_TMPDIR"], flush=True)
"""
    long = tmp_path / ("x" * 60) / ("y" * 60)
    long.mkdir(parents=True)
    environment = {**os.environ, "TMPDIR": str(long)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    said, folder = done.stdout.split()
    assert said == "works" and folder.startswith("/tmp/csdn-ray-")
    assert not Path(folder).exists() and list(long.iterdir()) == []


def test_a_cluster_that_does_not_respond_is_a_clear_error(fault):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with (
            pytest.raises(UserError, match=f"{address} does not respond.*\n.*scaling.workers") as error,
            ray_session(address, cpus=1),
        ):
            raise AssertionError
    fault("processes", "a Ray cluster that does not respond", str(error.value).replace(address, "HOST:PORT"))


def test_lost_workers_are_reported_with_rank_and_error():
    from csdn.cluster.worker import failure_note

    note = failure_note({2: RuntimeError("x"), 0: OSError()})
    assert note == "lost worker 0 (OSError), 2 (RuntimeError): back to the last checkpoint"
