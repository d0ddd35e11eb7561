"""Ray executes the same plan and runs the same loop; the results are those of the plain process."""

from __future__ import annotations

import json
import socket
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from feed_data import write_data

from csdn.cluster.session import ray_session
from csdn.cluster.train import run
from csdn.data.dataset import load_dataset
from csdn.data.feed import TrainFeed
from csdn.errors import UserError

SIZE = (64, 32)
EPOCHS = 2


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_data(root)
    return root


@pytest.fixture(scope="module")
def cluster(data):
    """One Ray instance for all tests here; the address at which `run` takes it for a user's cluster."""
    with ray_session(None, cpus=3):
        import ray

        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import the tests
        yield ray.get_runtime_context().gcs_address


def feed(data):
    return TrainFeed(load_dataset(data).train_table(), data / "shards", 2, 2, SIZE, "imagenet", 10, 0, 0)


def train(data, out, over_ray):
    """A small loop with weights, on the batches of two epochs; writes the loss of each step."""
    torch.set_num_threads(1)
    made = feed(data)
    if over_ray:
        from csdn.cluster.feed import RayFeed

        made = RayFeed(made)
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=4), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    losses = []
    for epoch in range(EPOCHS):
        for batch in made.epoch(epoch):
            images = torch.cat([batch.visible_view1, batch.visible_view2, batch.infrared])
            loss = torch.nn.functional.cross_entropy(network(images), batch.labels.repeat(3))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    out.write_text(json.dumps(losses))


def refuse(message):
    raise UserError(message)


@pytest.mark.slow
@pytest.mark.parametrize(("epoch", "start"), [(0, 0), (3, 4)])
def test_ray_data_gives_the_tensors_of_the_dataloader_bit_for_bit(cluster, data, epoch, start):
    from csdn.cluster.feed import RayFeed

    plain = feed(data)
    over_ray = RayFeed(plain)
    assert over_ray.steps_per_epoch == plain.steps_per_epoch
    count = 0
    for one, other in zip(plain.epoch(epoch, start), over_ray.epoch(epoch, start), strict=True):
        assert (one.epoch, one.step, one.instances) == (other.epoch, other.step, other.instances)
        for name in ("visible_view1", "visible_view2", "infrared", "labels"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
        count += 1
    assert count == plain.steps_per_epoch - start


@pytest.mark.slow
@pytest.mark.parametrize("where", ["here", "in a worker"])
def test_ray_train_gives_the_losses_of_the_plain_process(cluster, data, tmp_path, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    train(data, tmp_path / "plain.json", over_ray=False)
    address = None if where == "here" else cluster
    # A relative path: a worker stands in the folder that the run was started in.
    run(partial(train, data, Path("ray.json"), over_ray=True), address, data_cores=2, gpu=False)
    losses = json.loads((tmp_path / "plain.json").read_text())
    assert len(losses) == EPOCHS * feed(data).steps_per_epoch
    assert json.loads((tmp_path / "ray.json").read_text()) == losses


@pytest.mark.slow
def test_a_user_s_mistake_comes_out_of_ray_as_it_went_in(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^wrong weights$"):
        run(partial(refuse, "wrong weights"), None, data_cores=1, gpu=False)


@pytest.mark.slow
def test_a_shard_damaged_after_ingest_is_named_by_ray_data_too(cluster, tmp_path):
    from csdn.cluster.feed import RayFeed

    write_data(tmp_path)
    damaged = RayFeed(feed(tmp_path))
    for shard in (tmp_path / "shards").iterdir():
        shard.write_bytes(shard.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"shards/.*\.tar: ends before byte"):
        list(damaged.epoch(0))


def test_a_cluster_that_does_not_answer_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers there
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(UserError, match=f"{address} does not answer.*\n.*scaling.workers"):
            run(partial(refuse, "never called"), address, data_cores=1, gpu=False)
