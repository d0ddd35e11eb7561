"""dvc.yaml says of each stage exactly what it reads, so that DVC runs all that is out of date and no more."""

import re
import subprocess
from itertools import chain
from pathlib import Path

import pytest
import yaml
from stage_imports import files_of_stage

from csdn.params import load_params
from csdn.retraining.steps import STAGES as FLOW_STAGES

ROOT = Path(__file__).parents[2]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def paths(entries):
    """Paths of deps, outs or metrics, options left out."""
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries or []]


# These decide no byte of a result: wording, progress, Ray, retries, parsing.
DECIDES_NOTHING = ("csdn/runtime", "csdn/cluster", "csdn/cli", "csdn/params.py")


def code(stage):
    """The stage's dependencies that are code."""
    return {path for path in STAGES[stage]["deps"] if path.startswith(("csdn/", "stages/"))}


def covers(dependency, file):
    return file == dependency or file.startswith(f"{dependency}/")


@pytest.mark.parametrize("stage", STAGES)
def test_code_that_a_stage_imports_is_its_dependency_or_decides_nothing(stage):
    allowed = {*code(stage), *DECIDES_NOTHING}
    assert {
        file for file in files_of_stage(stage) if not any(covers(path, file) for path in allowed)
    } == set()


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_no_code_that_it_does_not_import(stage):
    imported = files_of_stage(stage)
    assert {path for path in code(stage) if not any(covers(path, file) for file in imported)} == set()


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_has_four_to_six_code_dependencies_and_none_that_decides_nothing(stage):
    assert 4 <= len(code(stage)) <= 6
    assert not [path for path in code(stage) if any(covers(free, path) for free in DECIDES_NOTHING)]


# What each chapter of csdn may import besides itself.
IMPORTS = {
    "runtime": set(),
    "params": {"runtime"},
    "model": {"params", "runtime"},
    "losses": {"model"},
    "data": {"params", "runtime"},
    "training": {"data", "losses", "model", "params", "runtime"},
    "synthetic": {"data", "runtime"},
    "ingest": {"data", "params", "runtime", "synthetic"},
    "evaluation": {"data", "model", "params", "runtime"},
    "search": {"data", "evaluation", "ingest", "model", "params", "runtime", "synthetic", "training"},
    "curation": {
        "data",
        "evaluation",
        "ingest",
        "model",
        "params",
        "runtime",
        "search",
        "synthetic",
        "training",
    },
    "retraining": {
        "curation",
        "data",
        "evaluation",
        "ingest",
        "model",
        "params",
        "runtime",
        "search",
        "training",
    },
    "privacy": {
        "data",
        "ingest",
        "model",
        "params",
        "retraining",
        "runtime",
        "search",
        "training",
    },
    "report": {"data", "evaluation", "params", "runtime"},
    "cluster": {"data", "ingest", "model", "params", "runtime", "search", "training"},
}


@pytest.mark.parametrize("chapter", IMPORTS)
def test_a_chapter_imports_only_chapters_that_come_before_it(chapter):
    place = ROOT / "csdn" / chapter
    for file in place.rglob("*.py") if place.is_dir() else [place.with_suffix(".py")]:
        imported = re.findall(r"^ *from csdn\.(\w+)", file.read_text(encoding="utf-8"), re.MULTILINE)
        assert {*imported} <= {chapter, *IMPORTS[chapter]}, file


def test_the_import_reader_follows_late_and_nested_imports():
    assert {"csdn/data/storage.py", "csdn/synthetic/rendering.py"} <= files_of_stage("ingest")
    assert not any(file.startswith(("csdn/model", "csdn/training")) for file in files_of_stage("ingest"))


def params_of(stage):
    """Keys of params.yaml that a stage declares, and those of other files, by file."""
    declared = STAGES[stage].get("params", [])
    others = [entry for entry in declared if isinstance(entry, dict)]
    return [key for key in declared if key not in others], {
        file: keys for entry in others for file, keys in entry.items()
    }


@pytest.mark.parametrize("stage", STAGES)
def test_parameters_that_a_stage_declares_exist(stage):
    for key in params_of(stage)[0]:
        value = load_params(ROOT / "params.yaml")
        for name in key.split("."):
            value = getattr(value, name)


def test_no_stage_runs_again_for_its_speed():
    declared = set(chain.from_iterable(params_of(stage)[0] for stage in STAGES))
    assert not any(key.startswith("scaling") for key in declared)


def test_training_depends_on_what_it_starts_from_and_not_on_who_the_champion_is():
    others = {stage: params_of(stage)[1] for stage in STAGES if params_of(stage)[1]}
    assert others == {stage: {"champion.json": ["start"]} for stage in ("prompts", "embedding")}


def test_the_flow_runs_the_stages_of_dvc_in_their_order():
    assert list(STAGES) == list(FLOW_STAGES)


def test_stages_are_dvcs_own_children():
    assert {stage["cmd"] for stage in STAGES.values()} == {f"exec python -m stages.{name}" for name in STAGES}


def test_shards_outlive_a_run():
    persistent = [entry for entry in STAGES["ingest"]["outs"] if "persist" in str(entry)]
    assert persistent == [{"data/shards": {"persist": True}}, {"data/index": {"persist": True}}]


def ignored_by_git(path):
    return subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT, check=False).returncode == 0


def test_git_ignores_what_dvc_keeps_and_nothing_that_dvc_needs_in_git():
    """DVC refuses a dvc.lock that Git ignores, and compares experiments by the figures that Git has."""
    written = [entry for stage in STAGES.values() for entry in (*stage["outs"], *stage.get("metrics", []))]
    in_git = [entry for entry in written if "'cache': False" in str(entry)]
    in_dvc = [entry for entry in written if entry not in in_git]
    assert len(in_git) == 5
    assert [path for path in paths(in_dvc) if not ignored_by_git(f"{path}/any")] == []
    assert [path for path in ("dvc.lock", "dvc.yaml", *paths(in_git)) if ignored_by_git(path)] == []
