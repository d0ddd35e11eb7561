"""csdn/full-pipeline on a real Prefect server and worker: the real stages, and what may go wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from prefect_server import prefect_with_worker, wait_until
from repository import git, make_repository
from workspace import ROOT, STAGES, run, set_params

from csdn.ingest.ledger import write_ledger
from csdn.retraining.branches import history
from csdn.retraining.lock import scan_requested, workspace_lock

pytestmark = pytest.mark.slow

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


@pytest.fixture(scope="module")
def finished(prefect, project):
    """The id of a run that has brought `project` up to date."""
    identifier = prefect.deployment_run(project, "full-pipeline")
    assert prefect.end_of(identifier)["type"] == "COMPLETED"
    return identifier


def test_the_deployment_runs_the_five_stages_as_tasks(prefect, project, finished):
    tasks = prefect.task_runs(finished)
    assert [task["name"] for task in tasks] == list(STAGES)
    assert {task["state"]["type"] for task in tasks} == {"COMPLETED"}
    for task in tasks:
        wait_until(lambda task=task: SAYS[task["name"]] in prefect.log(task["id"]), f"{task['name']}'s log")
    assert (project / "report/index.html").is_file()
    assert "up to date" in run(project, "dvc", "repro").stdout


def test_its_page_shows_data_figures_curves_and_the_report(prefect, project, finished):
    assert prefect.flow_run(finished)["name"] == "full pipeline"
    shown = prefect.artifacts(finished)
    assert "train" in shown["data"] and "infrared" in shown["data"]
    figures = json.loads((project / "metrics/headline.json").read_text())
    assert f"| infrared → visible | {figures['ir_to_vis']['rank1']:.2f} |" in shown["figures"]
    assert "![CMC](data:image/png;base64," in shown["figures"]
    assert (project / "report/index.html").as_uri() in shown["report"]
    assert shown["progress-embedding"] == 100


@pytest.fixture(scope="module")
def committed(project, finished, tmp_path_factory):
    """The project with its results in Git, and a DVC remote."""
    run(project, "dvc", "remote", "add", "store", str(tmp_path_factory.mktemp("remote")))
    git(project, "add", "--all", "--force", "dvc.lock", "metrics", ".dvc/config")
    git(project, "commit", "--quiet", "--message", "results")
    return project


def stages_that_ran(prefect, identifier):
    logs = {task["name"]: prefect.log(task["id"]) for task in prefect.task_runs(identifier)}
    return [name for name, log in logs.items() if "Running stage" in log]


def test_what_a_remote_has_is_pulled_and_not_made_again(prefect, committed, tmp_path):
    first = prefect.begin("full-pipeline", remote="store")
    assert prefect.end_of(first)["type"] == "COMPLETED"
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(committed), str(clone))
    second = prefect.begin("full-pipeline", remote="store", workspace=str(clone))
    assert prefect.end_of(second)["type"] == "COMPLETED"
    names = [task["name"] for task in prefect.task_runs(second)]
    assert names == ["pull from store", *STAGES, "push to store"]
    assert stages_that_ran(prefect, second) == []
    assert (clone / "report/index.html").is_file()


def test_with_overrides_it_works_in_a_folder_and_on_a_branch_of_its_own(prefect, committed):
    """The stages that they do not change are taken from the workspace's cache."""
    project = committed
    before = git(project, "status", "--porcelain"), git(project, "rev-parse", "main")
    values = {"report.queries": 3}
    identifier = prefect.begin("full-pipeline", overrides=values)
    assert prefect.end_of(identifier)["type"] == "COMPLETED"
    assert prefect.flow_run(identifier)["name"] == "full pipeline: report.queries=3"
    assert stages_that_ran(prefect, identifier) == ["report"]
    assert before == (git(project, "status", "--porcelain"), git(project, "rev-parse", "main"))
    (branch,) = git(project, "for-each-ref", "--format=%(refname:short)", "refs/heads/run").split()
    assert "queries: 3" in git(project, "show", f"{branch}:params.yaml")
    assert [event.outcome for event in history(project)] == ["measured"]


def test_a_wrong_parameter_stops_it_before_anything_starts(prefect, project):
    values = {"data.test_percent": 1}
    identifier = prefect.begin("full-pipeline", overrides=values)
    failure = prefect.end_of(identifier)
    assert failure["type"] == "FAILED" and "data.test_percent: not for one run" in failure["message"]
    assert prefect.task_runs(identifier) == []


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    """A workspace without any data: a scan of it takes a moment."""
    folder = make_repository(tmp_path_factory.mktemp("quiet") / "project")
    write_ledger([], folder / "data/drops.json")
    git(folder, "commit", "--quiet", "--all", "--message", "no data")
    return folder


def test_a_locked_workspace_is_not_retried_and_a_requested_scan_is_run_later(prefect, project, quiet):
    """A retraining that works there scans again by itself; the full pipeline starts one."""
    with workspace_lock(quiet, "a test"):
        scanning = prefect.begin("retrain", workspace=str(quiet))
        assert prefect.end_of(scanning)["name"] == "Busy"
        refused = prefect.end_of(prefect.begin("full-pipeline", workspace=str(quiet)))
    assert refused["type"] == "FAILED" and "busy: a test, process" in refused["message"]

    failed = prefect.end_of(prefect.begin("full-pipeline", workspace=str(quiet)))
    assert "ingest: nothing to train on" in failed["message"]

    def later():
        return [one for one in prefect.runs_of("retrain") if one["state"]["name"] == "Nothing to do"]

    wait_until(later, "the scan that was requested")
    assert not scan_requested(quiet)


