"""The stages as processes: same inputs, same bytes, however they were stopped and wherever the images lie."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import time
from pathlib import Path

import pytest
import workspace

from csdn.builtin.drops import write_images

pytestmark = pytest.mark.slow

COMPARED = (
    "models/prompts/prompts.safetensors",
    "models/embedding/model.safetensors",
    "models/embedding/log.csv",
    "metrics/ingest.json",
    "metrics/prompts.json",
    "metrics/evaluation.json",
)


def digests(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in COMPARED}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A workspace in which every stage has run once, without interruption."""
    folder = workspace.make_workspace(tmp_path_factory.mktemp("finished"))
    workspace.run_stages(folder)
    return folder


def test_every_stage_leaves_its_outputs_and_no_state(finished):
    for name in (*COMPARED, "evaluation/queries.parquet", "evaluation/cmc.csv", "report/index.html"):
        assert (finished / name).stat().st_size > 0, name
    assert not list((finished / ".state").iterdir())
    assert not list(finished.rglob("*.partial"))


def test_the_same_inputs_give_the_same_bytes(finished, tmp_path):
    again = workspace.make_workspace(tmp_path)
    workspace.run_stages(again, "ingest", "prompts", "embedding", "evaluate")
    assert digests(again) == digests(finished)


def test_a_folder_of_the_built_in_images_gives_the_same_figures(finished, tmp_path):
    images = tmp_path / "images"
    write_images("tiny", images)
    folder = workspace.make_workspace(tmp_path / "project", address=str(images))
    workspace.run_stages(folder, "ingest", "prompts", "embedding", "evaluate")
    assert digests(folder) == digests(finished)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("stage", ["prompts", "embedding"])
def test_a_stopped_stage_continues_to_the_same_bytes(finished, tmp_path, stage, how):
    folder = workspace.make_workspace(tmp_path)
    before = workspace.STAGES[: workspace.STAGES.index(stage)]
    workspace.run_stages(folder, *before)
    code, errors = stop_after_first_checkpoint(folder, stage, how)
    assert not (folder / "models" / stage).exists(), "half an output was left behind"
    if how == signal.SIGINT:
        assert code == 130
        assert "run the same command again to continue" in errors
        assert "Traceback" not in errors
    workspace.run_stages(folder, stage)
    [weights] = (name for name in COMPARED if name.startswith(f"models/{stage}/") and "log" not in name)
    assert (folder / weights).read_bytes() == (finished / weights).read_bytes()


def stop_after_first_checkpoint(folder: Path, stage: str, how: signal.Signals) -> tuple[int, str]:
    """Start a stage, send it `how` as soon as it has saved its state once; (exit code, standard error)."""
    process = subprocess.Popen(
        ["python", "-m", f"stages.{stage}"],
        cwd=folder,
        env=workspace.environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not list(folder.glob(".state/*/**/state.json")):
        time.sleep(0.01)
    process.send_signal(how)
    errors = process.communicate(timeout=60)[1]
    assert list(folder.glob(".state/*/**/state.json")), f"it ended before it could be stopped: {errors}"
    return process.returncode, errors


def test_a_second_run_of_a_stage_is_refused_while_the_first_works(finished, tmp_path):
    folder = workspace.make_workspace(tmp_path)
    workspace.run_stages(folder, "ingest")
    first = subprocess.Popen(["python", "-m", "stages.prompts"], cwd=folder, env=workspace.environment())
    try:
        while first.poll() is None and not list(folder.glob(".state/*/lock")):
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)  # it holds the lock for as long as the test needs
        second = workspace.run(folder, "python", "-m", "stages.prompts", check=False)
    finally:
        first.kill()
        first.wait()
    assert second.returncode == 1
    assert "another process is running this stage" in second.stderr
    assert "Traceback" not in second.stderr
