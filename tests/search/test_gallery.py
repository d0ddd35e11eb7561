"""Galleries: what is added is found again, what is removed is gone, and a killed or damaged one says so."""

import hashlib
import io
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest

from csdn.runtime.errors import UserError
from csdn.search import gallery as module
from csdn.search.build import rows_of
from csdn.search.gallery import UPLOAD, Gallery
from csdn.search.images import GalleryImage
from csdn.search.search import Searcher

MODEL, D = "a" * 64, 8


def unit(count, seed=0, dimension=D):
    features = np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def rows(names, person="ana", camera="north", modality="visible", time=None):
    images = [GalleryImage(f"/images/{name}", person, camera, modality, time, 1, None) for name in names]
    return rows_of(images, [hashlib.sha256(str(name).encode()).digest() for name in names])


@pytest.fixture(params=["folder", "memory store"])
def gallery(request, tmp_path, monkeypatch):
    """An empty gallery: in a folder, and in an object store that lies in memory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = tmp_path / "gallery" if request.param == "folder" else f"memory://bucket/{tmp_path.name}"
    return Gallery.create(str(place), MODEL, D, "float16", True)


def test_another_process_sees_what_was_added(gallery):
    gallery.add(unit(3), rows("abc", "ana"))
    gallery.add(unit(2, 1), rows("de", "ben", camera="south", time=86400))
    again = Gallery.open(gallery.address)
    assert again.column("source").to_pylist() == [f"/images/{name}" for name in "abcde"]
    assert again.column("id").to_pylist() == [0, 1, 2, 3, 4]
    assert Searcher(again).facts(4)["time"].isoformat() == "1970-01-02T00:00:00+00:00"
    stored = np.concatenate([part.features for part in again.parts])
    np.testing.assert_array_equal(stored, np.concatenate([unit(3), unit(2, 1)]).astype(np.float16))


def test_an_image_with_a_known_source_replaces_it(gallery):
    gallery.add(unit(3), rows("abc"))
    gallery.add(unit(1, 5), rows("b", "ben"))
    assert sorted(gallery.column("source").to_pylist()) == ["/images/a", "/images/b", "/images/c"]
    found = {row["source"]: row["person"] for part in gallery.parts for row in part.rows.to_pylist()}
    assert found["/images/b"] == "ben"


def test_a_removed_person_is_gone_from_the_files(gallery):
    name = f"{'e' * 64}.jpg"
    upload = rows([name], "ben").set_column(0, "source", pa.array([f"{UPLOAD}{name}"]))
    gallery.add(unit(3), rows("abc", "ana"))
    gallery.add(unit(1, 7), rows("d", "ben"))
    gallery.add(unit(1, 8), upload, {name: b"picture"})
    assert gallery.read_image(f"{UPLOAD}{name}") == b"picture"
    secret = unit(1, 7).astype(np.float16).tobytes()
    assert any(secret in path.read_bytes() for path in gallery.folder.glob("*.npy"))
    assert gallery.remove([" BEN"]) == 2  # names are compared as everywhere: without case and spaces
    assert not any(secret in path.read_bytes() for path in gallery.folder.glob("*.npy"))
    with pytest.raises(UserError):
        gallery.read_image(f"{UPLOAD}{name}")
    assert set(Gallery.open(gallery.address).column("person").to_pylist()) == {"ana"}


def test_a_source_that_leads_out_of_the_gallery_removes_no_file(gallery, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    for source in ("upload:../../mine.txt", f"upload:../{'a' * 64}.jpg"):
        image = GalleryImage(source, "eve", "", "visible", None, 1, None)
        gallery.add(unit(1), rows_of([image], [bytes(32)]))
        with pytest.raises(UserError):
            gallery.read_image(source)
    assert gallery.remove(["eve"]) == 2
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_removed_person_leaves_the_copies_of_other_machines_when_they_open_the_gallery(
    gallery, monkeypatch
):
    if not gallery.store:
        pytest.skip("a folder has no copies")
    gallery.add(unit(3), rows("abc", "ana"))
    writers = gallery.folder
    monkeypatch.setenv("XDG_CACHE_HOME", str(writers.parents[2] / "another"))
    reader = Gallery.open(gallery.address)
    assert len(list(reader.folder.glob("*.npy"))) == 1 and reader.folder != writers
    gallery.remove(["ana"])
    assert not list(Gallery.open(gallery.address).folder.glob("*.npy"))


def test_an_uploaded_image_is_in_no_copy_after_another_machine_removed_it(gallery, monkeypatch):
    name = f"{'e' * 64}.jpg"
    upload = rows([name], "ben").set_column(0, "source", pa.array([f"{UPLOAD}{name}"]))
    gallery.add(unit(1, 8), upload, {name: b"picture"})
    here = gallery.folder
    monkeypatch.setenv("XDG_CACHE_HOME", str(here.parent / "another"))
    Gallery.open(gallery.address).remove(["ben"])
    monkeypatch.undo()
    assert not [path for path in here.rglob("*") if path.is_file() and path.read_bytes() == b"picture"]


def test_a_killed_removal_can_be_repeated(gallery, monkeypatch):
    name = f"{'e' * 64}.jpg"
    upload = rows([name], "ben").set_column(0, "source", pa.array([f"{UPLOAD}{name}"]))
    gallery.add(unit(1, 8), upload, {name: b"picture"})

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(gallery, "_publish", killed)
    with pytest.raises(KeyboardInterrupt):
        gallery.remove(["ben"])
    monkeypatch.undo()
    again = Gallery.open(gallery.address)
    assert again.remove(["ben"]) == 1
    with pytest.raises(UserError):
        again.read_image(f"{UPLOAD}{name}")


def test_processes_that_open_a_stored_gallery_at_once_all_read_it(gallery, monkeypatch, tmp_path):
    gallery.add(unit(30), rows(range(30)))
    for attempt in range(4):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache{attempt}"))
        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(lambda _: len(Gallery.open(gallery.address)), range(4))) == [30] * 4


def test_a_build_that_was_killed_at_once_can_be_repeated(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "as_json", killed)
    with pytest.raises(KeyboardInterrupt):
        Gallery.create(str(tmp_path / "g"), MODEL, D, "float32", True)
    monkeypatch.undo()
    assert len(Gallery.create(str(tmp_path / "g"), MODEL, D, "float32", True)) == 0


def test_an_unknown_person_removes_nobody(gallery):
    gallery.add(unit(3), rows("abc", "ana"))
    with pytest.raises(UserError, match="'cleo'"):
        gallery.remove(["ana", "cleo"])
    with pytest.raises(UserError, match="''"):
        gallery.remove([""])
    assert len(Gallery.open(gallery.address)) == 3


def test_many_small_additions_leave_few_parts(gallery):
    for number in range(40):
        gallery.add(unit(1, number), rows([number]))
    assert len(gallery.parts) <= 6  # as binary digits of 40
    assert gallery.column("source").to_pylist() == [f"/images/{number}" for number in range(40)]
    files = [path.name for path in gallery.folder.glob("*.npy")]
    assert sorted(files) == sorted(f"{part.name}.npy" for part in gallery.parts)


def test_a_part_has_a_bounded_size(gallery, monkeypatch):
    monkeypatch.setattr(module, "PART_BYTES", 10 * D * 2)
    gallery.add(unit(25), rows(range(25)))
    gallery.add(unit(3, 1), rows(range(25, 28)))
    assert [len(part) for part in gallery.parts] == [10, 10, 8]


def test_a_reader_keeps_its_gallery_while_another_changes_it(gallery):
    gallery.add(unit(3), rows("abc", "ana"))
    reader = Searcher(Gallery.open(gallery.address))
    gallery.remove(["ana"])
    (found,) = reader.search(unit(3)[:1], 1)
    assert found[0].images[0].source == "/images/a"
    assert len(Gallery.open(gallery.address)) == 0


def test_a_writer_that_opened_an_older_state_keeps_what_others_added(gallery):
    other = Gallery.open(gallery.address)
    gallery.add(unit(3), rows("abc"))
    other.add(unit(1, 1), rows("d"))
    assert len(Gallery.open(gallery.address)) == 4


def test_a_gallery_of_another_model_names_the_command_that_embeds_again(gallery):
    with pytest.raises(UserError, match=rf"csdn gallery build --from {gallery.address} .*--model models/new"):
        gallery.check_model("b" * 64, "models/new")
    gallery.check_model(MODEL, "models/old")


def pickled():
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}] * 30, dtype=object), allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "damaged",
    [lambda data: data[:-9], lambda data: b"", lambda data: None, lambda data: pickled()],
    ids=["cut short", "empty", "missing", "a pickle"],
)
@pytest.mark.parametrize("ending", ["npy", "parquet"])
def test_a_damaged_gallery_is_refused_with_advice(tmp_path, damaged, ending):
    gallery = Gallery.create(str(tmp_path / "g"), MODEL, D, "float32", True)
    gallery.add(unit(30), rows(range(30)))
    (path,) = gallery.folder.glob(f"*.{ending}")
    data = damaged(path.read_bytes())
    path.unlink() if data is None else path.write_bytes(data)
    with pytest.raises(UserError, match="gallery build"):
        Gallery.open(str(tmp_path / "g"))


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"parts": [{"name": "../../../etc/passw", "images": 1}]},
        {"dimension": 0},
        {"dtype": "object"},
    ],
)
def test_a_manifest_with_other_values_is_refused(tmp_path, change):
    gallery = Gallery.create(str(tmp_path / "g"), MODEL, D, "float32", True)
    path = gallery.folder / "gallery.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=r"gallery\.json"):
        Gallery.open(str(tmp_path / "g"))


def test_no_gallery_and_one_that_is_there_already(tmp_path):
    with pytest.raises(UserError, match="no gallery"):
        Gallery.open(str(tmp_path / "nothing"))
    Gallery.create(str(tmp_path / "g"), MODEL, D, "float32", True)
    with pytest.raises(UserError, match="already"):
        Gallery.create(str(tmp_path / "g"), MODEL, D, "float32", True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        Gallery.create(str(tmp_path / "full"), MODEL, D, "float32", True)


def test_a_killed_writer_leaves_the_gallery_as_it_was(tmp_path, monkeypatch):
    gallery = Gallery.create(str(tmp_path / "g"), MODEL, D, "float32", True)
    gallery.add(unit(3), rows("abc"))

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "as_json", killed)
    with pytest.raises(KeyboardInterrupt):
        gallery.add(unit(40, 1), rows(range(40)))
    monkeypatch.undo()
    again = Gallery.open(str(tmp_path / "g"))
    assert len(again) == 3
    again.add(unit(1, 2), rows("d"))
    assert len(list(again.folder.glob("*.npy"))) == len(again.parts)  # nothing of the killed one is left
