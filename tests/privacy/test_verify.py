"""The search for what is left finds a name and an image in whatever the project writes."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save

from csdn.privacy.rewrite import Removal
from csdn.privacy.verify import IMAGE, NAME, Result, Search, Trace, search_place
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
        (parquet(person=pa.array(["ann leek"])), set()),
        (parquet(camera=pa.array(["ann lee"])), set()),
        (b"joann lee", set()),
    ],
)
def test_a_trace_is_found_in_every_kind_of_file(data, found):
    assert SEARCH.in_bytes(data, "file") == found


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
