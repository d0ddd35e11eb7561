"""Object storage by fsspec: list, read and write the objects below `s3://`, `gs://`, `az://` or `memory://`.

This is where the way of a training batch begins when `ingest.store` names a bucket: csdn.data.shards reads
byte ranges of shards through `Store`. Ingest reads drops and writes shards with it, the report is copied with
it, and csdn.data.checkpoint_store keeps checkpoints with `durable_filesystem`. Credentials and endpoints
come from the environment, as s3fs, gcsfs and adlfs read them.

Every request is repeated with back-off while the store is down, and every answer is compared with what the
store has listed; csdn.data.storage_errors says what an error means.
"""

from __future__ import annotations

import base64
import hashlib
import multiprocessing
import os
import random
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from csdn.runtime.errors import ServiceUnavailable, UserError
from csdn.runtime.sanitize import has_credentials, redact

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem


# Protocol -> the library that fsspec needs for it, and how it is installed.
PROTOCOLS = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs", "memory": "fsspec"}
_EXTRAS = {"s3": "s3", "gs": "gcs", "az": "azure"}
CONNECT_SECONDS = 5.0
READ_SECONDS = 10.0
CONNECTIONS = 16  # simultaneous requests of each process
# Seconds for which a failed request is repeated. If the store has never responded, its address is most likely
# wrong; if it has, there is an outage that will end.
FIRST_TIMEOUT = 3.0
TIMEOUT = 60.0
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 4.0
# Where a library repeats requests itself: botocore's waits are random, and twice as long each time, up to
# 20 s. Ten of them last a minute on average.
_DURABLE_ATTEMPTS = 10
_SETTINGS = ("AWS_", "AZURE_", "FSSPEC_", "GCSFS_", "GOOGLE_", "STORAGE_EMULATOR_HOST")
_MD5 = re.compile("[0-9a-f]{32}")

T = TypeVar("T")
Settings = tuple[tuple[str, str], ...]  # names and values of environment variables
PendingRead = Callable[[], bytes]  # returns the bytes, or raises what reading them raised
Range = tuple[str, int, int]  # name, offset, size in bytes

