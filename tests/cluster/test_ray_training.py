"""Stage 2 in workers of Ray Train: the model of a single process, even if workers are killed."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import time

import pytest
from fsspec.implementations.local import LocalFileSystem
from ray_work import (
    ON_RAY,
    difference,
    make_params,
    make_state,
    make_work,
    same_bytes,
    train_plainly,
    worker_pids,
    write_images,
)

from csdn.data.checkpoint_store import CheckpointStore
from csdn.data.loader import TrainSource
from csdn.runtime.errors import Diverged, UserError
from csdn.training.distributed import rank_and_world_size
from csdn.training.embedding import train_local

pytestmark = ON_RAY
TOLERANCE = 1e-4


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def plain(images, tmp_path_factory):
    """(model, log) of a single process."""
    work = make_work(images)
    return work.model, train_plainly(work, make_state(tmp_path_factory.mktemp("plain") / "state"))


@pytest.fixture(scope="module")
def ray_instance():
    """One Ray instance for all tests here."""
    from csdn.cluster.session import ray_session

    with ray_session(None, cpus=5):
        yield


def train(images, state, workers, report=lambda *_: None, **scaling):
    from csdn.cluster.train import train_on_ray

    work = make_work(images)
    return work.model, train_on_ray(make_params(workers, **scaling), work, state, report)


def test_one_worker_trains_the_bytes_of_a_single_process(ray_instance, images, plain, tmp_path):
    model, rows = train(images, make_state(tmp_path / "state"), 1)
    assert same_bytes(model, plain[0])
    assert rows == plain[1]


def test_an_older_checkpoint_is_not_taken_for_the_model(ray_instance, images, tmp_path, monkeypatch):
    """As where a disk has altered the last one."""
    state = make_state(tmp_path / "state")
    loaded = iter([None, ({"epoch": 2, "step": 0, "log": []}, {})])
    monkeypatch.setattr(state, "load", lambda: next(loaded))
    with pytest.raises(UserError, match="the workers' last checkpoint is missing or damaged"):
        train(images, state, 1)


@pytest.fixture(scope="module")
def two_workers(ray_instance, images, tmp_path_factory):
    """(model, log, reports) of two undisturbed workers."""
    reports = []
    state = make_state(tmp_path_factory.mktemp("two") / "state")
    return *train(images, state, 2, lambda *report: reports.append(report)), reports


def test_two_workers_train_the_same_model(two_workers, plain):
    model, rows, reports = two_workers
    assert 0 < difference(model, plain[0]) < TOLERANCE
    assert_same_losses(rows, plain[1])
    assert reports[-1][:2] == (15, 15)
    assert 0 <= reports[-1][2]["waiting"] <= 1


def assert_same_losses(rows, expected):
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for one, other in zip(rows, expected, strict=True):
        assert one == pytest.approx(other, rel=10 * TOLERANCE)


def test_a_killed_worker_is_replaced_and_the_bytes_are_those_of_an_undisturbed_run(
    two_workers, images, tmp_path, fault
):
    killed = []

    def kill_one(done, *_):
        if done >= 7 and not killed:
            killed.extend(worker_pids())
            os.kill(killed[-1], signal.SIGKILL)

    model, rows = train(images, make_state(tmp_path / "killed"), 2, kill_one)
    assert len(killed) == 2
    assert same_bytes(model, two_workers[0])
    assert rows == two_workers[1]
    fault(
        "processes",
        "a training worker on Ray was killed (SIGKILL) in the middle of an epoch",
        "Ray restarts the workers from the last checkpoint, up to scaling.max_failures times; same bytes.",
    )


@pytest.fixture(scope="module")
def stopped(ray_instance, images, tmp_path_factory):
    """(state of a stopped process, state of two workers that continued from it, the error of these)."""
    plain, two = (make_state(tmp_path_factory.mktemp("stopped") / "state") for _ in range(2))
    with pytest.raises(Killed):
        stop_at(6, images, plain, 0)
    shutil.copytree(plain.folder, two.folder, dirs_exist_ok=True)
    with pytest.raises(UserError) as error:
        stop_at(9, images, two, 2)
    return plain, two, str(error.value)


@pytest.mark.parametrize("workers", [4, 0])
def test_another_number_of_workers_continues_a_stopped_run(stopped, images, plain, tmp_path, workers, fault):
    """The run was stopped twice before: with one process, then with two workers. Four workers share the six
    people of a batch, with two images of each.
    """
    shutil.copytree(stopped[1].folder, tmp_path / "state")
    state = CheckpointStore(tmp_path / "state")
    first, second = stopped[0].load()[0]["log"], state.load()[0]["log"]
    assert 0 < len(first) < len(second) < 15
    assert second[: len(first)] == first
    reported = []
    model, rows = resume(images, state, workers, lambda done, *_: reported.append(done))
    assert reported[0] > len(second)
    assert rows[: len(second)] == second
    assert_same_losses(rows, plain[1])
    assert difference(model, plain[0]) < TOLERANCE
    message = stopped[2].splitlines()[0]
    fault("processes", "more training workers on Ray died than scaling.max_failures", message)


def stop_at(step, images, state, workers):
    def stop(done, *_):
        if done >= step:
            if not workers:
                raise Killed
            for pid in worker_pids()[:1]:
                os.kill(pid, signal.SIGKILL)

    resume(images, state, workers, stop, max_failures=0)


def resume(images, state, workers, report, **scaling):
    if workers:
        return train(images, state, workers, report, **scaling)
    work = make_work(images)
    return work.model, train_local(make_params(0, loader_workers=0), work, state, report)


def test_a_user_error_is_not_retried(ray_instance, tmp_path):
    root = write_images(tmp_path / "images")
    for shard in (root / "shards").iterdir():
        shard.write_bytes(shard.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"shards/.*\.tar: ends before byte"):
        train(root, make_state(tmp_path / "state"), 1)


def test_a_diverged_training_ends_all_workers_and_is_not_retried(ray_instance, images, tmp_path):
    """A pixel in the second worker's part of step 3 is NaN."""
    from csdn.cluster.train import train_on_ray

    class Spoilt(TrainSource):  # a local class, so that it is pickled by value
        def finished(self, batch):
            made = super().finished(batch)
            if batch.step == 2 and rank_and_world_size()[0] == 1:
                made.infrared[0] = float("nan")
            return made

    work, state = make_work(images), make_state(tmp_path / "state")
    work.source.__class__ = Spoilt
    reports = []
    with pytest.raises(Diverged, match=r"epoch 1, step 3, .*total = nan"):
        train_on_ray(make_params(2), work, state, lambda *report: reports.append(report))
    assert not [report for report in reports if "lost worker" in str(report)]
    position, tensors = state.load()
    # The second step's, unless the first one's was still being uploaded.
    assert position["epoch"] == 0 and position["step"] in (1, 2)
    assert all(tensor.isfinite().all() for tensor in tensors.values())


