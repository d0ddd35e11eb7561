"""`dvc repro` with its drop, its shards and its report on Google's object store, of which a package emulates
the server. (No package does that for Azure's: az:// is not tested.)
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from repository import make_repository
from workspace import run

from csdn.data.storage import Store
from csdn.ingest.ledger import read_ledger

pytestmark = pytest.mark.slow

STORES = {"ingest.store": "gs://cameras/project/shards", "report.store": "gs://cameras/project/reports"}
SAME = ("metrics/prompts.json", "metrics/embedding.json", "metrics/evaluation.json")


@pytest.fixture(scope="module")
def gcs(tmp_path_factory):
    """The environment of this process names the emulator, with the bucket `cameras`."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    program = Path(sys.executable).with_name("gcp-storage-emulator")
    options = [f"--port={port}", "--host=127.0.0.1", "--in-memory", "--default-bucket=cameras"]
    with pytest.MonkeyPatch.context() as surroundings:
        surroundings.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        surroundings.setenv("FSSPEC_GS_TOKEN", "anon")
        surroundings.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # the emulator has no gRPC
        surroundings.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        with (tmp_path_factory.mktemp("gcs") / "log").open("wb") as log:
            server = subprocess.Popen([program, "start", *options], stdout=log, stderr=subprocess.STDOUT)
        try:
            until = time.monotonic() + 60
            while socket.socket().connect_ex(("127.0.0.1", port)):
                assert server.poll() is None and time.monotonic() < until
                time.sleep(0.05)
            yield
        finally:
            server.kill()
            server.wait()


def test_the_pipeline_gives_the_same_as_with_folders(gcs, finished_repository, tmp_path):
    finished = finished_repository[0]
    folder = make_repository(tmp_path / "project", **STORES)
    (drop,) = (drop for drop in read_ledger(finished / "data/drops.json") if Path(drop.address).is_dir())
    landing = Store("gs://cameras/in/monday")
    for path in sorted(Path(drop.address).rglob("*")):
        if path.is_file():
            landing.put(path.relative_to(drop.address).as_posix(), path)
    (folder / "data/drops.json").write_text(json.dumps({"version": 1, "drops": []}))
    added = run(folder, "csdn", "add", "gs://cameras/in/monday").stdout
    assert "added drop" in added
    done = run(folder, "dvc", "repro")
    assert "a copy is at gs://cameras/project/reports" in done.stdout + done.stderr
    for name in SAME:
        assert (folder / name).read_bytes() == (finished / name).read_bytes(), name
    shards = [found.name for found in Store(STORES["ingest.store"]).objects()]
    assert len(shards) == len(list((finished / "data/shards").iterdir()))
    assert list((folder / "data/shards").iterdir()) == []