# The stores that have responded to this process, by protocol and settings: a failure is an outage then.
_REACHED: set[tuple[str, Settings]] = set()


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object: `name` is below the prefix, `size` in bytes; `etag` changes with the content, and is its MD5
    where the store gives that.
    """

    name: str
    size: int
    etag: str | None


class Store:
    """A prefix of a bucket. Threads may share it; every process opens connections of its own, after it was
    started by `spawn` or `forkserver` (fsspec's threads do not survive a fork).

    Every method raises UserError where the store refuses a request, and ServiceUnavailable (a UserError too)
    where it does not respond.
    """

    def __init__(self, address: str) -> None:
        self.protocol, self.root = split_address(address)
        self.address = address.rstrip("/")

    def address_of(self, name: str) -> str:
        return f"{self.address}/{name}"

    @cached_property
    def filesystem(self) -> AbstractFileSystem:
        """This process's file system of the protocol, connected."""
        filesystem = _filesystem(self.protocol, 1, self._settings)
        if self.protocol == "s3":
            filesystem.connect_once(self.address)
        return filesystem

    @cached_property
    def _settings(self) -> Settings:
        return _settings()

    def __getstate__(self) -> dict[str, str]:
        """For another process, which has connections of its own."""
        return {name: getattr(self, name) for name in ("protocol", "root", "address")}

    def check(self) -> None:
        """Raise UserError where the environment's keys may not list the bucket."""
        if self.protocol == "s3":
            self._request(lambda: self.filesystem.probe(self.root))
        elif not self._request(lambda: self.filesystem.exists(self._bucket)):
            raise self._no_bucket()

    def objects(self) -> Iterator[StoredObject]:
        """Every object below the prefix, sorted by name, without folder markers."""
        for path, about in self._listed():
            name = path.lstrip("/")[len(self.root) + 1 :]
            if name and not name.endswith("/"):
                yield StoredObject(name, about["size"], _etag(about))

    def _listed(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(path, facts) of every object; of S3 a page at a time, as there may be millions."""
        if self.protocol != "s3":
            try:
                yield from sorted(self._request(lambda: self.filesystem.find(self.root, detail=True)).items())
            except FileNotFoundError:
                raise self._no_bucket() from None
            return
        after: str | None = ""
        while after is not None:
            page, after = self._page(after)
            yield from page

    def _page(self, after: str) -> tuple[list[tuple[str, dict[str, Any]]], str | None]:
        """A page of S3's list, and the `after` of the next one."""
        return self._request(lambda: self.filesystem.page(self.root, after))

    def folders(self) -> list[str]:
        """Addresses of the prefixes directly below this one, sorted."""
        try:
            found = self._request(lambda: self.filesystem.ls(self.root, detail=True))
        except FileNotFoundError:
            self.check()
            return []
        names = (entry["name"].strip("/") for entry in found if entry["type"] == "directory")
        return sorted(f"{self.protocol}://{name}" for name in names if name != self.root)

    def find(self, name: str) -> StoredObject | None:
        """The object of this name; None where there is none."""
        try:
            found = self._request(lambda: self.filesystem.info(self._path(name)), name)
        except FileNotFoundError:
            return None
        return StoredObject(name, found["size"], _etag(found)) if found["type"] == "file" else None

    def size(self, name: str) -> int | None:
        """Bytes of an object; None where there is none."""
        found = self.find(name)
        return found.size if found else None

    def read(self, listed: StoredObject) -> bytes:
        """The bytes of an object that was listed: of that size, and with that MD5 where the etag is one.

        An answer of other bytes is asked for again once. Raises FileNotFoundError where there is no such
        object, and UserError where it was replaced since, or the answer is wrong again.
        """
        for _ in range(2):
            data = self._request(lambda: self._download(listed), listed.name)
            if len(data) == listed.size and self._has_md5(data, listed):
                return data
            if self.protocol != "s3" and self.find(listed.name) != listed:
                raise self._replaced(listed)
        raise ServiceUnavailable(
            f"{self.address_of(listed.name)}: the store sent other bytes than those that it lists, twice "
            "(size or MD5): they are altered on their way. Nothing of them was kept; run the command again"
        )

    def ranges(self, wanted: Sequence[Range]) -> list[bytes]:
        """The bytes of each (name, offset, size), fetched together; shorter where an object ends before.

        An answer of another length is asked for again once. Raises FileNotFoundError for a missing object,
        and UserError where the store sends more than was asked for.
        """
        got: dict[int, bytes] = {}
        for _ in range(2):
            missing = [n for n, (_, _, size) in enumerate(wanted) if n not in got or len(got[n]) != size]
            if missing:
                self._fetch(wanted, missing, got)
        for n, (name, _, size) in enumerate(wanted):
            if len(got[n]) > size:
                raise ServiceUnavailable(
                    f"{self.address_of(name)}: the store sent more bytes than were asked for, twice"
                )
        return [got[n] for n in range(len(wanted))]

    def put(self, name: str, path: Path) -> None:
        """Store a file's bytes under a name, completely or not at all. Raises UserError where the store then
        has other bytes than the file (size, or MD5).
        """
        with path.open("rb") as file:
            md5 = hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()
        for _ in range(2):
            try:
                self._request(lambda: self.filesystem.put_file(str(path), self._path(name)), name)
            except FileNotFoundError:
                raise self._no_bucket() from None
            stored = self.find(name)
            if stored and stored.size == path.stat().st_size and self._is_md5_of(stored, md5):
                return
        raise ServiceUnavailable(
            f"{self.address_of(name)}: the store has other bytes than those that were sent, twice: they were "
            "altered on their way; run the command again"
        )

    def remove(self, name: str) -> None:
        """Remove an object; no error where there is none."""
        with suppress(FileNotFoundError):
            self._request(lambda: self.filesystem.rm(self._path(name)), name)

    @property
    def _bucket(self) -> str:
        return self.root.partition("/")[0]

    def _no_bucket(self) -> UserError:
        return UserError(f"{self.address}: there is no such bucket; correct the address, or make it")

    def _replaced(self, listed: StoredObject) -> UserError:
        return UserError(
            f"{self.address_of(listed.name)}: was replaced after it was listed; run the command again"
        )

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _download(self, listed: StoredObject) -> bytes:
        """An object's bytes, one more than it should have at most; raises UserError if it was replaced."""
        path = self._path(listed.name)
        if self.protocol != "s3":
            return self.filesystem.cat_file(path)
        try:
            return self.filesystem.read_object(path, listed.etag, limit=listed.size + 1)
        except OSError as error:
            if _errors().code_of(error) in ("PreconditionFailed", "412"):
                raise self._replaced(listed) from None
            raise

    def _has_md5(self, data: bytes, listed: StoredObject) -> bool:
        return self._is_md5_of(listed, hashlib.md5(data, usedforsecurity=False).hexdigest())

    def _is_md5_of(self, stored: StoredObject, md5: str) -> bool:
        """Whether the etag is this MD5, or is no MD5 at all: that of several parts, or of encrypted bytes."""
        if stored.etag in (None, md5) or not _MD5.fullmatch(stored.etag):
            return True
        path = self._path(stored.name)
        if self.protocol != "s3":
            return False
        return self._request(lambda: self.filesystem.is_encrypted(path), stored.name)

    def _fetch(self, wanted: Sequence[Range], missing: Sequence[int], got: dict[int, bytes]) -> None:
        """Put the bytes of the ranges `missing` into `got`; those that fail are repeated."""
        left, gone = list(missing), []

        def request() -> None:
            names, starts, sizes = zip(*(wanted[n] for n in left), strict=True)
            ends = [start + size for start, size in zip(starts, sizes, strict=True)]
            answers = self.filesystem.cat_ranges(
                [self._path(name) for name in names], list(starts), ends, on_error="return"
            )
            failed = {}
            for n, answer in zip(left, answers, strict=True):
                if not isinstance(answer, Exception):
                    got[n] = answer
                elif _errors().code_of(answer) in ("InvalidRange", "416"):
                    got[n] = b""  # the object ends before the range
                elif _errors().is_missing(answer):
                    gone.append(wanted[n][0])
                else:
                    failed[n] = answer
            left[:] = failed
            if failed and not gone:
                raise failed[left[0]]

        self._request(request, wanted[missing[0]][0])
        if gone:
            raise FileNotFoundError(self.address_of(gone[0]))

    def _request(self, request: Callable[[], T], name: str = "") -> T:
        where = self.address_of(name) if name else self.address
        # A worker process was started by a process that has already reached the store.
        store = self.protocol, self._settings
        reached = store in _REACHED or multiprocessing.parent_process() is not None
        response = with_retries(
            request, where, lambda: _endpoint(self.filesystem), TIMEOUT if reached else FIRST_TIMEOUT
        )
        _REACHED.add(store)
        return response


def split_address(address: str) -> tuple[str, str]:
    """(protocol, path in the store) of an address; raises UserError where it is none of an object store."""
    if has_credentials(address):
        raise UserError(
            f"{redact(address)}: the address has a key or password in it; keys belong in the "
            "environment, or in ~/.aws/credentials"
        )
    protocol, separator, path = address.partition("://")
    if not separator or protocol not in PROTOCOLS or not path.partition("/")[0]:
        raise UserError(
            f"{address}: not an address of an object store; it is s3://bucket/prefix (or gs://, az://)"
        )
    return protocol, path.rstrip("/")


# ---- file systems, one for each protocol and process


def _settings() -> Settings:
    """The environment's settings of object stores."""
    return tuple(sorted(item for item in os.environ.items() if item[0].startswith(_SETTINGS)))


@cache
def _filesystem(protocol: str, attempts: int, environment: Settings) -> AbstractFileSystem:
    """attempts: of each request, by the library itself. environment: in which it is made."""
    library = PROTOCOLS[protocol]
    if find_spec(library) is None:
        raise UserError(f"{protocol}:// needs {library}: pip install 'csdn[{_EXTRAS[protocol]}]'")
    if protocol == "s3":
        from csdn.data.storage_s3 import S3, settings

        return S3(**settings(CONNECT_SECONDS, READ_SECONDS, CONNECTIONS, attempts))
    import fsspec

    timeout = {"requests_timeout": READ_SECONDS} if protocol == "gs" else {}
    return fsspec.filesystem(protocol, use_listings_cache=False, **timeout)


def durable_filesystem(address: str) -> tuple[AbstractFileSystem, str]:
    """(file system that itself repeats requests for a minute, path), for other libraries and other processes.

    It does not repeat one whose answer breaks off (`asked` does). Raises UserError where the place cannot be
    listed.
    """
    store = Store(address)
    store.check()
    return _filesystem(store.protocol, _DURABLE_ATTEMPTS, _settings()), store.root


def asked(request: Callable[[], T], address: str, filesystem: AbstractFileSystem) -> T:
    """The answer to a request of a durable file system, whose errors become those of this module."""
    return with_retries(request, address, lambda: _endpoint(filesystem), TIMEOUT)


def _endpoint(filesystem: AbstractFileSystem) -> str:
    """The URL of the store that the environment names, without secrets."""
    client = getattr(filesystem, "s3", None)
    return redact(client.meta.endpoint_url) if client else "the store"


def _etag(about: dict[str, Any]) -> str | None:
    """The MD5 of an object's content where the store gives it, in whatever way; else its etag."""
    content = about.get("content_settings") or {}
    if md5 := about.get("md5Hash") or content.get("content_md5"):  # Google; Azure
        return (base64.b64decode(md5) if isinstance(md5, str) else bytes(md5)).hex()
    etag = about.get("ETag") or about.get("etag")
    return etag.strip('"') if etag else None


def with_retries(request: Callable[[], T], where: str, endpoint: Callable[[], str], timeout: float) -> T:
    """The response to a request, which is repeated with back-off for `timeout` seconds while the store is
    down.

    where, endpoint: the address of the object and the URL of the store, for errors. Raises FileNotFoundError
    for a missing object, ServiceUnavailable at the timeout, and UserError at once where repeating cannot
    help. They are raised without a cause, because the client's own error may contain secrets of the
    endpoint's query.
    """
    start, wait = time.monotonic(), _FIRST_WAIT
    while True:
        try:
            return request()
        except Exception as error:
            errors = _errors()
            if isinstance(error, UserError) or not errors.is_of_store(error):
                raise
            if errors.is_missing(error):
                raise FileNotFoundError(where) from None
            tried = time.monotonic() - start
            recovers = errors.can_recover(error)
            if not recovers or tried + wait > timeout:
                kind = ServiceUnavailable if recovers else UserError
                raise kind(f"{where}: {errors.explained(error, where, endpoint(), tried)}") from None
        # The random factor keeps the processes of a run from retrying at the same moment.
        time.sleep(wait * random.SystemRandom().uniform(0.5, 1))
        wait = min(2 * wait, _LONGEST_WAIT)


def _errors() -> ModuleType:
    """csdn.data.storage_errors, imported when a request fails: the clients take half a second, and whoever
    has folders only needs none.
    """
    from csdn.data import storage_errors

    return storage_errors


# ---- reading in advance


def prefetch(read: Callable[[T], bytes], items: Iterable[T], threads: int) -> Iterator[tuple[T, PendingRead]]:
    """(item, its pending read) for each of `items`, in order.

    `threads` threads read in advance, at most twice as many items as there are threads. With 0 threads an
    item is read when its pending read is called.
    """
    if not threads:
        yield from ((item, partial(read, item)) for item in items)
        return
    waiting: deque[tuple[T, Future[bytes]]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for item in items:
            waiting.append((item, pool.submit(read, item)))
            if len(waiting) == 2 * threads:
                first, future = waiting.popleft()
                yield first, future.result
        yield from ((item, future.result) for item, future in waiting)
    finally:
        pool.shutdown(cancel_futures=True)
