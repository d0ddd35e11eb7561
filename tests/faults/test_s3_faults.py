"""An object store that refuses is named within 15 seconds; one that is away for ten seconds is waited for."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from feed_data import train_source
from make_images import (
    Project,
    encoded,
    make_drop,
    people_named,
    pixels,
    stage_command,
    stage_project,
    write,
)
from s3_server import S3Server, s3_environment
from workspace import set_params

from csdn.data.catalog import load_dataset
from csdn.data.loader import TrainLoader
from csdn.data.shards import StoredPlace, open_shards
from csdn.data.storage import Store, durable_filesystem
from csdn.ingest.sync import sub_folders
from csdn.runtime.errors import UserError

pytestmark = pytest.mark.slow

SECONDS = 15  # until a store that will never do has been named
OUTAGE = 10.0  # seconds
PLACE = "s3://cameras/shards"
SECRET = "notTheSecretOfThisKey/7"
# What is wrong -> what is set, of the environment or the address, and what the error must say.
WRONG = {
    "an object store: the key is unknown to it": (
        {"AWS_ACCESS_KEY_ID": "AKIANOTAKEYOFTHESTORE"},
        "the store does not know this key; correct AWS_ACCESS_KEY_ID",
    ),
    "an object store: the secret is not the key's": (
        {"AWS_SECRET_ACCESS_KEY": SECRET},
        "the secret is not that of this key; correct AWS_SECRET_ACCESS_KEY",
    ),
    "an object store: no key in the environment": (
        {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""},
        "there is no key for it in the environment; set AWS_ACCESS_KEY_ID",
    ),
    "an object store: the bucket is not there": (
        {"place": "s3://no-such-bucket/shards"},
        "there is no such bucket; correct the address",
    ),
    "an object store: a key without its secret": (
        {"AWS_SECRET_ACCESS_KEY": ""},
        "the settings of the object store are not usable: Partial credentials found in env",
    ),
    "an object store: nobody listens at its endpoint": (
        {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
        "does not respond (no connection; tried for",
    ),
    "an object store: its endpoint is no URL": (
        {"AWS_ENDPOINT_URL": "store"},
        "the settings of the object store are not usable: Invalid endpoint: store",
    ),
}


@pytest.fixture(params=WRONG)
def wrong(request, s3_server, monkeypatch):
    """(what is wrong, the place of the shards, what the error says), with the environment set so."""
    changes, says = WRONG[request.param]
    for name, value in changes.items():
        if name.isupper():
            monkeypatch.setenv(name, value)
    return request.param, changes.get("place", PLACE), says


def files_of(project: Project) -> set[str]:
    return {str(path.relative_to(project.root)) for path in project.root.rglob("*") if path.is_file()}


def test_ingest_says_what_is_wrong_and_leaves_nothing(wrong, s3_server, tmp_path, fault):
    what, place, says = wrong
    project = stage_project(tmp_path / "project")
    set_params(project.root, {"ingest.store": place})
    project.add(make_drop(tmp_path / "drop", people_named(10)))
    before, began = files_of(project), time.monotonic()
    done = subprocess.run(**stage_command(project), capture_output=True, text=True)
    assert time.monotonic() - began < SECONDS
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert f"{place}: {says}" in done.stderr or says in done.stderr
    assert SECRET not in done.stdout + done.stderr
    assert {name for name in files_of(project) - before if not name.startswith(".state/")} == set()
    assert s3_server.names("shards/") == []
    fault("object stores", what, done.stderr.strip().removeprefix("error: "))


def test_whoever_else_uses_a_store_says_the_same(wrong):
    _, place, says = wrong
    for use in (lambda at: open_shards(StoredPlace(at)), sub_folders, durable_filesystem):
        began = time.monotonic()
        with pytest.raises(UserError) as error:
            use(place)
        assert says in str(error.value) and place in str(error.value)
        assert time.monotonic() - began < SECONDS


def test_a_key_that_may_only_read_is_an_error_that_leaves_nothing(s3_server, tmp_path, monkeypatch, fault):
    read_only = s3_server.user_that_may("s3:Get*", "s3:List*")
    for name, value in read_only.items():
        monkeypatch.setenv(name, value)
    project = Project(tmp_path / "project")
    project.add(make_drop(tmp_path / "drop", people_named(4)))
    before = files_of(project)
    with pytest.raises(UserError, match=f"{PLACE}/read-only/.*: this key may not do that") as error:
        project.ingest(store=f"{PLACE}/read-only")
    assert {name for name in files_of(project) - before if not name.startswith(".state/")} == set()
    fault("object stores", "an object store: the key may read and not write", error.value)


@pytest.fixture
def big_drop(tmp_path):
    """A drop of twenty shards of a megabyte."""
    drop = make_drop(tmp_path / "drop", people_named(30))
    for n in range(160):
        path = f"visible/north/person 000/{n}.bmp"
        write(drop / path, encoded(pixels(path, 288, 144), "BMP"))
    return drop


def test_ingest_goes_on_behind_an_outage(s3_server, tmp_path, big_drop, fault):
    project = stage_project(tmp_path / "project")
    set_params(project.root, {"ingest.store": f"{PLACE}-outage"})
    project.add(big_drop)
    stage = subprocess.Popen(**stage_command(project), stderr=subprocess.PIPE, text=True)
    assert stage.stderr.readline().startswith("ingest: ")  # the first shard is in the store
    with s3_server.away(OUTAGE):
        time.sleep(OUTAGE - 1)
        assert stage.poll() is None
        errors = stage.communicate(timeout=60)[1]
    assert stage.returncode == 0, errors
    undisturbed = stage_project(tmp_path / "undisturbed")
    undisturbed.add(big_drop)
    subprocess.run(**stage_command(undisturbed), check=True)
    kept = sorted(path.name for path in (undisturbed.data / "shards").iterdir())
    assert s3_server.names("shards-outage/") == [f"shards-outage/{name}" for name in kept]
    assert (project.data / "samples.parquet").read_bytes() == (
        undisturbed.data / "samples.parquet"
    ).read_bytes()
    fault(
        "object stores",
        "an object store is away for ten seconds while ingest writes",
        "Requests are repeated with back-off for a minute; same shards, same tables.",
    )


def test_the_feed_goes_on_behind_an_outage(s3_server, tmp_path, fault):
    project, place = Project(tmp_path / "project"), f"{PLACE}-feed"
    project.add(make_drop(tmp_path / "drop", people_named(10)))
    project.ingest()
    table, folder = load_dataset(project.data).train_table(), tmp_path / "shards"
    shutil.copytree(project.data / "shards", folder)
    project.ingest(store=place)
    expected, made = (
        TrainLoader(train_source(table, at), number) for at, number in ((folder, 0), (StoredPlace(place), 1))
    )
    rest = made.epoch(0)
    first = next(rest)
    began = time.monotonic()
    with s3_server.away(OUTAGE):
        batches = [first, *rest]
    assert time.monotonic() - began > OUTAGE - 1
    for one, other in zip(expected.epoch(0), batches, strict=True):
        assert torch.equal(one.visible_view1, other.visible_view1)
        assert torch.equal(one.infrared, other.infrared)
    fault(
        "object stores",
        "an object store is away for ten seconds while a stage trains",
        "Requests are repeated with back-off for a minute; the same batches.",
    )


def test_a_store_that_is_restarted_is_found_again(tmp_path):
    """Its port refuses for a while: another kind of silence."""
    server = S3Server(tmp_path / "log")
    with s3_environment(server):
        server.bucket.put_object(Key="a", Body=b"abc")
        store = Store("s3://cameras")
        filesystem, path = durable_filesystem("s3://cameras")
        assert store.ranges([("a", 0, 3)]) == [b"abc"] and filesystem.size(f"{path}/a") == 3
        server.stop()
        back = threading.Timer(3, server.start)
        back.start()
        try:
            began = time.monotonic()
            with ThreadPoolExecutor() as threads:
                asked = threads.submit(filesystem.size, f"{path}/a")
                unknown = "there is no such bucket|the store does not know"  # it kept all in memory
                with pytest.raises(UserError, match=f"s3://cameras/a: ({unknown})"):
                    store.size("a")
                with pytest.raises((FileNotFoundError, PermissionError)):  # an answer, not a silence
                    asked.result()
            assert time.monotonic() - began > 2
        finally:
            back.join()
            server.stop()
