"""docs/clusters.md: its commands do what it says. The blocks whose mark names this file run here.

Everything is on the loopback, with ports and a folder of its own, and marked in the environment: what is
ended is what was started here, and no other Ray of the machine.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
import torch
import yaml
from processes import end_marked, marks
from repository import make_repository
from safetensors.torch import load_file
from workspace import environment, run, set_params

from csdn.params import Params

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/clusters.md").read_text()
CLUSTER = (ROOT / "deploy/ray/cluster/cluster.yaml").read_text()
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="clusters are for Linux")
LIMIT = 1200  # seconds that a command may take
CORES = 4  # of a node, as Ray counts: for two workers of Train, and some for Data
# `ray` as the page's commands find it here: no file, port or memory that others of the machine might use.
RAY = """#!/bin/bash
if [ "$1" = start ]; then
    set -- "$@" --temp-dir {folder} --object-store-memory 100000000 \\
        --min-worker-port 0 --max-worker-port 0
    [[ "$*" == *--num-cpus* ]] || set -- "$@" --num-cpus {cores}
fi
exec {ray} "$@"
"""


def fences(language, mark=""):
    """The texts of the page's fences in a language, with that mark before them."""
    return re.findall(rf"{mark}^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


class Shell:
    """One shell whose commands are the page's, with its port and host replaced by free ones here."""

    def __init__(self, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = str(free.getsockname()[1])
        self.address = f"127.0.0.1:{self.port}"
        program = folder / "bin/ray"
        program.parent.mkdir(parents=True)
        program.write_text(RAY.format(folder=folder, ray=shutil.which("ray"), cores=CORES))
        program.chmod(0o755)
        self.mark = str(uuid.uuid4())
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.environment |= {**marks(self.mark), "PATH": f"{program.parent}:{os.environ['PATH']}"}

    def here(self, command):
        return command.replace("head:6379", self.address).replace("6379", self.port)

    def run(self, command, folder=None, **environment):
        return subprocess.run(
            ["bash", "-c", self.here(command)],
            cwd=folder,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )

    def start(self, command):
        return subprocess.Popen(
            ["bash", "-c", self.here(command)],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def status(self, **environment):
        return self.run(STATUS, **environment)

    def nodes(self):
        """Active nodes by `ray status`."""
        active = self.status().stdout.partition("Active:")[2].partition("Pending:")[0]
        return active.count("node_")

    def wait_for_nodes(self, count):
        until = time.monotonic() + LIMIT
        while self.nodes() != count:
            assert time.monotonic() < until, self.status().stdout
            time.sleep(0.5)


REPRO, TOKEN, START_HEAD, START_WORKER, STATUS, REPRO_ON_CLUSTER = fences(
    "sh", mark="<!-- run by tests/cluster/test_clusters_page.py -->\n"
)
SETTINGS, OVERLAY, _ = map(yaml.safe_load, fences("yaml"))
KEYS = {f"{section}.{name}": value for section, keys in SETTINGS.items() for name, value in keys.items()}


@pytest.fixture(scope="module")
def cluster():
    """The page's cluster by hand: a head and one more node."""
    # A short path: it is part of the names of Unix sockets.
    folder = Path("/tmp") / f"ray-{uuid.uuid4().hex[:8]}"
    shell = Shell(folder)
    try:
        printed = shell.run(TOKEN + 'echo "$RAY_AUTH_MODE $RAY_AUTH_TOKEN"')
        mode, token = printed.stdout.split()
        shell.environment |= {"RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": token}
        for command in (START_HEAD, START_WORKER):
            done = shell.run(command)
            assert done.returncode == 0, done.stdout + done.stderr
        shell.wait_for_nodes(2)
        yield shell
    finally:
        end_marked(shell.mark)
        shutil.rmtree(folder, ignore_errors=True)


def test_the_overlay_is_of_the_manifests_and_their_image():
    assert OVERLAY["resources"] == ["../deploy/ray/job"]
    assert (ROOT / "deploy/ray/job/kustomization.yaml").exists()
    assert [image["name"] for image in OVERLAY["images"]] == ["csdn"]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="only kubectl builds an overlay")
def test_the_overlay_makes_a_whole_job(tmp_path):
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/kustomization.yaml").write_text(fences("yaml")[1])
    command = ["kubectl", "kustomize", tmp_path / "mine"]
    built = list(yaml.safe_load_all(subprocess.run(command, check=True, capture_output=True).stdout))
    assert sorted(entry["kind"] for entry in built) == ["NetworkPolicy", "PersistentVolumeClaim", "RayJob"]
    assert {entry["metadata"]["namespace"] for entry in built} == {"csdn"}
    (job,) = [entry for entry in built if entry["kind"] == "RayJob"]
    cluster = yaml.safe_load((ROOT / "deploy/ray/cluster/cluster.yaml").read_text())["spec"]
    image = "registry.example/csdn:0123456789ab"
    assert job["spec"]["rayClusterSpec"] == with_image(cluster, image)
    assert job["spec"]["submitterPodTemplate"]["spec"]["containers"][0]["image"] == image


def with_image(value, image):
    """A manifest whose containers have another image."""
    if isinstance(value, dict):
        return {k: image if k == "image" else with_image(v, image) for k, v in value.items()}
    return [with_image(entry, image) for entry in value] if isinstance(value, list) else value


def test_the_secrets_of_the_page_are_those_of_the_manifests():
    made = set(re.findall(r"create (?:secret generic|configmap) ([\w-]+)", PAGE))
    named = set(re.findall(r"csdn-(?:ray-auth|store|git|run)\b", CLUSTER))
    assert made == named == {"csdn-ray-auth", "csdn-store", "csdn-git", "csdn-run"}


@LINUX
@pytest.mark.slow
def test_ray_status_shows_both_nodes_and_no_cores_of_the_head(cluster):
    shown = cluster.status()
    assert shown.returncode == 0
    cores = re.search(r"0\.0/([\d.]+) CPU", shown.stdout)
    assert float(cores[1]) == CORES


@LINUX
@pytest.mark.slow
@pytest.mark.parametrize("token", ["", "wrong" * 8])
def test_without_the_token_access_is_denied(cluster, token, tmp_path):
    refused = cluster.status(RAY_AUTH_TOKEN=token, HOME=str(tmp_path))
    assert refused.returncode != 0
    assert "Node status" not in refused.stdout


@pytest.mark.parametrize("key", sorted({*KEYS, *re.findall(r"^\| `(\w+\.\w+)` \|", PAGE, re.MULTILINE)}))
def test_settings_that_the_page_names_exist(key):
    section, name = key.split(".")
    assert name in Params.model_fields[section].annotation.model_fields


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A small project with the page's settings, in which `dvc repro` ran as the page has it.

    What comes before training, which other tests run on Ray, is there already.
    """
    folder = make_repository(tmp_path_factory.mktemp("page") / "project")
    run(folder, "dvc", "repro", "prompts")
    set_params(folder, KEYS)
    shell = Shell(tmp_path_factory.mktemp("shell"))
    done = shell.run(REPRO, folder, **environment())
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@LINUX
@pytest.mark.slow
def test_several_workers_of_this_machine_bring_a_report(project):
    assert (project / "report/index.html").stat().st_size


@LINUX
@pytest.mark.slow
def test_a_cluster_trains_the_weights_of_local_workers(cluster, project):
    weights = project / "models/embedding/model.safetensors"
    before = load_file(weights)
    done = cluster.run(f"{REPRO_ON_CLUSTER.strip()} --force --single-item embedding", project)
    assert done.returncode == 0, done.stdout + done.stderr
    after = load_file(weights)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=1e-4, atol=1e-5)


@LINUX
@pytest.mark.slow
def test_a_node_that_gets_sigterm_drains_and_ends(cluster):
    """The page's pre-emption: SIGTERM to `ray start --block`, which is a pod's first process."""
    before = cluster.nodes()
    blocked = cluster.start(f"{START_WORKER.strip()} --block")  # as KubeRay does; bash becomes the command
    cluster.wait_for_nodes(before + 1)
    blocked.send_signal(signal.SIGTERM)
    printed, _ = blocked.communicate(timeout=LIMIT)
    assert "received SIGTERM. Draining" in printed
    cluster.wait_for_nodes(before)
