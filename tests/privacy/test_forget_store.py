"""Forgetting a person whose images, shards, reports, galleries and versions are in object stores."""

from __future__ import annotations

from pathlib import Path

import pytest
from forgettable import make_gallery, make_world, people_by
from make_images import make_drop
from s3_server import BUCKET

from csdn.data.catalog import load_dataset
from csdn.data.checkpoint_store import clone_name
from csdn.ingest.sync import open_drop
from csdn.privacy.drops import clean_drops, images_in_drops
from csdn.privacy.forget import forget
from csdn.privacy.rewrite import Removal
from csdn.report.page import publish
from csdn.retraining.versions import fetch_champion
from csdn.search.gallery import Gallery

pytestmark = pytest.mark.slow
STORES = {"ingest.store": f"s3://{BUCKET}/forget/shards", "report.store": f"s3://{BUCKET}/forget/reports"}
SHARED = {STORES["ingest.store"], STORES["report.store"], "the DVC remote store"}
CHECKPOINTS = f"s3://{BUCKET}/forget/checkpoints"


def upload(server, folder: Path, prefix: str) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            key = f"{prefix}/{path.relative_to(folder).as_posix()}"
            server.bucket.put_object(Key=key, Body=path.read_bytes())


def with_manifest(folder: Path) -> list[str]:
    """Write a manifest of a drop's images; returns its rows."""
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg"))
    rows = [f"{path};{path.split('/')[2]};{path.split('/')[0]};north" for path in paths]
    (folder / "manifest.csv").write_text("\n".join(["path;person;modality;camera", *rows]) + "\n")
    return rows


def test_a_person_is_forgotten_in_object_stores(s3_server, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    project = make_world(
        tmp_path, f"s3://{BUCKET}/forget/dvc", **STORES, **{"scaling.checkpoint_dir": CHECKPOINTS}
    )
    gallery = make_gallery(f"s3://{BUCKET}/forget/gallery", project)
    publish(project / "report/index.html", STORES["report.store"])
    person, images = people_by("test", project)[0], len(gallery)
    shards = s3_server.names("forget/shards/")
    s3_server.bucket.put_object(Key="forget/reports/website/about.html", Body=f"<h1>{person}".encode())
    s3_server.bucket.put_object(Key="forget/reports/website/master.db", Body=b"another project's")
    for folder in (clone_name(project / ".state"), "0123456789abcdef"):
        s3_server.bucket.put_object(Key=f"forget/checkpoints/{folder}/key/state.json", Body=b"{}")

    # Other clones may use what is in the stores: without --shared it stays.
    result = forget(project, person, galleries=[gallery.address])
    assert {trace.place for trace in result.traces} == SHARED
    assert set(shards) < set(s3_server.names("forget/shards/"))
    assert len(Gallery.open(gallery.address)) == images - 6
    assert s3_server.names("forget/checkpoints/") == ["forget/checkpoints/0123456789abcdef/key/state.json"]

    (trace,) = forget(project, person, galleries=[gallery.address], shared=True).traces
    assert trace.name == "website/about.html"  # it is no copy of a report
    assert len(s3_server.names("forget/shards/")) == len(shards)
    assert s3_server.names("forget/checkpoints/") == []
    website = ["forget/reports/website/about.html", "forget/reports/website/master.db"]
    assert s3_server.names("forget/reports/") == website
    for version in ("v1", "v2"):
        fetch_champion(project, version, tmp_path / version)
        names = load_dataset(tmp_path / version / "data").test_table().shard_names
        assert {f"forget/shards/{name}" for name in names} <= set(s3_server.names("forget/shards/"))


def test_a_drop_in_a_bucket_is_cleaned_where_the_key_allows_it(s3_server, tmp_path, monkeypatch):
    with_manifest(make_drop(tmp_path / "drop", ["ann", "ben"]))
    upload(s3_server, tmp_path / "drop", "forget/in")
    drop, _ = open_drop(f"s3://{BUCKET}/forget/in", "cameras")
    removal = Removal(frozenset({"ann"}), frozenset(), "forgotten-")
    with monkeypatch.context() as reader:
        for name, value in s3_server.user_that_may("s3:GetObject", "s3:ListBucket").items():
            reader.setenv(name, value)
        (about,) = images_in_drops([drop], removal)
        (line,) = clean_drops([about], removal)
        assert line.startswith(f"left: {drop}: 6 files: not allowed to remove them")
    assert len(s3_server.names("forget/in/")) == 14
    (about,) = images_in_drops([drop], removal)
    assert list(clean_drops([about], removal)) == [f"{drop}: 6 files removed"]
    assert not [name for name in s3_server.names("forget/in/") if "/ann/" in name]
