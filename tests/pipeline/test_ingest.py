"""Ingest: same input, same bytes; drops are read once, laid together by fixed rules, and never rewritten."""

from __future__ import annotations

import numpy as np
import pytest
from make_images import Project, jpeg, make_drop, people_named, write

from csdn.data.catalog import (
    PEOPLE_SCHEMA,
    QUARANTINE_SCHEMA,
    SAMPLES_SCHEMA,
    Modality,
    load_dataset,
    read_table,
)
from csdn.data.images import EXTENSIONS
from csdn.ingest import pack
from csdn.ingest.counts import summary_lines
from csdn.ingest.identities import SplitRule
from csdn.ingest.ledger import Status, decide, read_ledger, write_ledger

PEOPLE = people_named(10)
SPLITS = {person: SplitRule("csdn", 40).split(SplitRule("csdn", 40).bucket(person)) for person in PEOPLE}


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path / "project")


def people(project) -> list[dict]:
    return read_table(project.data / "people.parquet", PEOPLE_SCHEMA).to_pylist()


def samples(project) -> list[dict]:
    return read_table(project.data / "samples.parquet", SAMPLES_SCHEMA).to_pylist()


def quarantine(project) -> list[tuple[str, str]]:
    rows = read_table(project.data / "quarantine.parquet", QUARANTINE_SCHEMA).to_pylist()
    return [(row["path"], row["reason"]) for row in rows]


def judge(project, drop, status: Status) -> None:
    drops = decide(read_ledger(project.ledger), drop.id, status, "a test says so")
    write_ledger(drops, project.ledger)


def test_same_input_same_bytes_wherever_it_is_and_however_many_processes(tmp_path, monkeypatch):
    drop = make_drop(tmp_path / "drop", PEOPLE)
    write(drop / "visible/north/person 000/broken.jpg", b"\xff\xd8")
    outputs = []
    for name, processes in (("one", 1), ("two", 2)):
        # Three tasks for two processes.
        monkeypatch.setattr(pack, "SHARD_IMAGES", 25)
        project = Project(tmp_path / name, processes)
        project.add(drop)
        project.ingest(max_bad_fraction=0.1)
        outputs.append(project.outputs())
    assert len([name for name in outputs[0] if name.endswith(".tar")]) == 3
    assert outputs[0] == outputs[1]


def test_a_second_ingest_reads_no_image_and_changes_nothing(project, tmp_path, monkeypatch):
    project.add(make_drop(tmp_path / "drop", PEOPLE))
    project.ingest()
    before = project.outputs()
    monkeypatch.setattr(pack, "pack", lambda task: pytest.fail("a shard was made again"))
    project.ingest()
    assert project.outputs() == before


def test_a_new_drop_adds_shards_and_index_and_rewrites_none(project, tmp_path):
    project.add(make_drop(tmp_path / "one", PEOPLE))
    project.ingest()
    before = {
        name: data for name, data in project.outputs().items() if "/shards/" in name or "/index/" in name
    }
    rows = {row["person"]: row["row"] for row in people(project)}
    project.add(make_drop(tmp_path / "two", people_named(5, "guest")))
    project.ingest()
    after = project.outputs()
    assert len(before) == 3 and before.items() <= after.items()
    assert len([name for name in after if "/shards/" in name]) == 2
    assert rows.items() <= {row["person"]: row["row"] for row in people(project)}.items()
    assert [row["row"] for row in people(project)] == list(range(15))


def test_leftovers_of_a_killed_run_are_swept(project, tmp_path, fault):
    project.add(make_drop(tmp_path / "drop", PEOPLE))
    project.ingest()
    before = project.outputs()
    write(project.data / "shards/.abc-000000.partial", b"half")
    write(project.data / "shards/abc-000000-def.tar", b"its index was never written")
    write(project.data / "index/.abc.parquet.partial", b"half")
    project.ingest()
    assert project.outputs() == before
    fault("shards and index", "half-written files of a killed run", "The next run removes them.")


