"""Bad data ends in one clear error and nothing half-written, or in the quarantine and the rest goes on."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from make_images import Project, encoded, huge_png, jpeg, make_drop, people_named, pixels, write
from PIL import Image

from csdn.data.catalog import QUARANTINE_SCHEMA, load_dataset, read_table
from csdn.ingest import pack
from csdn.ingest.ledger import Drop, write_ledger
from csdn.runtime.errors import UserError

PEOPLE = people_named(10)
DROPS = "drops and images"


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path / "project")


def half_written(project) -> list[str]:
    return [name for name in project.outputs() if ".partial" in name]


def results(project) -> dict[str, bytes]:
    """What later stages read."""
    return {n: d for n, d in project.outputs().items() if "/shards/" not in n and "/index/" not in n}


FLOATS = np.zeros((16, 8), np.float32)


def jpeg_with_a_hole(name: str) -> bytes:
    """A JPEG with EXIF whose second half is zeroes up to the marker of its end, as lost blocks leave it."""
    exif = Image.Exif()
    exif[271] = "maker of cameras"
    data = encoded(pixels(name, 64, 32), "JPEG", quality=90, exif=exif)
    half = len(data) // 2
    return data[:half] + bytes(len(data) - half - 2) + data[-2:]


def png_with_a_wrong_checksum(name: str) -> bytes:
    """A pixel of it has changed; what is stored uncompressed still decodes."""
    data = bytearray(encoded(pixels(name), compress_level=0))
    data[data.index(b"IDAT") + 50] ^= 1
    return bytes(data)


def tiff_of(values: np.ndarray) -> bytes:
    return encoded(values, "TIFF")


def tiff_pages(name: str) -> bytes:
    page = Image.fromarray(pixels(name))
    return encoded(pixels(name), "TIFF", save_all=True, append_images=[page])


QUARANTINED = "Quarantined as `{}`, with path and hash; the rest of the drop goes on."


@pytest.mark.parametrize(
    "name, data, reason, what",
    [
        ("a.jpg", b"", "empty file", "an image file without a byte"),
        ("b.jpg", b"no image", "not a jpg image", "a file that is no image but is named so"),
        ("c.jpg", encoded(pixels("c")), "not a jpg image", "a PNG file that is named .jpg"),
        ("d.jpg", jpeg("d", 64, 32)[:-100], "truncated", "an image whose end is missing"),
        ("e.jpg", b"\xff\xd8" + bytes(50), "cannot be decoded", "an image with a damaged header"),
        ("f.png", huge_png(60_000), "too large", "a few bytes that promise 60000x60000 pixels"),
        ("g.jpg", jpeg_with_a_hole("g"), "cannot be decoded", "a JPEG with EXIF whose second half is zeroes"),
        ("h.png", png_with_a_wrong_checksum("h"), "cannot be decoded", "a PNG whose checksum is wrong"),
        ("i.tif", tiff_of(FLOATS), "TIFF of floats", "a TIFF of floats"),
        ("j.tiff", tiff_pages("j"), "more than one image in the file", "a TIFF of several pages"),
    ],
)
def test_a_bad_image_is_quarantined_with_reason_and_hash(project, tmp_path, name, data, reason, what, fault):
    drop = make_drop(tmp_path / "drop", PEOPLE)
    write(drop / "visible/north/person 000" / name, data)
    project.add(drop)
    project.ingest(max_bad_fraction=0.2)
    ((path, *found),) = quarantined(project)
    assert (Path(path).name, found) == (name, [reason, hashlib.sha256(data).hexdigest()])
    fault(DROPS, what, QUARANTINED.format(reason))


@pytest.mark.parametrize(
    "place, reason, what",
    [
        ("visible/north/person 000/link.jpg", "link out of the folder", "a link that leads out of the drop"),
        ("thermal/north/person 000/a.jpg", "unknown modality", "a folder named neither visible nor infrared"),
        ("visible/a.jpg", "not at modality/camera/person/name", "an image beside the folders of the layout"),
    ],
)
def test_an_image_at_a_wrong_place_is_quarantined_unread(project, tmp_path, place, reason, what, fault):
    drop = make_drop(tmp_path / "drop", PEOPLE)
    (drop / place).parent.mkdir(parents=True, exist_ok=True)
    (drop / place).symlink_to("/etc/hostname") if "link" in place else write(drop / place, jpeg("a"))
    project.add(drop)
    project.ingest(max_bad_fraction=0.2)
    assert quarantined(project) == [(place, reason, None)]
    fault(DROPS, what, f"Quarantined as `{reason}`, unread; the rest of the drop goes on.")


def quarantined(project) -> list[tuple[str, str, str | None]]:
    rows = read_table(project.data / "quarantine.parquet", QUARANTINE_SCHEMA).to_pylist()
    return [(row["path"], row["reason"], row["sha256"]) for row in rows]


def test_a_drop_that_is_gone_stops_with_its_name_and_what_to_do(project, tmp_path, fault):
    project.add(make_drop(tmp_path / "drop", PEOPLE))
    (tmp_path / "drop").rename(tmp_path / "away")
    with pytest.raises(UserError, match=r"drop [0-9a-f]{12} .*no such folder[^$]*csdn reject") as error:
        project.ingest()
    assert results(project) == {}
    fault(DROPS, "a drop of the ledger is not at its address", error.value)


def test_a_drop_that_is_gone_after_it_was_read_does_no_harm(project, tmp_path):
    project.add(make_drop(tmp_path / "drop", PEOPLE))
    project.ingest()
    before = project.outputs()
    (tmp_path / "drop").rename(tmp_path / "away")
    project.ingest()
    assert project.outputs() == before


@pytest.mark.parametrize("change", ["altered", "added", "removed"])
def test_a_drop_that_changed_since_it_was_added_is_not_taken(project, tmp_path, change, fault):
    drop = make_drop(tmp_path / "drop", PEOPLE)
    project.add(drop)
    image = drop / "visible/north/person 000/0.jpg"
    if change == "altered":
        image.write_bytes(jpeg("another"))
    elif change == "added":
        write(image.with_name("7.jpg"), jpeg("another"))
    else:
        image.unlink()
    with pytest.raises(UserError, match="changed since it was added") as error:
        project.ingest()
    assert project.outputs() == {}
    fault(DROPS, "a file of a drop was altered, added or removed after `csdn add`", error.value)


@pytest.mark.parametrize(
    "modality, missing, what",
    [
        ("visible", "infrared", "no infrared image in any drop"),
        ("infrared", "visible", "no visible image in any drop"),
    ],
)
def test_one_modality_missing_in_all_stops_before_anything_is_replaced(
    project, tmp_path, modality, missing, what, fault
):
    project.add(make_drop(tmp_path / "drop", PEOPLE, modalities=[modality]))
    with pytest.raises(UserError, match=f"nothing to train on: there is no usable {missing} image") as error:
        project.ingest()
    assert results(project) == {} and not half_written(project)
    fault(DROPS, what, error.value)


def test_fewer_people_than_a_batch_needs_stops_with_the_numbers(project, tmp_path, fault):
    project.add(make_drop(tmp_path / "drop", PEOPLE))
    project.ingest()
    before = results(project)
    with pytest.raises(
        UserError, match=r"\d training people have .* a batch needs 11 \(embedding\.identities_per_batch\)"
    ) as error:
        project.ingest(minimum_people=11)
    assert results(project) == before
    fault(DROPS, "fewer training people than a batch needs", error.value)


def test_nobody_to_test_with_stops_too(project, tmp_path, fault):
    project.add(make_drop(tmp_path / "drop", ["person 000", "person 001", "person 002"]))
    with pytest.raises(UserError, match="nothing to test with") as error:
        project.ingest(test_percent=1)
    fault(DROPS, "nobody is a test person", error.value)


def test_when_all_is_held_the_error_says_so(project, tmp_path, fault):
    drop = make_drop(tmp_path / "drop", PEOPLE)
    write(drop / "visible/north/person 000/broken.jpg", b"x")
    project.add(drop)
    with pytest.raises(
        UserError, match=r"held, and so left out: drop .* 1 of 61 images bad.*csdn accept"
    ) as error:
        project.ingest()
    fault(DROPS, "too many bad images in the only drop", error.value)


def test_an_empty_ledger_stops(project, fault):
    with pytest.raises(UserError, match="no drop of the ledger has a usable image") as error:
        project.ingest()
    fault("ledger", "no drop at all", error.value)


def test_names_with_html_quotes_and_newlines_are_only_data(project, tmp_path):
    wild = ["<script>alert(1)<", "a'b\"c", "line\nbreak", "-rf", "日本"]
    project.add(make_drop(tmp_path / "drop", [*PEOPLE, *wild]))
    figures = project.ingest()
    assert figures["people"]["train"] + figures["people"]["test"] == 15


@pytest.fixture(scope="module")
def ingested(tmp_path_factory):
    root = tmp_path_factory.mktemp("ingested")
    made = Project(root / "project")
    made.add(make_drop(root / "drop", PEOPLE))
    made.ingest()
    return made


@pytest.mark.parametrize("file", ["people.parquet", "samples.parquet"])
def test_a_table_of_another_version_or_damaged_is_an_error_that_names_it(ingested, tmp_path, file, fault):
    shutil.copytree(ingested.data, tmp_path / "data")
    path = tmp_path / "data" / file
    intact = path.read_bytes()
    pq.write_table(pq.read_table(path).replace_schema_metadata({"csdn_index_version": "99"}), path)
    with pytest.raises(UserError, match=f"{file}: has version 99 .* reads 3; delete it") as error:
        load_dataset(tmp_path / "data")
    if file == "samples.parquet":
        fault("shards and index", "a table of another version of the program", error.value)
    for damaged in (b"", b"PAR1", intact[:-30], intact[: len(intact) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=f"{file} is damaged") as error:
            load_dataset(tmp_path / "data")
    if file == "samples.parquet":
        fault("shards and index", "a table whose end is missing", error.value)
    path.unlink()
    with pytest.raises(UserError, match=f"{file}: no such file; .dvc repro ingest. makes it") as error:
        load_dataset(tmp_path / "data")
    if file == "samples.parquet":
        fault("shards and index", "a table that is not there", error.value)


def test_an_index_of_another_version_is_an_error_that_names_it(project, tmp_path, fault):
    drop = project.add(make_drop(tmp_path / "drop", PEOPLE))
    write(project.data / f"index/{drop.id}.quarantine.parquet", b"")
    pq.write_table(pa.table({"a": [1]}), project.data / f"index/{drop.id}.parquet")
    with pytest.raises(UserError, match=f"{drop.id}.parquet: has version none") as error:
        project.ingest()
    fault("shards and index", "the index of a drop has another version's columns", error.value)


@pytest.mark.parametrize("column", ["splits", "person", "key", "path"])
def test_a_damaged_column_of_an_index_is_an_error_that_names_it(project, tmp_path, column, fault):
    drop = project.add(make_drop(tmp_path / "drop", PEOPLE))
    project.ingest()
    before, index = project.outputs(), project.data / f"index/{drop.id}.parquet"
    zero_column(index, column)
    with pytest.raises(UserError, match=rf"(?s){drop.id}\.parquet is damaged .*; delete it") as error:
        project.ingest()
    if column == "splits":
        fault("shards and index", "a column of a drop's index is damaged", error.value)
    index.unlink()
    project.ingest()
    assert project.outputs() == before


def zero_column(path, name):
    """Replace the stored values of a column of a table by zeros."""
    group = pq.read_metadata(path).row_group(0)
    chunks = [group.column(n) for n in range(group.num_columns)]
    chunk = next(chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] == name)
    content = bytearray(path.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content[start : start + chunk.total_compressed_size] = bytes(chunk.total_compressed_size)
    path.write_bytes(content)


def test_a_read_error_names_the_drop_and_keeps_nothing_of_it(project, tmp_path, monkeypatch, fault):
    project.add(make_drop(tmp_path / "drop", PEOPLE))

    class Failing:
        def read(self, record):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(pack, "_source", lambda address, layout: Failing())
    with pytest.raises(
        UserError, match=r"drop [0-9a-f]{12} .*0\.jpg: cannot be read: .*Input/output error"
    ) as error:
        project.ingest()
    assert project.outputs() == {}
    fault(DROPS, "the disk cannot read an image of a drop", error.value)


KILLED = """
import os, signal, sys
from pathlib import Path
from csdn.ingest import pack
from csdn.runtime.errors import UserError

def kill(task):
    os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    pack.pack = kill
    try:
        list(pack.packed_shards([None, None], processes=2))
    except UserError as error:
        print(error)
"""


def test_a_killed_worker_process_is_a_clear_error(tmp_path, fault):
    script = write(tmp_path / "killed.py", KILLED.encode())
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert "a worker process was killed" in run.stdout, run.stderr
    fault("processes", "a worker process of ingest was killed", run.stdout.strip())


def test_an_id_typed_by_hand_is_found_out(project, tmp_path, fault):
    make_drop(tmp_path / "drop", PEOPLE)
    write_ledger([Drop("0" * 64, str(tmp_path / "drop"), "cameras")], project.ledger)
    with pytest.raises(UserError, match="changed since it was added") as error:
        project.ingest()
    fault("ledger", "an id made up by hand", error.value)
