"""The stages as processes: same inputs, same bytes, however they were stopped and wherever the images lie."""

from __future__ import annotations

import hashlib
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import workspace
from warm_work import start_of

from csdn.synthetic.sets import write_images
from csdn.training.champion import ChampionFile, write_champion

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
    assert not list(finished.glob(".state/[!.]*.lock"))
    assert not list(finished.rglob("*.partial"))


def test_a_second_run_gives_the_same_bytes_with_the_images_in_a_folder_too(finished, tmp_path):
    images = tmp_path / "images"
    write_images("tiny", images)
    folder = workspace.make_workspace(tmp_path / "project", address=str(images))
    workspace.run_stages(folder, "ingest", "prompts", "embedding", "evaluate")
    assert digests(folder) == digests(finished)


@pytest.fixture
def ingested(finished, tmp_path):
    """A workspace in which ingest alone has run."""
    folder = shutil.copytree(finished, tmp_path / "ingested")
    for name in ("models", "evaluation", "report"):
        shutil.rmtree(folder / name)
    return folder


def test_training_goes_on_from_the_champion_that_champion_json_names(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "project")
    (folder / "models").rename(folder / "champion")
    write_champion(ChampionFile(champion=None, start=start_of(folder / "champion")), folder)
    printed = workspace.run(folder, "python", "-m", "stages.prompts").stdout
    assert "no new people" in printed
    workspace.run_stages(folder, "embedding", "evaluate", "report")
    texts, model = "models/prompts/prompts.safetensors", "models/embedding/model.safetensors"
    assert (folder / texts).read_bytes() == (finished / texts).read_bytes()
    assert (folder / model).read_bytes() != (finished / model).read_bytes()
    assert "No identity is new" in (folder / "report/index.html").read_text()


def test_ctrl_c_says_what_is_kept_and_leaves_no_half_output(ingested):
    stage = subprocess.Popen(
        ["python", "-m", "stages.prompts"],
        cwd=ingested,
        env=workspace.environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(stage, ingested, ".state/*/**/state.json")
    stage.send_signal(signal.SIGINT)
    errors = stage.communicate(timeout=60)[1]
    assert stage.returncode == 130
    assert "run the same command again to continue" in errors
    assert "Traceback" not in errors
    assert list(ingested.glob(".state/*/**/state.json"))
    assert not (ingested / "models").exists()


def wait_for(process: subprocess.Popen, folder: Path, pattern: str) -> None:
    """Wait until a file is there; fails where the process ends before."""
    while not list(folder.glob(pattern)):
        assert process.poll() is None, f"it ended before there was {pattern}"
        time.sleep(0.01)


def test_a_second_run_of_a_stage_is_refused_while_the_first_works(ingested, fault):
    first = subprocess.Popen(["python", "-m", "stages.prompts"], cwd=ingested, env=workspace.environment())
    try:
        wait_for(first, ingested, ".state/[!.]*.lock")
        first.send_signal(signal.SIGSTOP)  # it holds the lock for as long as the test needs
        second = workspace.run(ingested, "python", "-m", "stages.prompts", check=False)
    finally:
        first.kill()
        first.wait()
    assert second.returncode == 1
    assert "another process is running this stage" in second.stderr
    assert "Traceback" not in second.stderr
    fault("processes", "a second run of a stage while the first one works", second.stderr.strip())
