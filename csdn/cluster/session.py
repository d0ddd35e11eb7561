"""Connecting to Ray: the user's cluster, or an instance on this machine that ends with the run.

If the run is killed (SIGKILL), Ray's servers and workers end within seconds, and its two idle agents when
they look for their instance again, within about a minute.
"""

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

from csdn.runtime.errors import UserError
from csdn.runtime.sanitize import redact

CONNECT_SECONDS = 5.0
# The longest path that Ray appends to its temporary folder for a socket, and the bytes that a socket's path
# may have.
SOCKET_SUFFIX = "/ray/session_2026-11-28_23-59-59_999999_4194304/sockets/plasma_store"
MAX_SOCKET_PATH = 107


@contextmanager
def ray_session(address: str | None, cpus: int) -> Iterator[bool]:
    """Connect to Ray while the block runs; yields whether the instance is this machine's own.

    `address`, or else RAY_ADDRESS, names a cluster; without either, an instance with `cpus` logical cores is
    started, and shut down at the end. If this process is connected already, that connection is used and kept.
    Raises UserError if the cluster does not respond.
    """
    address = address or os.environ.get("RAY_ADDRESS") or None
    if address is None:
        _configure_local_instance()
    import ray  # after the environment is set

    if address is not None:
        _check_port(address)
    if ray.is_initialized():
        yield address is None
        return
    with _short_temp_folder() if address is None else nullcontext():
        _connect(ray, address, cpus)
        try:
            yield address is None
        finally:
            ray.shutdown()


def _configure_local_instance() -> None:
    # Ray listens on every interface: a token of this run, and not the one that Ray keeps in the home folder.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    # The workers do the work of this run: no lower priority than this process.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # A checkpoint counts from Ray Train's next check on: the sooner, the less a lost worker repeats.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    # One memory arena for all threads, as csdn.model.device.keep_memory needs it.
    os.environ.setdefault("MALLOC_ARENA_MAX", "1")


def _check_port(address: str) -> None:
    """Raise UserError if nothing listens at a `host:port`; Ray would try for three minutes, then exit."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and "/" not in host:
        try:
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        except OSError as error:
            raise _unusable(address, error) from error


@contextmanager
def _short_temp_folder() -> Iterator[None]:
    """A temporary folder for the local instance, in the block, where Ray cannot use the default one.

    The default path may be too long for sockets, as in many cluster jobs, or relative, which each of Ray's
    processes would resolve differently. Raises UserError.
    """
    default = _default_temp_folder()
    if Path(default).is_absolute() and len(os.fsencode(default + SOCKET_SUFFIX)) <= MAX_SOCKET_PATH:
        yield
        return
    try:
        folder = tempfile.TemporaryDirectory(prefix="csdn-ray-", dir="/tmp", ignore_cleanup_errors=True)
    except OSError as error:
        raise UserError(
            f"Ray did not start: the path of its temporary folder {default!r} (TMPDIR, RAY_TMPDIR) is "
            f"relative or too long for sockets, and no folder can be made in /tmp ({error.strerror}); set "
            "RAY_TMPDIR to a folder with a short path"
        ) from error
    before = os.environ.get("RAY_TMPDIR")
    with folder:
        os.environ["RAY_TMPDIR"] = folder.name
        try:
            yield
        finally:
            del os.environ["RAY_TMPDIR"]
            if before is not None:
                os.environ["RAY_TMPDIR"] = before


def _default_temp_folder() -> str:
    """The folder below which Ray writes its files."""
    return os.environ.get("RAY_TMPDIR", os.environ.get("TMPDIR", "/tmp"))


def _connect(ray: ModuleType, address: str | None, cpus: int) -> None:
    try:
        # Output of workers stays in Ray's logs: a lost node prints a hundred lines. Fatal errors are raised.
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address is None:
            # "local" starts a new instance, even if another one runs on this machine.
            ray.init("local", num_cpus=cpus, include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except Exception as error:  # Ray raises no narrower class if its servers do not start
        raise _unusable(address, error) from error


def _unusable(address: str | None, error: Exception) -> UserError:
    if address is not None:
        what = f"the Ray cluster at {redact(address)} does not respond"
        advice = "Correct scaling.address or RAY_ADDRESS"
    else:
        what, advice = (
            "Ray did not start",
            f"See its logs in {_default_temp_folder()}/ray (RAY_TMPDIR, TMPDIR)",
        )
    return UserError(f"{what}: {error}\n{advice}, or set scaling.workers to 0 to work in this process")
