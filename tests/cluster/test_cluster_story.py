"""`dvc repro` on a cluster that loses a node while it trains, with shards and checkpoints on an object store.

A head and three nodes, Ray's own test cluster; the figures are compared with those of a plain local run.
"""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from ray_work import ON_RAY, nodes_that_train, require_token
from repository import make_repository
from workspace import environment, run

pytestmark = ON_RAY
LIMIT = 1200  # seconds for anything that is waited for
NODES = 3
# A node has room for one training worker and the loader: the death of one node takes one worker of two.
NODE_CORES, WORKER_CORES = 3, 2
CHECKPOINTS, SHARDS = "project/checkpoints/", "project/shards/"
STEPS, KILL_AT = 20, 4
# Two workers round otherwise than one process, and so do two threads; training amplifies that. At these
# rates the mean losses of the last epoch differ by 2e-5 (two threads: 4e-5), mAP by 0.04 points. At the
# demo's, seven times higher, it is 4e-3 (7e-3) and two queries of 52: a lost step might hide in that.
TRAINING = {"embedding.learning_rate": 0.0001, "embedding.head_learning_rate": 0.0003}
LOSSES = 5e-4  # relative
PRECISION = 0.5  # percentage points of mAP and mINP; for rank-n the tolerance is one query
ON_CLUSTER = {
    "ingest.store": f"s3://cameras/{SHARDS}".rstrip("/"),
    "scaling.checkpoint_dir": f"s3://cameras/{CHECKPOINTS}".rstrip("/"),
    "scaling.workers": 2,
    "scaling.cpus_per_worker": WORKER_CORES,
    "scaling.checkpoint_seconds": 0,
}


class Repro:
    """`dvc repro` as a process; `lines` are what it printed."""

    def __init__(self, folder: Path) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            ["dvc", "repro"],
            cwd=folder,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.reader = threading.Thread(target=lambda: self.lines.extend(self.process.stdout))
        self.reader.start()

    def wait_for(self, something):
        """What `something` gives, once that is true."""
        until = time.monotonic() + LIMIT
        while not (found := something()):
            assert self.process.poll() is None and time.monotonic() < until, self.text()
            time.sleep(0.3)  # answering takes the cores of what is waited for
        return found

    def end(self) -> None:
        try:
            assert self.process.wait(LIMIT) == 0, self.text()
        finally:
            self.process.kill()
            self.reader.join()

    def text(self) -> str:
        return "".join(self.lines)


@pytest.fixture(scope="module")
def cluster(s3_server, tmp_path_factory):
    """It asks for a token; its nodes have the environment of this process, and so the store's keys."""
    with pytest.MonkeyPatch.context() as surroundings:
        token = require_token()
        from ray.cluster_utils import Cluster

        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        made.token, made.caches = token, []
        try:
            for _ in range(NODES):  # each with a cache of its own, as on a machine of its own
                made.caches.append(tmp_path_factory.mktemp("node"))
                made.add_node(num_cpus=NODE_CORES, env_vars={"XDG_CACHE_HOME": str(made.caches[-1])})
            surroundings.setenv("RAY_ADDRESS", made.address)
            yield made
        finally:
            made.shutdown()


@pytest.fixture(scope="module")
def story(cluster, s3_server, tmp_path_factory):
    """(project, what was printed, the step of the last checkpoint when a node had been killed)."""
    folder = make_repository(tmp_path_factory.mktemp("cluster") / "project", **TRAINING, **ON_CLUSTER)
    repro = Repro(folder)
    try:
        repro.wait_for(lambda: last_saved(s3_server) >= KILL_AT)
        training = nodes_that_train(cluster)
        assert len(training) == 2, "each worker has a node of its own"
        cluster.remove_node(training[0], allow_graceful=False)
        saved = last_saved(s3_server)
    finally:
        repro.end()
    return folder, repro.text(), saved