def test_two_triggers_at_once_are_two_scans_one_after_the_other(prefect, project, quiet):
    both = [prefect.begin("retrain", workspace=str(quiet)) for _ in range(2)]
    assert {prefect.end_of(one)["name"] for one in both} == {"Nothing to do"}
    one, other = sorted((prefect.flow_run(one) for one in both), key=lambda run: run["start_time"])
    assert one["end_time"] <= other["start_time"]


def test_the_server_plans_the_nightly_scan(prefect, project):
    """A server may be healthy and plan nothing (constraints.txt pins what it needs)."""
    wait_until(
        lambda: any(one["auto_scheduled"] for one in prefect.runs_of("retrain")),
        "a run that the clock starts",
    )


def test_the_server_takes_the_pool_for_kubernetes(prefect, project):
    template = ("--base-job-template", str(ROOT / "deploy/prefect/kubernetes.json"))
    prefect.run(project, "work-pool", "create", "csdn-kubernetes", "--type", "kubernetes", *template)
    assert prefect.api("work_pools/csdn-kubernetes")["base_job_template"] == json.loads(
        Path(template[1]).read_text()
    )


def small_project(folder, ingest):
    """A workspace whose first stage is a shell command, the others do nothing."""
    folder.mkdir()
    for name in ("params.yaml", "champion.json"):
        shutil.copy(ROOT / name, folder)
    commands = dict.fromkeys(STAGES, "true") | {"ingest": ingest}
    stages = {stage: {"cmd": command} for stage, command in commands.items()}
    (folder / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    run(folder, "dvc", "init", "--no-scm", "--quiet")
    return folder


def test_an_outage_is_tried_again_and_a_failure_shows_its_own_words_and_stops_the_run(
    prefect, project, tmp_path
):
    workspace = small_project(tmp_path / "w", f"exec {sys.executable} {tmp_path / 'ingest.py'}")
    (tmp_path / "ingest.py").write_text(
        "from pathlib import Path\n"
        "from csdn.runtime.errors import ServiceUnavailable, UserError\n"
        "from csdn.runtime.process import run_stage\n"
        "def main():\n"
        "    if not Path('here').exists():\n"
        "        Path('here').touch()\n"
        "        raise ServiceUnavailable('the store does not answer')\n"
        "    raise UserError('no drop has an image')\n"
        "run_stage(main, 'ingest')\n"
    )
    identifier = prefect.begin("full-pipeline", workspace=str(workspace))
    failure = prefect.end_of(identifier)
    assert failure["type"] == "FAILED"
    assert "ingest: no drop has an image" in failure["message"]
    assert "failed to reproduce" not in failure["message"]
    (task,) = prefect.task_runs(identifier)
    assert (task["name"], task["run_count"]) == ("ingest", 2)


def cancel(prefect, project, identifier):
    prefect.run(project, "flow-run", "cancel", identifier)
    assert prefect.end_of(identifier)["type"] == "CANCELLED"


def is_tail(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().startswith("tail")
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_lost_machine_takes_its_stage_along_and_the_next_one_goes_on(prefect, project, tmp_path):
    """The server learns of it when the run's lease has ended, or from a person."""
    once = "test -e here || { touch here; echo $$ > pid.new; mv pid.new pid; exec tail -f /dev/null; }"
    workspace = small_project(tmp_path / "w", ingest=once)
    lost = prefect.begin("full-pipeline", workspace=str(workspace))
    wait_until((workspace / "pid").is_file, "the stage's start")
    stage = (workspace / "pid").read_text().strip()
    run_process = parent(parent(stage))
    for process in (prefect.worker.pid, int(run_process)):
        os.kill(process, signal.SIGKILL)
    prefect.worker.wait()
    wait_until(lambda: not is_tail(stage), "the stage's end")
    prefect.worker = prefect.start("worker", "start", "--pool", "csdn-local")
    prefect.api(f"flow_runs/{lost}/set_state", state={"type": "CRASHED"}, force=True)
    again = prefect.begin("full-pipeline", workspace=str(workspace))
    assert prefect.end_of(again)["type"] == "COMPLETED"


def parent(pid):
    """The process that started a process."""
    return re.search(r"^PPid:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)[1]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_cancelling_ends_the_stage_too_and_the_next_run_goes_on_where_it_was(prefect, project, finished):
    set_params(project, {"embedding.epochs": 30})
    try:
        identifier = prefect.begin("full-pipeline")
        wait_until(lambda: position(project), "a saved state of stage 2")
        assert stage_2_of(project)
        cancel(prefect, project, identifier)
        wait_until(lambda: not stage_2_of(project), "the stage's end")
        reached = position(project)
        again = prefect.begin("full-pipeline")
        wait_until(lambda: position(project) != reached, "the next run")
        assert position(project) > reached
        cancel(prefect, project, again)
    finally:
        git(project, "checkout", "--quiet", "params.yaml")


def stage_2_of(project):
    """The processes that train in a workspace."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            here = (process / "cwd").readlink() == project.resolve()
            if here and b"stages.embedding" in (process / "cmdline").read_bytes():
                found.append(process.name)
    return found


def position(project):
    """(epoch, step) of the unfinished stage 2; None where there is none."""
    found = [json.loads(path.read_text())["position"] for path in project.glob(".state/*/state.json")]
    return next(((one["epoch"], one["step"]) for one in found if "log" in one), None)
