"""What lies in a drop beside or instead of plain images: ignored, followed, or named with what is wrong."""

from __future__ import annotations

import io
import shutil
import time
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from benchmark_folders import MAKERS, make_llcm, make_regdb, make_sysu
from command_line import csdn
from hypothesis import given, settings
from hypothesis import strategies as st
from make_images import Project, encoded, jpeg, make_drop, people_named, pixels, write
from memory_bucket import memory_tree

from csdn.ingest.counts import summary_lines
from csdn.ingest.ledger import Drop, change_ledger, read_ledger, write_ledger
from csdn.ingest.pack import NO_LABEL
from csdn.ingest.sources import open_source
from csdn.ingest.sources.cameras import CameraSource, read_manifest
from csdn.ingest.sources.tree import open_tree
from csdn.ingest.sync import open_drop
from csdn.runtime.documents import read_text
from csdn.runtime.errors import UserError

AREA = "drops and images"


def listed(root, layout="cameras"):
    """([(path, person, modality, camera)], {path: reason}) of a drop."""
    source = open_source(str(root), layout)
    records = source.listing()
    about = [(record.path, record.person, record.modality, record.camera) for record in records]
    return about, dict(source.refused)


def refusal(root, layout="cameras") -> UserError:
    with pytest.raises(UserError) as error:
        open_drop(str(root), layout)
    return error.value


def manifest(root, rows, name="manifest.csv", encoding="utf-8", end="\n"):
    text = end.join(["path,person,modality,camera", *rows, ""])
    return write(root / name, text.encode(encoding))


# Files of systems

SYSTEM = (
    *("._a.jpg", ".DS_Store", ".hidden/a.jpg", "__MACOSX/visible/north/Ana/._0.jpg", "@eaDir/a.jpg/S.jpg"),
    *("Thumbs.db", "THUMBS.DB", "desktop.ini", "#recycle/a.jpg", "$RECYCLE.BIN/a.jpg"),
    *("visible/north/@eaDir/Ana/0.jpg", "visible/.Trash/Ana/0.jpg", "lost+found/a.jpg"),
)


@pytest.mark.parametrize("layout", [*MAKERS, "cameras"])
def test_files_of_systems_are_ignored_in_every_layout(tmp_path, layout):
    root = MAKERS.get(layout, lambda folder: make_drop(folder, ["Ana"]))(tmp_path / "drop")
    before = listed(root, layout)
    for path in [*root.rglob("*")]:
        if path.is_file():
            write(path.with_name(f"._{path.name}"), b"Mac OS X")
            write(path.parent / "@eaDir" / path.name / "SYNOPHOTO_THUMB_S.jpg", jpeg("thumb"))
    for name in SYSTEM:
        write(root / name, b"1")
    assert listed(root, layout) == before and before[1] == {}


def test_files_of_systems_are_ignored_in_an_object_store():
    names = ["visible/gate/Ana/0.jpg", *(name for name in SYSTEM)]
    files = memory_tree("drop", {f"drop/{name}": b"1" for name in names}).files()
    assert list(files.entries) == ["visible/gate/Ana/0.jpg"] and sorted(files.ignored) == sorted(SYSTEM)


def test_a_folder_that_only_root_may_read_is_no_reason_to_stop(tmp_path):
    make_drop(tmp_path, ["Ana"])
    (tmp_path / "lost+found").mkdir(mode=0)
    assert len(listed(tmp_path)[0]) == 6


# Links to folders


@pytest.mark.parametrize(
    ("layout", "camera"),
    [("sysu", "cam3"), ("llcm", "test_nir/cam4"), ("regdb", "Thermal"), ("cameras", "visible/south")],
)
def test_a_linked_camera_is_an_error_that_names_the_link(tmp_path, layout, camera, fault):
    root = MAKERS.get(layout, lambda folder: make_drop(folder, ["Ana"]))(tmp_path / "drop")
    shutil.move(root / camera, tmp_path / "disk")
    (root / camera).symlink_to(tmp_path / "disk")
    error = refusal(root, layout)
    assert f"{root}/{camera}: a link to the folder {tmp_path}/disk" in str(error)
    shutil.rmtree(tmp_path / "disk")  # the other disk is not mounted
    assert f"{root}/{camera}: a link to {tmp_path}/disk, where nothing is" in str(refusal(root, layout))
    if layout == "cameras":
        fault(
            AREA, "a camera's folder is a link", str(error).replace(str(tmp_path), "").replace("/drop/", "")
        )


