"""A person in drops: what is removed, what stays others', and what a killed command leaves."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from make_images import Project, jpeg, make_drop, write
from repository import git

from csdn.ingest.forgotten import Forgotten, ForgottenPerson, forgotten_text
from csdn.ingest.ledger import Drop, Status, list_records, read_ledger
from csdn.ingest.sources import open_source
from csdn.ingest.sync import drop_fingerprint, label_drop, open_drop, sync_ledger
from csdn.params import load_params
from csdn.privacy.drops import (
    UNKNOWN,
    all_drops,
    clean_drops,
    images_in_drops,
    left_in_drop,
    paths_of_others,
    present_listing,
)
from csdn.privacy.rewrite import IMAGE, NAME, Removal, rewrite_outputs
from csdn.privacy.survey import _copies, _images, outputs_in
from csdn.privacy.verify import Search

ROOT = Path(__file__).parents[2]
SALTED = Forgotten(salt="salt")
ANN = ForgottenPerson(SALTED.hash_of("ann"), (SALTED.hash_of("ann"),), "2026-01-01")


def removal_of(*images: bytes) -> Removal:
    return Removal(frozenset({"ann"}), frozenset(sha256(one).hexdigest() for one in images), ANN.name)


def rows_of(folder: Path) -> list[str]:
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg"))
    return [f"{path};{path.split('/')[2]};{path.split('/')[0]};north" for path in paths]


def write_manifest(folder: Path, rows: list[str]) -> None:
    (folder / "manifest.csv").write_text("\n".join(["path;person;modality;camera", *rows]) + "\n")


def fingerprint(drop: Drop) -> str:
    """The hash of a drop's listing as it is now."""
    source = open_source(drop.address, drop.layout)
    return drop_fingerprint(source, list_records(source, drop, Forgotten("salt", (ANN,))), drop.address)


def forget_in(drops: list[Drop], removal: Removal) -> tuple[list[Drop], list[str]]:
    """(the entries afterwards, the lines) of the removal from drops."""
    found = images_in_drops(drops, removal, paths_of_others(drops, removal))
    about = {one.drop.id: one for one in found}
    forgotten = Forgotten("salt", (ANN,))
    after = [
        present_listing(about[one.id], one, forgotten, ANN.name) if one.id in about else one for one in drops
    ]
    return after, list(clean_drops(found, removal))


def left(drop: Drop, removal: Removal) -> list[tuple[str, str]]:
    unreachable = []
    found = list(left_in_drop(drop, removal, Search(removal).in_bytes, unreachable))
    assert unreachable == []
    return found


def test_rows_of_a_manifest_go_with_the_images(tmp_path):
    folder = make_drop(tmp_path / "drop", ["ann", "ben"])
    rows = rows_of(folder)
    write_manifest(folder, rows)
    drop, _ = open_drop(str(folder), "cameras")
    _, lines = forget_in([drop], removal_of())
    assert lines == [f"{drop}: 6 files removed"]
    assert (folder / "manifest.csv").read_text().splitlines()[1:] == [row for row in rows if ";ben;" in row]
    assert open_drop(str(folder), "cameras")[1] == 6


@pytest.mark.parametrize("written", ["./{}", "visible/../{}", ".//{}", "{}"])
def test_a_path_in_a_manifest_means_what_ingest_takes_it_for(tmp_path, written):
    folder = make_drop(tmp_path / "drop", ["ann", "ben"])
    write_manifest(folder, [written.format(row) if ";ann;" in row else row for row in rows_of(folder)])
    drop, _ = open_drop(str(folder), "cameras")
    (drop,), _ = forget_in([drop], removal_of())
    assert "ann" not in (folder / "manifest.csv").read_text()
    assert fingerprint(drop) == drop.fingerprint and left(drop, removal_of()) == []


def test_one_file_in_two_rows_goes_with_both(tmp_path):
    folder = make_drop(tmp_path / "drop", ["ann", "ben"])
    twice = "visible/north/ann/0.jpg;{};visible;north"
    write_manifest(folder, [*rows_of(folder), twice.format("ben"), twice.format("ANN")])
    drop, _ = open_drop(str(folder), "cameras")
    (drop,), _ = forget_in([drop], removal_of())
    assert fingerprint(drop) == drop.fingerprint and open_drop(str(folder), "cameras")[1] == 6


def test_images_without_a_row_are_found_by_their_content(tmp_path):
    """As a command leaves them that was killed between the rows and the files."""
    folder = make_drop(tmp_path / "drop", ["ben"])
    write_manifest(folder, rows_of(folder))
    image = jpeg("ann")
    write(folder / "images/1.jpg", image)
    drop, removal = open_drop(str(folder), "cameras")[0], removal_of(image)
    assert left(drop, removal) == [("images/1.jpg", IMAGE)]
    (after,), lines = forget_in([drop], removal)
    assert lines == [f"{drop}: 1 files removed"] and left(drop, removal) == [] and after == drop
    assert open_drop(str(folder), "cameras")[1] == 6


