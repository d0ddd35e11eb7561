"""Errors that are shown as text, without a traceback: mistakes of the user and faults of the machine."""

from __future__ import annotations

import errno
import os
import re
from importlib import metadata

from csdn.runtime.sanitize import escape_control_chars, redact_text


class UserError(Exception):
    """An error that the user can correct: the message says what is wrong, where, and what to do."""

    def __str__(self) -> str:
        """The message without control characters (names in it come from drops) and without credentials."""
        return escape_control_chars(redact_text(super().__str__()), keep="\n")


class ServiceUnavailable(UserError):
    """A service outside this machine, such as an object store, does not respond; a later try may succeed."""


class Diverged(UserError):
    """A loss or gradient is not finite; training again with the same data and parameters gives the same."""


def is_unavailable(error: BaseException | None) -> bool:
    """Whether a ServiceUnavailable is the error or one of its causes."""
    return error is not None and (isinstance(error, ServiceUnavailable) or is_unavailable(error.__cause__))


def without_cause(error: UserError) -> UserError:
    """The error for another process. Pickling loses the cause: if that was a ServiceUnavailable, the error is
    one; otherwise it keeps its class.
    """
    return (ServiceUnavailable if is_unavailable(error) else type(error))(str(error))


# Error number -> what it means and what to do.
_FULL = "the disk is full; free some space"
_FORBIDDEN = "this user may not read or write it; change its permissions, or run as another user"
_IN_THE_WAY = "a file is where a folder is needed, or the other way round; move it away"
_OPEN = "too many files are open; raise the limit, such as with `ulimit -n 4096`"
_MEANINGS = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: "a file this large is not allowed here; raise the limit (`ulimit -f`), or use another disk",
    errno.EROFS: "the file system is read-only; make it writable",
    errno.EACCES: _FORBIDDEN,
    errno.EPERM: _FORBIDDEN,
    errno.EEXIST: _IN_THE_WAY,
    errno.ENOTDIR: _IN_THE_WAY,
    errno.EISDIR: _IN_THE_WAY,
    errno.EMFILE: _OPEN,
    errno.ENFILE: _OPEN,
    errno.EIO: "the disk failed to read or write; check the system's log and the disk",
}
_NO_MEMORY = re.compile("out of memory|not enough memory|can't allocate memory|cannot allocate memory", re.I)


def explain_os_error(error: Exception, reduce: str = "") -> str | None:
    """What the machine lacks, where, and what to do; None if the machine is not the cause.

    reduce: the parameters to reduce if memory runs out.
    """
    if isinstance(error, ModuleNotFoundError):
        return explain_missing_package(error)
    if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
        return f"memory ran out: {f'reduce {reduce} in params.yaml, or ' if reduce else ''}free some"
    number = _errno(error)
    if number not in _MEANINGS:
        return None
    where = getattr(error, "filename", None)
    text = f"{escape_control_chars(str(where))}: {_MEANINGS[number]}" if where else _MEANINGS[number]
    return f"{text} ({os.strerror(number)})"


def _errno(error: Exception) -> int | None:
    """The error number; libraries that are not written in Python give it in their message only."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    match = re.search(r"\b(?:os error|[Ee]rrno) (\d+)\b", str(error))
    return int(match[1]) if match else None


def explain_missing_package(error: ModuleNotFoundError) -> str | None:
    """Which extra of this package has the module that is not installed; None if no extra has it."""
    name = error.name or ""
    wanted = {_as_distribution(name), _as_distribution(name.partition(".")[0])} - {"csdn"}
    for requirement in _requirements():
        listed = re.match(r"""([\w.-]+).*extra == "([\w-]+)\"""", requirement)
        if listed and _as_distribution(listed[1]) in wanted:
            return f"{error.name} is not installed: pip install 'csdn[{listed[2]}]' (docs/install.md)"
    return None


def _as_distribution(name: str) -> str:
    return re.sub("[._]", "-", name.lower())


def _requirements() -> list[str]:
    try:
        return metadata.requires("csdn") or []
    except metadata.PackageNotFoundError:  # a clone on the path
        return []
