"""The ledger: what it holds, how drops get into it, and what a person may decide."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from command_line import csdn
from make_images import jpeg, make_drop, write

from csdn.ingest.ledger import (
    LEDGER,
    Drop,
    Status,
    decide,
    find_drop,
    merge_ledgers,
    read_ledger,
    write_ledger,
)
from csdn.ingest.sync import open_drop
from csdn.runtime.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project folder with the committed parameters and an empty ledger, as the current folder."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    write_ledger([])
    return tmp_path


def watch(project, *places) -> None:
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["ingest"]["watch"] = [str(place) for place in places]
    (project / "params.yaml").write_text(yaml.safe_dump(params))


def test_the_committed_ledger_is_the_demo_as_it_is_now():
    (drop,) = read_ledger(ROOT / LEDGER)
    assert drop == open_drop("builtin:demo", "builtin")[0]


def test_an_id_depends_on_every_path_byte_and_label_and_on_nothing_else(tmp_path):
    one = make_drop(tmp_path / "one", ["Ana", "Bo"])
    original = open_drop(str(one), "cameras")[0].id
    copy = shutil.copytree(one, tmp_path / "elsewhere")
    assert open_drop(str(copy), "cameras")[0].id == original
    image = copy / "visible/north/Ana/0.jpg"
    data = image.read_bytes()
    image.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    changed = open_drop(str(copy), "cameras")[0].id
    image.write_bytes(data)
    image.rename(copy / "visible/north/Ana/5.jpg")
    renamed = open_drop(str(copy), "cameras")[0].id
    assert len({original, changed, renamed}) == 3


def test_an_id_depends_on_what_a_manifest_says(tmp_path):
    write(tmp_path / "a.jpg", jpeg("a"))
    ids = set()
    for about in ("Ana,visible,gate", "Bo,visible,gate", "Ana,infrared,gate", "Ana,visible,hall"):
        write(tmp_path / "manifest.csv", f"path,person,modality,camera\na.jpg,{about}\n".encode())
        ids.add(open_drop(str(tmp_path), "cameras")[0].id)
    assert len(ids) == 4


def test_add_appends_and_keeps_the_order(project):
    make_drop(project / "b", ["Ana"])
    make_drop(project / "a", ["Bo"])
    assert "6 images" in csdn("add", "b")
    csdn("add", "a", "--layout", "cameras")
    csdn("add", "builtin:tiny", "--layout", "builtin")
    folders = [str(project / name) for name in ("b", "a")]
    assert [drop.address for drop in read_ledger()] == [*folders, "builtin:tiny"]
    assert {drop.status for drop in read_ledger()} == {Status.ACCEPTED}


def test_adding_the_same_images_twice_is_an_error_and_changes_nothing(project, fault):
    make_drop(project / "a", ["Ana"])
    shutil.copytree(project / "a", project / "copy")
    csdn("add", "a")
    before = LEDGER.read_bytes()
    with pytest.raises(UserError, match="already in the ledger") as error:
        csdn("add", "copy")
    assert LEDGER.read_bytes() == before
    fault("ledger", "a drop is added a second time", error.value)


def test_an_incomplete_drop_is_not_added(project, fault):
    make_drop(project / "a", ["Ana"])
    (project / "a/_SUCCESS").unlink()
    with pytest.raises(UserError, match=r"not complete.*touch a/_SUCCESS") as error:
        csdn("add", "a")
    assert read_ledger() == []
    fault("drops and images", "a drop is added while it is still being written", error.value)


def test_sync_takes_what_is_new_and_complete_and_skips_the_rest(project):
    make_drop(project / "in/monday", ["Ana"])
    make_drop(project / "in/tuesday", ["Bo"])
    (project / "in/tuesday/_SUCCESS").unlink()
    (project / "in/empty").mkdir()
    watch(project, "in")
    output = csdn("sync")
    assert "1 new, 1 in the ledger" in output and f"skipped: {project}/in/tuesday: not complete" in output
    write(project / "in/tuesday/_SUCCESS", b"")
    assert "1 new, 2 in the ledger" in csdn("sync")
    before = LEDGER.read_bytes()
    assert "0 new, 2 in the ledger" in csdn("sync")
    assert LEDGER.read_bytes() == before


def test_sync_without_a_place_to_look_is_an_error(project, fault):
    with pytest.raises(UserError, match=r"ingest\.watch in params\.yaml is empty") as error:
        csdn("sync")
    fault("parameters", "csdn sync without a place to look", error.value)
    watch(project, "nowhere")
    with pytest.raises(UserError, match="nowhere: no such folder") as error:
        csdn("sync")
    fault("parameters", "csdn sync with a place that is not there", error.value)


def test_drops_lists_the_ledger(project):
    make_drop(project / "a", ["Ana"])
    csdn("add", "a")
    (drop,) = read_ledger()
    assert drop.id[:12] in csdn("drops") and "accepted" in csdn("drops")
    files = {"reasons": {"truncated": 3}, "examples": {"truncated": ["north/1.jpg"]}}
    held = {"drops": {"held": [{"id": drop.id, "bad": 3, "images": 6, **files}]}}
    write(project / "metrics/ingest.json", json.dumps(held).encode())
    assert "held" in csdn("drops") and "3 of 6 images are bad" in csdn("drops")
    assert "3 x truncated (north/1.jpg, ...)" in csdn("drops")


def test_a_decision_keeps_place_and_says_why(project):
    drops = [Drop("a" * 64, "x", "cameras"), Drop("b" * 64, "y", "cameras")]
    write_ledger(drops)
    csdn("reject", "aa", "--reason", "wrong cameras")
    csdn("accept", "y", "--reason", "looked at it")
    assert [(d.address, str(d.status), d.reason) for d in read_ledger()] == [
        ("x", "rejected", "wrong cameras"),
        ("y", "accepted", "looked at it"),
    ]


@pytest.mark.parametrize(
    "name, complaint, what",
    [
        ("c", "is no drop's id", "csdn accept or reject with an id that is not in the ledger"),
        ("a", "names more than one", "csdn accept or reject with the first digits of two ids"),
        ("", "is no drop's id", "csdn accept or reject with an empty name"),
    ],
)
def test_a_decision_needs_one_drop(name, complaint, what, fault):
    drops = [Drop("a" * 64, "x", "cameras"), Drop("a" * 63 + "b", "y", "cameras")]
    with pytest.raises(UserError, match=complaint) as error:
        find_drop(drops, name)
    fault("ledger", what, error.value)


def test_two_changes_of_a_ledger_are_merged_and_ours_counts():
    a, b, c, d = (Drop(name * 64, name, "cameras") for name in "abcd")
    held = [replace(drop, status=Status.HELD) for drop in (a, b, c, d)]
    ours = [replace(a, status=Status.ACCEPTED, reason="looked at it"), b, c]
    assert merge_ledgers(ours, base=[a, b], theirs=[held[0], held[1], held[2], held[3]]) == [
        ours[0],
        held[1],
        c,
        held[3],
    ]
    assert merge_ledgers([b], base=[a, b], theirs=[held[0], b]) == [b], "a person took it out"


def test_a_decision_needs_a_reason(fault):
    with pytest.raises(UserError, match="reason") as error:
        decide([Drop("a" * 64, "x", "cameras")], "a", Status.REJECTED, "  ")
    fault("ledger", "csdn accept or reject without a reason", error.value)


def test_the_ledger_comes_back_as_it_was_written(tmp_path):
    drops = [Drop("a" * 64, "x", "cameras", Status.HELD, 'says "no"'), Drop("b" * 64, "ü", "builtin")]
    write_ledger(drops, tmp_path / "drops.json")
    assert read_ledger(tmp_path / "drops.json") == drops


GOOD = {"id": "a" * 64, "address": "x", "layout": "cameras", "status": "accepted", "reason": ""}


NONSENSE = [
    ("{", "not valid JSON", "the ledger is cut"),
    ("", "not valid JSON", "the ledger is an empty file"),
    ("\xff", "not valid JSON", "the ledger is no text"),
    ("<<<<<<< HEAD\n[]", "not valid JSON", "the ledger has the marks of a merge that was not finished"),
    ("[]", "expected", "the ledger is a list"),
    ({"version": 1}, "expected", "the ledger has no drops"),
    ({"version": 2, "drops": []}, "version = 2; this program reads", "the ledger is of another version"),
    ({"version": True, "drops": []}, "version = True", "the ledger's version is no number"),
    (["x"], "entry 1: 'x' is not an entry", "an entry of the ledger is a text"),
    ([GOOD, {**GOOD, "extra": ""}], "entry 2: unknown: extra", "an entry has a key that there is not"),
    ([{"id": "a" * 64}], "entry 1: missing: address, layout", "an entry has no address"),
    (
        [{**GOOD, "status": "acepted"}],
        "status = 'acepted'; ",
        "an entry has a status that there is not",
    ),
    ([{**GOOD, "layout": "folder"}], "layout = 'folder'; allowed", "an entry has a layout that there is not"),
    ([{**GOOD, "id": "../../etc"}], "not 64 hex digits", "an entry's id is a path"),
    ([{**GOOD, "id": "Z" * 64}], "not 64 hex digits", "an entry's id has letters that are no digits"),
    ([{**GOOD, "address": ""}], "address is empty", "an entry's address is empty"),
    ([{**GOOD, "reason": None}], "reason = None is not a text", "an entry's reason is null"),
    ([GOOD, GOOD], "is there twice", "an entry is there twice"),
]


@pytest.mark.parametrize("ledger, complaint, what", NONSENSE)
def test_a_ledger_edited_into_nonsense_is_an_error_that_names_the_entry(
    tmp_path, ledger, complaint, what, fault
):
    path = tmp_path / "drops.json"
    whole = {"version": 1, "drops": ledger} if isinstance(ledger, list) else ledger
    path.write_bytes(ledger.encode("latin-1") if isinstance(ledger, str) else json.dumps(whole).encode())
    with pytest.raises(UserError, match=complaint) as error:
        read_ledger(path)
    fault("ledger", what, error.value)


def test_a_missing_ledger_is_an_error_that_says_where_to_run(tmp_path, fault):
    with pytest.raises(UserError, match="project's root folder") as error:
        read_ledger(tmp_path / "drops.json")
    fault("ledger", "no ledger where the command is run", error.value)
