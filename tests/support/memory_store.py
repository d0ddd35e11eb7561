"""A bucket in memory, listed in short pages, behind the client that csdn.data.storage uses."""

from __future__ import annotations

import io
import os
from types import SimpleNamespace
from typing import Any

from csdn.data.storage import _Connection
from csdn.ingest.sources.tree import RemoteTree

PAGE = 3


class MemoryClient:
    """The requests of an S3 client, answered from `objects` (key -> bytes)."""

    meta = SimpleNamespace(endpoint_url="http://memory")

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.objects = objects

    def list_objects_v2(
        self, Bucket: str, Prefix: str, Delimiter: str = "", ContinuationToken: str = "0"
    ) -> dict[str, Any]:
        keys = sorted(key for key in self.objects if key.startswith(Prefix))
        folders = {key[: key.index("/", len(Prefix)) + 1] for key in keys if "/" in key[len(Prefix) :]}
        if Delimiter:
            keys = [key for key in keys if Delimiter not in key[len(Prefix) :]]
        first = int(ContinuationToken)
        end = first + PAGE
        return {
            "Contents": [{"Key": key, "Size": len(self.objects[key])} for key in keys[first:end]],
            "CommonPrefixes": [{"Prefix": one} for one in sorted(folders)] if Delimiter and not first else [],
            "IsTruncated": end < len(keys),
            "NextContinuationToken": str(end),
        }

    def get_object(self, Bucket: str, Key: str) -> dict[str, Any]:
        return {"Body": io.BytesIO(self.objects[Key])}


def memory_tree(address: str, objects: dict[str, bytes]) -> RemoteTree:
    """The tree at an `s3://` address of a store that holds `objects`."""
    tree = RemoteTree(address)
    tree.store._connected = _Connection(os.getpid(), MemoryClient(objects), None)
    return tree
