"""`csdn serve` as a process, a client that costs little beside it, and small galleries of built-in people."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from csdn.runtime.process import with_parent
from csdn.search.build import add_images
from csdn.search.embedder import Embedder
from csdn.search.gallery import Gallery
from csdn.search.images import list_images
from csdn.synthetic.sets import write_images

START_SECONDS = 60.0


def make_gallery(address: Path | str, model: Path, images: Path, name: str = "tiny") -> Gallery:
    """A gallery of a built-in set, whose images are written to the folder `images` first, once."""
    if not images.exists():
        write_images(name, images)
    embedder = Embedder.open(model, threads=1)
    gallery = Gallery.create(str(address), embedder.model_hash, embedder.dimension, "float16", True)
    assert not add_images(gallery, list_images(str(images), "visible").images, embedder, {})
    return gallery


def copy_gallery(source: Path | str, address: str) -> Gallery:
    """The gallery at `source` at another address, such as in an object store."""
    old = Gallery.open(str(source))
    new = Gallery.create(address, old.manifest.model, old.manifest.dimension, "float16", True)
    for part in old.parts:
        new.add(np.asarray(part.features, np.float32), part.rows.drop_columns(["id"]))
    return new


def form(image: bytes, name: str = "image.png", **fields: object) -> tuple[bytes, dict[str, str]]:
    """(body, headers) of a multipart request with an image file and fields; a list is a repeated field."""
    parts = []
    for field, value in fields.items():
        for one in value if isinstance(value, list) else [value]:
            parts.append(f'Content-Disposition: form-data; name="{field}"\r\n\r\n{one}\r\n'.encode())
    head = f'Content-Disposition: form-data; name="image"; filename="{name}"\r\n'
    parts.append(head.encode() + b"Content-Type: application/octet-stream\r\n\r\n" + image + b"\r\n")
    body = b"".join(b"--limit\r\n" + part for part in parts) + b"--limit--\r\n"
    return body, {"Content-Type": "multipart/form-data; boundary=limit"}


class Client:
    """One connection to a service."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self.connection = HTTPConnection(urlsplit(url).netloc, timeout=60)
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}

    def send(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers of the answer."""
        self.connection.request(method, path, body, self.headers | (headers or {}))
        answer = self.connection.getresponse()
        return answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}

    def json(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        status, content, _ = self.send(method, path, body, headers)
        return status, json.loads(content)

    def search(self, image: bytes, **fields: object) -> tuple[int, Any]:
        return self.json("POST", "/v1/search", *form(image, **({"modality": "infrared"} | fields)))


@contextmanager
def serving(
    log: Path, gallery: Path | str, model: Path, *options: str, token: str | None = None
) -> Iterator[tuple[str, subprocess.Popen]]:
    """(URL, process) of `csdn serve` at a free port, with its standard error in `log`."""
    environment = {name: value for name, value in os.environ.items() if name != "CSDN_TOKEN"}
    command = [str(Path(sys.executable).with_name("csdn")), "serve", "--gallery", str(gallery)]
    with log.open("wb") as errors:
        process = subprocess.Popen(
            with_parent(*command, "--model", str(model), "--port", "0", *options),
            env=environment | ({"CSDN_TOKEN": token} if token else {}),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        line = process.stdout.readline()
        assert line.startswith("http://"), log.read_text()
        yield line.split()[0], process
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(START_SECONDS)
        process.stdout.close()


def load(
    url: str, requests: int, clients: int, send: Callable[[Client, int], int], token: str | None = None
) -> tuple[list[int], list[float], float]:
    """Send requests by several clients at once; the statuses, seconds of each, and seconds of all.

    send: sends request n by a client, and returns the status.
    """
    own = threading.local()

    def one(n: int) -> tuple[int, float]:
        if not hasattr(own, "client"):
            own.client = Client(url, token)
        began = time.perf_counter()
        return send(own.client, n), time.perf_counter() - began

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        statuses, seconds = zip(*pool.map(one, range(requests)), strict=True)
    return list(statuses), list(seconds), time.perf_counter() - began


def resident_mib(pid: int) -> float:
    """Memory that a process uses, in MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