class StorageState(CheckpointStore):
    """Attempts in a folder; `before_write(path)` is called in the worker before it writes a file there."""

    def __init__(self, folder, before_write):
        super().__init__(folder)
        self.before_write = before_write

    def prepared_storage(self):
        return file_system(self.before_write), super().prepared_storage()[1]


def file_system(before_write):
    def make():  # local, so that it is pickled by value: workers cannot import this module
        class Hooked(LocalFileSystem):
            protocol = "hooked"

            def _open(self, path, mode="rb", **options):
                if "w" in mode:
                    before_write(path)
                return super()._open(path, mode, **options)

            def __reduce__(self):
                return make, ()

            def __eq__(self, other):  # each unpickling makes a class of its own
                return self.protocol == other.protocol

            __hash__ = LocalFileSystem.__hash__

        return Hooked()

    return make()


def test_a_slow_store_does_not_delay_the_workers_and_the_model_is_complete(
    ray_instance, images, plain, tmp_path
):
    complete = {}

    def report(done, *_):
        complete[done] = len(list(tmp_path.rglob("checkpoint_*/state.json")))

    state = StorageState(tmp_path / "state", lambda path: time.sleep(4))
    model, rows = train(images, state, 1, report)
    assert same_bytes(model, plain[0]) and rows == plain[1]
    assert max(done for done, saved in complete.items() if not saved) >= 5, "steps waited for the first one"


def test_a_checkpoint_that_cannot_be_uploaded_is_reported(ray_instance, images, tmp_path):
    def full(path):
        if path.endswith("safetensors"):
            raise OSError(errno.ENOSPC, "No space left on device", path)

    with pytest.raises(UserError, match=r"training on Ray failed(.|\n)*No space left on device"):
        train(images, StorageState(tmp_path / "state", full), 1, max_failures=0)


def test_a_store_that_refuses_a_checkpoint_is_not_asked_again(ray_instance, images, tmp_path):
    def refused(path):
        if path.endswith("safetensors"):
            raise UserError("s3://bucket: access denied")

    with pytest.raises(UserError, match=r"^s3://bucket: access denied$"):
        train(images, StorageState(tmp_path / "state", refused), 1)


def test_a_cluster_without_a_core_for_the_loader_is_reported(capsys):
    from csdn.cluster.train import _warn_of_missing_cores

    _warn_of_missing_cores(3, make_params(2).scaling)
    assert not capsys.readouterr().err
    _warn_of_missing_cores(2, make_params(2).scaling)
    assert "has 2 cores; the workers need 2" in capsys.readouterr().err
