"""The command csdn serve: search and gallery over HTTP (docs/service.md)."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from csdn.cli.search import PARAMS, Model, model_folder, thresholds_places
from csdn.params import load_params
from csdn.runtime.errors import UserError
from csdn.runtime.process import LOOPBACK
from csdn.runtime.sanitize import escape_control_chars

if TYPE_CHECKING:
    from csdn.search.limits import Limits
    from csdn.search.service import Settings

TOKEN = "CSDN_TOKEN"
BACKLOG = 1024  # connections that wait to be accepted
END_SECONDS = 10  # for requests that are being served when the service is stopped


def serve(
    gallery: Annotated[str, typer.Option(help="A folder, or s3://bucket/prefix.")],
    model: Model = None,
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: a free one.", min=0, max=65535)] = 8000,
    rate: Annotated[float, typer.Option(help="Requests a second of one client address.", min=0.01)] = 100,
    at_a_time: Annotated[
        int, typer.Option(help="Requests that are served or wait; more get status 429.", min=1)
    ] = 64,
    body_mib: Annotated[float, typer.Option(help="MiB of a request.", min=0.001)] = 16,
    ray: Annotated[bool, typer.Option(help="Under Ray Serve, on RAY_ADDRESS or here.")] = False,
) -> None:
    """Serve search and gallery over HTTP. CSDN_TOKEN in the environment is what clients must send.

    Without CSDN_TOKEN it listens on this machine's loopback addresses alone.
    """
    from csdn.search.gallery import Gallery
    from csdn.search.limits import Limits
    from csdn.search.service import Settings

    token = os.environ.get(TOKEN) or None
    if token is None and host not in LOOPBACK:
        raise UserError(
            f"--host {host}: without a token everybody who reaches it could read and change the gallery; set "
            f"{TOKEN} to a long random text, such as of `openssl rand -hex 32`, or listen at 127.0.0.1"
        )
    if ray and port == 0:
        raise UserError("--port 0: Ray Serve does not choose a port; name one")
    limits = Limits(body_mib=body_mib, rate=rate, requests=at_a_time)
    params = load_params(PARAMS) if PARAMS.exists() else None
    folder = model_folder(model, Gallery.open(gallery).manifest.model).absolute()
    settings = Settings(
        gallery if "://" in gallery else str(Path(gallery).absolute()),
        folder,
        tuple(path.absolute() for path in thresholds_places(folder)),
        params.ingest.grey16_range if params else {},
        device=params.scaling.device if params else "auto",
        threads=params.scaling.threads if params else 0,
        project=None if model else Path.cwd(),
    )
    if token is None:
        typer.echo(f"no {TOKEN} is set: requests of this machine alone are served, without a token", err=True)
    if ray:
        from csdn.cluster.serve import serve_on_ray

        gpus = int(params.scaling.use_gpu) if params else 0
        serve_on_ray(settings, limits, token, host, port, gpus, _say)
    else:
        _serve_here(settings, limits, token, host, port)


def _serve_here(settings: Settings, limits: Limits, token: str | None, host: str, port: int) -> None:
    """Serve by uvicorn in this process until it is stopped."""
    import uvicorn

    from csdn.search.service import Service
    from csdn.search.web import create_app

    app = create_app(Service(settings), limits, token)
    listener = _listen(host, port)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,  # /metrics counts requests
        ws="none",
        server_header=False,
        # Which address a rate belongs to: uvicorn would believe a header of any program on this machine.
        proxy_headers="FORWARDED_ALLOW_IPS" in os.environ,
        timeout_graceful_shutdown=END_SECONDS,
    )
    _say(listener.getsockname()[0], listener.getsockname()[1])
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # With its protocol: else asyncio does not set TCP_NODELAY, and each answer waits 40 ms.
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
        return listener
    except OSError as error:
        raise UserError(f"cannot listen at {host}:{port}: {error.strerror}; choose --host, --port") from error


def _say(host: str, port: int) -> None:
    name = f"[{host}]" if ":" in host else host
    print(escape_control_chars(f"http://{name}:{port} serves; Ctrl-C stops it"), flush=True)