@pytest.mark.parametrize("target", ["..", ".", "north", "/"])
def test_a_link_to_a_folder_is_an_error_wherever_it_leads(tmp_path, target):
    root = make_drop(tmp_path / "drop", ["Ana"])
    (root / "visible/loop").symlink_to(target)
    assert "visible/loop: a link to the folder" in str(refusal(root))


def test_a_hidden_link_and_a_drop_that_is_a_link_itself_do_no_harm(tmp_path):
    root = make_drop(tmp_path / "drop", ["Ana"])
    (root / ".cache").symlink_to("/")
    (tmp_path / "link").symlink_to(root)
    assert listed(tmp_path / "link") == listed(root) and len(listed(root)[0]) == 6


# Kinds that are not taken


@pytest.mark.parametrize("ending", ["heic", "GIF", "jp2", "mp4", "npy", "txt", ""])
@pytest.mark.parametrize("by", ["folder", "manifest"])
def test_a_camera_of_files_of_another_kind_is_an_error_that_names_them(tmp_path, ending, by, fault):
    """However few of the drop they are: nobody would miss them."""
    root = make_drop(tmp_path / "drop", ["Ana"])
    name = f"visible/west/Ana/0{f'.{ending}' if ending else ''}"
    write(root / name, b"1")
    if by == "manifest":
        paths = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
        rows = [f"{path},{path.split('/')[2]},visible,{path.split('/')[1]}" for path in paths if "/" in path]
        manifest(root, rows)
    error = refusal(root)
    kind = f".{ending.lower()} files are not taken" if ending else "files without an extension are not taken"
    assert f"visible camera west: none of 1 files can be taken: 1 x {kind} ({name})" in str(error)
    if (ending, by) == ("heic", "folder"):
        fault(AREA, "a camera of which every image is of a kind that is not taken", error)


def test_single_images_of_another_kind_are_refused_and_named(tmp_path):
    root = make_drop(tmp_path / "drop", ["Ana"])
    write(root / "visible/north/Ana/7.gif", b"GIF89a")
    write(root / "visible/north/Ana/notes.txt", b"1")
    write(root / "visible/north/Ana/noext", b"1")
    lines = []
    _, images = open_drop(str(root), "cameras", lines.append)
    assert images == 6 and listed(root)[1] == {"visible/north/Ana/7.gif": ".gif files are not taken"}
    assert lines == [
        "not taken: 1 x .gif files are not taken (visible/north/Ana/7.gif)",
        "ignored: 1 x .txt (visible/north/Ana/notes.txt), 1 x no extension (visible/north/Ana/noext)",
    ]


@pytest.mark.parametrize(("layout", "camera"), [("sysu", "cam3"), ("llcm", "test_vis/cam2")])
def test_a_benchmark_s_camera_of_another_kind_says_what_is_there(tmp_path, layout, camera):
    root = MAKERS[layout](tmp_path / "drop")
    for path in [*(root / camera).rglob("*.jpg")]:
        path.rename(path.with_suffix(".heic"))
    assert f"{camera} has no image" in str(refusal(root, layout))
    assert ".heic files are not taken (" in str(refusal(root, layout))


def test_a_benchmark_s_single_image_of_another_kind_is_refused(tmp_path):
    root = make_sysu(tmp_path / "drop")
    (root / "cam3/0001/0001.jpg").rename(root / "cam3/0001/0001.heic")
    assert listed(root, "sysu")[1] == {"cam3/0001/0001.heic": ".heic files are not taken"}


def test_a_drop_that_is_still_being_written_is_not_complete_and_no_more(tmp_path):
    root = make_drop(tmp_path / "drop", ["Ana"])
    (root / "_SUCCESS").unlink()
    write(root / "visible/west/Ana/0.jpg.part", b"1")
    assert "not complete" in str(refusal(root))


# Letter case, separators, composition


