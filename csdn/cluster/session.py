"""The Ray instance of a run: the user's cluster, or one of this machine that ends with the run."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType

from csdn.cluster.guard import guarded
from csdn.runtime.errors import UserError
from csdn.runtime.sanitize import redact

CONNECT_SECONDS = 5.0
# What Ray adds to its temporary folder for a socket, with the time and a process's id at their longest, and
# the bytes that a socket's path may have.
SOCKET = "/ray/session_2026-11-28_23-59-59_999999_4194304/sockets/plasma_store"
SOCKET_PATH = 107
_OF_CLUSTER = "Correct scaling.address or RAY_ADDRESS"
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_DATA_LOG_LEVEL": "ERROR",  # below that it reports each data set
}


@contextmanager
def ray_session(address: str | None, cpus: int) -> Iterator[bool]:
    """Connect to Ray while the block runs; yields whether the instance is this machine's own.

    `address`, or else RAY_ADDRESS, names a cluster; without either an instance with `cpus` logical cores is
    started, and shut down at the end. An instance that this process uses already is used and left alone.
    Raises UserError where the cluster does not answer.
    """
    address = address or os.environ.get("RAY_ADDRESS") or None
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    if address is None:
        _configure_own_instance()
    import ray  # it reads the environment when it is imported

    if address is not None:
        _check_answer(address)
    if ray.is_initialized():
        yield address is None
        return
    with guarded(_own_folder()) if address is None else nullcontext():
        _connect(ray, address, cpus)
        try:
            yield address is None
        finally:
            ray.shutdown()


def _own_folder() -> str | None:
    """A temporary folder made for this run's instance, where the usual one's path is too long for sockets.

    That of a cluster's job often is. A relative path would be another one in each of Ray's processes. Raises
    UserError.
    """
    usual = _usual_folder()
    if Path(usual).is_absolute() and len(os.fsencode(usual + SOCKET)) <= SOCKET_PATH:
        return None
    try:
        return tempfile.mkdtemp(prefix="csdn-ray-", dir="/tmp")
    except OSError as error:
        raise UserError(
            f"Ray did not start: its temporary folder {usual!r} (TMPDIR, RAY_TMPDIR) has too long a path for "
            f"sockets, or a relative one, and none can be made in /tmp ({error.strerror}); set RAY_TMPDIR to "
            "a folder with a short path"
        ) from error


def _usual_folder() -> str:
    """Below which Ray has its files."""
    return os.environ.get("RAY_TMPDIR", os.environ.get("TMPDIR", "/tmp"))


def _connect(ray: ModuleType, address: str | None, cpus: int) -> None:
    try:
        # What workers print stays in Ray's logs: a lost node is a hundred lines. What ends a run is raised.
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address is None:
            # "local": not one that somebody else has started here.
            ray.init("local", num_cpus=cpus, include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except Exception as error:  # where its servers do not start, Ray raises no narrower one
        raise _unusable(address, error) from error


def _check_answer(address: str) -> None:
    """Raise UserError where nobody listens at a `host:port`: Ray would try for three minutes, then exit."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and "/" not in host:
        try:
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        except OSError as error:
            raise _unusable(address, error) from error


def _unusable(address: str | None, error: Exception) -> UserError:
    where, advice = f"the Ray cluster at {redact(address or '')} does not answer", _OF_CLUSTER
    if address is None:
        where, advice = "Ray did not start", f"See its logs in {_usual_folder()}/ray (RAY_TMPDIR, TMPDIR)"
    return UserError(f"{where}: {error}\n{advice}, or set scaling.workers to 0 to work in this process")


def _configure_own_instance() -> None:
    """A token for this run: Ray listens on every interface, and leaves its own in the home folder.

    No lower priority than that of this process: the workers are what the machine is wanted for. And Ray Train
    looks at them often, as they wait with each checkpoint until it does. One arena of memory for all threads,
    as csdn.model.device.keep_memory wants it.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("MALLOC_ARENA_MAX", "1")
