"""The objects below an `s3://bucket/prefix`: list, read by range, put whole."""

from __future__ import annotations

import base64
import hashlib
import multiprocessing
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import botocore.session
from botocore.client import BaseClient
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from csdn.data.store.asking import CONNECT_SECONDS, FIRST_PATIENCE, PATIENCE, READ_SECONDS, ask, code_of
from csdn.data.store.ranges import RangeRequests
from csdn.errors import UserError
from csdn.safe import has_credentials, without_credentials

CONNECTIONS = 16  # requests at a time in each process
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object by its name below the prefix; `size` in bytes."""

    name: str
    size: int
    etag: str | None


class Store:
    """A prefix of a bucket; threads may share it, other processes get connections of their own.

    Every method raises UserError where the store refuses, or does not answer (csdn.data.store.asking).
    """

    def __init__(self, address: str) -> None:
        _check(address)
        self.address = address.rstrip("/")
        self.bucket, _, self.prefix = self.address.removeprefix("s3://").partition("/")
        self.answered = False  # it is there: a silence later on is an outage
        self._connected: _Connection | None = None

    def address_of(self, name: str) -> str:
        return f"{self.address}/{name}"

    def check(self) -> None:
        """Raise UserError where the bucket may not be listed with the environment's keys."""
        self._ask(lambda s3: s3.list_objects_v2(Bucket=self.bucket, Prefix=self.prefix, MaxKeys=1))

    def objects(self) -> Iterator[StoredObject]:
        """Every object below the prefix, in the order of names; what only marks a folder is left out."""
        root = self._key("")
        for page in self._pages(Prefix=root):
            for found in page.get("Contents", ()):
                name, etag = found["Key"].removeprefix(root), found.get("ETag")
                if not name.endswith("/") and name:
                    yield StoredObject(name, found["Size"], etag.strip('"') if etag else None)

    def folders(self) -> list[str]:
        """Addresses of the prefixes directly below this one, sorted."""
        pages = self._pages(Prefix=self._key(""), Delimiter="/")
        found = [one["Prefix"] for page in pages for one in page.get("CommonPrefixes", ())]
        return sorted(f"s3://{self.bucket}/{prefix.rstrip('/')}" for prefix in found)

    def size(self, name: str) -> int | None:
        """Bytes of an object; None where there is none."""
        key = self._key(name)
        try:
            return self._ask(lambda s3: s3.head_object(Bucket=self.bucket, Key=key)["ContentLength"], name)
        except FileNotFoundError:
            return None

    def read(self, name: str, offset: int = 0, size: int | None = None) -> bytes:
        """An object's bytes, or `size` of them from `offset` on: fewer where it ends before.

        Raises FileNotFoundError where there is no such object.
        """
        key = self._key(name)
        wanted = {"Bucket": self.bucket, "Key": key}
        if size is None:
            return self._ask(lambda s3: s3.get_object(**wanted)["Body"].read(), name)
        if size == 0:
            return b""
        wanted["Range"] = f"bytes={offset}-{offset + size - 1}"

        def request(s3: BaseClient) -> bytes:
            try:
                data = self._connection().ranges.read(key, offset, size)
                return s3.get_object(**wanted)["Body"].read() if data is None else data
            except ClientError as error:
                if code_of(error) in ("InvalidRange", "416"):  # it ends before the range begins
                    return b""
                raise

        return self._ask(request, name)

    def put(self, name: str, path: Path, kind: str = "application/octet-stream") -> None:
        """Store a file's bytes under a name, whole or not at all; `kind` is the media type.

        The store compares an MD5, so that bytes which were altered on the way are refused.
        """
        with path.open("rb") as file:
            md5 = base64.b64encode(hashlib.file_digest(file, _md5).digest()).decode()

        def request(s3: BaseClient) -> None:
            with path.open("rb") as file:
                about = {"ContentMD5": md5, "ContentType": kind}
                s3.put_object(Bucket=self.bucket, Key=self._key(name), Body=file, **about)

        self._ask(request, name)

    def client(self) -> BaseClient:
        """This process's client of S3."""
        return self._connection().client

    def _connection(self) -> _Connection:
        """This process's own: it must not be shared with the process that was forked from."""
        if self._connected is None or self._connected.process != os.getpid():
            self._connected = _connect(self.address, self.bucket)
        return self._connected

    def endpoint(self) -> str:
        """Whom the environment names, as it may be shown."""
        return without_credentials(self.client().meta.endpoint_url)

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    def _pages(self, **wanted: Any) -> Iterator[dict[str, Any]]:
        token: dict[str, str] = {}
        while True:
            asked = {"Bucket": self.bucket, **wanted, **token}
            page = self._ask(lambda s3, asked=asked: s3.list_objects_v2(**asked))
            yield page
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def _ask(self, request: Callable[[BaseClient], T], name: str = "") -> T:
        client, where = self.client(), self.address_of(name) if name else self.address
        # A worker process works for one that has reached the store before.
        reached = self.answered or multiprocessing.parent_process() is not None
        answer = ask(lambda: request(client), where, self.endpoint(), PATIENCE if reached else FIRST_PATIENCE)
        self.answered = True
        return answer

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_connected": None}  # it does not travel to another process


def _md5() -> Any:
    return hashlib.md5(usedforsecurity=False)


def _check(address: str) -> None:
    if has_credentials(address):
        raise UserError(
            f"{without_credentials(address)}: the address has a key or password in it; keys belong in the "
            "environment, or in ~/.aws/credentials"
        )
    bucket = address.removeprefix("s3://").partition("/")[0]
    if not address.startswith("s3://") or not bucket:
        raise UserError(f"{address}: not an address of an object store; it is s3://bucket/prefix")


@dataclass(frozen=True)
class _Connection:
    process: int
    client: BaseClient
    ranges: RangeRequests


def _connect(address: str, bucket: str) -> _Connection:
    config = Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        retries={"total_max_attempts": 1},  # csdn.data.store.asking repeats
        max_pool_connections=CONNECTIONS,
        signature_version="s3v4",
        # Stores that are not Amazon's often lack the newer checksums; every one has MD5.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    session = botocore.session.get_session()
    try:
        client = session.create_client("s3", config=config)
        return _Connection(os.getpid(), client, RangeRequests(session, client, bucket, CONNECTIONS))
    except (BotoCoreError, ValueError) as error:  # such as an endpoint that is no URL
        why = str(error).partition("?")[0]  # it names the endpoint, whose query may be a secret
        raise UserError(f"{address}: the settings of the object store are not usable: {why}") from None
