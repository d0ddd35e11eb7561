"""Object storage: list, read and write the objects below an `s3://` prefix, with retries and helpful errors.

This is where the way of a training batch begins when `ingest.store` names a bucket: csdn.data.shards reads
byte ranges of shards through `Store`. Ingest reads drops and writes shards with it, and Ray Train's
checkpoints use `arrow_filesystem`. `prefetch` reads in advance from any source that is slow but serves many
requests at a time.
"""

from __future__ import annotations

import base64
import hashlib
import multiprocessing
import os
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import botocore.session
from botocore import exceptions
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.client import BaseClient
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.httpsession import URLLib3Session
from botocore.session import Session
from botocore.utils import get_environ_proxies

from csdn.runtime.errors import ServiceUnavailable, UserError
from csdn.runtime.sanitize import has_credentials, redact

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem


CONNECT_SECONDS = 5.0
READ_SECONDS = 10.0
CONNECTIONS = 16  # simultaneous requests of each process
# Seconds for which a failed request is repeated. If the store has never responded, its address is most likely
# wrong; if it has, there is an outage that will end.
FIRST_TIMEOUT = 3.0
TIMEOUT = 60.0
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 4.0

T = TypeVar("T")
PendingRead = Callable[[], bytes]  # returns the bytes, or raises what reading them raised


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object: `name` is below the prefix, `size` in bytes."""

    name: str
    size: int
    etag: str | None


class Store:
    """A prefix of a bucket. Threads may share it; every process opens connections of its own.

    Every method raises UserError where the store refuses a request, and ServiceUnavailable (a UserError too)
    where it does not respond.
    """

    def __init__(self, address: str) -> None:
        _check_address(address)
        self.address = address.rstrip("/")
        self.bucket, _, self.prefix = self.address.removeprefix("s3://").partition("/")
        self.responded = False  # once it has, a failure to respond is an outage
        self._connected: _Connection | None = None

    def address_of(self, name: str) -> str:
        return f"{self.address}/{name}"

    def check(self) -> None:
        """Raise UserError where the environment's keys may not list the bucket."""
        self._request(lambda s3: s3.list_objects_v2(Bucket=self.bucket, Prefix=self.prefix, MaxKeys=1))

    def objects(self) -> Iterator[StoredObject]:
        """Every object below the prefix, sorted by name, without folder markers."""
        root = self._key("")
        for page in self._pages(Prefix=root):
            for entry in page.get("Contents", ()):
                name, etag = entry["Key"].removeprefix(root), entry.get("ETag")
                if not name.endswith("/") and name:
                    yield StoredObject(name, entry["Size"], etag.strip('"') if etag else None)

    def folders(self) -> list[str]:
        """Addresses of the prefixes directly below this one, sorted."""
        pages = self._pages(Prefix=self._key(""), Delimiter="/")
        found = [entry["Prefix"] for page in pages for entry in page.get("CommonPrefixes", ())]
        return sorted(f"s3://{self.bucket}/{prefix.rstrip('/')}" for prefix in found)

    def size(self, name: str) -> int | None:
        """Bytes of an object; None where there is none."""
        key = self._key(name)
        try:
            return self._request(
                lambda s3: s3.head_object(Bucket=self.bucket, Key=key)["ContentLength"], name
            )
        except FileNotFoundError:
            return None

    def read(self, name: str, offset: int = 0, size: int | None = None) -> bytes:
        """An object's bytes, or up to `size` of them from `offset` on.

        Raises FileNotFoundError where there is no such object.
        """
        key = self._key(name)
        target = {"Bucket": self.bucket, "Key": key}
        if size is None:
            return self._request(lambda s3: s3.get_object(**target)["Body"].read(), name)
        if size == 0:
            return b""
        target["Range"] = f"bytes={offset}-{offset + size - 1}"

        def request(s3: BaseClient) -> bytes:
            try:
                data = self._connection().ranges.read(key, offset, size)
                return s3.get_object(**target)["Body"].read() if data is None else data
            except ClientError as error:
                if code_of(error) in ("InvalidRange", "416"):  # the object ends before the range
                    return b""
                raise

        return self._request(request, name)

    def put(self, name: str, path: Path, kind: str = "application/octet-stream") -> None:
        """Store a file's bytes under a name, completely or not at all; `kind` is the media type.

        The store checks the MD5 of the bytes, so it refuses those that were altered on the way.
        """
        with path.open("rb") as file:
            md5 = base64.b64encode(hashlib.file_digest(file, _md5).digest()).decode()

        def request(s3: BaseClient) -> None:
            with path.open("rb") as file:
                about = {"ContentMD5": md5, "ContentType": kind}
                s3.put_object(Bucket=self.bucket, Key=self._key(name), Body=file, **about)

        self._request(request, name)

    def client(self) -> BaseClient:
        """This process's client of S3."""
        return self._connection().client

    def _connection(self) -> _Connection:
        """This process's own: a forked process must not use the connections of its parent."""
        if self._connected is None or self._connected.process != os.getpid():
            self._connected = _connect(self.address, self.bucket)
        return self._connected

    def endpoint(self) -> str:
        """The URL of the store that the environment names, without secrets."""
        return redact(self.client().meta.endpoint_url)

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    def _pages(self, **filters: Any) -> Iterator[dict[str, Any]]:
        token: dict[str, str] = {}
        while True:
            query = {"Bucket": self.bucket, **filters, **token}
            page = self._request(lambda s3, query=query: s3.list_objects_v2(**query))
            yield page
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def _request(self, request: Callable[[BaseClient], T], name: str = "") -> T:
        client, where = self.client(), self.address_of(name) if name else self.address
        # A worker process was started by a process that has already reached the store.
        reached = self.responded or multiprocessing.parent_process() is not None
        response = with_retries(
            lambda: request(client), where, self.endpoint(), TIMEOUT if reached else FIRST_TIMEOUT
        )
        self.responded = True
        return response

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_connected": None}  # connections are not pickled


