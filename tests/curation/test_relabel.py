"""`csdn relabel`: an edited table becomes a new drop of the same images, or nothing changes."""

from __future__ import annotations

import csv

import pytest
from command_line import csdn
from make_images import Project, make_drop, people_named

from csdn.curation.relabel import relabel
from csdn.data.catalog import PEOPLE_SCHEMA, SAMPLES_SCHEMA, read_table
from csdn.ingest.ledger import LEDGER, Status, change_ledger, decide, read_ledger
from csdn.ingest.sync import sync_ledger
from csdn.runtime.errors import UserError
from csdn.search.images import images_of_drops

PEOPLE = people_named(8)
WRONG = "visible/north/person 001/0.jpg"


@pytest.fixture
def drop(tmp_path, monkeypatch):
    """A drop of 8 people in the ledger of a project, which is the current folder."""
    project = Project(tmp_path / "project")
    monkeypatch.chdir(project.root)
    return project, project.add(make_drop(tmp_path / "in/monday", PEOPLE))


def table(path, of, people, delimiter=",", **more):
    """A table as a person gives it back: image -> person."""
    columns = {"path": "", "person": "", "drop": of.id} | more
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, delimiter=delimiter)
        writer.writeheader()
        writer.writerows(columns | {"path": image, "person": person} for image, person in people.items())
    return path


def samples(project):
    rows = read_table(project.data / "samples.parquet", SAMPLES_SCHEMA).to_pylist()
    names = read_table(project.data / "people.parquet", PEOPLE_SCHEMA)["person"].to_pylist()
    return {row["path"]: names[row["person_row"]] for row in rows}, {row["path"]: row["key"] for row in rows}


@pytest.mark.parametrize("delimiter", [",", ";"])
def test_corrected_labels_are_trained_on_and_the_images_stay_as_they_are(drop, tmp_path, delimiter):
    project, old = drop
    project.ingest()
    before, keys = samples(project)
    files = {path: path.read_bytes() for path in (tmp_path / "in").rglob("*") if path.is_file()}
    said = csdn("relabel", str(table(tmp_path / "t.csv", old, {WRONG: "Person 002"}, delimiter)))
    rejected, new = read_ledger()
    assert (rejected.id, rejected.status, new.status) == (old.id, Status.REJECTED, Status.ACCEPTED)
    assert new.id[:12] in rejected.reason and new.id[:12] in said and "corrected: 1;" in said
    project.ingest()
    assert samples(project) == (before | {WRONG: "person 002"}, keys)
    assert files == {path: path.read_bytes() for path in (tmp_path / "in").rglob("*") if path.is_file()}
    found = {image.source[-len(WRONG) :]: image.person for image in images_of_drops([new]).images}
    assert found[WRONG] == "person 002"


def test_built_in_drops_and_other_read_only_ones_can_be_relabelled(drop, tmp_path):
    project, _ = drop
    old = project.add("builtin:tiny", "builtin")
    image = "visible/cam1/p10001/0001.png"
    assert relabel(table(tmp_path / "t.csv", old, {image: "p10002"}))[1].labels == {image: "p10002"}


def test_a_label_can_be_taken_away_and_corrected_again(drop, tmp_path):
    project, old = drop
    _, second, _ = relabel(table(tmp_path / "a.csv", old, {WRONG: "", WRONG.replace("0.jpg", "1.jpg"): "Bo"}))
    project.ingest()
    assert WRONG not in samples(project)[0] and not project.figures()["drops"]["held"]
    _, third, _ = relabel(table(tmp_path / "b.csv", second, {WRONG: "Bo"}))
    assert [drop.status for drop in read_ledger()] == ["rejected", "rejected", "accepted"]
    assert set(third.labels.values()) == {"Bo"} and len(third.labels) == 2


def test_a_relabelled_drop_is_the_same_as_one_that_came_with_these_labels(drop, tmp_path):
    """Its id depends on the labels as they are now, and on nothing else."""
    _, old = drop
    _, new, _ = relabel(table(tmp_path / "a.csv", old, {WRONG: "Bo"}))
    with pytest.raises(UserError, match=f"{old.id[:12]}.*rejected"):
        relabel(table(tmp_path / "b.csv", new, {WRONG: "person 001"}))
    assert [drop.id for drop in read_ledger()] == [old.id, new.id]


def test_sync_does_not_take_a_relabelled_drop_for_a_changed_one(drop, tmp_path):
    project, old = drop
    relabel(table(tmp_path / "t.csv", old, {WRONG: "Bo"}))
    for thorough in (False, True):
        project.ingest()
        ledger, notes = sync_ledger(read_ledger(), [str(tmp_path / "in")], project.data, thorough)
        assert (ledger, notes) == (read_ledger(), [])


def test_a_held_drop_is_accepted_with_its_new_labels(drop, tmp_path):
    _, old = drop
    change_ledger(lambda drops: decide(drops, old.id, Status.HELD, "rank-1 fell"))
    relabel(table(tmp_path / "t.csv", old, {WRONG: "Bo"}))
    before, after = read_ledger()
    assert (after.status, after.reason) == (Status.ACCEPTED, "") and "rank-1 fell" in before.reason


@pytest.mark.parametrize(
    ("people", "more", "words"),
    [
        ({WRONG: "person 001"}, {}, "every label is as in"),
        ({"visible/north/nobody/0.jpg": "Bo"}, {}, "no image of the drop"),
        ({WRONG: "1.5"}, {}, "1.5"),
        ({WRONG: "Bo"}, {"camera": "south"}, "camera 'south'"),
        ({WRONG: "Bo"}, {"modality": "infrared"}, "modality 'infrared'"),
        ({WRONG: "Bo"}, {"drop": "0" * 64}, "is no drop"),
        ({WRONG: "Bo"}, {"drop": ""}, "column drop"),
        ({}, {}, "column drop"),
    ],
)
def test_a_table_that_does_not_fit_changes_nothing(drop, tmp_path, people, more, words):
    before = LEDGER.read_bytes()
    with pytest.raises(UserError, match=words):
        relabel(table(tmp_path / "t.csv", drop[1], people, **more))
    assert LEDGER.read_bytes() == before


def test_rejected_and_changed_drops_and_benchmarks_are_refused(drop, tmp_path):
    _, old = drop
    edited = table(tmp_path / "t.csv", old, {WRONG: "Bo"})
    (tmp_path / "in/monday" / WRONG).write_bytes(b"other")
    with pytest.raises(UserError, match="changed"):
        relabel(edited)
    change_ledger(lambda drops: decide(drops, old.id, Status.REJECTED, "no"))
    with pytest.raises(UserError, match="csdn accept"):
        relabel(edited)
    (tmp_path / "t.csv").write_text("path,person\n")
    with pytest.raises(UserError, match="column drop is missing"):
        relabel(edited)


def test_one_path_cannot_have_two_people(drop, tmp_path):
    edited = table(tmp_path / "t.csv", drop[1], {WRONG: "Bo"})
    edited.write_text(edited.read_text() + f"{WRONG},Cy,{drop[1].id}\r\n")
    with pytest.raises(UserError, match="'Bo', 'Cy'"):
        relabel(edited)


def test_labels_in_the_ledger_are_texts_by_path(drop):
    text = LEDGER.read_text()
    LEDGER.write_text(text.replace('"layout"', '"labels": ["Bo"], "layout"'))
    with pytest.raises(UserError, match="labels is not"):
        read_ledger()
    LEDGER.write_text(text.replace('"layout"', '"labels": {"a.jpg": "Bo"}, "layout"'))
    assert read_ledger()[0].labels == {"a.jpg": "Bo"}
