"""`make` installs once, requires a recent Python, and runs the same tests as CI."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SET_BY_MAKE = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTHON", "CSDN_SUMMARY")
INPUTS = ("pyproject.toml", "constraints.txt")


@pytest.fixture
def project(tmp_path):
    """The Makefile and what it depends on, all of the same age."""
    for name in ("Makefile", *INPUTS):
        shutil.copy(ROOT / name, tmp_path)
        os.utime(tmp_path / name, (0, 1000))
    return tmp_path


def make(folder, *arguments):
    """Run make as by hand, even where make runs the tests."""
    environment = {name: value for name, value in os.environ.items() if name not in SET_BY_MAKE}
    return subprocess.run(
        ["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def install(folder, second):
    """Pretend that everything was installed at that second."""
    for name in (".installed", ".installed-docs"):
        stamp = folder / ".venv" / name
        stamp.parent.mkdir(exist_ok=True)
        stamp.touch()
        os.utime(stamp, (0, second))


def test_help_names_every_target(project):
    listed = {line.split()[0] for line in make(project, "help").stdout.splitlines()}
    assert listed == {
        "help",
        "install",
        "demo",
        "prefect-demo",
        "test",
        "test-fast",
        "test-gpu",
        "lint",
        "docs",
        "bench",
        "dist",
        "clean",
    }
    assert make(project).stdout == make(project, "help").stdout


@pytest.mark.parametrize(
    "target",
    ["install", "demo", "prefect-demo", "test", "test-fast", "test-gpu", "lint", "docs", "bench", "dist"],
)
def test_every_target_installs_only_once(project, target):
    assert "pip install" in make(project, "--dry-run", target).stdout
    install(project, second=1001)
    assert "pip install" not in make(project, "--dry-run", target).stdout


@pytest.mark.parametrize("name", INPUTS)
def test_a_change_of_the_requirements_installs_again(project, name):
    install(project, second=1001)
    os.utime(project / name, (0, 1002))
    assert "-c constraints.txt" in make(project, "--dry-run", "lint").stdout


def test_an_old_or_missing_python_is_an_error_that_names_the_required_version(project):
    for python in ("false", "no-such-python"):
        refused = make(project, f"PYTHON={python}", "demo")
        assert refused.returncode != 0
        assert "Python 3.11 or newer is needed" in refused.stderr
        assert not (project / ".venv").exists()


@pytest.fixture
def installed(project):
    """The project with programs that print their arguments; `dvc` fails if there is a file `broken`."""
    install(project, second=1001)
    for name, then in (("dvc", "test ! -e broken"), ("csdn", "true")):
        program = project / ".venv/bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\necho {name} $1 summary=$CSDN_SUMMARY\n{then}\n")
        program.chmod(0o755)
    return project


def test_demo_runs_dvc_repro_and_shows_one_summary(installed):
    done = make(installed, "demo")
    assert done.stdout.splitlines() == ["dvc repro summary=later", "csdn summary summary="]
    assert done.returncode == 0


def test_a_failed_demo_shows_no_summary(installed):
    (installed / "broken").touch()
    done = make(installed, "demo")
    assert done.stdout.splitlines() == ["dvc repro summary=later"]
    assert done.returncode != 0


def test_clean_keeps_figures_that_no_stage_can_restore(project):
    """Each of RegDB's takes hours of training; the ablation's table takes dozens of trainings."""
    names = ("regdb/trial-01.json", "ablation.json", "evaluation.json")
    paths = [project / "metrics" / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert make(project, "clean").returncode == 0
    assert [path.exists() for path in paths] == [True, True, False]


def test_ci_runs_make_test():
    assert (ROOT / ".ci/run").read_text().splitlines()[-1] == "exec make test"
    assert os.access(ROOT / ".ci/run", os.X_OK)


def test_constraints_are_plain_pins():
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert [pin for pin in pins if pin.count("==") != 1 or "/" in pin or "@" in pin] == []
