"""The service under Ray Serve: the application of csdn.search.web in a replica, with Serve's batching.

One replica, because a replica keeps the gallery's rows in memory and changes them. Ray chooses its node,
gives it a GPU with `scaling.use_gpu`, and starts it again if it is lost.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from csdn.cluster.session import ray_session
from csdn.runtime.errors import UserError
from csdn.runtime.process import available_cores
from csdn.search.limits import Limits
from csdn.search.search import PersonMatch
from csdn.search.service import BATCH, Query, Service, Settings, answer
from csdn.search.web import create_app

WAIT_SECONDS = 0.002  # for further queries of a batch


def serve_on_ray(
    settings: Settings,
    limits: Limits,
    token: str | None,
    host: str,
    port: int,
    gpus: int,
    started: Callable[[str, int], None],
) -> None:
    """Serve until this process is stopped; `started` is called with host and port. Raises UserError."""
    with suppress(KeyboardInterrupt), running(host, port):
        deploy(settings, limits, token, gpus)
        started(host, port)
        threading.Event().wait()


@contextmanager
def running(host: str, port: int) -> Iterator[None]:
    """Ray Serve, listening at an address of each node, while the block runs."""
    with ray_session(None, available_cores()):
        try:
            from ray import serve
        except ImportError as error:
            raise UserError(f"Ray Serve needs {error.name}: pip install 'csdn[ray,service]'") from error
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        serve.start(http_options={"host": host, "port": port})
        try:
            yield
        finally:
            serve.shutdown()


def deploy(settings: Settings, limits: Limits, token: str | None, gpus: int = 0) -> None:
    """Start the replica in a running Serve, and wait until it is ready."""
    from ray import serve

    def build() -> Any:
        return create_app(Service(settings, _batched()), limits, token)

    # More than the application's own limit, whose answer of 429 says when to try again.
    deployment = serve.deployment(
        name="csdn",
        num_replicas=1,
        max_ongoing_requests=4 * limits.requests,
        ray_actor_options={"num_gpus": gpus},
    )
    serve.run(deployment(serve.ingress(build)()).bind(), name="csdn", route_prefix="/")


def _batched() -> Callable[[Query], Any]:
    """`answer` for one query, batched by Serve."""
    from ray import serve

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=WAIT_SECONDS)
    async def find(queries: list[Query]) -> list[list[PersonMatch]]:
        return await asyncio.to_thread(answer, queries)

    return find