def test_samples_are_in_the_ledgers_order_then_by_path(project, tmp_path):
    second = project.add(make_drop(tmp_path / "b", PEOPLE))
    first = project.add(make_drop(tmp_path / "a", people_named(4, "guest")))
    project.ingest()
    rows = [(row["drop"], row["path"]) for row in samples(project)]
    assert rows == sorted(rows, key=lambda row: ([second.id, first.id].index(row[0]), row[1]))


def test_people_stand_in_order_of_drop_then_label_with_bucket_and_split(project, tmp_path):
    project.add(make_drop(tmp_path / "one", ["zoe", "Yan", *PEOPLE]))
    project.add(make_drop(tmp_path / "two", ["Bo", "ZOE"]))
    project.ingest()
    rows = people(project)
    assert [row["person"] for row in rows] == [*PEOPLE, "yan", "zoe", "bo"]
    for row in rows[:10]:
        assert row["bucket"] == SplitRule("csdn", 40).bucket(row["person"])
        assert row["status"] == row["split"] == SPLITS[row["person"]]
        assert (row["visible"], row["infrared"]) == (4, 2)


def test_a_train_person_without_partner_waits_and_a_test_person_does_not(project, tmp_path):
    project.add(make_drop(tmp_path / "one", PEOPLE))
    alone = people_named(20, "alone")
    project.add(make_drop(tmp_path / "two", alone, modalities=["visible"]))
    figures = project.ingest()
    status = {row["person"]: (row["split"], row["status"]) for row in people(project)}
    assert {status[person] for person in alone} == {("train", "waiting"), ("test", "test")}
    waiting = [row["row"] for row in people(project) if row["status"] == "waiting"]
    assert not set(waiting) & {row["person_row"] for row in samples(project)}
    assert figures["people"]["waiting"] == len(waiting) > 0
    project.add(make_drop(tmp_path / "three", alone, modalities=["infrared"]))
    project.ingest()
    assert {row["status"] for row in people(project)} == {"train", "test"}


def test_a_rejected_drop_leaves_its_peoples_rows_as_tombstones(project, tmp_path):
    drop = project.add(make_drop(tmp_path / "one", people_named(4, "guest")))
    project.add(make_drop(tmp_path / "two", PEOPLE))
    project.ingest()
    before = {row["person"]: row["row"] for row in people(project)}
    judge(project, drop, Status.REJECTED)
    figures = project.ingest()
    assert {row["person"]: row["row"] for row in people(project)} == before
    removed = [row for row in people(project) if row["status"] == "removed"]
    assert [row["person"] for row in removed] == people_named(4, "guest")
    assert all((row["visible"], row["infrared"]) == (0, 0) for row in removed)
    assert figures["people"]["removed"] == 4
    assert figures["drops"]["left_out"][0]["status"] == "rejected"


def test_a_rejected_drop_is_not_read(project, tmp_path):
    drop = project.add(make_drop(tmp_path / "gone", people_named(4, "guest")))
    judge(project, drop, Status.REJECTED)
    project.add(make_drop(tmp_path / "two", PEOPLE))
    (tmp_path / "gone").rename(tmp_path / "away")
    assert project.ingest()["drops"]["used"] == 1


def test_aliases_join_people(project, tmp_path):
    project.add(make_drop(tmp_path / "drop", [*PEOPLE, "Nick"]))
    aliases = write(tmp_path / "aliases.json", b'{"NICK": "Person 003"}')
    project.ingest(aliases=str(aliases))
    row = next(row for row in people(project) if row["person"] == "person 003")
    assert (row["visible"], row["infrared"]) == (8, 4)
    assert len(people(project)) == 10


def test_the_same_image_of_a_person_is_used_once(project, tmp_path):
    one = make_drop(tmp_path / "one", PEOPLE)
    write(one / "visible/north/PERSON 000/copy.jpg", jpeg("visible/north/person 000/0.jpg"))
    project.add(one)
    project.add(make_drop(tmp_path / "two", [*PEOPLE[:3], "Zoe"]))
    figures = project.ingest()
    assert figures["duplicates"] == 1 + 18
    assert quarantine(project) == []
    keys = [row["key"] for row in samples(project)]
    assert len(keys) == len(set(keys)) == 60 + 6


