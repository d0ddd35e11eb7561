"""The ablation from DVC's experiments onto the page, in a repository."""

import json
import shutil

import pytest
from report_project import Elements
from repository import git
from workspace import ROOT, run

pytestmark = pytest.mark.slow

TABLE = "metrics/ablation.json"


@pytest.fixture(scope="module")
def folder(finished_repository, tmp_path_factory):
    """A finished run, committed."""
    folder = tmp_path_factory.mktemp("ablation") / "project"
    shutil.copytree(finished_repository[0], folder, symlinks=True)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "baseline")
    return folder


def test_variants_are_trained_in_a_copy_and_their_table_is_written_and_shown(folder):
    script = ("python", str(ROOT / "benchmarks/ablation.py"), "no-msel", "sii", "--seeds", "0")
    printed = run(folder, *script).stdout
    assert "| `no-msel` | without MSEL | 1 |" in printed and f"{TABLE}: written" in printed
    # sii is the finished run: only the variant was trained, from the same texts and data.
    assert printed.count("Running stage 'embedding'") == 1 and "Running stage 'prompts'" not in printed
    assert git(folder, "status", "--porcelain").split() == ["M", TABLE]

    measured = json.loads((folder / TABLE).read_text())["measured"]
    assert measured["commit"] == git(folder, "rev-parse", "HEAD").strip()
    headline = json.loads((folder / "metrics/headline.json").read_text())
    of_run, variant = measured["variants"]
    assert of_run["variant"] == "sii"
    assert of_run["figures"]["ir_to_vis.mAP"]["mean"] == headline["ir_to_vis"]["mAP"]
    assert variant["figures"] != of_run["figures"]

    ran = run(folder, "dvc", "repro").stdout
    assert "Running stage 'report'" in ran and "Running stage 'embedding'" not in ran
    text = Elements((folder / "report/index.html").read_text("utf-8")).text
    assert f"at commit {measured['commit'][:12]}" in text
    assert "than the rest of this page" not in text

    again = run(folder, *script).stdout
    assert "Running stage" not in again and printed.splitlines()[-3:] == again.splitlines()[-3:]