def test_letter_case_of_modalities_and_extensions_means_nothing(tmp_path):
    write(tmp_path / "VISIBLE/gate/Ana/0.JPG", b"1")
    write(tmp_path / "Infrared/gate/Ana/0.Jpeg", b"1")
    rows, refused = listed(tmp_path)
    assert not refused and [row[2] for row in rows] == ["infrared", "visible"]
    manifest(
        tmp_path, ["VISIBLE/gate/Ana/0.JPG,Ana,Visible,gate", "Infrared/gate/Ana/0.Jpeg,Ana, INFRARED ,gate"]
    )
    assert listed(tmp_path) == (rows, refused)
    (tmp_path / "manifest.csv").rename(tmp_path / "Manifest.CSV")
    assert CameraSource(str(tmp_path)).tree and listed(tmp_path) == (rows, refused)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_manifest_s_paths_may_be_those_of_windows_or_of_a_mac(tmp_path, kind):
    mac = unicodedata.normalize("NFD", "visible/gate/Zoé/0.jpg")
    write(tmp_path / mac, b"1")
    write(tmp_path / "visible/gate/Ana/0.jpg", b"1")
    paths = [unicodedata.normalize("NFC", mac), "Visible\\Gate\\ANA\\0.JPG"]
    if kind == "csv":
        manifest(tmp_path, [f"{path},x,visible,gate" for path in paths])
    else:
        table = {"path": paths, "person": ["x"] * 2, "modality": ["visible"] * 2, "camera": ["gate"] * 2}
        pq.write_table(pa.table(table), tmp_path / "manifest.parquet")
    assert [row[0] for row in listed(tmp_path)[0]] == ["visible/gate/Ana/0.jpg", mac]
    lines = []
    open_drop(str(tmp_path), "cameras", lines.append)
    assert f"manifest.{kind}: 1 paths have the separator of Windows" in lines[0]


def test_a_path_that_may_mean_two_files_means_none(tmp_path):
    for name in ("a.jpg", "A.jpg", "b.jpg"):
        write(tmp_path / name, b"1")
    manifest(tmp_path, ["A.JPG,x,visible,gate", "a.jpg,x,visible,gate", "B.JPG,x,visible,gate"])
    rows, refused = listed(tmp_path)
    assert [row[0] for row in rows] == ["a.jpg", "b.jpg"] and refused == {"A.JPG": "no such file"}


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (r"..\..\secret.jpg", "outside the drop"),
        (r"C:\cameras\a.jpg", "absolute path, not one below the manifest's folder"),
        (r"\\server\share\a.jpg", "absolute path, not one below the manifest's folder"),
        ("/cameras/a.jpg", "absolute path, not one below the manifest's folder"),
        (".hidden/a.jpg", "hidden or system file"),
        ("c:12.jpg", "no such file"),
        (r"sub\._a.jpg", "hidden or system file"),
    ],
)
def test_a_manifest_s_path_is_refused_for_its_own_reason(tmp_path, path, reason):
    write(tmp_path / "drop/b.jpg", b"1")
    write(tmp_path / "drop/.hidden/a.jpg", b"1")
    write(tmp_path / "secret.jpg", b"1")
    manifest(tmp_path / "drop", ["b.jpg,x,visible,gate", f"{path},x,visible,gate"])
    rows, refused = listed(tmp_path / "drop")
    assert [row[0] for row in rows] == ["b.jpg"] and list(refused.values()) == [reason]


def test_a_benchmark_of_a_disk_without_letter_case_is_the_same(tmp_path):
    for make, layout, names in (
        (make_sysu, "sysu", ("cam1", "exp")),
        (make_llcm, "llcm", ("test_vis", "idx", "nir")),
        (make_regdb, "regdb", ("Visible", "idx")),
    ):
        root = make(tmp_path / layout)
        before = [row[1:] for row in listed(root, layout)[0]]
        for name in names:
            (root / name).rename(root / name.swapcase())
        after, refused = listed(root, layout)
        assert sorted(row[1:] for row in after) == sorted(before) and not refused


# Text lists

SAVED = [("utf-8-sig", "\n"), ("utf-8", "\r\n"), ("utf-8-sig", "\r\n"), ("utf-16", "\r\n"), ("utf-8", "\r")]


@pytest.mark.parametrize(("encoding", "end"), SAVED)
@pytest.mark.parametrize("layout", [*MAKERS, "cameras"])
def test_lists_may_be_saved_by_any_editor(tmp_path, layout, encoding, end):
    if layout == "cameras":
        root = make_drop(tmp_path / "drop", ["Ana", "Bö"])
        paths = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.jpg"))
        manifest(root, [f"{path},{path.split('/')[2]},{path.split('/')[0]},gate" for path in paths])
    else:
        root = MAKERS[layout](tmp_path / "drop")
    before = listed(root, layout)
    lists = [*root.glob("*.csv"), *root.glob("exp/*.txt"), *root.glob("idx/*.txt")]
    assert lists
    for path in lists:
        path.write_bytes(path.read_text(encoding="utf-8").replace("\n", end).encode(encoding))
    assert listed(root, layout) == before


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_a_manifest_s_columns_may_be_separated_as_by_a_spreadsheet(tmp_path, delimiter):
    write(tmp_path / "a,1.jpg", b"1")
    path = manifest(tmp_path, ["'a,1.jpg',007,visible,gate".replace("'", '"')])
    before = listed(tmp_path)
    path.write_text(path.read_text().replace(",", delimiter).replace(f"a{delimiter}1", "a,1"))
    assert listed(tmp_path) == before == ([("a,1.jpg", "007", "visible", "gate")], {})


