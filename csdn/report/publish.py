"""A copy of a finished report in an object store (`report.store`), under a name made of its content."""

from __future__ import annotations

import hashlib
import mimetypes
from pathlib import Path

from csdn.data.store import Store

HASH_DIGITS = 16  # of the page's SHA-256, the folder's name


def publish(page: Path, address: str) -> str:
    """Copy `page` and what lies beside it below an `s3://` prefix; returns the copy's address.

    The page comes last: who finds it finds its pictures. Raises UserError.
    """
    store = Store(published_at(page, address).rpartition("/")[0])
    pictures = (path for path in page.parent.rglob("*") if path.is_file() and path != page)
    for path in (*sorted(pictures), page):
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        store.put(path.relative_to(page.parent).as_posix(), path, kind)
    return store.address_of(page.name)


def published_at(page: Path, address: str) -> str:
    """The address that a copy of `page` below `address` has."""
    name = hashlib.sha256(page.read_bytes()).hexdigest()[:HASH_DIGITS]
    return f"{address.rstrip('/')}/{name}/{page.name}"
