"""`prefect deployment run csdn/full-pipeline` on a real server and worker runs the real stages."""

import json
import re
import sys
from pathlib import Path

import pytest
from prefect_server import prefect_with_worker, wait_until
from repository import make_repository
from workspace import STAGES, run

pytestmark = pytest.mark.slow
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")

# What a stage says on its last line, as its task's log has to show it.
SAYS = {
    "ingest": "test  ",
    "prompts": "the fused text names",
    "embedding": "model -> models/embedding",
    "evaluate": "infrared to visible",
    "report": "report/index.html",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_repository(tmp_path_factory.mktemp("flow") / "project")


@pytest.fixture(scope="module")
def prefect(project, tmp_path_factory):
    with prefect_with_worker(tmp_path_factory.mktemp("prefect"), project, pool="csdn-local") as prefect:
        yield prefect


def start(prefect, folder, *options):
    """Start the deployment as a person would; returns the flow run's id."""
    output = prefect.run(folder, "deployment", "run", "csdn/full-pipeline", *options)
    return re.search(r"UUID: ([0-9a-f-]{36})", output)[1]


def state(prefect, identifier):
    return prefect.flow_run(identifier)["state"]["type"]


def wait_for_end(prefect, identifier):
    wait_until(lambda: state(prefect, identifier) in ENDED, "the flow run's end")
    return prefect.flow_run(identifier)["state"]


def test_the_deployment_runs_the_five_stages_as_tasks(prefect, project):
    identifier = start(prefect, project)
    assert wait_for_end(prefect, identifier)["type"] == "COMPLETED"
    tasks = prefect.task_runs(identifier)
    assert [task["name"] for task in tasks] == list(STAGES)
    assert {task["state"]["type"] for task in tasks} == {"COMPLETED"}
    for task in tasks:
        wait_until(lambda task=task: SAYS[task["name"]] in prefect.log(task["id"]), f"{task['name']}'s log")
    assert (project / "report/index.html").is_file()
    assert "up to date" in run(project, "dvc", "repro").stdout


def small_project(folder, ingest):
    """A workspace whose first stage is a shell command, the others do nothing."""
    folder.mkdir()
    commands = dict.fromkeys(STAGES, "true") | {"ingest": ingest}
    stages = {stage: {"cmd": command} for stage, command in commands.items()}
    (folder / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    run(folder, "dvc", "init", "--no-scm", "--quiet")
    return folder


def test_a_failed_stage_shows_its_own_words_and_stops_the_run(prefect, project, tmp_path):
    workspace = small_project(tmp_path / "w", ingest="echo 'error. no drop has an image' >&2; exit 1")
    identifier = start(prefect, project, "--param", f"workspace={workspace}")
    failure = wait_for_end(prefect, identifier)
    assert failure["type"] == "FAILED"
    assert "error. no drop has an image" in failure["message"]
    assert [task["name"] for task in prefect.task_runs(identifier)] == ["ingest"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_cancelling_ends_the_stage_too(prefect, project, tmp_path):
    endless = "echo $$ > pid.new; mv pid.new pid; exec tail -f /dev/null"
    workspace = small_project(tmp_path / "w", ingest=endless)
    identifier = start(prefect, project, "--param", f"workspace={workspace}")
    wait_until((workspace / "pid").is_file, "the stage's start")
    stage = (workspace / "pid").read_text().strip()
    prefect.run(project, "flow-run", "cancel", identifier)
    wait_until(lambda: state(prefect, identifier) == "CANCELLED", "the cancellation")
    wait_until(lambda: not is_tail(stage), "the stage's end")


def is_tail(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().startswith("tail")
    except FileNotFoundError:
        return False
