"""Tables, shards and weights without one person: as ingest would make them, and nobody else's changed."""

from __future__ import annotations

import json
import shutil
from hashlib import sha256

import numpy as np
import pyarrow.parquet as pq
import pytest
from make_images import Project, jpeg, make_drop, write
from safetensors.numpy import load, save

from csdn.ingest.forgotten import (
    NOBODY,
    Forgotten,
    ForgottenPerson,
    forgotten_text,
    newest,
    parse_forgotten,
    read_forgotten,
)
from csdn.ingest.ledger import read_ledger, write_ledger
from csdn.ingest.sync import sync_ledger
from csdn.privacy.rewrite import Removal, rewrite_outputs, rewrite_shard, scrub_file, zero_rows
from csdn.privacy.survey import _images, _shards, outputs_in, row_of
from csdn.retraining.versions import present_lock
from csdn.runtime.errors import UserError
from csdn.runtime.files import as_json

PEOPLE = [f"person {n:02d}" for n in range(8)]


def forgotten(person: str, row: int | None = None, images: tuple[str, ...] = ()) -> Forgotten:
    salted = Forgotten(salt="salt")
    digest = salted.hash_of(person)
    return Forgotten("salt", (ForgottenPerson(digest, (digest,), "2026-01-01", row=row, images=images),))


@pytest.fixture
def project(tmp_path):
    project = Project(tmp_path / "project")
    project.add(make_drop(tmp_path / "drop", PEOPLE))
    project.ingest()
    return project


def test_the_tables_without_a_person_are_those_that_ingest_makes(project, tmp_path):
    here = outputs_in(project.root)
    removal = Removal(frozenset({"person 03"}), frozenset(), "forgotten-")
    images, _ = _images(here, [], [], removal, ())
    row = row_of(here.files, removal)
    record = forgotten("Person 03", row, tuple(images))
    removal = Removal(removal.labels, frozenset(images), record.people[0].name)
    moved = {
        name: rewrite_shard(project.data / "shards" / name, name, project.data / "shards", removal)
        for name in _shards(here, removal)
    }
    changed = rewrite_outputs(here.files, tmp_path / "new", removal, moved)
    assert {name for name in changed if "quarantine" in name} == set()

    for name, path in changed.items():
        shutil.copyfile(path, project.root / name)
    write(project.data / "forgotten.json", forgotten_text(record))
    project.ingest()
    tables = [name for name in changed if "index" not in name]
    assert sorted(tables) == ["data/people.parquet", "data/samples.parquet"]
    for name, path in changed.items():
        assert (project.root / name).read_bytes() == path.read_bytes()
    people = pq.read_table(project.data / "people.parquet").to_pylist()
    assert [one["person"] for one in people if one["row"] == row] == [record.people[0].name]
    assert [one["row"] for one in people] == list(range(len(PEOPLE)))
    assert sorted(path.name for path in (project.data / "shards").iterdir()) == sorted(
        {new.name for new in moved.values()}
    )


def test_a_forgotten_person_never_comes_back(project, tmp_path):
    """A new drop with the label, in another spelling, and one with the same image under another label."""
    drop = make_drop(tmp_path / "later", ["new a", "new b", " PERSON 03"])
    copy = drop / "visible/north/new a/copy.jpg"
    write(copy, jpeg("visible/north/person 03/0.jpg"))
    record = forgotten("person 03", 3, (sha256(copy.read_bytes()).hexdigest(),))
    write(project.data / "forgotten.json", forgotten_text(record))
    (tmp_path / "watched").mkdir()
    drop.rename(tmp_path / "watched/later")
    ledger, notes = sync_ledger(read_ledger(project.ledger), [str(tmp_path / "watched")], project.data)
    assert len(ledger) == 2 and "13 images" in notes[0]  # 18 with the person's, 1 copy
    write_ledger(ledger, project.ledger)
    figures = project.ingest()
    assert figures["quarantined"] == {"forgotten": 1} and figures["drops"]["held"] == []
    people = pq.read_table(project.data / "people.parquet")["person"].to_pylist()
    assert (
        "person 03" not in people
        and people[3] == read_forgotten(project.data / "forgotten.json").people[0].name
    )
    assert len(people) == len(PEOPLE) + 2


