"""Layout `cameras`: folders and manifests become records; nothing outside the drop's root is ever read."""

from __future__ import annotations

import os
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from make_images import jpeg, make_drop, write
from memory_bucket import memory_tree

from csdn.data.catalog import ImageRecord
from csdn.ingest.sources import open_source
from csdn.ingest.sources.cameras import CameraSource
from csdn.runtime.errors import UserError


def listed(root) -> tuple[list[ImageRecord], dict[str, str], CameraSource]:
    source = CameraSource(str(root))
    records = source.listing()
    return records, dict(source.refused), source


def test_a_folder_drop_says_modality_camera_and_person_by_its_path(tmp_path):
    write(tmp_path / "infrared/gate/Ana/z.PNG", b"12345")
    write(tmp_path / "visible/gate/Ana/a.jpg", b"123")
    records, refused, source = listed(tmp_path)
    assert records == [
        ImageRecord("infrared/gate/Ana/z.PNG", "Ana", "infrared", "gate", 5),
        ImageRecord("visible/gate/Ana/a.jpg", "Ana", "visible", "gate", 3),
    ]
    assert not refused and source.ignored == []
    assert source.read(records[1]) == b"123"


def test_an_image_in_a_cameras_folder_itself_has_no_label(tmp_path):
    write(tmp_path / "visible/gate/a.jpg", b"1")
    assert listed(tmp_path)[0] == [ImageRecord("visible/gate/a.jpg", "", "visible", "gate", 1)]


def test_images_at_other_places_are_refused(tmp_path):
    write(tmp_path / "thermal/gate/Ana/a.jpg", b"1")
    write(tmp_path / "a.jpg", b"1")
    write(tmp_path / "visible/gate/Ana/day/a.jpg", b"1")
    write(tmp_path / "visible/gate/Ana/a.jpg", b"1")
    records, refused, _ = listed(tmp_path)
    assert [record.path for record in records] == ["visible/gate/Ana/a.jpg"]
    assert refused == {
        "thermal/gate/Ana/a.jpg": "unknown modality",
        "a.jpg": "not at modality/camera/person/name",
        "visible/gate/Ana/day/a.jpg": "not at modality/camera/person/name",
    }


def test_a_drop_is_complete_with_its_marker_or_manifest(tmp_path):
    write(tmp_path / "visible/gate/Ana/a.jpg", b"1")
    assert not listed(tmp_path)[2].complete
    write(tmp_path / "_SUCCESS", b"")
    assert listed(tmp_path)[2].complete
    (tmp_path / "_SUCCESS").unlink()
    write(
        tmp_path / "manifest.csv", b"path,person,modality,camera\nvisible/gate/Ana/a.jpg,Ana,visible,gate\n"
    )
    assert listed(tmp_path)[2].complete


MANIFEST = (
    "path,person,modality,camera,captured_at,notes\n"
    "b.jpg,007,visible,gate,2026-01-02T03:04:05,x\n"
    "./deep//a.jpg,NA,infrared,gate,,x\n"
    "gone.jpg,Ana,visible,gate,,x\n"
    "/etc/hostname.jpg,Ana,visible,gate,,x\n"
    "../outside.jpg,Ana,visible,gate,,x\n"
    "deep/../b.jpg,Ana,visible,gate,,x\n"
    "c.jpg,Ana,thermal,gate,,x\n"
    "d.jpg,Ana,visible,,,x\n"
    "e.txt,Ana,visible,gate,,x\n"
    ",Ana,visible,gate,,x\n"
)
FILES = ("b.jpg", "deep/a.jpg", "c.jpg", "d.jpg", "e.txt", "unnamed.jpg")
RECORDS = [
    ImageRecord("b.jpg", "007", "visible", "gate", 1, "2026-01-02T03:04:05"),
    ImageRecord("deep/a.jpg", "NA", "infrared", "gate", 1),
]
REFUSED = {
    "gone.jpg": "no such file",
    "/etc/hostname.jpg": "absolute path, not one below the manifest's folder",
    "../outside.jpg": "outside the drop",
    "deep/../b.jpg": "outside the drop",
    "c.jpg": "unknown modality",
    "d.jpg": "unknown camera",
    "e.txt": ".txt files are not taken",
    "": "no path",
}


def test_a_csv_manifest_names_images_wherever_they_are_below_it(tmp_path):
    write(tmp_path.parent / "outside.jpg", b"1")
    for name in FILES:
        write(tmp_path / name, b"1")
    write(tmp_path / "manifest.csv", MANIFEST.encode())
    records, refused, source = listed(tmp_path)
    assert records == RECORDS and refused == REFUSED
    assert source.ignored == ["unnamed.jpg"]


def test_a_parquet_manifest_says_the_same_and_may_have_numbers_for_people(tmp_path):
    for name in ("b.jpg", "a.jpg"):
        write(tmp_path / name, b"1")
    table = {"path": ["b.jpg", "a.jpg"], "person": [7, None], "modality": ["visible"] * 2, "camera": [1, 2]}
    pq.write_table(pa.table(table), tmp_path / "images.parquet")
    records = CameraSource(str(tmp_path / "images.parquet")).listing()
    assert records == [
        ImageRecord("a.jpg", "", "visible", "2", 1),
        ImageRecord("b.jpg", "7", "visible", "1", 1),
    ]


