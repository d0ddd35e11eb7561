"""A cluster of several nodes on this machine (Ray's own test cluster), one of which is announced to go."""

from __future__ import annotations

import subprocess

import pytest
from ray_work import (
    ON_RAY,
    ask_for_token,
    difference,
    make_params,
    make_state,
    make_work,
    nodes_that_train,
    train_plainly,
    write_images,
)

pytestmark = ON_RAY
EPOCHS, TOLD_AT = 45, 10
SECONDS = 2  # from the announcement to the node's end; training lasts longer


@pytest.fixture
def cluster(monkeypatch):
    """A head that computes nothing, and two nodes, of which one has room for the workers and the feed."""
    ask_for_token()
    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "0.5")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        made.add_node(num_cpus=3)
        made.add_node(num_cpus=3)
        yield made
    finally:
        made.shutdown()


def test_a_node_that_is_announced_to_go_is_left_with_a_checkpoint(cluster, tmp_path, fault):
    from csdn.cluster.embedding import train_on_ray
    from csdn.cluster.loop import ANNOUNCED

    images = write_images(tmp_path / "images")
    seen, told = [], []

    def announce(done, total, values, *notes):
        told.extend(notes)
        if done >= TOLD_AT and max(seen, default=0) < TOLD_AT:
            drain(cluster, nodes_that_train(cluster)[0])
            seen.clear()
        seen.append(done)

    work = make_work(images, EPOCHS)
    # So seldom that without the announcement the workers would begin again almost from the start.
    storage = tmp_path / "storage"
    params = make_params(2, address=cluster.address, checkpoint_seconds=3600)
    attempts = make_state(tmp_path / "state", str(storage))
    rows = train_on_ray(params, work, attempts, announce)
    assert len(rows) == 5 * EPOCHS
    assert seen != sorted(seen), "the node went while they trained: they began again"
    assert min(seen) >= TOLD_AT, "the workers saved when they heard of it"
    assert told[0] == ANNOUNCED
    plain = make_work(images, EPOCHS)
    train_plainly(plain, make_state(tmp_path / "plain"))
    assert difference(work.model, plain.model) < 3e-2  # 225 steps multiply what 50 do to 1e-4
    fault(
        "processes",
        "a node of the Ray cluster was announced to go (pre-emption, SIGTERM to `ray start --block`)",
        "The workers save at once, and start again on other nodes when it goes.",
    )


def drain(cluster, node):
    command = ["ray", "drain-node", "--address", cluster.address, "--node-id", node.node_id]
    reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "test"]
    deadline = ["--deadline-remaining-seconds", str(SECONDS)]
    subprocess.run([*command, *reason, *deadline], check=True)
