"""A person in drops: what is removed, what stays others', and what a killed command leaves."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from make_images import Project, jpeg, make_drop, write
from repository import git

from csdn.data.storage import Store
from csdn.ingest.forgotten import Forgotten, ForgottenPerson, forgotten_text
from csdn.ingest.ledger import Drop, Status, list_records, read_ledger
from csdn.ingest.sources import open_source
from csdn.ingest.sync import drop_fingerprint, label_drop, open_drop, sync_ledger
from csdn.params import load_params
from csdn.privacy.drop_removal import clean_drops, present_listing
from csdn.privacy.drops import UNKNOWN, all_drops, images_in_drops, left_in_drop, paths_of_others
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


# Whose a file is. Where that is in doubt, it stays, and is listed.


def files_in(folder: Path, pattern: str = "*") -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob(pattern) if path.is_file()}


def removal_of_label(label: str) -> Removal:
    return Removal(frozenset({label}), frozenset(), ANN.name)


def test_a_watched_folder_that_is_no_drop_is_left_alone(tmp_path):
    """Photographs by day: forgetting the person 12 takes no day."""
    photos = {"2023/05/12/1.jpg", "2023/05/12/film.mov", "2023/05/13/2.jpg", "visible/north/12/1.jpg"}
    for path in photos:
        write(tmp_path / "photos" / path, jpeg(path))
    watched = Drop(UNKNOWN, str(tmp_path / "photos"), "cameras", Status.REJECTED)
    _, (line,) = forget_in([watched], removal_of_label("12"))
    assert line.startswith("not reached: ") and "not a complete drop" in line
    assert files_in(tmp_path / "photos") == photos


def test_the_folders_of_a_drop_with_a_manifest_are_not_people(tmp_path):
    folder, rows = tmp_path / "drop", []
    for path, person in {
        "2024/05/12/a.jpg": "ben",
        "2024/05/12/b.heic": "ben",
        "visible/x/12/c.heic": "ben",
        "2024/05/13/d.jpg": "12",
    }.items():
        write(folder / path, jpeg(path))
        rows.append(f"{path};{person};visible;north")
    write(folder / "visible/x/12/unlisted.jpg", jpeg("unlisted"))
    write_manifest(folder, rows)
    before = files_in(folder)
    drop, _ = open_drop(str(folder), "cameras")
    (drop,), _ = forget_in([drop], removal_of_label("12"))
    assert before - files_in(folder) == {"2024/05/13/d.jpg"} and fingerprint(drop) == drop.fingerprint
    in_doubt = {"visible/x/12/c.heic", "visible/x/12/unlisted.jpg"}
    assert in_doubt < {path for path, _ in left(drop, removal_of_label("12"))}


def test_a_file_of_a_row_goes_even_if_ingest_refuses_it(tmp_path):
    folder = make_drop(tmp_path / "drop", ["ben"])
    refused = [f"{path};ann;visible;north" for path in ("img/../img/1.heic", ".bin/2.jpg", "manifest.csv")]
    write_manifest(folder, [*rows_of(folder), *refused])
    write(folder / "img/1.heic", b"x")
    write(folder / ".bin/2.jpg", jpeg("hidden"))
    drop, _ = open_drop(str(folder), "cameras")
    (drop,), _ = forget_in([drop], removal_of())
    assert not (folder / "img").exists() and len(files_in(folder, "*.jpg")) == 7
    assert "ann" not in (folder / "manifest.csv").read_text() and fingerprint(drop) == drop.fingerprint
    assert {path for path, _ in left(drop, removal_of())} == {".bin/2.jpg", "manifest.csv"}


@pytest.fixture
def two_entries(tmp_path):
    """(folder, its entry by folders, its entry by a manifest that gives ben two of ann's files)."""
    folder = make_drop(tmp_path / "real/drop", ["ann", "ben"])
    by_folders, _ = open_drop(str(folder), "cameras")
    rows = [row.replace(";ann;", ";ben;") if "/0.jpg" in row else row for row in rows_of(folder)]
    (tmp_path / "labels.csv").write_text("\n".join(["path;person;modality;camera", *rows]))
    by_rows, _ = label_drop(str(folder), tmp_path / "labels.csv")
    return folder, by_folders, by_rows


BENS = {f"{camera}/ann/0.jpg" for camera in ("visible/north", "visible/south", "infrared/north")}


def test_the_first_of_two_entries_in_use_says_whose_a_file_is(two_entries):
    folder, by_folders, by_rows = two_entries
    after, _ = forget_in([by_rows, by_folders], removal_of())
    assert {path for path in files_in(folder) if "/ann/" in path} == BENS
    assert [fingerprint(one) for one in after] == [one.fingerprint for one in after]
    assert {path for path, _ in left(after[1], removal_of())} >= BENS


def test_the_first_of_two_entries_may_say_the_person(two_entries):
    folder, by_folders, by_rows = two_entries
    forget_in([by_folders, by_rows], removal_of())
    assert not [path for path in files_in(folder) if "/ann/" in path]


def test_all_of_a_drops_files_may_be_others(two_entries):
    folder, by_folders, by_rows = two_entries
    for path in set(files_in(folder, "*/ann/*")) - BENS:
        (folder / path).unlink()
    entries = [replace(one, id=fingerprint(one)) for one in (by_rows, by_folders)]
    after, _ = forget_in(entries, removal_of())
    assert {path for path in files_in(folder) if "/ann/" in path} == BENS
    assert [fingerprint(one) for one in after] == [one.fingerprint for one in after]


def test_nothing_is_removed_where_a_drop_in_use_cannot_be_listed(two_entries):
    folder, by_folders, by_rows = two_entries
    rejected, before = (
        replace(by_folders, status=Status.REJECTED, reason="labelled"),
        files_in(folder, "*.jpg"),
    )
    Path(by_rows.address).rename(folder.parent / "labels.csv")
    _, lines = forget_in([rejected, by_rows], removal_of())
    assert lines[0].startswith(f"left: {rejected}: 6 files: a drop in use of {folder} cannot be listed")
    assert lines[1].startswith(f"not reached: {by_rows}: ") and files_in(folder, "*.jpg") == before
    # When it can be listed, the same command goes on.
    (folder.parent / "labels.csv").rename(by_rows.address)
    forget_in([rejected, by_rows], removal_of())
    assert {path for path in files_in(folder) if "/ann/" in path} == BENS


def test_a_drop_in_use_above_says_whose_a_file_is(two_entries):
    folder, by_folders, _ = two_entries
    above = folder.parent
    write_manifest(above, [f"drop/{row}".replace(";ann;", ";ben;") for row in rows_of(folder)])
    new, _ = open_drop(str(above), "cameras")
    rejected, before = replace(by_folders, status=Status.REJECTED, reason="wrong"), files_in(above)
    forget_in([rejected, new], removal_of())
    assert files_in(above) == before
    (above / "manifest.csv").rename(above.parent / "away.csv")
    _, lines = forget_in([rejected, new], removal_of())
    assert files_in(above) == before - {"manifest.csv"} and "cannot be listed" in lines[0]


def test_a_link_to_a_drop_is_the_drop(tmp_path, two_entries):
    folder = two_entries[0]
    (tmp_path / "link").symlink_to(folder.parent)
    path = "visible/north/ann/0.jpg"
    drop = replace(open_drop(str(tmp_path / "link/drop"), "cameras")[0], labels={path: "ben"})
    forget_in([drop, Drop(UNKNOWN, str(folder), "cameras", Status.REJECTED)], removal_of())
    assert {one for one in files_in(folder) if "/ann/" in one} == {path}


# What ingest does not take.


def test_a_camera_that_has_only_other_files_afterwards_is_said(tmp_path):
    folder = make_drop(tmp_path / "drop", ["ben"])
    write(folder / "visible/west/ann/0.jpg", jpeg("west"))
    write(folder / "visible/west/ben/0.heic", b"x")
    drop, _ = open_drop(str(folder), "cameras")
    (after,), lines = forget_in([drop], removal_of())
    assert lines[0] == f"{drop}: 1 files removed" and "visible camera west: none of 1 files" in lines[1]
    assert after.status == Status.ACCEPTED and left(after, removal_of()) == []
    assert images_in_drops([after], removal_of()) == []


def test_a_drop_that_has_only_other_files_afterwards_is_rejected(tmp_path):
    folder = make_drop(tmp_path / "drop", ["ann"])
    write(folder / "visible/north/ben/0.heic", b"x")
    drop, _ = open_drop(str(folder), "cameras")
    (after,), lines = forget_in([drop], removal_of())
    assert after.status == Status.REJECTED and lines == [f"{drop}: 6 files removed"]
    assert left(after, removal_of()) == [] and images_in_drops([after], removal_of()) == []


@pytest.mark.parametrize("path", ["#recycle/visible/north/ann/0.jpg", "visible/north/@eaDir/ann/0.jpg"])
def test_hidden_files_are_searched(tmp_path, path):
    folder = make_drop(tmp_path / "drop", ["ben"])
    image = jpeg("ann")
    write(folder / path, image)
    write(folder / ".bin/1", image)
    drop, _ = open_drop(str(folder), "cameras")
    assert set(left(drop, removal_of(image))) == {(path, IMAGE), (path, NAME), (".bin/1", IMAGE)}
    assert forget_in([drop], removal_of(image))[1] == []


def test_hidden_objects_of_a_bucket_are_searched(tmp_path):
    folder, image = make_drop(tmp_path / "drop", ["ben"]), jpeg("ann")
    write(folder / "#recycle/1", image)
    store = Store("memory://hidden/drop")
    for path in files_in(folder):
        store.put(path, folder / path)
    drop, _ = open_drop(store.address, "cameras")
    assert left(drop, removal_of(image)) == [("#recycle/1", IMAGE)]