def test_rows_without_a_file_go_too(tmp_path):
    folder = make_drop(tmp_path / "drop", ["ben"])
    write_manifest(folder, [*rows_of(folder), "images/1.jpg;Ann;visible;north"])
    drop, _ = open_drop(str(folder), "cameras")
    assert ("images/1.jpg", NAME) in left(drop, removal_of())
    (drop,), _ = forget_in([drop], removal_of())
    assert left(drop, removal_of()) == [] and fingerprint(drop) == drop.fingerprint


@pytest.mark.parametrize("path", ["{}", "visible/north/ann/../../../../kept.jpg"])
def test_a_row_that_names_a_file_outside_the_drop_removes_no_file(tmp_path, path):
    folder = make_drop(tmp_path / "drop", ["ben"])
    kept = write(tmp_path / "kept.jpg", jpeg("kept"))
    write_manifest(folder, [*rows_of(folder), f"{path.format(kept)};ann;visible;north"])
    drop, _ = open_drop(str(folder), "cameras")
    (drop,), _ = forget_in([drop], removal_of(kept.read_bytes()))
    assert kept.exists() and "ann" not in (folder / "manifest.csv").read_text()
    assert fingerprint(drop) == drop.fingerprint and left(drop, removal_of()) == []


def test_every_entry_of_a_folder_is_as_its_files_are(tmp_path):
    """The labels that `csdn accept --labels` gave make a second entry of the same folder."""
    folder = make_drop(tmp_path / "drop", ["ann", "ben"])
    first, _ = open_drop(str(folder), "cameras")
    rows = [row.replace(";ben;", ";cat;") for row in rows_of(folder)]
    (tmp_path / "labels.csv").write_text("\n".join(["path;person;modality;camera", *rows]))
    second, _ = label_drop(str(folder), tmp_path / "labels.csv")
    first = replace(first, status=Status.REJECTED, reason="labelled")
    after, _ = forget_in([first, second], removal_of())
    assert [fingerprint(one) for one in after] == [one.fingerprint for one in after]
    assert [left(one, removal_of()) for one in after] == [[], []]
    assert [one.listing != "" for one in after] == [True, True]


def test_a_drop_of_one_person_is_rejected_and_stays_searchable(tmp_path):
    folder = make_drop(tmp_path / "drop", ["ann"])
    drop, _ = open_drop(str(folder), "cameras")
    (after,), _ = forget_in([drop], removal_of())
    assert after.status == Status.REJECTED and "all of its images" in after.reason
    assert left(after, removal_of()) == [] and images_in_drops([after], removal_of()) == []


def test_killed_before_the_files_of_a_drop_of_one_person_were_removed(tmp_path):
    folder = make_drop(tmp_path / "drop", ["ann"])
    write_manifest(folder, rows_of(folder))
    drop, _ = open_drop(str(folder), "cameras")
    removal = removal_of(*(path.read_bytes() for path in folder.rglob("*.jpg")))
    write_manifest(folder, [])
    assert len({path for path, _ in left(drop, removal)}) == 6
    _, lines = forget_in([drop], removal)
    assert lines == [f"{drop}: 6 files removed"] and left(drop, removal) == []


def test_a_drop_that_cannot_be_reached_is_said_and_its_entry_stays(tmp_path):
    folder = make_drop(tmp_path / "drop", ["ann", "ben"])
    drop, _ = open_drop(str(folder), "cameras")
    folder.rename(tmp_path / "elsewhere")
    after, (line,) = forget_in([drop], removal_of())
    assert after == [drop] and line.startswith(f"not reached: {drop}: ") and "no such folder" in line
    # When it is back, the same command cleans it, and the entry is that of the rest.
    (tmp_path / "elsewhere").rename(folder)
    (after,), _ = forget_in([drop], removal_of())
    assert fingerprint(after) == after.fingerprint != drop.fingerprint


def test_a_drop_that_somebody_has_changed_stays_changed(tmp_path):
    folder = make_drop(tmp_path / "drop", ["ann", "ben"])
    drop, _ = open_drop(str(folder), "cameras")
    write(folder / "visible/north/ben/new.jpg", jpeg("new"))
    (after,), _ = forget_in([drop], removal_of())
    assert after == drop != fingerprint(drop)


