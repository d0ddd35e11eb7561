"""Who is who, and on which side: pure functions of a person's label and the ledger's order.

A test person is one whose bucket is among the highest `test_percent`; no seed, no other person and no later
drop changes that, so nobody ever moves from test to train. The people of a benchmark are where its authors
put them (csdn.data.sides).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from csdn.data.labels import BadLabel, canonical_label
from csdn.documents import parse_json
from csdn.errors import UserError

BUCKETS = 100


@dataclass(frozen=True)
class Identity:
    """How labels become people on a side: aliases, the salt of the buckets, the share of test people."""

    salt: str
    test_percent: int
    aliases: Mapping[str, str] = field(default_factory=dict)  # canonical -> canonical
    trial: int = 1  # which of a benchmark's splits

    def person(self, label: str) -> str:
        """The canonical label that a label as given stands for."""
        canonical = canonical_label(label)
        return self.aliases.get(canonical, canonical)

    def bucket(self, person: str) -> int:
        """0..99, from the canonical label."""
        return int(hashlib.sha256((self.salt + person).encode()).hexdigest(), 16) % BUCKETS

    def side(self, bucket: int) -> str:
        return "test" if bucket >= BUCKETS - self.test_percent else "train"


def read_aliases(path: str | Path) -> dict[str, str]:
    """A JSON file {"label as given": "label meant"}, both made canonical."""
    try:
        text = Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; data.aliases in params.yaml names it") from None
    return parse_aliases(text, path)


def parse_aliases(text: bytes, path: str | Path) -> dict[str, str]:
    """What `read_aliases` reads, from a file's text; `path` names it in the UserError."""
    given = parse_json(text, path)
    if not isinstance(given, dict) or not all(isinstance(meant, str) for meant in given.values()):
        raise UserError(f'{path}: expected {{"label as given": "label meant", ...}}')
    aliases: dict[str, str] = {}
    for label, meant in given.items():
        try:
            one, other = canonical_label(label), canonical_label(meant)
        except BadLabel as bad:
            raise UserError(f"{path}: {label!r} -> {meant!r}: {bad}") from None
        if not one or not other:
            raise UserError(f"{path}: {label!r} -> {meant!r}: a label is empty, or a missing value")
        if aliases.setdefault(one, other) != other:
            raise UserError(
                f"{path}: {label!r} -> {meant!r}: another spelling of {one!r} means somebody else"
            )
    for label, meant in aliases.items():
        if aliases.get(meant, meant) != meant:
            raise UserError(f"{path}: {label!r} -> {meant!r}, which is an alias itself; name the last one")
    return aliases