def last_saved(server):
    """The step of the furthest checkpoint in the store; 0 where there is none."""
    found = [0]
    for name in server.names(CHECKPOINTS):
        with suppress(server.bucket.meta.client.exceptions.NoSuchKey):  # Ray keeps the last two only
            if name.endswith("/state.json"):
                state = json.loads(server.bucket.Object(name).get()["Body"].read())
                found.append(state["position"]["log"][-1]["step"])
    return max(found)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The project of a run in plain processes, with shards in a folder."""
    folder = make_repository(tmp_path_factory.mktemp("plain") / "project", **TRAINING)
    with pytest.MonkeyPatch.context() as surroundings:
        surroundings.delenv("RAY_ADDRESS", raising=False)
        run(folder, "dvc", "repro")
    return folder


def metrics(folder, name):
    return json.loads((folder / f"metrics/{name}.json").read_text())


def test_the_run_continues_from_the_checkpoint_to_a_report(story):
    folder, printed, saved = story
    assert (folder / "report/index.html").stat().st_size
    _, lost, after = printed.partition("embedding: lost worker")
    assert lost and "lost worker" not in after, printed
    assert saved >= KILL_AT
    # What Ray had not yet noted of the last two checkpoints is done again.
    assert steps(after)[0] >= saved - 1
    assert steps(after)[-1] == STEPS


def steps(printed):
    return [int(count) for count in re.findall(rf"^embedding: (\d+)/{STEPS} steps", printed, re.MULTILINE)]


def test_the_terminal_shows_the_stages_and_of_ray_only_the_lost_node(story):
    """Ray prints the last log lines of a lost node, marked (raylet)."""
    for noise in ("RayTrainWorker", "Traceback", "streaming_executor"):
        assert noise not in story[1], story[1]


def test_outputs_before_training_are_the_same_bytes(story, plain):
    for name in ("metrics/ingest.json", "metrics/prompts.json", "data/samples.parquet"):
        assert (story[0] / name).read_bytes() == (plain / name).read_bytes(), name


def test_the_figures_are_those_of_a_plain_local_run(story, plain):
    losses, expected = (metrics(folder, "embedding") for folder in (story[0], plain))
    assert losses == pytest.approx(expected, rel=LOSSES)
    found, here = (metrics(folder, "evaluation") for folder in (story[0], plain))
    for direction, figures in here.pop("trained").items():
        for name, figure in figures.items():
            far = PRECISION if name in ("mAP", "mINP") else 100 / here["counts"][direction]["queries"]
            mean = found["trained"][direction][name]["mean"]
            assert mean == pytest.approx(figure["mean"], rel=0, abs=1.001 * far), (direction, name)
    del found["trained"], found["open_set"], here["open_set"]
    assert found == here, "the baselines are not trained"


def test_shards_are_only_in_the_store_and_no_checkpoint_is_left(story, plain, s3_server):
    shards = sorted(path.name for path in (plain / "data/shards").iterdir())
    assert s3_server.names(SHARDS) == [f"{SHARDS}{name}" for name in shards]
    assert list((story[0] / "data/shards").iterdir()) == []
    others = [name for name in s3_server.names() if not name.startswith(SHARDS)]
    assert [name for name in others if not name.endswith("/")] == [], "Arrow leaves empty objects for folders"
    assert list(story[0].glob(".state/*/*")) == []


def test_each_node_fetched_each_shard_once(story, cluster, s3_server):
    """For all epochs and stages together: by each node, and by this process in the report."""
    assert sum(bool(list(cache.rglob("*.tar"))) for cache in cluster.caches) >= 2
    for name in s3_server.names(SHARDS):
        assert 1 <= s3_server.requests("GET", f"/{name} ") <= NODES + 1, name


def test_no_secret_is_in_files_objects_or_logs(story, s3_server, cluster):
    keys = [value for name, value in s3_server.environment.items() if "KEY" in name]
    logs = Path(cluster.head_node.get_session_dir_path())
    files = [path for root in (story[0], logs) for path in root.rglob("*") if path.is_file()]
    assert len(keys) == 2 and any(path.name == "raylet.out" for path in files)
    written = {str(path): path.read_bytes() for path in files}
    written |= {name: s3_server.bucket.Object(name).get()["Body"].read() for name in s3_server.names()}
    written["what was printed"] = story[1].encode()
    assert [
        name for name, data in written.items() for key in (cluster.token, *keys) if key.encode() in data
    ] == []


def test_a_run_without_an_address_does_not_join_the_cluster_of_this_machine(cluster, tmp_path):
    program = (
        "from csdn.cluster.session import ray_session",
        "with ray_session(None, 1):",
        "    import ray",
        "    print('nodes', len(ray.nodes()))",
    )
    alone = environment()
    del alone["RAY_ADDRESS"]
    found = run(tmp_path, "python", "-c", "\n".join(program), env=alone)
    assert "nodes 1" in found.stdout