@pytest.mark.parametrize("column", ["path", "person", "modality", "camera"])
def test_a_manifest_without_a_column_is_an_error_that_names_it(tmp_path, column, fault):
    columns = [name for name in ("path", "person", "modality", "camera") if name != column]
    write(tmp_path / "manifest.csv", (",".join(columns) + "\nx,x,x\n").encode())
    with pytest.raises(UserError, match=f"manifest.csv: column {column} is missing") as error:
        listed(tmp_path)
    if column == "camera":
        fault("drops and images", "a manifest without the column of the cameras", error.value)


@pytest.mark.parametrize(
    "data, what",
    [
        (b"", "a manifest.csv without a byte"),
        (b"path,person,modality,camera\na,b\n", "a manifest.csv with a line that is too short"),
        (b"\xff\xfe\x00", "a manifest.csv that is no text"),
        (b"path,person,", "a manifest.csv with half its heading"),
    ],
)
def test_a_manifest_that_is_no_table_is_an_error_that_names_it(tmp_path, data, what, fault):
    write(tmp_path / "manifest.csv", data)
    with pytest.raises(UserError, match=r"manifest\.csv") as error:
        listed(tmp_path)
    fault("drops and images", what, error.value)
    write(tmp_path / "manifest.parquet", data)
    (tmp_path / "manifest.csv").unlink()
    with pytest.raises(UserError, match=r"manifest\.parquet"):
        listed(tmp_path)


def test_links_out_of_the_root_are_refused_and_never_opened(tmp_path):
    secret = write(tmp_path / "secret.jpg", b"secret")
    drop = tmp_path / "drop"
    write(drop / "visible/gate/Ana/real.jpg", b"1")
    (drop / "visible/gate/Ana/link.jpg").symlink_to(secret)
    (drop / "visible/gate/Ana/inside.jpg").symlink_to("real.jpg")
    (drop / "visible/gate/Ana/dangling.jpg").symlink_to("nothing.jpg")
    records, refused, _ = listed(drop)
    assert [record.path.rpartition("/")[2] for record in records] == ["inside.jpg", "real.jpg"]
    assert refused == {
        "visible/gate/Ana/link.jpg": "link out of the folder",
        "visible/gate/Ana/dangling.jpg": "not a regular file",
    }


def test_a_manifest_cannot_reach_through_a_link(tmp_path):
    secret = write(tmp_path / "secret.jpg", b"secret")
    drop = tmp_path / "drop"
    drop.mkdir()
    (drop / "a.jpg").symlink_to(secret)
    write(drop / "b.jpg", b"1")
    rows = b"a.jpg,Ana,visible,gate\nb.jpg,Ana,visible,gate\n"
    write(drop / "manifest.csv", b"path,person,modality,camera\n" + rows)
    records, refused, _ = listed(drop)
    assert [record.path for record in records] == ["b.jpg"] and refused == {"a.jpg": "link out of the folder"}


def test_what_is_no_regular_file_is_refused(tmp_path):
    make_drop(tmp_path, ["Ana"])
    os.mkfifo(tmp_path / "visible/north/Ana/pipe.jpg")
    assert listed(tmp_path)[1] == {"visible/north/Ana/pipe.jpg": "not a regular file"}


def test_a_name_that_is_no_text_is_refused_not_fatal(tmp_path):
    make_drop(tmp_path, ["Ana"])
    write(tmp_path / "visible/north/Ana" / os.fsdecode(b"\xff.jpg"), b"")
    assert listed(tmp_path)[1] == {"visible/north/Ana/\\udcff.jpg": "name is not UTF-8"}


def test_a_missing_root_is_an_error_that_names_it(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        listed(tmp_path / "nowhere")


def test_an_empty_root_is_an_error_that_says_what_is_expected(tmp_path, fault):
    write(tmp_path / "readme.txt", b"1")
    with pytest.raises(UserError, match=r"no image; expected manifest\.csv") as error:
        listed(tmp_path)
    fault("drops and images", "a folder without an image is added", error.value)


@pytest.mark.parametrize(
    "address, layout, what",
    [
        ("http://host/x", "cameras", "an address that begins with http://"),
        ("people", "sysy", "csdn add with a layout that there is not"),
    ],
)
def test_an_address_or_layout_that_is_not_supported_is_an_error(address, layout, what, fault):
    with pytest.raises(UserError, match=r"not supported|is unknown") as error:
        open_source(address, layout)
    fault("drops and images", what, error.value)


def test_an_object_store_lists_the_same_as_a_folder(tmp_path):
    names = [f"{modality}/gate/Ana/{n}.jpg" for modality in ("infrared", "visible") for n in range(4)]
    for name in names:
        write(tmp_path / name, jpeg(name))
    objects = {f"drop/{name}": jpeg(name) for name in names} | {
        "drop/visible/": b"",
        "drops": b"",
        "a/b": b"",
    }
    source = CameraSource(str(tmp_path))
    expected = source.listing()
    source.tree = memory_tree("drop/", objects)
    assert source.listing() == expected
    assert source.read(expected[0]) == jpeg(expected[0].path)
    assert memory_tree("", objects).sub_folders() == ["memory://bucket/a", "memory://bucket/drop"]
    assert pickle.loads(pickle.dumps(source.tree)).store.address == "memory://bucket/drop"
    with pytest.raises(UserError, match="memory://bucket/none: nothing there"):
        memory_tree("none", objects).files()
