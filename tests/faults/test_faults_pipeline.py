"""Faults in a whole pipeline: a finished one stays as it is, an unfinished one ends with the same bytes."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import workspace
from killed_run import children

pytestmark = pytest.mark.slow

OUTPUTS = {
    "ingest": ("data/people.parquet", "data/samples.parquet", "data/quarantine.parquet"),
    "prompts": ("models/prompts", "metrics/prompts.json"),
    "embedding": ("models/embedding", "metrics/embedding.json"),
    "evaluate": ("evaluation", "metrics/evaluation.json", "metrics/headline.json"),
    "report": ("report",),
}


@pytest.fixture(scope="module")
def finished(finished_repository, tmp_path_factory):
    """A copy of a finished pipeline; each test puts it back."""
    folder = tmp_path_factory.mktemp("faults") / "project"
    shutil.copytree(
        finished_repository[0], folder, ignore=shutil.ignore_patterns(".git", "cache"), symlinks=True
    )
    return folder


def contents(folder: Path, stage: str) -> dict[str, bytes]:
    paths = [file for name in OUTPUTS[stage] for file in (folder / name, *(folder / name).rglob("*"))]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.is_file()}


@pytest.mark.parametrize(
    "stage, what",
    [
        ("ingest", "no room for ingest's tables"),
        ("prompts", "no room in the stage prompts"),
        ("embedding", "no room in the stage embedding"),
        ("evaluate", "no room in the stage evaluate"),
        ("report", "no room for the report"),
    ],
)
def test_a_full_disk_leaves_a_stage_s_last_outputs_as_they_are(finished, stage, what, fault):
    before = contents(finished, stage)
    workspace.set_params(finished, {"scaling.loader_workers": 0})  # the limit is for shared memory too
    done = workspace.run(
        finished,
        *("python", "-m", f"stages.{stage}"),
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert before and contents(finished, stage) == before
    assert not [path for path in finished.rglob("*.partial") if ".state" not in path.parts]
    fault(
        "disk and memory", what, done.stderr[done.stderr.index("error: ") :].removeprefix("error: ").strip()
    )


def test_training_goes_on_after_a_process_of_its_feed_was_killed(finished, fault):
    expected = contents(finished, "embedding")
    shutil.rmtree(finished / "models/embedding")
    workspace.set_params(finished, {"scaling.loader_workers": 2})
    stage = subprocess.Popen(
        ["python", "-m", "stages.embedding"],
        cwd=finished,
        env=workspace.environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    while stage.poll() is None and not (saved(finished) and loader_processes(stage.pid)):
        time.sleep(0.01)
    os.kill(loader_processes(stage.pid)[0], signal.SIGKILL)
    errors = stage.communicate(timeout=120)[1]
    assert stage.returncode == 1 and "Traceback" not in errors, errors
    assert not (finished / "models/embedding").exists() and saved(finished)
    workspace.run_stages(finished, "embedding")
    assert contents(finished, "embedding") == expected
    fault(
        "processes",
        "a data loader process is killed in training",
        errors[errors.index("error: ") + 7 :].strip(),
    )


def loader_processes(stage: int) -> list[int]:
    """Those that the stage's fork server has forked."""
    return [process for child in children(stage) for process in children(child)]


def saved(folder: Path) -> list[Path]:
    return list(folder.glob(".state/*/**/state.json"))