def test_drops_of_branches_and_of_watched_folders_are_found(tmp_path):
    project = Project(tmp_path / "project")
    params = (ROOT / "params.yaml").read_text().replace("watch: []", f"watch: [{tmp_path / 'watched'}]")
    write(project.root / "params.yaml", params.encode())
    first = project.add(make_drop(tmp_path / "first", ["ann"]))
    git(project.root, "init", "--quiet", "--initial-branch", "main")
    git(project.root, "add", "--all")
    git(project.root, "commit", "--quiet", "--message", "main")
    git(project.root, "checkout", "--quiet", "-b", "run/1")
    ours = project.add(make_drop(tmp_path / "watched/of a run", ["ann", "ben"]))
    git(project.root, "commit", "--quiet", "--all", "--message", "run")
    git(project.root, "checkout", "--quiet", "main")
    make_drop(tmp_path / "watched/new", ["ann", "ben"])

    drops, problems = all_drops(project.root, load_params(project.root / "params.yaml"))
    assert [drop.id for drop in drops] == [first.id, ours.id, UNKNOWN] and problems == []
    assert [len(left(drop, removal_of())) for drop in drops] == [6, 6, 6]
    forget_in(drops, removal_of())
    assert [left(drop, removal_of()) for drop in drops] == [[], [], []]
    assert read_ledger(project.ledger) == [first]

    (tmp_path / "watched").rename(tmp_path / "away")
    _, (problem,) = all_drops(project.root, load_params(project.root / "params.yaml"))
    assert "no such folder" in problem


def test_a_watched_folder_does_not_take_what_main_calls_somebody_elses(tmp_path):
    folder = make_drop(tmp_path / "drop", ["ann", "ben"])
    path = "visible/north/ann/0.jpg"
    drop = replace(open_drop(str(folder), "cameras")[0], labels={path: "ben"})
    branch = Drop("a" * 64, str(folder), "cameras", Status.REJECTED)
    forget_in([drop, branch], removal_of())
    assert [one.relative_to(folder).as_posix() for one in folder.rglob("ann/*.jpg")] == [path]


@pytest.fixture
def two_drops(tmp_path):
    """ben has an image in the first drop, which the second gives ann."""
    project = Project(tmp_path / "project")
    first = make_drop(tmp_path / "first", ["ben", "cat", "dan", "eve", "fay"])
    second = make_drop(tmp_path / "second", ["ann", "gus"])
    write(second / "visible/north/ann/ben.jpg", jpeg("visible/north/ben/0.jpg"))
    project.add(first)
    project.add(second)
    project.ingest(max_bad_fraction=0.2, test_percent=80)
    return project


def test_an_image_that_a_later_drop_wrongly_gives_the_person_is_the_others(two_drops):
    key = sha256(jpeg("visible/north/ben/0.jpg")).hexdigest()
    drops, removal = read_ledger(two_drops.ledger), removal_of()
    claimed = paths_of_others(drops, removal)
    images, others = _images(outputs_in(two_drops.root), [], drops, removal, claimed)
    assert len(images) == 6 and key not in images and key in others
    # Who has it first is right, whoever is to be forgotten.
    ben = Removal(frozenset({"ben"}), frozenset(), "forgotten-")
    images, _ = _images(outputs_in(two_drops.root), [], drops, ben, paths_of_others(drops, ben))
    assert len(images) == 6 and key in images
    # Under the person's name no file stays.
    forget_in(drops, removal)
    assert not list((two_drops.root.parent / "second").rglob("ann"))
    assert (two_drops.root.parent / "first/visible/north/ben/0.jpg").exists()


def test_a_copy_of_an_image_under_another_name_goes_too(two_drops):
    here, drops = outputs_in(two_drops.root), read_ledger(two_drops.ledger)
    ben = Removal(frozenset({"ben"}), frozenset(), "forgotten-")
    claimed = paths_of_others(drops, ben)
    ben = replace(ben, images=frozenset(_images(here, [], drops, ben, claimed)[0]))
    found = images_in_drops(drops, ben, claimed, _copies(here, drops, ben))
    assert [len(one.paths) for one in found] == [6, 1]
    list(clean_drops(found, ben))
    assert [left(drop, ben) for drop in drops] == [[], []]


def test_a_copy_in_a_drop_that_cannot_be_written_to_does_not_change_the_drop(tmp_path):
    project = Project(tmp_path / "project")
    folder = make_drop(tmp_path / "in/drop", ["ben", "cat", "dan", "eve"])
    project.add(folder)
    project.ingest(minimum_people=1, test_percent=80)
    copy = folder / "visible/north/ben/0.jpg"
    ann = replace(ANN, images=(sha256(copy.read_bytes()).hexdigest(),))
    write(project.data / "forgotten.json", forgotten_text(Forgotten("salt", (ann,))))
    here, removal = outputs_in(project.root), Removal(frozenset({"ann"}), frozenset(ann.images), ann.name)
    for name, path in rewrite_outputs(here.files, tmp_path / "new", removal, {}).items():
        write(project.root / name, path.read_bytes())
    ledger = read_ledger(project.ledger)
    assert sync_ledger(ledger, [str(tmp_path / "in")], project.data) == (ledger, [])
    write(folder / "visible/north/ben/2.jpg", jpeg("new"))
    _, (note,) = sync_ledger(ledger, [str(tmp_path / "in")], project.data)
    assert note.startswith("changed: ")


def test_a_drop_that_the_program_draws_is_left_and_said():
    drop, _ = open_drop("builtin:tiny", "builtin")
    removal = Removal(frozenset({"p10001"}), frozenset(), "forgotten-")
    (line,) = clean_drops(images_in_drops([drop], removal), removal)
    assert "the program draws them; ingest leaves them out" in line
