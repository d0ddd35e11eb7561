"""A bucket in memory, as fsspec has it, for tests that need nothing that only S3 does."""

from __future__ import annotations

from fsspec.implementations.memory import MemoryFileSystem

from csdn.ingest.sources.tree import RemoteTree


def fill(bucket: str, objects: dict[str, bytes]) -> None:
    """Make the bucket with these objects (key -> bytes), and no others."""
    memory = MemoryFileSystem()
    if memory.exists(bucket):
        memory.rm(bucket, recursive=True)
    for key, data in objects.items():
        memory.pipe_file(f"{bucket}/{key}", data)


def memory_tree(prefix: str, objects: dict[str, bytes]) -> RemoteTree:
    """The tree at memory://bucket/`prefix`, of a bucket that has `objects`."""
    fill("bucket", objects)
    return RemoteTree(f"memory://bucket/{prefix}")
