"""deploy/bin/csdn-job: from Git and DVC's remote to results in both; it continues an interrupted run."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from repository import git

ROOT = Path(__file__).parents[2]
JOB = ROOT / "deploy/bin/csdn-job"
WEIGHTS = "csdn/model/assets/clip-small.safetensors"
# One stage instead of five; where a file `fail` is, it fails as a killed one does: outputs half made.
STAGE = """
echo run >> $RUNS
cp params.yaml models
test ! -e $FAIL
mkdir metrics; echo '{}' > metrics/all.json
"""


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A repository with a DVC remote, and an environment as a pod's."""
    for name, value in {"RUNS": tmp_path / "runs", "FAIL": tmp_path / "fail"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    project = tmp_path / "project"
    (project / WEIGHTS).parent.mkdir(parents=True)
    (project / WEIGHTS).touch()
    (project / ".gitignore").write_text("/models\n")
    shutil.copy(ROOT / "params.yaml", project)
    stage = {
        "cmd": STAGE.strip().split("\n"),
        "deps": ["params.yaml"],
        "outs": ["models"],
        "metrics": [{"metrics/all.json": {"cache": False}}],
    }
    (project / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"all": stage}}))
    git(tmp_path, "init", "--quiet", "--bare", "origin.git")
    git(project, "init", "--quiet", "--initial-branch", "main")
    subprocess.run(["dvc", "init", "--quiet"], cwd=project, check=True)
    (tmp_path / "remote").mkdir()
    command = ["dvc", "remote", "add", "--quiet", "--default", "store", str(tmp_path / "remote")]
    subprocess.run(command, cwd=project, check=True)
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message", "project")
    git(project, "push", "--quiet", str(tmp_path / "origin.git"), "main")
    return tmp_path


def run(world, volume, commit=None, **environment):
    """The job on a volume, as in a pod; commit: by default the head of the repository."""
    (world / volume).mkdir(exist_ok=True)
    if os.geteuid() == 0:
        os.chown(world / volume, 1000, 1000)  # as in a pod, it is another user's than the job's
    pod = {
        "CSDN_REPOSITORY": str(world / "origin.git"),
        "CSDN_COMMIT": commit or git(world / "project", "rev-parse", "HEAD").strip(),
        "CSDN_PROJECT": str(world / volume / "csdn"),
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.run(
        ["bash", JOB],
        env=os.environ | pod | environment,
        cwd=world,
        capture_output=True,
        text=True,
        check=False,
    )


def runs(world):
    return len((world / "runs").read_text().splitlines())


@pytest.mark.slow
def test_results_are_in_git_and_in_the_remote_and_no_pod_computes_them_again(world):
    done = run(world, "volume")
    assert done.returncode == 0, done.stderr
    branch = f"runs/{git(world / 'project', 'rev-parse', 'HEAD')[:12]}"
    assert done.stdout.splitlines()[-1].startswith(f"results: branch {branch};")

    reader = world / "reader"
    git(world, "clone", "--quiet", "--branch", branch, str(world / "origin.git"), str(reader))
    subprocess.run(["dvc", "pull", "--quiet"], cwd=reader, check=True)
    assert (reader / "models").read_bytes() == (ROOT / "params.yaml").read_bytes()
    assert (reader / "metrics/all.json").exists()

    assert run(world, "another volume").returncode == 0
    assert run(world, "volume").returncode == 0
    assert runs(world) == 1


@pytest.mark.slow
def test_the_next_run_continues_in_the_folder_of_a_failed_one(world):
    (world / "fail").touch()
    failed = run(world, "volume")
    assert failed.returncode != 0
    assert "runs/" not in git(world / "origin.git", "branch", "--list", "--all")
    state = world / "volume/csdn/.state/key"
    state.mkdir(parents=True)
    (world / "fail").unlink()
    assert run(world, "volume").returncode == 0
    assert state.exists()
    assert runs(world) == 2


@pytest.mark.slow
def test_another_commit_is_checked_out_over_the_results_of_the_last(world):
    assert run(world, "volume").returncode == 0
    changed = world / "project/params.yaml"
    changed.write_text(changed.read_text().replace("seed: 0", "seed: 1"))
    git(world / "project", "commit", "--quiet", "--all", "--message", "another seed")
    git(world / "project", "push", "--quiet", str(world / "origin.git"), "main")
    done = run(world, "volume")
    assert done.returncode == 0, done.stderr
    assert "seed: 1" in (world / "volume/csdn/models").read_text()


def test_without_a_repository_the_error_names_the_setting(world):
    done = run(world, "volume", CSDN_REPOSITORY="")
    assert done.returncode != 0
    assert "name the Git repository of the project" in done.stderr