def test_the_separator_of_windows_in_a_benchmark_s_list(tmp_path):
    root = make_regdb(tmp_path / "drop")
    before = listed(root, "regdb")
    for path in root.glob("idx/*.txt"):
        path.write_text(path.read_text().replace("/", "\\"))
    assert listed(root, "regdb") == before


@pytest.mark.parametrize("data", [b"1\n2\nB\xf6\n", b"\xef\xbb\xbf1\r\n2\r\n\xff", b"1\n2\n\xed\xa0\x80"])
def test_a_list_that_is_no_utf_8_is_an_error_with_file_and_line(data):
    with pytest.raises(UserError, match=r"idx/test_id\.txt, line 3: not UTF-8 text"):
        read_text(data, "idx/test_id.txt")


def test_a_manifest_that_is_no_utf_8_names_the_line(tmp_path, fault):
    manifest(tmp_path, ["a.jpg,Ana,visible,gate", "b.jpg,Bö,visible,gate"], encoding="cp1252")
    error = refusal(tmp_path)
    assert "manifest.csv, line 3: not UTF-8 text" in str(error)
    fault(AREA, "a manifest.csv in the encoding of an old Windows", error)


# Damaged Parquet


def parquet_manifest(paths, **options) -> bytes:
    buffer = io.BytesIO()
    count = len(paths)
    columns = {"path": paths, "person": [f"p{n % 7}" for n in range(count)]}
    columns |= {"modality": ["visible"] * count, "camera": ["gate"] * count}
    pq.write_table(pa.table(columns), buffer, **options)
    return buffer.getvalue()


GOOD = [
    parquet_manifest([f"a/{n}.jpg" for n in range(50)], **options)
    for options in ({}, {"compression": "zstd"}, {"compression": "none", "use_dictionary": False})
]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(GOOD), st.floats(0, 1), st.integers(1, 255), st.booleans())
def test_a_damaged_parquet_manifest_is_an_error_that_names_it(good, place, change, cut):
    """Damage that the format cannot show leaves a table; nothing else is ever raised."""
    at = int(place * (len(good) - 1))
    bad = good[:at] if cut else good[:at] + bytes([good[at] ^ change]) + good[at + 1 :]
    try:
        list(read_manifest(bad, "manifest.parquet"))
    except UserError as error:
        assert str(error).startswith("manifest.parquet: ")


def test_damaged_pages_are_an_error_that_names_the_manifest(tmp_path, fault):
    """The footer is whole, the first page is not."""
    write(tmp_path / "manifest.parquet", GOOD[0][:4] + bytes(40) + GOOD[0][44:])
    error = refusal(tmp_path)
    assert "manifest.parquet: not readable as a table" in str(error)
    text = str(error)
    fault(AREA, "a manifest.parquet with damaged pages", text[: text.index("table") + 5])


def test_a_column_that_is_there_twice_is_an_error(tmp_path):
    names = ["path", "path", "person", "modality", "camera"]
    table = pa.Table.from_arrays([pa.array(["a.jpg"])] * 5, names=names)
    pq.write_table(table, tmp_path / "manifest.parquet")
    assert "manifest.parquet: not readable as a table" in str(refusal(tmp_path))


# Nothing usable, and held drops

BAD_PATHS = [
    "gone.jpg",
    "no\0where.jpg",
    "/etc/hostname.jpg",
    "../x.jpg",
    "",
    "a\\b.jpg",
    "x" * 5000 + ".jpg",
    "\u202e.jpg",
]


@pytest.mark.parametrize("paths", [BAD_PATHS, ["gone.jpg"] * 3, [""]])
def test_a_manifest_of_bad_paths_alone_is_not_added(tmp_path, paths, fault):
    write(tmp_path / "manifest.parquet", parquet_manifest(paths))
    error = refusal(tmp_path)
    assert "none of" in str(error) or "no image can be taken" in str(error)
    assert ("3 x no such file (gone.jpg, gone.jpg, gone.jpg)" in str(error)) == (paths == ["gone.jpg"] * 3)
    if len(paths) == 3:
        fault(AREA, "a manifest of paths at which nothing is", error)


def test_a_drop_one_folder_too_deep_says_where_it_is(tmp_path, fault):
    make_drop(tmp_path / "zip/monday", ["Ana"])
    write(tmp_path / "zip/_SUCCESS", b"")
    error = refusal(tmp_path / "zip")
    assert "6 x not at modality/camera/person/name (monday/" in str(error)
    assert str(error).endswith(f"csdn add {tmp_path}/zip/monday")
    fault(AREA, "a drop that was unpacked one folder too deep", error)


