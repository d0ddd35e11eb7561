"""Who is who, and who is a test person, depends on the label and the salt alone."""

from __future__ import annotations

import hashlib
import json

import pytest

from csdn.data.labels import canonical_label
from csdn.ingest.identities import SplitRule, read_aliases
from csdn.runtime.errors import UserError


@pytest.mark.parametrize(
    "given",
    ["José", "JOSÉ", " José\t", "Jose\u0301", "JOSE\u0301 "],
    ids=["nfc", "upper", "space", "nfd", "all"],
)
def test_one_person_has_one_label(given):
    assert canonical_label(given) == "josé"


def test_the_bucket_is_the_hash_of_salt_and_label():
    identity = SplitRule("salt", 40)
    expected = int(hashlib.sha256(b"saltana").hexdigest(), 16) % 100
    assert identity.bucket("ana") == expected


def test_test_people_are_the_highest_buckets():
    splits = [SplitRule("s", 40).split(bucket) for bucket in range(100)]
    assert splits == ["train"] * 60 + ["test"] * 40


def test_more_test_people_keeps_those_there_were():
    people = [f"p{n}" for n in range(200)]

    def test_people(percent: int) -> set[str]:
        identity = SplitRule("s", percent)
        return {person for person in people if identity.split(identity.bucket(person)) == "test"}

    assert test_people(10) < test_people(40) < test_people(90)


def test_aliases_join_labels_whatever_their_case(tmp_path):
    path = tmp_path / "aliases.json"
    path.write_text(json.dumps({"Guest 7": "Ana", "ANNA": "ana "}))
    identity = SplitRule("s", 40, read_aliases(path))
    assert [identity.person(label) for label in ("guest 7", "Anna", "Ana", "Bob")] == ["ana"] * 3 + ["bob"]


@pytest.mark.parametrize(
    "text, complaint, what",
    [
        (None, "no such file", "aliases: the file is not there"),
        ("{", "not valid JSON", "aliases: half a file"),
        ('["a"]', "expected", "aliases: a list"),
        ('{"a": 1}', "expected", "aliases: a number for a label"),
        ('{"a": " "}', "empty", "aliases: an empty label"),
        ('{"a": "b", "b": "c"}', "alias itself", "aliases: an alias of an alias"),
    ],
)
def test_an_aliases_file_that_makes_no_sense_is_an_error(tmp_path, text, complaint, what, fault):
    path = tmp_path / "aliases.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=complaint) as error:
        read_aliases(path)
    fault("parameters", what, error.value)
