"""`dvc repro` runs what is out of date and nothing else."""

import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress

import pytest
from repository import git
from workspace import STAGES, environment, run, set_params

from csdn.training.champion import Start, read_champion, write_champion

pytestmark = pytest.mark.slow


@pytest.fixture
def finished(finished_repository):
    """A repository in which `dvc repro` has run once."""
    return finished_repository[0]


@pytest.fixture
def project(finished, tmp_path):
    """A copy of it to change."""
    return shutil.copytree(finished, tmp_path / "project", symlinks=True)


def ran(output):
    """The stages that `dvc repro` ran, by what it printed."""
    return [stage for stage in STAGES if f"Running stage '{stage}'" in output]


def test_a_second_repro_does_nothing_and_quickly(finished):
    began = time.monotonic()
    output = run(finished, "dvc", "repro").stdout
    assert time.monotonic() - began < 10
    assert ran(output) == []
    assert "up to date" in output


def test_git_sees_the_lock_and_the_metrics_and_nothing_else(finished):
    status = git(finished, "status", "--porcelain", "--untracked-files=all").split("\n")
    assert sorted(line for line in status if line) == [
        "?? dvc.lock",
        "?? metrics/embedding.json",
        "?? metrics/evaluation.json",
        "?? metrics/headline.json",
        "?? metrics/ingest.json",
        "?? metrics/prompts.json",
    ]


@pytest.mark.parametrize(
    ("changes", "stages"),
    [
        ({"ingest.watch": ["/in"], "scaling.threads": 2}, ["report"]),  # it shows all parameters
        ({"report.queries": 3}, ["report"]),
        ({"evaluation.trials": 3}, ["evaluate", "report"]),
        ({"embedding.epochs": 1}, ["embedding", "report"]),
        ({"embedding.identities_per_batch": 3}, ["embedding", "report"]),
        ({"prompts.integration.epochs": 2}, ["prompts", "report"]),
        ({"model.normalize": "clip"}, ["prompts", "embedding", "evaluate", "report"]),
        ({"data.split_salt": "other"}, ["ingest", "report"]),
        ({"ingest.shard_megabytes": 1}, ["ingest", "report"]),
        ({"ingest.grey16_range": {"*": [0, 1000]}}, ["ingest", "report"]),
        ({"ingest.store": "s3://bucket/shards"}, ["ingest", "report"]),
        ({"warm_start.prompts": "all"}, ["prompts", "report"]),
        ({"warm_start.epochs": 1}, ["embedding", "report"]),
        ({"seed": 1}, ["prompts", "embedding", "evaluate", "report"]),
    ],
)
def test_a_parameter_puts_its_own_stages_out_of_date(project, changes, stages):
    """Stages further down follow when what they read has changed; those above never run."""
    set_params(project, changes)
    status = json.loads(run(project, "dvc", "status", "--json").stdout)
    assert [stage for stage in STAGES if stage in status] == stages


def out_of_date(project):
    return list(json.loads(run(project, "dvc", "status", "--json").stdout))


def edit(file, old, new):
    """Replace a text that the file has once."""
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))


def test_another_message_puts_no_stage_out_of_date(project):
    edit(
        project / "csdn/runtime/process.py",
        "stopped. Finished stages are kept",
        "stopped by you; finished stages are kept",
    )
    edit(project / "csdn/cluster/session.py", "the Ray cluster at", "the cluster of Ray at")
    assert out_of_date(project) == []


def test_another_loss_puts_both_training_stages_out_of_date(project):
    losses = project / "csdn/losses.py"
    losses.write_text(losses.read_text() + "\n# another line\n")
    assert out_of_date(project) == ["prompts", "embedding"]


def test_another_start_puts_training_out_of_date_and_another_champion_does_not(project):
    before = read_champion(project)
    start = Start(version="v1", prompts="a" * 64, embedding="b" * 64)
    about = {"run": "20260102-0123abcd", "people": 1, "images": 1, "date": "2026-01-02", "figures": {}}
    promoted = json.dumps({"champion": start.model_dump() | about, "start": None})
    (project / "champion.json").write_text(promoted)
    assert read_champion(project).start == before.start
    assert json.loads(run(project, "dvc", "status", "--json").stdout) == {}
    write_champion(read_champion(project).model_copy(update={"start": start}), project)
    status = json.loads(run(project, "dvc", "status", "--json").stdout)
    assert list(status) == ["prompts", "embedding"]


@pytest.fixture
def working(project):
    """A `dvc repro` whose stage "prompts" is at work; ended with its group."""
    set_params(project, {"seed": 1, "prompts.tokens.epochs": 1000})
    first = subprocess.Popen(
        ["dvc", "repro"],
        cwd=project,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    for line in first.stdout:
        if line.startswith("prompts: 1/"):
            break
    yield first
    with suppress(ProcessLookupError):
        os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    first.stdout.close()


def test_a_second_repro_at_the_same_time_is_told_who_is_busy(project, working):
    second = run(project, "dvc", "repro", check=False)
    assert second.returncode == 255
    assert "is busy, it is being blocked by" in second.stderr
    assert f"(PID {working.pid})" in second.stderr
    assert "Traceback" not in second.stderr