def test_an_image_under_two_people_of_a_drop_is_quarantined_in_all_its_copies(project, tmp_path, fault):
    drop = make_drop(tmp_path / "drop", PEOPLE)
    write(drop / "visible/north/person 005/9.jpg", jpeg("visible/north/person 000/0.jpg"))
    write(drop / "infrared/north/person 001/9.jpg", jpeg("visible/north/person 001/0.jpg"))
    project.add(drop)
    project.ingest(max_bad_fraction=0.1)
    assert quarantine(project) == [
        (path, "same image under two people or modalities")
        for path in (
            "infrared/north/person 001/9.jpg",
            "visible/north/person 000/0.jpg",
            "visible/north/person 001/0.jpg",
            "visible/north/person 005/9.jpg",
        )
    ]
    assert not {path for path, _ in quarantine(project)} & {row["path"] for row in samples(project)}
    fault(
        "drops and images",
        "the same image under two people of one drop",
        "All its copies are quarantined: nobody knows whose it is.",
    )


def test_an_image_under_another_person_than_before_stays_with_the_earlier_drop(project, tmp_path, fault):
    first = project.add(make_drop(tmp_path / "one", PEOPLE))
    two = make_drop(tmp_path / "two", people_named(10, "guest"))
    write(two / "visible/north/guest 000/9.jpg", jpeg("visible/north/person 000/0.jpg"))
    second = project.add(two)
    project.ingest(max_bad_fraction=0.1)
    reason = "same image under another person or modality in an earlier drop"
    assert quarantine(project) == [("visible/north/guest 000/9.jpg", reason)]
    kept = [row for row in samples(project) if row["path"] == "visible/north/person 000/0.jpg"]
    assert [row["drop"] for row in kept] == [first.id]
    fault(
        "drops and images",
        "an image of an earlier drop comes again under another person",
        "It stays with the earlier drop; the later copy is quarantined.",
    )
    # It counts as a bad image of the later drop: 1 of 61.
    held = project.ingest(max_bad_fraction=0.01)["drops"]["held"]
    assert [(one["id"], one["bad"], one["images"]) for one in held] == [(second.id, 1, 61)]
    assert held[0]["reasons"] == {reason: 1}
    assert held[0]["examples"] == {reason: ["visible/north/guest 000/9.jpg"]}


def test_a_drop_with_too_many_bad_images_is_held_and_the_rest_goes_on(project, tmp_path, fault):
    bad = make_drop(tmp_path / "bad", people_named(4, "guest"))
    write(bad / "visible/north/guest 000/broken.jpg", b"\xff\xd8broken")
    write(bad / "thermal/north/guest 000/0.jpg", jpeg("x"))
    held = project.add(bad)
    project.add(make_drop(tmp_path / "good", PEOPLE))
    figures = project.ingest()
    assert figures["drops"]["used"] == 1
    (entry,) = figures["drops"]["held"]
    assert entry["id"] == held.id and (entry["bad"], entry["images"]) == (2, 26)
    assert entry["reasons"] == {"cannot be decoded": 1, "unknown modality": 1}
    assert {row["drop"] for row in samples(project)} == {read_ledger(project.ledger)[1].id}
    lines = summary_lines(figures)
    start = next(n for n, line in enumerate(lines) if line.startswith("HELD"))
    fault("drops and images", "a drop with too many bad images", "\n".join(lines[start:]))
    # Its people keep their place for the day when it is accepted.
    assert [row["status"] for row in people(project)[:4]] == ["waiting"] * 4
    judge(project, held, Status.ACCEPTED)
    figures = project.ingest()
    assert figures["drops"] == {"used": 2, "held": [], "left_out": []}
    assert figures["quarantined"] == {"cannot be decoded": 1, "unknown modality": 1}
    assert len(samples(project)) == 60 + 24


