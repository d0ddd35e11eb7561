"""The same object store for libraries that take a pyarrow file system (Ray Train's checkpoints)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from csdn.data.store.asking import CONNECT_SECONDS, READ_SECONDS
from csdn.data.store.bucket import Store

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

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
