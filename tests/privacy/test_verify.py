"""The search for what is left finds a name and an image in whatever the project writes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save

from csdn.privacy.rewrite import Removal
from csdn.privacy.verify import IMAGE, NAME, Result, Search, Trace, _files, search_place
from csdn.runtime.errors import UserError

PICTURE = b"\x89PNG picture"
KEY = hashlib.sha256(PICTURE).hexdigest()
SEARCH = Search(Removal(frozenset({"ann lee"}), frozenset({KEY}), "forgotten-1"))


def parquet(**columns: pa.Array) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def tar(name: str, data: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        about = tarfile.TarInfo(name)
        about.size = len(data)
        file.addfile(about, io.BytesIO(data))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (PICTURE, {IMAGE}),
        (tar("a.png", PICTURE), {IMAGE}),
        (tar("a.json", json.dumps({"person": "Ann Lee"}).encode()), {NAME}),
        (parquet(person=pa.array(["ANN LEE "])), {NAME}),
        (parquet(person=pa.array(["ann lee"]).dictionary_encode()), {NAME}),
        (parquet(person=pa.array(["ann lee"], pa.large_string())), {NAME}),
        (parquet(top_keys=pa.array([[KEY]])), {IMAGE}),
        (parquet(sha256=pa.array([bytes.fromhex(KEY)], pa.binary(32))), {IMAGE}),
        (b"PAR1 damaged, and ann lee", {NAME}),
        (save({}, {"people": "ann lee"}), {NAME}),
        (f"key,person\n{KEY},ann lee\n".encode(), {NAME, IMAGE}),
        (parquet(person=pa.array(["ANN LEE"])).replace(b"PAR1", b"\xff\xfe\x00\x80"), {NAME}),
        (b"\xff\x00\x80" + KEY.encode() + b"\x00\xff", {IMAGE}),
        (parquet(a=pa.array([{"b": {"c": "Ann Lee"}}])), {NAME}),
        (parquet(a=pa.array([{"bytes": PICTURE, "path": "1.png"}])), {IMAGE}),
        (parquet(a=pa.array([[("ann lee", [1])]], pa.map_(pa.string(), pa.list_(pa.int8())))), {NAME}),
        (parquet(a=pa.array([b"Ann Lee"])), {NAME}),
        (parquet(a=pa.array([PICTURE])), {IMAGE}),
        (parquet(a=pa.array([["ann lee"]], pa.list_(pa.string(), 1))), {NAME}),
        (parquet(a=pa.array([["ann lee"]], pa.list_(pa.dictionary(pa.int8(), pa.string())))), {NAME}),
        (parquet(**{"Ann Lee": pa.array([1])}), {NAME}),
        (parquet(a=pa.array([{"ann lee": 1}])), {NAME}),
        (parquet(thumb=pa.array([f"thumbs/{KEY}.jpg"])), {IMAGE}),
        (tar("a.txt", b"") + tar("a.png", PICTURE), {IMAGE}),
        (b"damaged".ljust(512) + tar("a.png", PICTURE), {IMAGE}),
        (b"damaged".ljust(512) + tar("a.json", b'"ann lee"')[:600], {NAME}),
        (parquet(person=pa.array(["ann leek"])), set()),
        (parquet(camera=pa.array(["ann lee"])), set()),
        (b"joann lee", set()),
    ],
)
def test_a_trace_is_found_in_every_kind_of_file(data, found):
    assert SEARCH.in_bytes(data, "file") == found


def test_a_number_is_a_person_in_a_column_of_people():
    search = Search(Removal(frozenset({"1234"}), frozenset(), "forgotten-1"))
    for column in (pa.array([1234]), pa.array([1234.0]), pa.array(["1234"])):
        assert search.in_bytes(parquet(person_id=column), "file") == {NAME}
    assert search.in_bytes(parquet(size=pa.array([1234]), person_row=pa.array([1234])), "file") == set()


def test_the_names_of_folders_count_as_such():
    search = Search(Removal(frozenset({"17", "ann"}), frozenset(), "forgotten-1"))
    assert search.in_bytes(b"", "17/1.jpg") == search.in_bytes(b"", "gallery/17") == {NAME}
    assert search.in_bytes(b"", "Ann_0001.jpg") == {NAME}
    assert Search(search.removal, sure=True).in_bytes(b"", "Ann_0001.jpg") == set()


def test_a_short_name_counts_in_bytes_that_are_no_text_only_in_quotes():
    search = Search(Removal(frozenset({"ann"}), frozenset(), "forgotten-1"))
    assert search.in_bytes(b"\xff\x00 Ann \x80", "file") == set()  # random bytes have such words
    assert search.in_bytes(b'\xff\x00"Ann"\x80', "file") == {NAME}


def test_linked_folders_are_searched_once_and_what_cannot_be_read_is_told(tmp_path):
    root, disk = tmp_path / "root", tmp_path / "disk"
    (disk / "inner").mkdir(parents=True)
    (disk / "inner/a.txt").write_text("a")
    root.mkdir()
    for name, target in (("one", disk), ("two", disk), ("up", tmp_path), ("gone", tmp_path / "unmounted")):
        (root / name).symlink_to(target)
    (disk / "inner/loop").symlink_to(disk)
    unreachable = []
    assert list(_files(root, unreachable)) == [("one/inner/a.txt", b"a")]
    assert unreachable == [
        f"{root}/gone: a link to {tmp_path}/unmounted, where nothing is",
        f"{root}/up: a link to a folder above; not searched",
    ]
    assert list(_files(tmp_path / "typo", unreachable)) == []
    assert unreachable[2:] == [f"{tmp_path}/typo: cannot be read (No such file or directory)"]


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read every folder")
def test_a_folder_without_permission_is_told(tmp_path):
    (tmp_path / "closed").mkdir(mode=0)
    unreachable = []
    assert list(_files(tmp_path, unreachable)) == []
    assert unreachable == [f"{tmp_path}/closed: cannot be read (Permission denied)"]


def test_the_hashes_of_the_forgotten_are_no_trace_where_they_belong():
    text = json.dumps({"images": [KEY]}).encode()
    assert SEARCH.in_bytes(text, "other.json") == {IMAGE}
    assert SEARCH.in_bytes(text, "data/forgotten.json") == set()


def test_what_was_found_before_a_place_failed_is_kept_and_the_failure_told():
    def files():
        yield "first", PICTURE
        raise UserError("the store does not respond")

    unreachable = []
    assert list(search_place("store", files(), SEARCH, unreachable)) == [Trace("store", "first", IMAGE)]
    assert unreachable == ["store: the store does not respond"]


def test_a_place_that_was_not_searched_is_no_success():
    assert Result([], []).exit_code == 0
    assert Result([], ["store: the store does not respond"]).exit_code == 2
    assert Result([Trace("store", "first", IMAGE)], ["store: ..."]).exit_code == 1
