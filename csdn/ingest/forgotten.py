"""The forgotten people `data/forgotten.json`: whom `csdn forget` has removed, without their names.

Ingest leaves their images out, by label and by content, wherever they come from, and keeps their rows of
people.parquet as tombstones. csdn.privacy writes the file; csdn.retraining finds by it what has replaced the
files of older versions. docs/privacy.md says what a reader of this file can find out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from csdn.data.catalog import ImageRecord
from csdn.data.labels import canonical_label, label_fault
from csdn.runtime.documents import expected_in, parse_json
from csdn.runtime.errors import UserError
from csdn.runtime.files import as_json

FORGOTTEN = Path("data/forgotten.json")
FORGOTTEN_VERSION = 1
REASON = "forgotten"  # of an image that ingest leaves out
TOMBSTONE = "forgotten-"  # begins the name of a forgotten person's row


@dataclass(frozen=True)
class ForgottenPerson:
    """One forgotten person. `id` is the salted SHA-256 of the canonical label.

    labels: the salted hashes of all labels that meant the person. row: in people.parquet, None where there
    was none. images: SHA-256 of the images' contents. versions: those whose models were trained on them.
    """

    id: str
    labels: tuple[str, ...]
    date: str
    reason: str = ""
    row: int | None = None
    images: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What stands in the tables and models in place of the name."""
        return f"{TOMBSTONE}{self.id[:12]}"


@dataclass(frozen=True)
class Forgotten:
    """All forgotten people, and what has replaced the files that showed them: {old: new}.

    shards: names of shards; "" where no image was left. weights: SHA-256 of files of weights. objects: DVC's
    hashes, with the values of dvc.lock that changed ({} where nothing has replaced the object).
    """

    salt: str = ""
    people: tuple[ForgottenPerson, ...] = ()
    shards: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    objects: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @cached_property
    def labels(self) -> frozenset[str]:
        return frozenset(label for person in self.people for label in person.labels)

    @cached_property
    def images(self) -> frozenset[str]:
        """SHA-256 of the contents of all images of forgotten people."""
        return frozenset(image for person in self.people for image in person.images)

    @property
    def versions(self) -> frozenset[str]:
        """The versions whose models were trained on a forgotten person."""
        return frozenset(version for person in self.people for version in person.versions)

    def hash_of(self, label: str) -> str:
        """The salted hash of a label, by what it means (csdn.data.labels)."""
        return hashlib.sha256(f"{self.salt}\n{canonical_label(label)}".encode()).hexdigest()

    def has(self, label: str) -> bool:
        """Whether a label is a forgotten person's."""
        return bool(self.people) and not label_fault(label) and self.hash_of(label) in self.labels

    def among(self, labels: Iterable[str]) -> set[str]:
        """Those of the labels that are forgotten people's; each label is hashed once."""
        return {label for label in set(labels) if self.has(label)} if self.people else set()

    def images_of(self, name: str) -> frozenset[str]:
        """SHA-256 of the images of the person whose tombstone has this name."""
        return frozenset(image for one in self.people if one.name == name for image in one.images)

    def person(self, label: str) -> ForgottenPerson | None:
        """The forgotten person whose label this is."""
        if not self.has(label):
            return None
        digest = self.hash_of(label)
        return next(person for person in self.people if digest in person.labels)


NOBODY = Forgotten()


def read_forgotten(path: str | Path = FORGOTTEN) -> Forgotten:
    """The forgotten people; nobody where there is no such file. Raises UserError for a damaged one."""
    try:
        return parse_forgotten(Path(path).read_bytes(), path)
    except FileNotFoundError:
        return NOBODY


def parse_forgotten(text: bytes, path: str | Path) -> Forgotten:
    """The forgotten people in a file's text; `path` names it in the UserError."""
    advice = f"`csdn forget` alone writes it; `git diff {path}` shows what changed"
    value = parse_json(text, path, advice)
    if not isinstance(value, dict) or value.get("version") != FORGOTTEN_VERSION:
        raise UserError(f"{path}: not of version {FORGOTTEN_VERSION}; {advice}")
    with expected_in(path, advice):
        people = tuple(
            ForgottenPerson(
                **one
                | {name: tuple(map(str, one.get(name, ()))) for name in ("labels", "images", "versions")}
            )
            for one in value.pop("people")
        )
        del value["version"]
        return Forgotten(people=people, **value)


def forgotten_text(forgotten: Forgotten) -> bytes:
    """The content of the file."""
    return as_json({"version": FORGOTTEN_VERSION, **asdict(forgotten)})


def newest(replaced: Mapping[str, Any], key: str, follow: str = "") -> Any:
    """What stands for `key` now, by a mapping of Forgotten: a replacement may have been replaced again.

    follow: the entry of a replacement that is the next key; "": the replacement itself.

    >>> newest({"a": "b", "b": "c"}, "a"), newest({"a": ""}, "a"), newest({}, "x")
    ('c', '', None)
    """
    found = None
    while key in replaced:
        found = replaced[key]
        key = found.get(follow, "") if follow else found
    return found


def without_forgotten(
    records: Sequence[ImageRecord], refused: list[tuple[str, str]], forgotten: Forgotten
) -> list[ImageRecord]:
    """The records without those of forgotten people; files in folders of their names leave `refused` too."""
    if not forgotten.people:
        return list(records)
    gone = forgotten.among(record.person for record in records)
    folders = forgotten.among(part for path, _ in refused for part in path.split("/"))
    refused[:] = [one for one in refused if not folders & set(one[0].split("/"))]
    return [record for record in records if record.person not in gone]
