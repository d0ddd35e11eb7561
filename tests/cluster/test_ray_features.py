"""Features and shards made on Ray equal those made by local processes."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from make_images import Project, make_drop, people_named
from ray_work import ON_RAY, make_params, make_state, make_work, write_images

from csdn.data.catalog import ImageRecord, load_dataset
from csdn.data.features import extract_features, extract_local
from csdn.data.loader import ImageBatches
from csdn.ingest import pack
from csdn.ingest.ledger import Drop
from csdn.ingest.pack import ShardTask
from csdn.runtime.errors import UserError
from csdn.training.prompts import image_embeddings

pytestmark = ON_RAY
CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def ray_instance():
    """One Ray instance for all tests here."""
    from csdn.cluster.session import ray_session

    with ray_session(None, cpus=3):
        yield


def image_batches(root):
    return ImageBatches(load_dataset(root).train_table(), root / "shards", (64, 32), "imagenet", 8)


def features(root, state, embedder, report=lambda *_: None):
    batches = image_batches(root)
    make_embeds = partial(image_embeddings, make_work(root).model, "float32")
    embedded = partial(embedder, batches, make_embeds, make_params(2), CPU)
    return extract_features(embedded, len(batches.table), state, report)


def test_features_made_on_ray_are_those_of_a_local_process(tmp_path):
    from csdn.cluster.extract import extract_on_ray

    root = write_images(tmp_path / "images")
    here = features(root, make_state(tmp_path / "here"), extract_local)["embeddings"]
    reports = []
    state = make_state(tmp_path / "ray")
    spread = features(root, state, extract_on_ray, lambda *at: reports.append(at))
    assert here.shape[0] == 84
    np.testing.assert_allclose(spread["embeddings"], here, rtol=1e-5, atol=1e-6)
    assert reports[-1] == (84, 84)


def test_a_damaged_shard_is_named_by_feature_extraction_on_ray_too(tmp_path):
    from csdn.cluster.extract import extract_on_ray

    root = write_images(tmp_path / "images")
    for shard in (root / "shards").iterdir():
        shard.write_bytes(shard.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"shards/.*\.tar: ends before byte"):
        features(root, make_state(tmp_path / "state"), extract_on_ray)


def test_shards_packed_on_ray_are_those_of_local_processes(tmp_path, monkeypatch):
    from csdn.cluster.ingest import packed_on_ray

    monkeypatch.setattr(pack, "SHARD_IMAGES", 25)
    drop = make_drop(tmp_path / "drop", people_named(10))
    found = []
    for name, packer in (("here", pack.packed_shards), ("ray", packed_on_ray(make_params(2).scaling))):
        project = Project(tmp_path / name, processes=2)
        project.add(str(drop))
        project.ingest(packer=packer)
        found.append({file.name: file.read_bytes() for file in (project.data / "shards").iterdir()})
    assert len(found[0]) > 2
    assert found[0] == found[1]


def test_an_image_that_ray_cannot_read_is_named(tmp_path):
    from csdn.cluster.ingest import packed_on_ray

    (tmp_path / "drop").mkdir()
    drop, record = (
        Drop("0" * 64, str(tmp_path / "drop"), "cameras"),
        ImageRecord("a.jpg", "p", "visible", "c", 9),
    )
    task = ShardTask(drop, [record], tmp_path, "0-0", make_params(2).ingest, "run")
    with pytest.raises(UserError, match=r"a\.jpg: cannot be read"):
        list(packed_on_ray(make_params(2).scaling)([task], 1))
    assert [file.name for file in tmp_path.iterdir()] == ["drop"]
