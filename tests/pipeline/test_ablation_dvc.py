"""The ablation's table from DVC's experiments onto the page, in a repository."""

import json
import shutil

import pytest
from report_project import Elements
from repository import git
from workspace import run

pytestmark = pytest.mark.slow

CSDN = ("python", "-c", "from csdn.cli.main import main; main()")  # the workspace's own code
TABLE = "metrics/ablation.json"


@pytest.fixture(scope="module")
def folder(finished_repository, tmp_path_factory):
    """A finished run, committed, and an experiment that has the name of one of the ablation's."""
    folder = tmp_path_factory.mktemp("ablation") / "project"
    shutil.copytree(finished_repository[0], folder, symlinks=True)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "baseline")
    return folder


def test_the_table_is_measured_written_and_shown(folder):
    none = run(folder, *CSDN, "table", "--out", TABLE, check=False)
    assert none.returncode == 1 and "no experiment of the ablation has figures yet" in none.stderr
    assert json.loads((folder / TABLE).read_text())["measured"] is None
    assert 'id="ablation"' not in (folder / "report/index.html").read_text("utf-8")

    run(folder, "dvc", "exp", "run", "--name", "ablation-sii-seed-0", "-S", "evaluation.trials=1")
    git(folder, "checkout", "--quiet", "params.yaml")  # back to the trials of the page
    printed = run(folder, *CSDN, "table", "--out", TABLE).stdout
    assert "| sii | 1 |" in printed and f"{TABLE}: written" in printed
    commit = git(folder, "rev-parse", "HEAD").strip()
    assert json.loads((folder / TABLE).read_text())["measured"]["commit"] == commit

    ran = run(folder, "dvc", "repro").stdout
    assert "Running stage 'report'" in ran and "Running stage 'embedding'" not in ran
    text = Elements((folder / "report/index.html").read_text("utf-8")).text
    assert f"at commit {commit[:12]}" in text
    assert "other parameters than the rest of this page: evaluation.trials 1 (here 2)." in text
    assert "other data" not in text
    assert "Running stage" not in run(folder, "dvc", "repro").stdout
