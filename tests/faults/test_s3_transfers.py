"""Bytes that are altered between an object store and this machine: named, asked for again, never used."""

from __future__ import annotations

import shutil
import time

import pytest
import torch
from faulty_proxy import ENDLESS, FaultyProxy
from feed_data import train_source
from make_images import Project, make_drop, people_named

from csdn.data.catalog import load_dataset
from csdn.data.loader import TrainLoader
from csdn.data.shards import StoredPlace
from csdn.data.storage import Store
from csdn.ingest.ledger import read_ledger
from csdn.ingest.sync import sync_ledger
from csdn.runtime.errors import UserError

pytestmark = pytest.mark.slow


@pytest.fixture
def proxy(s3_server, monkeypatch):
    with FaultyProxy(s3_server.endpoint).running() as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def times(count, alter):
    """`alter` for the first `count` answers."""
    left = iter(range(count))
    return lambda data: data if next(left, None) is None else alter(data)


@pytest.fixture
def drop(s3_server, tmp_path):
    """(folder, address in the store) of the same drop."""
    folder = make_drop(tmp_path / "drop", people_named(10))
    prefix = f"transfers/{tmp_path.name}"
    for path in folder.rglob("*"):
        if path.is_file():
            s3_server.bucket.upload_file(str(path), f"{prefix}/{path.relative_to(folder)}")
    return folder, f"s3://cameras/{prefix}"


def shards_of(project: Project) -> dict[str, bytes]:
    """Without the id of the drop, which has etags in a store."""
    return {path.name[17:]: path.read_bytes() for path in (project.data / "shards").iterdir()}


ALTERATIONS = {
    "one bit of each answer of an object store is flipped while ingest reads a drop": flipped,
    "each answer of an object store is cut in half while ingest reads a drop": lambda d: d[: len(d) // 2],
    "an object store answers with a page of errors while ingest reads a drop": lambda d: b"<html>busy</html>",
}


@pytest.mark.parametrize("what", ALTERATIONS)
def test_an_altered_image_of_a_drop_is_never_taken_or_refused(proxy, drop, tmp_path, what, fault):
    folder, address = drop
    local, project = Project(tmp_path / "local"), Project(tmp_path / "project")
    local.add(folder)
    local.ingest()
    project.add(address)
    proxy.of, proxy.alter = ".jpg", ALTERATIONS[what]
    with pytest.raises(UserError, match=r"the store sent other bytes than those that it lists") as error:
        project.ingest()
    assert proxy.altered >= 2
    proxy.alter = times(1, ALTERATIONS[what])
    project.ingest()
    assert shards_of(project) == shards_of(local)
    said = (
        str(error.value)
        .replace(address, "s3://cameras/in")
        .replace(read_ledger(project.ledger)[0].id[:12], "HASH")
    )
    fault("object stores", what, said.partition("in/")[0] + "in/..." + said.partition(".jpg")[2])


def test_an_answer_that_does_not_end_is_ended_at_the_listed_size(proxy, drop, tmp_path, fault):
    project = Project(tmp_path / "project")
    project.add(drop[1])
    proxy.of, proxy.endless = ".jpg", True
    began = time.monotonic()
    with pytest.raises(UserError, match="the store sent other bytes"):
        project.ingest()
    assert time.monotonic() - began < 30
    assert proxy.sent < ENDLESS  # the connection was closed
    fault(
        "object stores",
        "an object store sends an object and never stops",
        "Reading ends at the listed size; then as if other bytes had been sent.",
    )


def test_a_range_that_does_not_end_is_ended_too(proxy, s3_server):
    s3_server.bucket.put_object(Key="endless.tar", Body=b"abcdef")
    proxy.of, proxy.endless = ".tar", True
    with pytest.raises(UserError, match="more bytes than were asked for"):
        Store("s3://cameras").ranges([("endless.tar", 1, 3)])
    assert proxy.sent < ENDLESS


def test_a_manifest_that_was_altered_on_its_way_is_no_reason_to_refuse_the_drop(proxy, drop, s3_server):
    address = drop[1]
    prefix = address.removeprefix("s3://cameras/")
    rows = ["path,person,modality,camera"]
    rows += [f"visible/north/person 000/{n}.jpg,a,visible,north" for n in range(2)]
    s3_server.bucket.put_object(Key=f"{prefix}/manifest.csv", Body="\n".join(rows).encode())
    place = address.rpartition("/")[0]
    proxy.of, proxy.alter = ".csv", flipped
    with pytest.raises(UserError, match="the store sent other bytes"):
        sync_ledger([], [place])
    proxy.alter = None
    drops, _ = sync_ledger([], [place])
    assert address in [drop.address for drop in drops]


@pytest.mark.parametrize("cache", [False, True])
def test_altered_bytes_of_a_shard_are_asked_for_again_and_never_trained_on(
    proxy, drop, tmp_path, cache, fault
):
    project, place = Project(tmp_path / "project"), f"s3://cameras/altered/{tmp_path.name}"
    project.add(drop[0])
    project.ingest()
    folder = shutil.copytree(project.data / "shards", tmp_path / "shards")
    project.ingest(store=place)
    table = load_dataset(project.data).train_table()
    at = StoredPlace(place, tmp_path / "cache", 10**9 if cache else 0)
    expected = list(TrainLoader(train_source(table, folder), 0).epoch(0))
    proxy.of, proxy.alter = ".tar", times(1, flipped)
    for one, other in zip(expected, TrainLoader(train_source(table, at), 0).epoch(0), strict=True):
        assert torch.equal(one.visible_view1, other.visible_view1)
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    proxy.alter = flipped
    with pytest.raises(UserError, match=r"\.tar: (the image at byte|is not what ingest wrote)"):
        list(TrainLoader(train_source(table, at), 0).epoch(0))
    fault(
        "object stores",
        "one bit of an answer of an object store is flipped while a stage trains",
        "The image's hash tells; it is asked for again. If it is wrong again, the shard is named.",
    )
