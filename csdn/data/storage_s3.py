"""S3 by s3fs, with the requests that fsspec's common interface does not have.

csdn.data.storage uses it for `s3://` addresses. Importing it takes half a second.
"""

from __future__ import annotations

from typing import Any

import s3fs
from fsspec.asyn import sync

from csdn.data.storage_errors import INVALID_SETTINGS, WRONG_CHECKSUM, can_recover
from csdn.runtime.errors import UserError


class S3(s3fs.S3FileSystem):  # type: ignore[misc]  # s3fs has no types
    """Every path is bucket/key, in which every character is part of the key."""

    retries = 1  # csdn.data.storage repeats requests, or botocore does (`settings`)

    def connect_once(self, address: str) -> None:
        """Make the client; raises UserError where the settings in the environment are not usable."""
        try:
            self.connect()  # at once, if it is connected
        except INVALID_SETTINGS as error:
            if can_recover(error):
                raise
            why = str(error).partition("?")[0]  # the query of the endpoint may be a secret
            raise UserError(f"{address}: the settings of the object store are not usable: {why}") from None

    def probe(self, root: str) -> None:
        """List one object; the answer to HEAD would not say what is wrong."""
        bucket, _, prefix = root.partition("/")
        self.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=1)

    def page(self, root: str, after: str) -> tuple[list[tuple[str, dict[str, Any]]], str | None]:
        """Up to a thousand objects below a prefix, (path, size and ETag) of each, and the `after` of the next
        page, if there is one; that of the first is "".

        `find` of s3fs compares each folder with all before it, which takes minutes for 100,000 people.
        """
        bucket, _, prefix = root.partition("/")
        more = {"ContinuationToken": after} if after else {}
        answer = self.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix and f"{prefix}/", **more)
        listed = [
            (f"{bucket}/{found['Key']}", {"size": found["Size"], "ETag": found.get("ETag")})
            for found in answer.get("Contents", ())
        ]
        return listed, answer.get("NextContinuationToken")

    def read_object(self, path: str, etag: str | None, limit: int) -> bytes:
        """An object's bytes, `limit` at most, none if they have not the checksum that the store sends with
        them; an OSError (PreconditionFailed) where the object has another etag.
        """
        bucket, _, key = path.partition("/")
        same = {"IfMatch": f'"{etag}"'} if etag else {}
        answer = self.call_s3("get_object", Bucket=bucket, Key=key, **same)
        try:
            return sync(self.loop, _read_body, answer["Body"], limit)
        except WRONG_CHECKSUM:
            return b""

    async def _cat_file(
        self, path: str, version_id: Any = None, start: Any = None, end: Any = None, **options: Any
    ) -> bytes:
        """The method of which fsspec makes `cat_ranges`, so that it reads no more than was asked for."""
        if start is None or end is None:
            return await super()._cat_file(path, version_id, start, end, **options)
        bucket, _, key = path.partition("/")
        answer = await self._call_s3("get_object", Bucket=bucket, Key=key, Range=f"bytes={start}-{end - 1}")
        try:
            return await _read_body(answer["Body"], end - start + 1)
        except WRONG_CHECKSUM:
            return b""

    async def _mkdir(self, path: str, **options: Any) -> None:
        """Nothing: a store has no folders, and s3fs would make a bucket that it is not allowed to look at."""

    def is_encrypted(self, path: str) -> bool:
        """Whether the store encrypts the object with a key of its own, so that its etag is not an MD5."""
        bucket, _, key = path.partition("/")
        about = self.call_s3("head_object", Bucket=bucket, Key=key)
        return about.get("ServerSideEncryption", "AES256") != "AES256" or "SSECustomerAlgorithm" in about


async def _read_body(body: Any, limit: int) -> bytes:
    data = bytearray()
    async with body as content:
        while len(data) < limit and (chunk := await content.read(min(2**20, limit - len(data)))):
            data += chunk
    return bytes(data)


def settings(connect_seconds: float, read_seconds: float, connections: int, attempts: int) -> dict[str, Any]:
    """The arguments of S3. attempts: of each request, by botocore itself."""
    return {
        "skip_instance_cache": True,
        "use_listings_cache": False,  # others write too
        "max_concurrency": 1,  # otherwise a read asks for the size first
        "config_kwargs": {
            "connect_timeout": connect_seconds,
            "read_timeout": read_seconds,
            "retries": {"total_max_attempts": attempts, "mode": "standard"},
            "max_pool_connections": connections,
            # Stores other than Amazon's often lack the newer checksums when they are written.
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_supported",
        },
    }
