"""The Ray instance of a run: the user's cluster, or one of this machine that ends with the run."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from csdn.errors import UserError

CONNECT_SECONDS = 5.0
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TRAIN_METRICS_ENABLED": "0"}


@contextmanager
def ray_session(address: str | None, cpus: int) -> Iterator[bool]:
    """Connect to Ray while the block runs; yields whether the instance is this machine's own.

    `address`, or else RAY_ADDRESS, names a cluster; without either an instance with `cpus` logical cores is
    started, and shut down at the end. An instance that this process uses already is used and left alone.
    Raises UserError where the cluster does not answer.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    os.environ.update(_QUIET)
    if address is None:
        _lock_own_instance()
    import ray  # it reads the environment when it is imported

    connected = ray.is_initialized()
    if not connected:
        _connect(address, cpus)
    try:
        yield address is None
    finally:
        if not connected:
            ray.shutdown()


def _connect(address: str | None, cpus: int) -> None:
    import ray

    # Ray's own answer to an address where nobody listens is three minutes of retries and SystemExit.
    try:
        if address is None:
            ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        else:
            _knock(address)
            ray.init(address=address, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        where = f"the Ray cluster at {address} does not answer" if address else "Ray did not start"
        raise UserError(
            f"{where}: {error}\n"
            "Correct scaling.address or RAY_ADDRESS, or set scaling.workers to 0 to train in this process"
        ) from error


def _knock(address: str) -> None:
    """Raise OSError where nobody listens at a `host:port`."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()


def _lock_own_instance() -> None:
    """A token for this run: Ray listens on every interface, and leaves its own in the home folder."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
