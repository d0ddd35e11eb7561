"""`dvc repro` with shards and reports in an object store, and DVC's own remote there."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from repository import git, make_repository
from workspace import run

from csdn.data.catalog import load_dataset
from csdn.data.shards import open_shards, shards_at
from csdn.params import load_params

pytestmark = pytest.mark.slow

STORES = {"ingest.store": "s3://cameras/project/shards", "report.store": "s3://cameras/project/reports"}
SAME = (
    "metrics/ingest.json",
    "metrics/prompts.json",
    "metrics/embedding.json",
    "metrics/evaluation.json",
    "models/embedding/model.safetensors",
    "data/samples.parquet",
)


@pytest.fixture(scope="module")
def project(s3_server, finished_repository, tmp_path_factory):
    """(folder, what it printed) of a `dvc repro` on the finished one's drop, with shards in the store."""
    folder = make_repository(tmp_path_factory.mktemp("remote") / "project", **STORES)
    shutil.copy(finished_repository[0] / "data/drops.json", folder / "data")
    done = run(folder, "dvc", "repro")
    return folder, done.stdout + done.stderr


def test_the_pipeline_gives_the_same_as_with_a_folder(s3_server, project, finished_repository):
    folder, finished = project[0], finished_repository[0]
    assert [name for name in SAME if (folder / name).read_bytes() != (finished / name).read_bytes()] == []
    assert list((folder / "data/shards").iterdir()) == []
    shards = sorted(path.name for path in (finished / "data/shards").iterdir())
    assert s3_server.names("project/shards/") == [f"project/shards/{name}" for name in shards]


def test_a_report_is_copied_and_its_address_printed(s3_server, project):
    (page,) = (name for name in s3_server.names("project/reports/") if name.endswith(".html"))
    assert f"a copy is at s3://cameras/{page}" in project[1]
    body = s3_server.bucket.Object(page).get()["Body"].read()
    assert body == (project[0] / "report/index.html").read_bytes()


def test_dvc_pushes_to_the_store_and_a_clone_pulls_from_it(s3_server, project, tmp_path):
    """The address is in Git; endpoint and keys are in the environment alone."""
    folder = shutil.copytree(project[0], tmp_path / "project", symlinks=True)
    run(folder, "dvc", "remote", "add", "--default", "store", "s3://cameras/dvc")
    run(folder, "dvc", "push")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "run")
    git(tmp_path, "clone", "--quiet", str(folder), "clone")
    clone = tmp_path / "clone"
    run(clone, "dvc", "pull")
    for name in (*SAME, "report/index.html"):
        assert (clone / name).read_bytes() == (folder / name).read_bytes()
    assert "up to date" in run(clone, "dvc", "status").stdout
    image = load_dataset(clone / "data").samples.head(1).to_pylist()[0]
    place = shards_at(load_params(clone / "params.yaml"), clone / "data")
    (data,) = open_shards(place).read_all([(image["shard"], image["offset"], image["size"])])
    assert hashlib.sha256(data).hexdigest() == image["key"]


def test_no_key_is_in_anything_that_was_written_or_shown(s3_server, project, tmp_path):
    keys = [value.encode() for name, value in s3_server.environment.items() if "KEY" in name]
    assert len(keys) == 2
    stored = {name: s3_server.bucket.Object(name).get()["Body"].read() for name in s3_server.names()}
    files = {str(path): path.read_bytes() for path in project[0].rglob("*") if path.is_file()}
    written = {"what was printed": project[1].encode(), **stored, **files}
    assert len(stored) > 5 and len(files) > 50
    assert [(name, key) for name, data in written.items() for key in keys if key in data] == []
    parameters = json.loads(run(project[0], "dvc", "params", "diff", "--all", "--json").stdout or "{}")
    assert s3_server.endpoint not in json.dumps(parameters)


def test_it_is_this_environment_that_the_stages_read(project):
    """Or the tests above would say nothing of .dvc/config."""
    config = Path(project[0] / ".dvc/config").read_text()
    assert "endpoint" not in config and "key" not in config
