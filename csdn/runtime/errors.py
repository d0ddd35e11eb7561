"""What is shown to a user as text, without a traceback: their mistakes, and what the machine lacks."""

from __future__ import annotations

import errno
import os
import re

from csdn.runtime.sanitize import escape_control_chars, redact_text


class UserError(Exception):
    """Something the user can mend: the message says what was wrong, where, and what to do."""

    def __str__(self) -> str:
        """The message; a name from a drop that is quoted in it cannot steer the terminal that shows it.

        An address in it shows neither password nor query.
        """
        return escape_control_chars(redact_text(super().__str__()), keep="\n")


class ServiceUnavailable(UserError):
    """Something outside this machine, such as an object store, does not answer: it may do so later on."""


class Diverged(UserError):
    """Training gave numbers that are not finite: the same data and parameters give them again."""


def is_unavailable(error: BaseException | None) -> bool:
    """Whether an Away is at the bottom of an error, whatever was said of it on the way."""
    return error is not None and (isinstance(error, ServiceUnavailable) or is_unavailable(error.__cause__))


# What an error of the machine means, and what to do.
_FULL = "the disk is full; free some space"
_FORBIDDEN = "this user may not read or write it; change its rights, or the user"
_IN_THE_WAY = "a file is where a folder is needed, or a folder where a file is; move it away"
_OPEN = "too many files are open; raise the limit, such as with `ulimit -n 4096`"
_MEANINGS = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: "a file may not grow so large here; raise the limit (`ulimit -f`), or use another disk",
    errno.EROFS: "the file system is read-only; make it writable",
    errno.EACCES: _FORBIDDEN,
    errno.EPERM: _FORBIDDEN,
    errno.EEXIST: _IN_THE_WAY,
    errno.ENOTDIR: _IN_THE_WAY,
    errno.EISDIR: _IN_THE_WAY,
    errno.EMFILE: _OPEN,
    errno.ENFILE: _OPEN,
    errno.EIO: "the disk fails; look at the system's log, and have it checked",
}
_NO_MEMORY = re.compile("out of memory|not enough memory|can't allocate memory|cannot allocate memory", re.I)


def explain_os_error(error: Exception, lower: str = "") -> str | None:
    """What the machine lacks, where and what to do; None for an error that is not the machine's.

    lower: the parameters that take less memory when they are lower.
    """
    if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
        advice = f"lower {lower} in params.yaml, or free" if lower else "free"
        return f"memory ran out: {advice} some"
    number = _errno(error)
    if number not in _MEANINGS:
        return None
    where = getattr(error, "filename", None)
    text = f"{escape_control_chars(str(where))}: {_MEANINGS[number]}" if where else _MEANINGS[number]
    return f"{text} ({os.strerror(number)})"


def _errno(error: Exception) -> int | None:
    """The error's number; libraries outside Python name it in their text."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    named = re.search(r"\b(?:os error|[Ee]rrno) (\d+)\b", str(error))
    return int(named[1]) if named else None
