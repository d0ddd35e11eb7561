"""A cluster of several nodes on this machine (Ray's own test cluster), one of which is pre-empted."""

from __future__ import annotations

import subprocess

import pytest
from ray_work import (
    ON_RAY,
    difference,
    make_params,
    make_state,
    make_work,
    nodes_that_train,
    require_token,
    train_plainly,
    write_images,
)

pytestmark = ON_RAY
EPOCHS, PREEMPTED_AT = 45, 10
SECONDS = 2  # from the announcement to the node's end; training lasts longer


@pytest.fixture
def cluster(monkeypatch):
    """A head that computes nothing, and two nodes, one of which has room for the workers and the loader."""
    require_token()
    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "0.5")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        made.add_node(num_cpus=3)
        made.add_node(num_cpus=3)
        yield made
    finally:
        made.shutdown()


def test_workers_save_a_checkpoint_before_their_node_is_pre_empted(cluster, tmp_path, fault):
    from csdn.cluster.train import train_on_ray
    from csdn.cluster.worker import PREEMPTION_NOTE

    images = write_images(tmp_path / "images")
    seen, notes, places = [], [], []

    def preempt(done, total, values, *new_notes):
        notes.extend(new_notes)
        if done >= PREEMPTED_AT and max(seen, default=0) < PREEMPTED_AT:
            drain(cluster, nodes_that_train(cluster)[0])
            seen.clear()
        seen.append(done)
        if nodes := nodes_that_train(cluster):  # none, while the workers restart
            places.append({node.node_id for node in nodes})

    work = make_work(images, EPOCHS)
    # So rarely that, without the announcement, the workers would restart almost from the beginning.
    storage = tmp_path / "storage"
    params = make_params(2, address=cluster.address, checkpoint_seconds=3600)
    checkpoints = make_state(tmp_path / "state", str(storage))
    rows = train_on_ray(params, work, checkpoints, preempt)
    assert len(rows) == 5 * EPOCHS
    assert not places[0] & places[-1], "the workers restarted on another node"
    assert min(seen) >= PREEMPTED_AT, "the workers saved when Ray announced the pre-emption"
    assert notes[0] == PREEMPTION_NOTE
    plain = make_work(images, EPOCHS)
    train_plainly(plain, make_state(tmp_path / "plain"))
    assert difference(work.model, plain.model) < 3e-2  # after 225 steps; after 50 it is below 1e-4
    fault(
        "processes",
        "a node of the Ray cluster is pre-empted (also: SIGTERM to `ray start --block`)",
        "The workers save at once, and restart on other nodes when the node ends.",
    )


def drain(cluster, node):
    command = ["ray", "drain-node", "--address", cluster.address, "--node-id", node.node_id]
    reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "test"]
    deadline = ["--deadline-remaining-seconds", str(SECONDS)]
    subprocess.run([*command, *reason, *deadline], check=True)