def test_a_held_drop_decides_nothing_for_later_ones(project, tmp_path):
    bad = make_drop(tmp_path / "bad", people_named(4, "guest"))
    write(bad / "visible/north/guest 000/broken.jpg", b"\xff\xd8broken")
    write(bad / "visible/north/guest 000/9.jpg", jpeg("visible/north/person 000/0.jpg"))
    project.add(bad)
    project.add(make_drop(tmp_path / "good", PEOPLE))
    project.ingest()
    assert "visible/north/person 000/0.jpg" in {row["path"] for row in samples(project)}


def test_exactly_the_allowed_fraction_is_not_held(project, tmp_path):
    drop = make_drop(tmp_path / "drop", PEOPLE)
    for n in range(3):
        write(drop / f"visible/north/person 000/bad{n}.jpg", b"\xff\xd8" + bytes([n]))
    project.add(drop)
    assert not project.ingest(max_bad_fraction=3 / 63)["drops"]["held"]


def test_images_without_label_are_held_back_and_do_not_count_as_bad(project, tmp_path, fault):
    drop = make_drop(tmp_path / "drop", PEOPLE)
    write(drop / "visible/north/unlabelled.jpg", jpeg("somebody"))
    write(drop / "visible/north/ /0.jpg", jpeg("somebody else"))
    project.add(drop)
    figures = project.ingest(max_bad_fraction=0)
    assert figures["quarantined"] == {"no label": 2} and not figures["drops"]["held"]
    fault(
        "drops and images",
        "an image without a person",
        "Quarantined as `no label`, and not counted as bad; the rest of the drop goes on.",
    )


def test_the_figures_count_what_the_tables_hold(project, tmp_path):
    project.add(make_drop(tmp_path / "drop", PEOPLE))
    figures = project.ingest()
    train = sum(split == "train" for split in SPLITS.values())
    assert figures == project.figures()
    assert figures["people"] == {"train": train, "test": 10 - train, "waiting": 0, "removed": 0}
    assert figures["images"]["train"] == {"visible": 4 * train, "infrared": 2 * train}
    assert figures["cameras"] == {"visible": {"north": 20, "south": 20}, "infrared": {"north": 20}}


def test_a_split_is_loaded_as_columns(project, tmp_path):
    project.add(make_drop(tmp_path / "drop", PEOPLE))
    project.ingest()
    table = load_dataset(project.data).train_table()
    train = [person for person in PEOPLE if SPLITS[person] == "train"]
    assert len(table) == 6 * len(train)
    assert sorted(set(table.label.tolist())) == list(range(len(train)))
    paths = np.array([row["path"] for row in samples(project) if row["split"] == "train"])
    persons = np.array([path.split("/")[2] for path in paths])
    np.testing.assert_array_equal(persons, np.array(train)[table.label])
    np.testing.assert_array_equal(table.person_row, np.array([PEOPLE.index(p) for p in persons]))
    cameras = np.array(table.camera_names)[table.camera]
    assert all(camera == path.split("/")[1] for camera, path in zip(cameras, paths, strict=True))
    assert all(path.startswith("visible") for path in paths[table.of(Modality.VISIBLE)])
    assert all(path.startswith("infrared") for path in paths[table.of(Modality.INFRARED)])
    assert set(table.extension.tolist()) == {EXTENSIONS.index("jpg")}
    test = load_dataset(project.data).test_table()
    assert len(test) == 60 - len(table) and not np.isin(test.digest, table.digest).any()


def test_the_built_in_people_are_the_same_as_a_drop_and_as_a_folder(tmp_path):
    from csdn.synthetic.sets import write_images

    write_images("tiny", tmp_path / "folder")
    tables = []
    for name, address, layout in (
        ("one", "builtin:tiny", "builtin"),
        ("two", str(tmp_path / "folder"), "cameras"),
    ):
        project = Project(tmp_path / name)
        project.add(address, layout)
        project.ingest()
        place = ("shard", "offset", "drop")
        tables.append([{k: v for k, v in row.items() if k not in place} for row in samples(project)])
        tables[-1].append(people(project))
    assert tables[0] == tables[1]