def _md5() -> Any:
    return hashlib.md5(usedforsecurity=False)


def _check_address(address: str) -> None:
    if has_credentials(address):
        raise UserError(
            f"{redact(address)}: the address has a key or password in it; keys belong in the "
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
        retries={"total_max_attempts": 1},  # `with_retries` repeats
        max_pool_connections=CONNECTIONS,
        signature_version="s3v4",
        # Stores other than Amazon's often lack the newer checksums; all have MD5.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    session = botocore.session.get_session()
    try:
        client = session.create_client("s3", config=config)
        return _Connection(os.getpid(), client, RangeRequests(session, client, bucket, CONNECTIONS))
    except (BotoCoreError, ValueError) as error:  # such as an invalid endpoint URL
        why = str(error).partition("?")[0]  # the query of the endpoint may be a secret
        raise UserError(f"{address}: the settings of the object store are not usable: {why}") from None


# Byte ranges, read fast.


_PARTIAL_CONTENT = 206


class RangeRequests:
    """GET requests for byte ranges of a bucket's objects; threads may share it, processes may not.

    A loader reads thousands of images a second, and most of the time of a request is botocore's own work
    before it is sent. So this class sends the request itself, with the client's URL, signature, timeouts and
    connection settings. Where the response is not the range, the caller repeats the request with the client.
    """

    def __init__(self, session: Session, client: BaseClient, bucket: str, connections: int) -> None:
        config, endpoint = client.meta.config, client.meta.endpoint_url
        self.client, self.bucket = client, bucket
        self.credentials = session.get_credentials()
        region = client.meta.region_name
        self.region = "us-east-1" if region == "aws-global" else region
        self.http = URLLib3Session(
            verify=session.get_config_variable("ca_bundle") or True,
            proxies=get_environ_proxies(endpoint),
            timeout=(config.connect_timeout, config.read_timeout),
            max_pool_connections=connections,
        )
        self._url = lru_cache(maxsize=4096)(self._object_url)

    def read(self, key: str, offset: int, size: int) -> bytes | None:
        """Up to `size` bytes from `offset` on; None where the store sends any other response.

        Raises botocore's errors where it does not respond.
        """
        if self.credentials is None:
            return None
        headers = {"Range": f"bytes={offset}-{offset + size - 1}"}
        request = AWSRequest("GET", self._url(key), headers=headers)
        S3SigV4Auth(self.credentials.get_frozen_credentials(), "s3", self.region).add_auth(request)
        response = self.http.send(request.prepare())
        return response.content if response.status_code == _PARTIAL_CONTENT else None

    def _object_url(self, key: str) -> str:
        """The object's URL as the client addresses it; signing a URL sends no request."""
        target = {"Bucket": self.bucket, "Key": key}
        return self.client.generate_presigned_url("get_object", Params=target).partition("?")[0]


# Retries, and errors that say what to do.


_NO_KEYS = "there is no key for it in the environment; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_OLD_TOKEN = "the session's token is not valid, or not any more; get new keys (AWS_SESSION_TOKEN)"
_OTHER_REGION = "the bucket is in another region; set AWS_DEFAULT_REGION to its region"
_MEANINGS = {
    "InvalidAccessKeyId": "the store does not know this key; correct AWS_ACCESS_KEY_ID, or AWS_PROFILE",
    "SignatureDoesNotMatch": "the secret is not that of this key; correct AWS_SECRET_ACCESS_KEY",
    "NoSuchBucket": "there is no such bucket; correct the address, or make the bucket",
    "AccessDenied": "this key may not do that; give it the right, or use another key (AWS_ACCESS_KEY_ID)",
    "ExpiredToken": _OLD_TOKEN,
    "InvalidToken": _OLD_TOKEN,
    "PermanentRedirect": _OTHER_REGION,
    "AuthorizationHeaderMalformed": _OTHER_REGION,
    "RequestTimeTooSkewed": "this machine's clock is wrong; set it",
    "InvalidBucketName": "this cannot be a bucket's name; correct the address",
}
# The response to HEAD has no body that could name the error.
_CODE_OF_STATUS = {"301": "PermanentRedirect", "403": "AccessDenied"}
_BUSY = {"RequestTimeout", "SlowDown", "InternalError", "ServiceUnavailable", "Throttling", "TooManyRequests"}
_CONNECTION_ERRORS = (
    exceptions.ConnectionError,
    exceptions.HTTPClientError,
    exceptions.IncompleteReadError,
    exceptions.ResponseStreamingError,
)
_PERMANENT = (exceptions.SSLError, exceptions.InvalidProxiesConfigError)


def with_retries(request: Callable[[], T], where: str, endpoint: str, timeout: float) -> T:
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
        except (BotoCoreError, ClientError) as error:
            if code_of(error) in ("NoSuchKey", "404"):
                raise FileNotFoundError(where) from None
            tried = time.monotonic() - start
            if not _can_recover(error):
                raise UserError(f"{where}: {_explained(error, endpoint, tried)}") from None
            if tried + wait > timeout:
                raise ServiceUnavailable(f"{where}: {_explained(error, endpoint, tried)}") from None
        # The random factor keeps the processes of a run from retrying at the same moment.
        time.sleep(wait * random.SystemRandom().uniform(0.5, 1))
        wait = min(2 * wait, _LONGEST_WAIT)


def code_of(error: Exception) -> str:
    """The store's code of an error, such as NoSuchKey, or its HTTP status; "" where it sent none."""
    return error.response.get("Error", {}).get("Code", "") if isinstance(error, ClientError) else ""


def _can_recover(error: Exception) -> bool:
    """Whether the same request may succeed a little later."""
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status >= 500 or status == 429 or code_of(error) in _BUSY
    return isinstance(error, _CONNECTION_ERRORS) and not isinstance(error, _PERMANENT)


def _explained(error: Exception, endpoint: str, tried: float) -> str:
    code = code_of(error)
    meaning = _MEANINGS.get(_CODE_OF_STATUS.get(code, code))
    if meaning:
        return meaning
    if isinstance(error, ClientError):
        return f"the store refuses: {error.response.get('Error', {}).get('Message') or code}"
    if isinstance(error, (exceptions.NoCredentialsError, exceptions.PartialCredentialsError)):
        return _NO_KEYS
    if isinstance(error, _CONNECTION_ERRORS) and not isinstance(error, _PERMANENT):
        return (
            f"{endpoint} does not respond ({_reason(error)}; tried for {tried:.0f} s); is AWS_ENDPOINT_URL "
            "right, and the store up?"
        )
    return str(error)


def _reason(error: Exception) -> str:
    if isinstance(error, exceptions.EndpointConnectionError):
        return "no connection"
    if isinstance(error, (exceptions.ConnectTimeoutError, exceptions.ReadTimeoutError)):
        return "timed out"
    return "connection lost"


# The same store for libraries that take a pyarrow file system.


# Each wait is twice the previous one, from 25 ms on: 51 seconds in all.
ATTEMPTS = 11


def arrow_filesystem(address: str) -> tuple[FileSystem, str]:
    """(pyarrow file system, path) of an `s3://bucket/prefix`; raises UserError where it cannot be listed.

    Do not fork the process afterwards: a child does not inherit Arrow's threads.
    """
    from pyarrow.fs import AwsDefaultS3RetryStrategy, S3FileSystem

    store = Store(address)
    store.check()
    endpoint, region = store.client().meta.endpoint_url, store.client().meta.region_name
    filesystem = S3FileSystem(
        endpoint_override=None if endpoint.endswith(".amazonaws.com") else endpoint,
        region="us-east-1" if region == "aws-global" else region,
        connect_timeout=CONNECT_SECONDS,
        request_timeout=READ_SECONDS,
        retry_strategy=AwsDefaultS3RetryStrategy(max_attempts=ATTEMPTS),
        # Buckets are made and deleted by their owner alone.
        allow_bucket_creation=False,
        allow_bucket_deletion=False,
    )
    return filesystem, f"{store.bucket}/{store.prefix}".rstrip("/")


# Reading in advance.


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
