"""Says that workers are lost as soon as Ray Train knows it; until they work again, minutes may pass."""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import ray
import ray.train
from torch import Tensor

from csdn.cluster.ray_loader import RayTrainLoader
from csdn.cluster.session import ray_session
from csdn.data.state import CheckpointTimer, as_files, saved_files
from csdn.model.device import configure_torch
from csdn.params import Params, ScalingParams
from csdn.runtime.errors import UserError
from csdn.training.checkpoint import CheckpointStore, Saved, model_tensors, restore_model
from csdn.training.distributed import rank_and_world_size
from csdn.training.embedding import EmbeddingWork, train_embedding


class WorkerFailureCallback(ray.train.UserCallback):
    """Lives in Ray Train's controller; puts a sentence on the board whenever workers end early."""

    def __init__(self, board: Any) -> None:
        self.board = board

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        self.board.note.remote(sentence(worker_exceptions))


def sentence(errors: Mapping[int, Exception]) -> str:
    """errors: by the worker's rank. As in "lost worker 1 (OutOfMemoryError): back to the last checkpoint"."""
    workers = ", ".join(f"{rank} ({type(errors[rank]).__name__})" for rank in sorted(errors))
    return f"lost worker {workers}: back to the last checkpoint"


# What the process that waits for the workers is told: how far they are, who is lost, what ended them.


SECONDS = 0.5  # between two looks at the board


class ProgressActor:
    """Lives in a process of its own (a Ray actor), beside the one that waits."""

    def __init__(self) -> None:
        self._progress: tuple[Any, ...] | None = None
        self._notes: list[str] = []
        self._failure: UserError | None = None

    def put(self, done: int, total: int, values: Mapping[str, float]) -> None:
        self._progress = (done, total, dict(values))

    def note(self, what: str) -> None:
        """Note that workers are lost, or will be; those that a mistake ends, as `fail` has it, are not."""
        if not self._failure:
            self._notes.append(what)

    def seen(self) -> tuple[tuple[Any, ...] | None, list[str]]:
        """The latest (done, total, values), or None; all that was noted so far."""
        return self._progress, self._notes

    def fail(self, error: UserError) -> None:
        """Note a UserError: another try would meet it again."""
        self._failure = self._failure or error

    def failure(self) -> UserError | None:
        return self._failure


