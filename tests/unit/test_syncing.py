"""`csdn sync`: what it says of drops that it knows already, and that saying so changes nothing."""

from __future__ import annotations

import shutil
import time

import pytest
from make_images import Project, jpeg, make_drop, people_named, write

from csdn.ingest.ledger import Status, decide, read_ledger, write_ledger
from csdn.ingest.sync import sync_ledger
from csdn.runtime.errors import ServiceUnavailable, UserError


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project that has ingested the drop `in/monday`, as the current folder."""
    monkeypatch.chdir(tmp_path)
    project = Project(tmp_path)
    make_drop(tmp_path / "in/monday", people_named(10))
    project.add("in/monday")
    project.ingest()
    return project


def notes(project, places=("in",), **options):
    """The lines of a sync that finds nothing to take."""
    before = read_ledger(project.ledger)
    drops, said = sync_ledger(before, places, **options)
    assert drops == before
    return said


def test_nothing_is_said_of_drops_that_are_as_they_were(project):
    assert notes(project) == notes(project, ["in/"]) == notes(project, thorough=True) == []


def grow(folder):
    write(folder / "visible/north/person 000/9.jpg", jpeg("new"))


def shorten(folder):
    path = folder / "visible/north/person 000/0.jpg"
    path.write_bytes(path.read_bytes()[:-1])


def lose(folder):
    (folder / "visible/north/person 000/0.jpg").unlink()


def empty(folder):
    shutil.rmtree(folder / "visible")
    shutil.rmtree(folder / "infrared")


@pytest.mark.parametrize("change", [grow, shorten, lose, empty])
def test_a_known_drop_that_changed_is_reported_once_a_sync(project, change):
    change(project.root / "in/monday")
    (line,) = notes(project)
    drop = read_ledger(project.ledger)[0]
    assert line.startswith(f"changed: drop {drop.id[:12]} ({drop.address}): ")
    assert [line] == notes(project)


def test_bytes_that_changed_under_the_same_size_are_seen_by_a_thorough_sync(project):
    path = project.root / "in/monday/visible/north/person 000/0.jpg"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert notes(project) == []
    (line,) = notes(project, thorough=True)
    assert "its files are not those that were added" in line and f"csdn add {project.root}/in/monday" in line


def test_a_quarantined_image_is_no_change(project):
    write(project.root / "in/tuesday/visible/north/x/broken.jpg", b"no image")
    make_drop(project.root / "in/tuesday", people_named(2, "new"))
    project.add("in/tuesday")
    project.ingest(max_bad_fraction=1.0)
    assert notes(project) == []


def test_a_drop_that_ingest_has_not_read_is_left_to_ingest(project):
    """It compares every byte itself, and nothing is recorded before."""
    make_drop(project.root / "in/tuesday", ["Bo"])
    project.add("in/tuesday")
    lose_bo = project.root / "in/tuesday/visible/north/Bo/0.jpg"
    lose_bo.unlink()
    assert notes(project) == []


@pytest.mark.parametrize("read", [True, False])
def test_a_drop_that_vanished_is_reported_with_what_is_left_of_it(project, read):
    make_drop(project.root / "in/tuesday", ["Bo"])
    project.add("in/tuesday")
    name = "monday" if read else "tuesday"
    shutil.rmtree(project.root / "in" / name)
    (line,) = notes(project)
    assert line.startswith("vanished: drop ") and f"({project.root}/in/{name})" in line
    assert ("its shards stay" in line) == read
    assert ("csdn reject" in line) != read


def test_drops_from_elsewhere_are_nobody_s_business(project):
    make_drop(project.root / "elsewhere/friday", ["Bo"])
    project.add("elsewhere/friday")
    shutil.rmtree(project.root / "elsewhere")
    assert notes(project) == []


def test_a_repeated_drop_is_skipped_and_names_the_first(project):
    shutil.copytree(project.root / "in/monday", project.root / "in/copy")
    (line,) = notes(project)
    root = project.root
    assert line.startswith(f"skipped: {root}/in/copy: the same images are already in the ledger as drop ")
    assert line.endswith(f"({root}/in/monday)")


def test_a_rejected_drop_may_change_and_vanish(project):
    drops = decide(read_ledger(project.ledger), "in/monday", Status.REJECTED, "wrong cameras")
    write_ledger(drops, project.ledger)
    grow(project.root / "in/monday")
    assert notes(project) == []
    shutil.rmtree(project.root / "in/monday")
    assert notes(project) == []


def test_a_place_that_is_not_there_is_an_error_and_no_drop_has_vanished(project):
    (project.root / "in").rename("away")
    with pytest.raises(UserError, match="in: no such folder"):
        notes(project)


@pytest.mark.slow
def test_a_store_s_drops_are_compared_by_their_listing(s3_server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = make_drop(tmp_path / "monday", people_named(4))
    for path in folder.rglob("*"):
        if path.is_file():
            s3_server.bucket.upload_file(str(path), f"landing/monday/{path.relative_to(folder)}")
    place = "s3://cameras/landing"
    drops, said = sync_ledger([], [place])
    assert [drop.address for drop in drops] == [f"{place}/monday"] and "24 images" in said[0]
    assert sync_ledger(drops, [place]) == (drops, [])
    key = "landing/monday/visible/north/person 000/0.jpg"
    data = s3_server.bucket.Object(key).get()["Body"].read()
    s3_server.bucket.put_object(Key=key, Body=data[:-1] + b"x")  # of the same size
    assert sync_ledger(drops, [place]) == (drops, [])  # the file that completes it is the same
    (line,) = sync_ledger(drops, [place], thorough=True)[1]
    assert line.startswith("changed: drop ")
    assert sync_ledger(drops, [place])[1] == [line]  # from now on by every scan
    s3_server.bucket.put_object(Key=key, Body=data)
    assert sync_ledger(drops, [place])[1] == sync_ledger(drops, [place])[1] == []
    s3_server.bucket.put_object(Key=key, Body=data[:-1] + b"x")
    s3_server.bucket.put_object(Key="landing/monday/_SUCCESS", Body=b"again")
    assert sync_ledger(drops, [place])[1] == [line]
    s3_server.bucket.objects.filter(Prefix="landing/monday").delete()
    s3_server.bucket.put_object(Key="landing/tuesday/readme", Body=b"")
    skipped, vanished = sync_ledger(drops, [place])[1]
    assert skipped.startswith("skipped: s3://cameras/landing/tuesday: no image")
    assert vanished.startswith("vanished: drop ")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(ServiceUnavailable, match="does not respond"):
        sync_ledger(drops, [place])


def put_drops(s3_server, prefix, count, images):
    for n in range(count):
        for path in (*(f"visible/c/p/{image}.jpg" for image in range(images)), "_SUCCESS"):
            s3_server.bucket.put_object(Key=f"{prefix}/{n:03d}/{path}", Body=f"{n} {path}".encode())


@pytest.mark.slow
def test_a_sync_that_finds_nothing_asks_once_for_each_known_drop(s3_server, tmp_path, monkeypatch):
    """However many images a drop has; once a week all of them are listed."""
    monkeypatch.chdir(tmp_path)
    asked = {}
    for images in (1, 30):
        place = f"s3://cameras/nightly-{images}"
        put_drops(s3_server, f"nightly-{images}", 20, images)
        drops, _ = sync_ledger([], [place])
        before = s3_server.requests("", f"nightly-{images}")
        assert len(drops) == 20 and sync_ledger(drops, [place]) == (drops, [])
        asked[images] = s3_server.requests("", f"nightly-{images}") - before
    assert asked == {1: 21, 30: 21}
    clock = time.time
    monkeypatch.setattr("csdn.ingest.sync.time.time", lambda: clock() + 8 * 86_400)
    before = s3_server.requests("GET", "nightly-30")
    sync_ledger(drops, [place])
    assert s3_server.requests("GET", "nightly-30") - before == 21
