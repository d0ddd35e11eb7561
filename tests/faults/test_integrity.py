"""A shard that is not what ingest wrote is found by its hash, named, and made again where it can be."""

from __future__ import annotations

import os
import shutil

import pytest
from make_images import Project, jpeg, make_drop, people_named

from csdn.data import shards
from csdn.ingest import pack
from csdn.runtime.errors import UserError


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An ingested drop of six shards."""
    monkeypatch.setattr(pack, "SHARD_IMAGES", 10)
    project = Project(tmp_path / "project")
    project.add(make_drop(tmp_path / "drop", people_named(10)))
    project.ingest()
    return project


@pytest.fixture
def shard(project):
    return sorted((project.data / "shards").iterdir())[2]


def ingested_with_notes(project: Project) -> list[str]:
    notes: list[str] = []
    project.ingest(note=notes.append)
    return notes


def cut(path):
    path.write_bytes(path.read_bytes()[:-512])


def alter_a_bit(path):
    """The size stays, and the time too."""
    status, data = path.stat(), bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


@pytest.mark.parametrize("damage", [cut, alter_a_bit, os.unlink])
def test_a_damaged_shard_is_named_and_made_again_from_its_drop(project, shard, damage, fault):
    before = project.outputs()
    damage(shard)
    (note,) = ingested_with_notes(project)
    assert shard.name in note
    assert project.outputs() == before
    assert ingested_with_notes(project) == []
    fault("shards and index", "a shard was cut, altered or deleted, and its drop is still there", note)


def test_a_damaged_shard_whose_drop_is_gone_is_an_error(project, shard, tmp_path, fault):
    alter_a_bit(shard)
    (tmp_path / "drop").rename(tmp_path / "away")
    before = project.outputs()
    with pytest.raises(UserError, match=shard.name) as error:
        project.ingest()
    assert project.outputs() == before
    fault("shards and index", "a shard was altered, and its drop is gone", error.value)
    (tmp_path / "away").rename(tmp_path / "drop")
    assert len(ingested_with_notes(project)) == 1


def test_a_damaged_shard_whose_drop_has_changed_is_an_error(project, shard, tmp_path):
    alter_a_bit(shard)
    (tmp_path / "drop/visible/north/person 000/0.jpg").write_bytes(jpeg("another"))
    before = project.outputs()
    with pytest.raises(UserError, match="changed since it was added"):
        project.ingest()
    assert project.outputs() == before


def test_shards_are_read_once_and_not_at_each_ingest(project, monkeypatch):
    hashed = []
    intact = shards.has_bytes_of
    monkeypatch.setattr(shards, "has_bytes_of", lambda *shard: hashed.append(shard) or intact(*shard))
    project.ingest()
    assert hashed == []
    shutil.rmtree(project.root / ".state")
    project.ingest()
    assert len(hashed) == 6
    project.ingest()
    assert len(hashed) == 6


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}'])
def test_what_was_remembered_may_be_nonsense(project, text):
    (project.root / ".state/shards.json").write_text(text)
    before = project.outputs()
    assert ingested_with_notes(project) == []
    assert project.outputs() == before
