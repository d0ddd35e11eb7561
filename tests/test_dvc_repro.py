"""`dvc repro` runs what is out of date and nothing else; experiments can be compared."""

import json
import shutil
import subprocess
import time

import pytest
from repository import git, make_repository
from workspace import STAGES, environment, run, set_params

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A repository in which `dvc repro` has run once."""
    folder = make_repository(tmp_path_factory.mktemp("finished") / "project")
    run(folder, "dvc", "repro")
    return folder


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


def test_git_sees_only_what_belongs_to_it(finished):
    status = git(finished, "status", "--porcelain", "--untracked-files=all").split("\n")
    assert sorted(line for line in status if line) == [
        "?? dvc.lock",
        "?? metrics/evaluation.json",
        "?? metrics/ingest.json",
        "?? metrics/prompts.json",
    ]


@pytest.mark.parametrize(
    ("changes", "stages"),
    [
        ({"ingest.landing": ["/in"], "scaling.threads": 2}, ["report"]),  # it shows all parameters
        ({"report.queries": 3}, ["report"]),
        ({"evaluation.trials": 3}, ["evaluate", "report"]),
        ({"embedding.epochs": 1}, ["embedding", "report"]),
        ({"embedding.people": 3}, ["embedding", "report"]),
        ({"prompts.integration.epochs": 2}, ["prompts", "report"]),
        ({"model.normalize": "clip"}, ["prompts", "embedding", "evaluate", "report"]),
        ({"data.salt": "other"}, ["ingest", "report"]),
        ({"ingest.shard_megabytes": 1}, ["ingest", "report"]),
        ({"seed": 1}, ["prompts", "embedding", "evaluate", "report"]),
    ],
)
def test_a_parameter_puts_its_own_stages_out_of_date(project, changes, stages):
    """Stages further down follow when what they read has changed; those above never run."""
    set_params(project, changes)
    status = json.loads(run(project, "dvc", "status", "--json").stdout)
    assert [stage for stage in STAGES if stage in status] == stages


def test_an_experiment_runs_from_its_stage_on_and_can_be_compared(project):
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message", "baseline")
    output = run(project, "dvc", "exp", "run", "--name", "short", "-S", "evaluation.trials=1").stdout
    assert ran(output) == ["evaluate", "report"]
    table = run(project, "dvc", "exp", "show", "--csv", "--no-pager").stdout.splitlines()
    column = table[0].split(",").index("chance.infrared_to_visible.rank1.mean")
    baseline, short = (
        next(line.split(",") for line in table if line.startswith(f"{name},")) for name in ("master", "short")
    )
    assert 0 <= float(short[column]) <= 100
    assert short[column] != baseline[column]


def test_metrics_and_plots_are_shown(finished, tmp_path):
    assert "trained" in run(finished, "dvc", "metrics", "show", "--md").stdout
    run(finished, "dvc", "plots", "show", "--out", str(tmp_path))
    page = (tmp_path / "index.html").read_text()
    for title in ("Stage 1, contrastive loss", "Stage 2, total", "Cumulative matching characteristic"):
        assert title in page


def test_a_second_repro_at_the_same_time_is_told_who_is_busy(project):
    set_params(project, {"seed": 1})
    first = subprocess.Popen(
        ["dvc", "repro"], cwd=project, env=environment(), stdout=subprocess.PIPE, text=True
    )
    try:
        for line in first.stdout:
            if "Running stage 'prompts'" in line:
                break
        next(first.stdout)  # the command: DVC has marked what the stage reads and writes
        second = run(project, "dvc", "repro", check=False)
    finally:
        first.terminate()
        first.wait()
        first.stdout.close()
    assert second.returncode == 255
    assert "is busy, it is being blocked by" in second.stderr
    assert f"(PID {first.pid})" in second.stderr
    assert "Traceback" not in second.stderr
