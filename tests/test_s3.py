"""A drop in an object store gives the same samples as a folder; worker processes read it too."""

from __future__ import annotations

import boto3
import pytest
from make_images import Project, make_drop, people_named
from moto.server import ThreadedMotoServer

from csdn.data import packing
from csdn.data.arrivals import sub_folders
from csdn.data.tables import SAMPLES_SCHEMA, read_table
from csdn.errors import UserError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bucket():
    """An empty bucket of a server on this machine, which the usual environment points to."""
    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        environment.setenv("AWS_ACCESS_KEY_ID", "test")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "test")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        store = boto3.resource("s3").Bucket("cameras")
        store.create()
        yield store
    server.stop()


def samples(project: Project) -> list[dict]:
    rows = read_table(project.data / "samples.parquet", SAMPLES_SCHEMA).to_pylist()
    return [{k: v for k, v in row.items() if k not in ("drop", "shard")} for row in rows]


def test_a_drop_in_a_bucket_is_the_same_as_in_a_folder(bucket, tmp_path, monkeypatch):
    folder = make_drop(tmp_path / "drop", people_named(10))
    for path in folder.rglob("*"):
        if path.is_file():
            bucket.upload_file(str(path), f"in/monday/{path.relative_to(folder).as_posix()}")
    assert sub_folders("s3://cameras/in") == ["s3://cameras/in/monday"]
    monkeypatch.setattr(packing, "SHARD_IMAGES", 25)
    tables = []
    for name, address in (("local", str(folder)), ("remote", "s3://cameras/in/monday")):
        project = Project(tmp_path / name, processes=2)
        project.add(address)
        project.ingest()
        tables.append(samples(project))
    assert tables[0] == tables[1]


def test_a_prefix_without_anything_is_an_error_that_names_it(bucket, tmp_path, fault):
    with pytest.raises(UserError, match="s3://cameras/nothing: nothing there") as error:
        Project(tmp_path).add("s3://cameras/nothing")
    fault("drops and images", "an s3:// prefix without anything", error.value)
    with pytest.raises(UserError, match="s3://no-such-bucket/x: ") as error:
        Project(tmp_path).add("s3://no-such-bucket/x")
    fault("drops and images", "an s3:// bucket that there is not", error.value)