def test_rows_of_identities_become_zeros_and_no_other_byte_changes():
    tensors = {
        "prompts.tokens.visible": np.arange(1, 25, dtype=np.float32).reshape(3, 4, 2),
        "gem_neck.classifier.weight": np.arange(1, 7, dtype=np.float16).reshape(3, 2),
        "fused_text": np.ones((3, 5), np.float32),
        "backbone.conv1.weight": np.ones((3, 5), np.float32),
    }
    data = bytearray(save(tensors, {"format": "pt"}))
    zero_rows(data, [1], 3)
    found = load(bytes(data))
    assert (
        data[: 8 + int.from_bytes(data[:8], "little")]
        == save(tensors, {"format": "pt"})[: len(data)][: 8 + int.from_bytes(data[:8], "little")]
    )
    for name, before in tensors.items():
        expected = before.copy()
        if not name.startswith("backbone"):
            expected[1] = 0
        assert (found[name] == expected).all()


def test_metrics_and_the_model_card_lose_the_name_where_they_speak_of_people_and_cameras_keep_theirs():
    """A camera is called like the person."""
    gone = Removal(frozenset({"north"}), frozenset(), "forgotten-1")
    metrics = {
        "cameras": {"visible": {"north": 3}},
        "labels": ["people: 'North' and 'north' were joined", "cameras: 'North' and 'north' were joined"],
        "few_grey_levels": ["camera north: few"],
        "drops": {
            "held": [
                {"address": "/in/north", "cameras": ["north"], "examples": {"bad": ["a/b/NORTH/1.jpg"]}}
            ],
            "left_out": [{"reason": "wrong pictures of north"}],
        },
    }
    text = as_json(metrics).decode()
    assert json.loads(scrub_file("metrics/ingest.json", text, gone)) == {
        **metrics,
        "labels": ["people: 'forgotten-1' and 'forgotten-1' were joined", metrics["labels"][1]],
        "drops": {
            "held": [
                {
                    "address": "/in/forgotten-1",
                    "cameras": ["north"],
                    "examples": {"bad": ["a/b/forgotten-1/1.jpg"]},
                }
            ],
            "left_out": [{"reason": "wrong pictures of forgotten-1"}],
        },
    }
    somebody = Removal(frozenset({"somebody"}), frozenset(), "forgotten-1")
    assert scrub_file("metrics/ingest.json", text.replace(" ", ""), somebody) == text.replace(" ", "")
    assert scrub_file("metrics/gate.json", text, gone) == text
    card = f"| north | visible | 3 |\n| {'a' * 64} | /in/{{}} | cameras | |\n"
    assert scrub_file("MODEL_CARD.md", card.format("North"), gone) == card.format("forgotten-1")


def test_a_lock_names_what_has_replaced_its_outputs():
    lock = """schema: '2.0'
stages:
  report:
    cmd: x
    params:
      params.yaml:
        ingest.store:
    outs:
    - path: report
      hash: md5
      md5: a.dir
      size: 5
      nfiles: 2
    - path: models
      hash: md5
      md5: b.dir
      size: 5
      nfiles: 2
    - path: same
      hash: md5
      md5: c
      size: 5
"""
    objects = {
        "a.dir": {},
        "b.dir": {"md5": "d.dir", "size": 4, "nfiles": 1},
        "d.dir": {"md5": "e.dir", "size": 3, "nfiles": 1},
    }
    lines = lock.splitlines(keepends=True)
    del lines[8:13]  # of the report
    expected = "".join(lines).replace(
        "b.dir\n      size: 5\n      nfiles: 2", "e.dir\n      size: 3\n      nfiles: 1"
    )
    assert present_lock(lock.encode(), Forgotten(objects=objects)).decode() == expected
    assert present_lock(lock.encode(), NOBODY) == lock.encode()


def test_the_file_of_forgotten_people_has_no_name_and_is_read_as_written():
    record = forgotten("Ann Lee", 3, ("a" * 64,))
    text = forgotten_text(record)
    assert b"ann" not in text.lower() and parse_forgotten(text, "x") == record
    assert record.has("ANN LEE ") and not record.has("ann") and not record.has("")
    assert newest({"a": {"md5": "b"}, "b": {}}, "a", follow="md5") == {}
    with pytest.raises(UserError, match="not of version 1"):
        parse_forgotten(b'{"version": 2}', "x")
    with pytest.raises(UserError, match="does not have the expected content"):
        parse_forgotten(json.dumps({"version": 1, "people": [{"name": "x"}]}).encode(), "x")


def test_a_camera_or_a_file_called_like_the_person_is_not_the_persons():
    seven = Removal(frozenset({"7"}), frozenset(), "forgotten-0")
    assert seven.is_path("visible/1/7/broken.jpg")
    others = ("visible/7/8/later.heic", "visible/1/8/7", "7/8.jpg")
    assert not [path for path in others if seven.is_path(path)]
