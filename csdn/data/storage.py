"""Requests to an object store: repeated while it is away, and errors that say what to do."""

from __future__ import annotations

import base64
import hashlib
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
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
# Seconds for which a request is repeated. A store that never answered has most likely a wrong address; one
# that did answer is away, and comes back.
FIRST_PATIENCE = 3.0
PATIENCE = 60.0
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 4.0

T = TypeVar("T")

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
# HEAD has no body to name the error in.
_OF_STATUS = {"301": "PermanentRedirect", "403": "AccessDenied"}
_BUSY = {"RequestTimeout", "SlowDown", "InternalError", "ServiceUnavailable", "Throttling", "TooManyRequests"}
_UNREACHED = (
    exceptions.ConnectionError,
    exceptions.HTTPClientError,
    exceptions.IncompleteReadError,
    exceptions.ResponseStreamingError,
)
_FOR_GOOD = (exceptions.SSLError, exceptions.InvalidProxiesConfigError)


def with_retries(request: Callable[[], T], where: str, endpoint: str, patience: float) -> T:
    """The request's answer, asked for again with back-off for `patience` seconds while the store is away.

    where: the address that an error names; endpoint: whom it names as silent. Raises UserError, Away
    where only patience ended; of a missing object, FileNotFoundError. The client's own error, whose text may
    have the endpoint's query, is no cause of theirs: it would stand in the traceback of a log.
    """
    began, wait = time.monotonic(), _FIRST_WAIT
    while True:
        try:
            return request()
        except (BotoCoreError, ClientError) as error:
            if code_of(error) in ("NoSuchKey", "404"):
                raise FileNotFoundError(where) from None
            tried = time.monotonic() - began
            if not _is_away(error):
                raise UserError(f"{where}: {_explained(error, endpoint, tried)}") from None
            if tried + wait > patience:
                raise ServiceUnavailable(f"{where}: {_explained(error, endpoint, tried)}") from None
        # A random part keeps the processes of a run from all coming back at once.
        time.sleep(wait * random.SystemRandom().uniform(0.5, 1))
        wait = min(2 * wait, _LONGEST_WAIT)


def code_of(error: Exception) -> str:
    """The store's name of an error, such as NoSuchKey, or its HTTP status; empty where it sent none."""
    return error.response.get("Error", {}).get("Code", "") if isinstance(error, ClientError) else ""


def _is_away(error: Exception) -> bool:
    """Whether the same request may have an answer a little later."""
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status >= 500 or status == 429 or code_of(error) in _BUSY
    return isinstance(error, _UNREACHED) and not isinstance(error, _FOR_GOOD)


def _explained(error: Exception, endpoint: str, tried: float) -> str:
    code = code_of(error)
    meaning = _MEANINGS.get(_OF_STATUS.get(code, code))
    if meaning:
        return meaning
    if isinstance(error, ClientError):
        return f"the store refuses: {error.response.get('Error', {}).get('Message') or code}"
    if isinstance(error, (exceptions.NoCredentialsError, exceptions.PartialCredentialsError)):
        return _NO_KEYS
    if isinstance(error, _UNREACHED) and not isinstance(error, _FOR_GOOD):
        return (
            f"{endpoint} does not answer ({_reason(error)}; tried for {tried:.0f} s); is AWS_ENDPOINT_URL "
            "right, and the store up?"
        )
    return str(error)


def _reason(error: Exception) -> str:
    if isinstance(error, exceptions.EndpointConnectionError):
        return "no connection"
    if isinstance(error, (exceptions.ConnectTimeoutError, exceptions.ReadTimeoutError)):
        return "timed out"
    return "connection lost"


# Reading a byte range without most of the work that botocore's client does for it.
#
# A feed reads thousands of images a second. The request has the client's URL, signature, time limits and
# way of connecting; what the client asks itself at each request of any kind is left out. An answer that
# is not the range is the client's to explain.


_PARTIAL_CONTENT = 206


class RangeRequests:
    """GET requests for ranges of a bucket's objects; threads may share it, processes may not."""

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
        self._url = lru_cache(maxsize=4096)(self._made_url)

    def read(self, key: str, offset: int, size: int) -> bytes | None:
        """Up to `size` bytes from `offset` on; None where the store answers anything else.

        Raises botocore's errors where it does not answer.
        """
        if self.credentials is None:
            return None
        about = {"Range": f"bytes={offset}-{offset + size - 1}"}
        request = AWSRequest("GET", self._url(key), headers=about)
        S3SigV4Auth(self.credentials.get_frozen_credentials(), "s3", self.region).add_auth(request)
        answer = self.http.send(request.prepare())
        return answer.content if answer.status_code == _PARTIAL_CONTENT else None

    def _made_url(self, key: str) -> str:
        """The object's URL as the client addresses it; a signed one is made without a request."""
        wanted = {"Bucket": self.bucket, "Key": key}
        return self.client.generate_presigned_url("get_object", Params=wanted).partition("?")[0]


# The objects below an `s3://bucket/prefix`: list, read by range, put whole.


CONNECTIONS = 16  # requests at a time in each process


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object by its name below the prefix; `size` in bytes."""

    name: str
    size: int
    etag: str | None


class Store:
    """A prefix of a bucket; threads may share it, other processes get connections of their own.

    Every method raises UserError where the store refuses, or does not answer (csdn.data.storage).
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
        return redact(self.client().meta.endpoint_url)

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
        answer = with_retries(
            lambda: request(client), where, self.endpoint(), PATIENCE if reached else FIRST_PATIENCE
        )
        self.answered = True
        return answer

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_connected": None}  # it does not travel to another process


def _md5() -> Any:
    return hashlib.md5(usedforsecurity=False)


def _check(address: str) -> None:
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
        retries={"total_max_attempts": 1},  # csdn.data.storage repeats
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


# The same object store for libraries that take a pyarrow file system (Ray Train's checkpoints).


# Each wait is twice the one before, from 25 ms on: 51 seconds in all.
ATTEMPTS = 11


def arrow_filesystem(address: str) -> tuple[FileSystem, str]:
    """(file system, path) of an `s3://bucket/prefix`; raises UserError where it cannot be listed.

    Not for use in a process that is forked afterwards: Arrow's threads do not come along.
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
        # Making and removing buckets is the owner's.
        allow_bucket_creation=False,
        allow_bucket_deletion=False,
    )
    return filesystem, f"{store.bucket}/{store.prefix}".rstrip("/")