def test_a_drop_of_files_that_are_no_images_says_what_they_are(tmp_path):
    for n in range(5):
        write(tmp_path / f"cam/{n}.dat", b"1")
    assert "There are: 5 x .dat (cam/0.dat, cam/1.dat, cam/2.dat, ...)" in str(refusal(tmp_path))


def test_a_camera_of_damaged_images_holds_the_drop_however_few_they_are(tmp_path, fault):
    project = Project(tmp_path / "project")
    root = make_drop(tmp_path / "drop", people_named(10))
    write(root / "visible/west/person 000/0.jpg", encoded(pixels("a")))  # a PNG
    drop = project.add(root)
    project.add(make_drop(tmp_path / "good", people_named(10, "other")))
    figures = project.ingest(max_bad_fraction=0.5)
    (held,) = figures["drops"]["held"]
    assert held["id"] == drop.id and (held["bad"], held["images"]) == (1, 61)
    lines = "\n".join(line for line in summary_lines(figures) if line.startswith("HELD"))
    assert (
        "visible camera west has no good image: 1 x not a jpg image (visible/west/person 000/0.jpg)" in lines
    )
    fault(AREA, "a camera of which every image is bad", lines)


def test_a_camera_of_images_without_labels_holds_nothing(tmp_path):
    project = Project(tmp_path / "project")
    root = make_drop(tmp_path / "drop", people_named(10))
    write(root / "visible/west/0.jpg", jpeg("a"))
    write(root / "visible/west/person 000/1.jpg", b"x")
    project.add(root)
    figures = project.ingest(max_bad_fraction=0.5)
    assert figures["quarantined"] == {NO_LABEL: 1, "not a jpg image": 1} and not figures["drops"]["held"]


def test_when_nothing_is_usable_every_drop_says_why(tmp_path, monkeypatch, fault):
    project = Project(tmp_path / "project")
    write(tmp_path / "drop/visible/gate/Ana/0.jpg", b"x")
    write(tmp_path / "drop/_SUCCESS", b"")
    drop = project.add(tmp_path / "drop")
    with pytest.raises(UserError, match="1 x not a jpg image") as error:
        project.ingest()
    assert str(drop) in str(error.value) and "(visible/gate/Ana/0.jpg)" in str(error.value)
    monkeypatch.chdir(project.root)
    assert "bad: 1 x not a jpg image (visible/gate/Ana/0.jpg)" in csdn("drops")
    fault(AREA, "no image of any drop is usable", error.value)


# Addresses and the ledger


@pytest.mark.parametrize(
    "given", ["../cameras/monday", "./../cameras/monday/", "link/monday", "link/../cameras/monday"]
)
def test_a_drop_s_address_is_found_from_any_folder(tmp_path, monkeypatch, given):
    root = make_drop(tmp_path / "cameras/monday", ["Ana"])
    (tmp_path / "project/sub").mkdir(parents=True)
    (tmp_path / "project/link").symlink_to(tmp_path / "cameras")
    monkeypatch.chdir(tmp_path / "project")
    drop, _ = open_drop(given, "cameras")
    monkeypatch.chdir("/")
    assert Path(drop.address).samefile(root) and ".." not in drop.address
    assert listed(drop.address) == listed(root)


def test_addresses_that_are_no_folders_stay_as_they_are():
    assert open_drop("builtin:tiny", "builtin")[0].address == "builtin:tiny"
    assert open_tree("s3://bucket/in").store.address == "s3://bucket/in"


def test_a_manifest_s_own_address_becomes_absolute(tmp_path, monkeypatch):
    make_drop(tmp_path, ["Ana"])
    manifest(tmp_path, ["visible/north/Ana/0.jpg,Ana,visible,gate"], "list.csv")
    monkeypatch.chdir(tmp_path)
    assert open_drop("list.csv", "cameras")[0].address == str(tmp_path / "list.csv")


def test_no_drops_that_are_added_at_once_are_lost(tmp_path):
    ledger = tmp_path / "drops.json"
    write_ledger([], ledger)

    def add(number):
        def append(drops):
            time.sleep(0.01)  # long enough for the others to have read what this one is about to replace
            return [*drops, Drop(f"{number:064x}", f"/in/{number}", "cameras")]

        change_ledger(append, ledger)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(add, range(8)))
    assert sorted(drop.address for drop in read_ledger(ledger)) == [f"/in/{n}" for n in range(8)]
