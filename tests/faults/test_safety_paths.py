"""No path in a drop, an index or a state leads outside its own folder."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from command_line import csdn
from make_images import Project, jpeg, make_drop, people_named, write
from safetensors.numpy import save
from workspace import ROOT

from csdn.data.batch import ImageReader
from csdn.data.catalog import load_dataset
from csdn.data.checkpoint_store import open_state
from csdn.data.shards import ShardReader
from csdn.ingest.ledger import read_ledger, write_ledger
from csdn.ingest.sources.cameras import CameraSource
from csdn.runtime.errors import UserError

OUTSIDE = [
    "../outside.jpg",
    "visible/../../outside.jpg",
    "..\\outside.jpg",
    "file:///etc/hostname.jpg",
    "//etc/hostname.jpg",
    "s3://other/in.jpg",
    "https://host/in.jpg",
    "~/outside.jpg",
    "$HOME/outside.jpg",
    "outside.jpg\0.jpg",
    ".",
    "",
]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_no_path_of_a_manifest_leaves_the_drop(kind, tmp_path):
    write(tmp_path / "outside.jpg", jpeg("outside"))
    drop = tmp_path / "drop"
    write(drop / "a.jpg", jpeg("a"))
    columns = {"path": ["a.jpg", *OUTSIDE]}
    columns |= {name: [name] * len(columns["path"]) for name in ("person", "camera")}
    columns["modality"] = ["visible"] * len(columns["path"])
    if kind == "parquet":
        pq.write_table(pa.table(columns), drop / "manifest.parquet")
    else:
        rows = [",".join(columns), *(f'"{path}",x,x,visible' for path in columns["path"])]
        rows[0] = "path,person,camera,modality"
        write(drop / "manifest.csv", "\n".join(rows).encode())
    source = CameraSource(str(drop))
    assert [record.path for record in source.listing()] == ["a.jpg"]
    absolute = "absolute path, not one below the manifest's folder"
    assert {reason for _, reason in source.refused} == {
        "outside the drop",
        "no such file",
        "no path",
        "NUL in the path",
        absolute,
    }
    assert len(source.refused) == len(OUTSIDE)


@pytest.fixture(scope="module")
def ingested(tmp_path_factory):
    root = tmp_path_factory.mktemp("paths")
    project = Project(root)
    project.add(make_drop(root / "drop", people_named(10)))
    project.ingest()
    return project


@pytest.mark.parametrize(
    "shard", ["../drops.json", "{root}/data/drops.json", "../shards/{name}", "./{name}", ""]
)
def test_no_row_of_the_index_leads_outside_the_shards(shard, ingested, tmp_path, fault):
    """The shard exists and is readable: its name is rejected."""
    (name,) = (path.name for path in (ingested.data / "shards").iterdir())
    shutil.copytree(ingested.data, tmp_path / "data")
    samples = pq.read_table(tmp_path / "data/samples.parquet")
    named = pa.array([shard.format(name=name, root=ingested.root)] * samples.num_rows)
    column = samples.schema.get_field_index("shard")
    pq.write_table(samples.set_column(column, "shard", named), tmp_path / "data/samples.parquet")
    table = load_dataset(tmp_path / "data").train_table()
    with pytest.raises(UserError, match="is not a shard's name") as error:
        ImageReader(table, tmp_path / "data/shards", (16, 8))(np.arange(1))
    if shard == "../drops.json":
        fault("shards and index", "a row of the index names a file outside data/shards", error.value)


def test_no_tar_is_ever_unpacked(ingested, tmp_path):
    """The name of a member is never used as a path: images are read by range."""
    (shard,) = (ingested.data / "shards").iterdir()
    samples = load_dataset(ingested.data).train_table()
    data = shard.read_bytes()
    evil = data.replace(samples.key(0).encode(), b"../" * 20 + samples.key(0).encode()[60:])
    assert evil != data
    write(tmp_path / "shards" / shard.name, evil)
    before = sorted(tmp_path.rglob("*"))
    read = ShardReader(tmp_path / "shards").read(shard.name, int(samples.offset[0]), int(samples.size[0]))
    assert hashlib.sha256(read).hexdigest() == samples.key(0)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_state_reads_tensors_only_from_its_own_folder(tmp_path):
    data = save({"x": np.zeros(1, np.float32)})
    write(tmp_path / "other.safetensors", data)
    with open_state("prompts", "0" * 64, tmp_path / "state") as state:
        digest = hashlib.sha256(data).hexdigest()
        for name in ("../../other.safetensors", str(tmp_path / "other.safetensors")):
            entry = {"tensors": name, "sha256": digest, "position": {}}
            write(state.folder / "state.json", json.dumps(entry).encode())
            assert state.load() is None


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project whose watched place is `in`, as the current folder."""
    folder = tmp_path / "project"
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["ingest"]["watch"] = ["in"]
    write(folder / "params.yaml", yaml.safe_dump(params).encode())
    monkeypatch.chdir(folder)
    write_ledger([])
    return folder


def test_sync_follows_no_symbolic_link_in_the_watched_place(project, fault):
    private = make_drop(project.parent / "private", ["Ana"])
    make_drop(project / "in/monday", ["Bo"])
    (project / "in/tuesday").symlink_to(private)
    output = csdn("sync")
    assert [drop.address for drop in read_ledger()] == [str(project / "in/monday")]
    (skipped,) = (line for line in output.splitlines() if line.startswith("skipped"))
    fault("drops and images", "csdn sync finds a link to a folder elsewhere", skipped)


def test_a_link_that_replaces_an_image_after_the_listing_is_not_followed(tmp_path):
    """The hash in the ledger is that of the original: the drop is rejected, and nothing of it is kept."""
    project = Project(tmp_path / "project")
    drop = make_drop(tmp_path / "drop", people_named(10))
    project.add(drop)
    image = drop / "visible/north/person 000/0.jpg"
    secret = write(tmp_path / "secret.jpg", jpeg("secret"))
    image.unlink()
    image.symlink_to(secret)
    with pytest.raises(UserError, match="changed since it was added"):
        project.ingest()
    assert not [data for data in project.outputs().values() if jpeg("secret") in data]
