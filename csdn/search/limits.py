"""What the service refuses before it does any work: too many requests, wrong tokens, long and slow bodies.

One ASGI layer around the application. A request is refused before its body is read; a body without a declared
length is counted while it arrives. The limits belong to one process.
"""

from __future__ import annotations

import asyncio
import hmac
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from csdn.runtime.process import LOOPBACK

PROBES = ("/healthz", "/readyz")  # without limits, or a busy service would be restarted
# Without a token: they hold no data.
PUBLIC = (*PROBES, "/", "/page.css", "/page.js", "/openapi.json")
ADDRESSES = 10_000  # whose rate is kept; of more, those that were quiet the longest are forgotten
BURST_SECONDS = 2  # of a rate, that an address may use at once


@dataclass(frozen=True)
class Limits:
    """What one service accepts."""

    body_mib: float = 16  # of a request's body
    body_seconds: float = 30  # for a body to arrive
    rate: float = 100  # requests a second of one client address
    requests: int = 64  # at a time: arriving, waiting and being computed


class Refused(HTTPException):
    """An answer that is not a success: its JSON says what was wrong and what to do."""

    def __init__(self, status: int, error: str, advice: str, **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        super().__init__(status, {"error": error, "advice": advice}, named)

    def response(self) -> JSONResponse:
        return JSONResponse(self.detail, self.status_code, self.headers)


class RateLimiter:
    """A token bucket for each client address: `rate` requests a second, and a burst of BURST_SECONDS."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate, self.burst, self.clock = rate, max(1.0, rate * BURST_SECONDS), clock
        self.buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def seconds_to_wait(self, address: str) -> float:
        """0 where a request of the address is served now, and counted; else the seconds until one is."""
        now = self.clock()
        tokens, then = self.buckets.pop(address, (self.burst, now))
        tokens = min(self.burst, tokens + (now - then) * self.rate)
        served = tokens >= 1
        self.buckets[address] = (tokens - served, now)
        if len(self.buckets) > ADDRESSES:
            self.buckets.popitem(last=False)
        return 0.0 if served else (1 - tokens) / self.rate


class Metrics:
    """What GET /metrics shows of the requests."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "csdn_requests",
            "Requests by route and status.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "csdn_request_seconds",
            "Seconds from a request's first byte to its answer.",
            ["route"],
            registry=self.registry,
        )
        self.active = Gauge(
            "csdn_active_requests", "Requests of /v1 that are being served.", registry=self.registry
        )


class Guard:
    """The layer: `app` sees only the requests that pass the limits, and their bodies while they do."""

    def __init__(self, app: ASGIApp, limits: Limits, token: str | None, metrics: Metrics) -> None:
        self.app, self.limits, self.token, self.metrics = app, limits, token, metrics
        self.rates = RateLimiter(limits.rate)
        self.active = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.monotonic(), 500

        async def noting(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._serve(scope, receive, noting)
        finally:
            # The pattern of the path, as people's names are part of paths. Of other paths there is no end.
            route = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if route != "other" else "other"
            self.metrics.requests.labels(method, route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(time.monotonic() - started)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in PROBES:
            await self.app(scope, receive, send)
            return
        try:
            self._check(scope)
        except Refused as refused:
            await refused.response()(scope, receive, send)
            return
        work = is_work(scope)
        self.active += work
        self.metrics.active.set(self.active)
        try:
            await self.app(scope, self._limited(receive), send)
        finally:
            self.active -= work
            self.metrics.active.set(self.active)

    def _check(self, scope: Scope) -> None:
        """Raise Refused where the request is one too many, may not come from there, or announces too much."""
        headers = Headers(scope=scope)
        if wait := self.rates.seconds_to_wait(client_of(scope)):
            raise Refused(
                429,
                f"more than {self.limits.rate:g} requests a second from this address",
                "send fewer, or wait as Retry-After says",
                retry_after=str(math.ceil(wait)),
            )
        if self.token is None:
            check_is_local(headers)
        elif scope["path"] not in PUBLIC and not has_token(headers, self.token):
            raise Refused(
                401,
                "the token is missing or wrong",
                "send the header `Authorization: Bearer TOKEN`",
                www_authenticate="Bearer",
            )
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self._body_bytes:
            raise self._too_large()
        if is_work(scope) and self.active >= self.limits.requests:
            raise Refused(
                429,
                f"{self.limits.requests} requests are being served",
                "wait as Retry-After says, and send it again",
                retry_after="1",
            )

    @property
    def _body_bytes(self) -> int:
        return int(self.limits.body_mib * 2**20)

    def _too_large(self) -> Refused:
        limit = f"the request is larger than {self.limits.body_mib:g} MiB"
        return Refused(413, limit, "send a smaller image", connection="close")

    def _limited(self, receive: Receive) -> Receive:
        """`receive` that raises Refused once the body is too long, or takes too long."""
        deadline, seen, complete = time.monotonic() + self.limits.body_seconds, 0, False

        async def limited() -> Message:
            nonlocal seen, complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    message = await receive()
            except TimeoutError:
                late = f"the request did not arrive within {self.limits.body_seconds:g} s"
                raise Refused(408, late, "send it faster", connection="close") from None
            seen += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if seen > self._body_bytes:
                raise self._too_large()
            return message

        return limited


def is_work(scope: Scope) -> bool:
    """Whether the request takes a place of those served at a time; metrics are for busy times too."""
    return scope["path"].startswith("/v1/")


def client_of(scope: Scope) -> str:
    """The address that a rate belongs to: one of IPv4, or a network of IPv6, of which one client has many."""
    host = (scope.get("client") or ("unknown",))[0]
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:  # a proxy's header can have a port, or a name
        return host
    if address.version == 4:
        return host
    return str(address.ipv4_mapped or ip_network((address, 64), strict=False))


def has_token(headers: Headers, token: str) -> bool:
    """Whether the request carries the token; the comparison takes the same time for every wrong one."""
    scheme, _, given = headers.get("authorization", "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode())


def check_is_local(headers: Headers) -> None:
    """Raise Refused where a page of another site makes this machine's browser send the request.

    Without a token, only the names of the request tell such a page from the user's own.
    """
    host, origin = headers.get("host", ""), headers.get("origin")
    try:
        local = urlsplit(f"//{host}").hostname in LOOPBACK
        own = origin is None or urlsplit(origin).netloc == host
    except ValueError:  # no address
        local = own = False
    if not (local and own):
        raise Refused(
            403,
            "without a token the service answers this machine alone",
            "call it as http://127.0.0.1, or set CSDN_TOKEN where it runs",
        )