@contextmanager
def progress_actor(report: Callable[..., None]) -> Iterator[Any]:
    """The handle of a new board; while the block runs, `report` is called with what is put on it."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Not soft: from a head without cores Ray would then take any node, and lose the board with it.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = ray.remote(num_cpus=0, scheduling_strategy=here)(ProgressActor).remote()
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(board, report, ended), daemon=True)
    watcher.start()
    try:
        yield board
    finally:
        ended.set()
        watcher.join()


def _watch(board: Any, report: Callable[..., None], ended: threading.Event) -> None:
    import ray

    shown, told = None, 0
    last = False
    while not last:
        last = ended.wait(SECONDS)  # once more after the end
        try:
            found, notes = ray.get(board.seen.remote(), timeout=10)
        except ray.exceptions.RayError:  # the cluster is busy or gone: `fit` says so
            continue
        for sentence in notes[told:]:
            report(*(shown or (0, None, None)), sentence)
        if found != shown:
            report(*found)
        shown, told = found, len(notes)


# What each worker of Ray Train does: its part of every batch, and checkpoints together with the others.


ANNOUNCED = "a node of the workers is announced to go: they save, and go on elsewhere when it has gone"


def train_worker(config: dict[str, Any]) -> None:
    """Train in this worker; a mistake of the user is noted on the board, and not tried again."""
    board = config["board"]
    if ray.get(board.failure.remote()):
        return
    work, resume = ray.get(config["job"])
    try:
        _train(work, WorkerState(resume, board), config["scaling"], board)
    except UserError as error:
        ray.get(board.fail.remote(error))
        raise


def _train(work: EmbeddingWork, state: WorkerState, scaling: ScalingParams, board: Any) -> None:
    device = configure_torch(
        scaling.threads or scaling.cpus_per_worker,
        "cuda" if scaling.use_gpu else "cpu",
        work.precision,
    )
    rank, size = rank_and_world_size()

    def report(done: int, total: int, values: Mapping[str, float]) -> None:
        if rank == 0:
            board.put.remote(done, total, values)

    feed = RayTrainLoader(work.source, work.settings.epochs, rank, size)
    model = work.model.to(device)
    timer = CheckpointTimer(max_s=scaling.checkpoint_seconds)
    text_table = work.text_table.to(device)
    rows = train_embedding(model, text_table, feed, work.settings, state, report, timer, work.precision)
    state.save({"epoch": work.settings.epochs, "step": 0, "log": rows}, model_tensors(model))


class WorkerState:
    """A state that is kept by Ray Train: in its storage, known to it for a restart of the workers.

    resume: what earlier runs have saved, for a first start. board: where a node that will go is noted. The
    methods are those of csdn.data.state.StageState; all workers call each of them together.
    """

    def __init__(self, resume: Saved | None, board: Any) -> None:
        self.resume, self.board = resume, board
        self.noticed: Any = None

    def load(self) -> Saved | None:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return self.resume
        with checkpoint.as_directory() as folder:
            return saved_files(lambda name: (Path(folder) / name).read_bytes()) or self.resume

    def save(self, position: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> None:
        """Hand the state to Ray Train; the first worker writes it, the others wait until it stands."""
        if rank_and_world_size()[0] != 0:
            ray.train.report({})
            return
        with tempfile.TemporaryDirectory() as folder:
            for name, data in as_files(position, tensors).items():
                (Path(folder) / name).write_bytes(data)
            ray.train.report({}, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def leaving(self) -> bool:
        """Whether Ray has just announced that a node of these workers goes: once for each announcement."""
        found = ray.train.get_preemption_info()
        new = found is not None and found != self.noticed
        self.noticed = found
        if new and rank_and_world_size()[0] == 0:
            self.board.note.remote(ANNOUNCED)
        return new


# Stage 2 on Ray: csdn.training's loop in workers of Ray Train, fed by Ray Data.


# Checkpoints that an attempt keeps: the last one, and the one before until that is whole.
KEPT = 2


def train_on_ray(
    params: Params, work: EmbeddingWork, attempts: CheckpointStore, report: Callable[..., None]
) -> list[dict[str, Any]]:
    """The loop in `scaling.workers` workers; the losses and the model are those of the plain process.

    Only this process reads and writes the project's files. The workers, which may be elsewhere, need this
    package, the shards, and `scaling.checkpoint_dir` for their checkpoints. Raises UserError.
    """
    scaling = params.scaling
    cores = scaling.workers * scaling.cpus_per_worker + max(1, scaling.loader_workers)
    with ray_session(scaling.address, cores):
        import ray

        _note_missing_cores(ray.cluster_resources().get("CPU", 0), scaling)
        job = ray.put((work, attempts.load()))
        attempts.forget_others()
        with progress_actor(report) as board:
            _fit(scaling, {"job": job, "board": board, "scaling": scaling}, attempts)
    position, tensors = attempts.load()
    restore_model(work.model, tensors)
    return position["log"]


def _note_missing_cores(there: float, scaling: ScalingParams) -> None:
    """Say what Ray would wait for in silence; a cluster that grows by itself will have them."""
    asked = scaling.workers * scaling.cpus_per_worker
    if there <= asked:
        print(
            f"the Ray cluster has {there:.0f} cores; {asked} are for the workers (scaling.workers x "
            "scaling.cpus_per_worker), and at least one is for making batches: waiting until it has grown",
            file=sys.stderr,
        )


def _fit(scaling: ScalingParams, config: dict[str, Any], attempts: CheckpointStore) -> None:
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    pass
    pass

    attempts.filesystem.create_dir(attempts.folder, recursive=True)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=config,
        torch_config=TorchConfig(backend="nccl" if scaling.use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=scaling.workers,
            use_gpu=scaling.use_gpu,
            resources_per_worker={"CPU": scaling.cpus_per_worker} | ({"GPU": 1} if scaling.use_gpu else {}),
        ),
        run_config=RunConfig(
            name=secrets.token_hex(8),
            storage_path=attempts.folder,
            storage_filesystem=attempts.filesystem,
            checkpoint_config=CheckpointConfig(num_to_keep=KEPT),
            failure_config=FailureConfig(max_failures=scaling.max_failures),
            callbacks=[WorkerFailureCallback(config["board"])],
        ),
    )
    try:
        # There Ray prints the last twenty lines that a lost node had logged.
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
            trainer.fit()
    except TrainingFailedError as error:
        raise UserError(
            f"training on Ray failed after {scaling.max_failures} restarts; the last checkpoint is kept: "
            f"run the same command again to go on from it\n{error}"
        ) from error
    if failure := ray.get(config["board"].failure.remote()):
        raise failure
