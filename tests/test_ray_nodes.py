"""A cluster of several nodes on this machine (Ray's own test cluster), which loses nodes while it trains."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from ray_work import difference, make_params, make_state, make_work, same_bytes, write_images

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="csdn.cluster is for Linux"),
]
EPOCHS = 8


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture
def cluster(monkeypatch):
    """A head that computes nothing, and two nodes with two cores each."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "0.5")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    made.nodes = [made.add_node(num_cpus=2), made.add_node(num_cpus=2)]
    yield made
    made.shutdown()


def train(cluster, images, state, storage, report=lambda *_: None):
    """With two workers, whose checkpoints are in `storage`."""
    from csdn.cluster.embedding import train_on_ray

    work = make_work(images, EPOCHS)
    params = make_params(2, address=cluster.address, storage=str(storage))
    return work.model, train_on_ray(params, work, state, report)


def test_a_node_that_is_killed_or_announced_to_go_costs_nothing(cluster, images, tmp_path, fault):
    untouched, rows = train(cluster, images, make_state(tmp_path / "untouched"), tmp_path / "a")
    assert not list((tmp_path / "a").iterdir()), "checkpoints are removed once the model is there"

    lost = []

    def kill_a_node(done, *_):
        if done >= 10 and not lost:
            lost.append(cluster.nodes.pop())
            cluster.add_node(num_cpus=2)
            cluster.remove_node(lost[0], allow_graceful=False)

    model, found = train(cluster, images, make_state(tmp_path / "killed"), tmp_path / "b", kill_a_node)
    assert lost
    assert same_bytes(model, untouched)
    assert found == rows
    fault(
        "processes",
        "a node of the Ray cluster was killed while it trained",
        "The workers start again on the nodes that are left, from the last checkpoint; same bytes.",
    )


def test_a_node_that_is_announced_to_go_is_left_with_a_checkpoint(cluster, images, tmp_path, fault):
    told = []

    def announce(done, *_):
        if done >= 10 and not told:
            told.append(done)
            cluster.add_node(num_cpus=2)
            drain(cluster, cluster.nodes[0], seconds=5)

    state = make_state(tmp_path / "state")
    model, rows = train(cluster, images, state, tmp_path / "storage", announce)
    assert told
    assert len(rows) == 5 * EPOCHS
    plain = make_work(images, EPOCHS)
    from ray_work import train_plainly

    train_plainly(plain, make_state(tmp_path / "plain"))
    assert difference(model, plain.model) < 1e-4
    fault(
        "processes",
        "a node of the Ray cluster was announced to go (pre-emption)",
        "The workers save at once, and start again on other nodes when it goes.",
    )


def drain(cluster, node, seconds):
    command = ["ray", "drain-node", "--address", cluster.address, "--node-id", node.node_id]
    reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "test"]
    deadline = ["--deadline-remaining-seconds", str(seconds)]
    subprocess.run([*command, *reason, *deadline], check=True, env=os.environ)
