"""Ray Data executes the same plan: the DataLoader's tensors, the workers' parts, bounded memory; sessions."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from feed_data import train_source, write_data
from processes import descendants

from csdn.cluster.session import _short_temp_folder, ray_session
from csdn.data.catalog import load_dataset
from csdn.data.loader import TrainLoader
from csdn.runtime.errors import ServiceUnavailable, UserError

SIZE = (64, 32)
IMAGE_BYTES = 3 * 3 * 64 * 32  # of an image pair's three views
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
@pytest.mark.parametrize(("start", "pairs"), [((0, 0), 12), ((2, 4), 4), ((2, 6), 3)])
def test_ray_data_gives_the_tensors_of_the_dataloader_bit_for_bit(
    ray_instance, data, start, pairs, monkeypatch
):
    """With blocks of 12, 4 and 3 image pairs; a row of the plan has 4."""
    from csdn.cluster import ray_data, ray_loader
    from csdn.cluster.ray_loader import RayTrainLoader

    monkeypatch.setattr(ray_loader, "TASKS_PER_CHUNK", 3)  # a chunk ends in the middle of an epoch
    monkeypatch.setattr(ray_data, "BLOCK_BYTES", pairs * IMAGE_BYTES)
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
    """The workers do not wait for each other."""
    from csdn.cluster.ray_loader import RayTrainLoader

    made = source(data, people=6)
    loaders = [RayTrainLoader(made, 2, rank, size) for rank in range(size)]
    plain = TrainLoader(made, 0)
    for epoch in (0, 1):
        with ThreadPoolExecutor(size) as threads:
            found = list(threads.map(lambda loader, epoch=epoch: list(loader.epoch(epoch)), loaders))
        for batch, parts in zip(plain.epoch(epoch), zip(*found, strict=True), strict=True):
            for name in VIEWS:
                joined = torch.cat([getattr(part, name) for part in parts])
                assert torch.equal(getattr(batch, name), joined), name


def received(rows):
    """What arrives of these parts of rows, without the images."""
    return [(row.epoch, row.step, row.positions, np.zeros((3, len(row.positions), 1))) for row in rows]


def test_images_in_another_order_than_the_plans_are_refused(data):
    from csdn.cluster.ray_data import Blocking
    from csdn.cluster.ray_loader import joined

    plan = source(data, people=6).plan(0)
    first, second, other_rank = plan[0], plan[1], plan.slice(1, 2)[0]
    parts = received(Blocking(rows=1, parts=3, images=12, image_bytes=1)._cut(first))
    assert joined(first, parts)[0].shape == (3, 12, 1)
    for wrong in (parts[::-1], received([second]), received([other_rank]), parts[:2], []):
        with pytest.raises(RuntimeError, match="epoch 0, step"):
            joined(first, wrong)


def test_a_task_receives_the_files_of_its_own_images_only(data):
    from csdn.cluster.ray_data import Blocking, ReadRows

    made = source(data)
    tasks = Blocking(2, 1, 4, 1).tasks([made.plan(0)[step] for step in range(5)], made.rows.images.files)
    assert [len(task.rows) for task in tasks] == [2, 2, 1]
    assert [len(task.files.offset) for task in tasks] == [16, 16, 8]
    reader = ReadRows(made.rows)
    assert len(reader.images.files.offset) == 0
    assert (reader(tasks[2])["pixels"] == made.rows(made.plan(0)[4]).pixels).all()


@pytest.mark.slow
def test_the_object_store_holds_a_few_blocks_however_long_the_training(ray_instance, data, monkeypatch):
    from csdn.cluster import ray_data
    from csdn.cluster.ray_loader import RayTrainLoader

    monkeypatch.setattr(ray_data, "BLOCK_BYTES", 2**24)
    epochs = 200
    made = source(data, people=6, size=(288, 144))
    ray_loader = RayTrainLoader(made, epochs)
    count = sum(1 for epoch in range(epochs) for _ in ray_loader.epoch(epoch))
    assert count == epochs * ray_loader.steps_per_epoch
    # What tasks are writing and the consumer reads ahead comes on top of Ray's limit.
    blocking = ray_loader.blocking
    bound = 4 * ray_data.BLOCKS_STORED * blocking.block_bytes
    assert count // blocking.rows * blocking.block_bytes > 4 * bound
    assert 0 < most_stored() < bound


@pytest.mark.parametrize(
    ("images", "rows", "parts"),
    # The three views of an image pair are 288 x 144 x 9 bytes, and 64 MiB hold 179 of those.
    [(1, 179, 1), (16, 11, 1), (64, 2, 1), (89, 2, 1), (90, 1, 1), (179, 1, 1), (180, 1, 2), (10_000, 1, 56)],
)
@pytest.mark.parametrize("size", [1, 2, 8])
def test_a_block_has_64_mib_at_most(images, rows, parts, size):
    from csdn.cluster.ray_data import Blocking

    blocking = Blocking.of(SimpleNamespace(people=size, images=images, image_size=(288, 144)), size)
    assert (blocking.rows, blocking.parts, blocking.images) == (rows, parts, images)
    assert blocking.block_bytes <= 64 * 2**20


@pytest.mark.slow
def test_large_batches_pass_through_a_tiny_object_store(tmp_path):
    """Two workers with 16, 64 and 256 images of each modality at 288x144, in a store of 80 MB: three views of
    256 images are 96 MB.
    """
    write_data(tmp_path, sizes=((288, 144),))
    command = [sys.executable, Path(__file__).parents[1] / "support" / "tiny_store.py", tmp_path]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.split() == ["16", "64", "256"]


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

    def unavailable(item):
        try:
            raise ServiceUnavailable("the store is away")
        except ServiceUnavailable as error:
            raise UserError(f"task {item}") from error

    blocks = in_order([0], unavailable).iter_batches(batch_size=None, batch_format="numpy")
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
