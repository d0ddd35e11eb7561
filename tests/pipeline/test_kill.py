"""A run that was killed in any stage is continued by `dvc repro`, and ends with an untouched run's bytes."""

import shutil
import signal
import subprocess
import sys
import time
import uuid

import pytest
from campaign import Campaign, digests
from killed_run import points
from processes import command_of, end_marked, marked, marks
from workspace import STAGES, environment, run, set_params

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal, pidfd"),
]
# Ray's agents look only once a minute whether their instance is still there.
IDLE_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
SHORT = {"prompts.tokens.epochs": 6, "prompts.integration.epochs": 6, "embedding.epochs": 3}


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    return Campaign(tmp_path_factory.mktemp("campaign"), images=4, **SHORT)


@pytest.mark.parametrize("point", points(len(STAGES), seed=1), ids=lambda point: point.stage)
def test_a_killed_run_continues_to_the_same_bytes(campaign, point, fault):
    outcome = campaign.try_point(point, last=point.stage)
    assert not outcome.differs
    fault(
        "processes",
        "`dvc repro` or one of its stages was ended at any moment: SIGKILL, SIGTERM, Ctrl-C",
        "No half output. The next `dvc repro` goes on behind the last checkpoint; same bytes.",
    )


# A DataLoader's own processes would notice after five seconds; a starting worker of Ray within a minute.
@pytest.mark.parametrize(("workers", "seconds"), [(0, 3), (1, 90)], ids=["loader", "ray"])
def test_a_killed_dvc_takes_everything_with_it_that_it_started(campaign, tmp_path, workers, seconds, fault):
    project = shutil.copytree(campaign.folder / "embedding", tmp_path / "project", symlinks=True)
    set_params(project, {"embedding.epochs": 1000, "scaling.workers": workers})
    value = str(uuid.uuid4())
    dvc = subprocess.Popen(
        ["dvc", "repro", "embedding"],
        cwd=project,
        env={**environment(), **marks(value)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not list(project.glob(".state/*/**/state.json")):
            assert dvc.poll() is None, "it ended before its first checkpoint"
            time.sleep(0.05)
        assert len(marked(value)) >= 4, "DVC, the stage, and its two processes"
    finally:
        dvc.kill()
        dvc.wait()
    ended = time.monotonic() + seconds
    while left := [name for name in map(command_of, marked(value)) if name not in ("", *IDLE_AGENTS)]:
        assert time.monotonic() < ended, left
        time.sleep(0.1)
    end_marked(value)
    fault(
        "processes",
        "`dvc` was killed (SIGKILL) while the loader's processes, or Ray's, worked",
        "They end with it; idle processes of Ray within about a minute.",
    )


@pytest.mark.parametrize(("file", "text"), [("dvc.lock", ""), (".dvc/tmp/rwlock", "{")])
def test_a_file_that_dvc_was_killed_in_costs_no_work(campaign, tmp_path, file, text, fault):
    project = shutil.copytree(campaign.folder / "project", tmp_path / "project", symlinks=True)
    (project / file).write_text(text)
    refused = run(project, "dvc", "repro", check=False)
    assert refused.returncode
    assert file in refused.stdout + refused.stderr
    (project / file).unlink()
    run(project, "dvc", "commit", "--force")
    assert "Running stage" not in run(project, "dvc", "repro").stdout
    assert digests(project) == campaign.expected["report"]
    fault(
        "processes",
        "`dvc` was killed while it wrote dvc.lock or .dvc/tmp/rwlock",
        "DVC cannot read it. Remove it, then `dvc commit -f` the finished stages: they do not run again.",
    )


def test_a_stage_whose_dvc_died_while_it_was_starting_ends_at_once(campaign, tmp_path, fault):
    project = shutil.copytree(campaign.folder / "ingest", tmp_path / "project", symlinks=True)
    stage = subprocess.run(
        ["python", "-m", "stages.ingest"],
        cwd=project,
        env={**environment(), "DVC_STAGE": "ingest"},
        start_new_session=True,  # the group that it shared with DVC has no DVC
        check=False,
    )
    assert stage.returncode == -signal.SIGKILL
    assert not (project / "data/shards").exists()
    fault("processes", "`dvc` was killed (SIGKILL) while its stage was starting", "The stage ends at once.")
