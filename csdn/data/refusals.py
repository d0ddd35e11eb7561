"""What was refused of a drop, in words: the reasons, how often each occurred, and the first files of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

EXAMPLES = 3  # files that are named for each reason
_REASONS = 8  # that are shown


def examples(refused: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Reason -> the first paths, of pairs (path, reason); both sorted."""
    found: dict[str, list[str]] = {}
    for path, reason in sorted(refused, key=lambda pair: pair[::-1]):
        paths = found.setdefault(reason, [])
        if len(paths) < EXAMPLES:
            paths.append(path)
    return found


def in_words(counts: Mapping[str, int], named: Mapping[str, Sequence[str]]) -> str:
    """Reasons by how often each occurred (`counts`), with the paths that `named` has of each.

    >>> in_words({"empty file": 1, "no such file": 7}, {"no such file": ["a.jpg", "b.jpg"]})
    '7 x no such file (a.jpg, b.jpg, ...), 1 x empty file'
    """
    most = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    shown = [f"{n} x {reason}{_paths(n, named.get(reason, ()))}" for reason, n in most[:_REASONS]]
    rest = sum(n for _, n in most[_REASONS:])
    return ", ".join(shown + [f"{rest} for other reasons"] * bool(rest))


def _paths(count: int, named: Sequence[str]) -> str:
    if not named:
        return ""
    return f" ({', '.join(path or repr(path) for path in named)}{', ...' * (count > len(named))})"


def refused_in_words(refused: Sequence[tuple[str, str]]) -> str:
    """Pairs (path, reason) as `in_words` has them.

    >>> refused_in_words([("b.jpg", "no such file"), ("a.jpg", "no such file")])
    '2 x no such file (a.jpg, b.jpg)'
    """
    return in_words(Counter(reason for _, reason in refused), examples(refused))
