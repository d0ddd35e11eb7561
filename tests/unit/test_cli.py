"""The command line: versions, a fast start, help texts, and what a missing package is answered with."""

import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import csdn
from csdn.cli.main import app
from csdn.runtime.errors import explain_missing_package
from csdn.synthetic.sets import SETS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("typed", "nearest"),
    [
        ("retran", "retrain"),
        ("prest", "preset"),
        ("sumary", "summary"),
        ("fetch-champ", "fetch-champion"),
        ("import_published", "import-published"),
        ("evaluat", "evaluate"),
    ],
)
def test_an_unknown_command_is_answered_with_the_nearest_one(typed, nearest):
    done = CliRunner().invoke(app, [typed])
    assert done.exit_code == 2
    assert f"No such command '{typed}'" in done.output and f"'{nearest}'" in done.output


def test_a_command_like_no_other_is_answered_with_the_way_to_the_list():
    done = CliRunner().invoke(app, ["xyzzy"])
    assert done.exit_code == 2 and "--help" in done.output


def test_every_command_has_a_help_text():
    assert [name for name, command in get_command(app).commands.items() if not command.help] == []


def test_the_version_is_shown_with_those_of_the_main_packages_in_either_order():
    assert CliRunner().invoke(app, ["--version"]).output == f"csdn {csdn.__version__}\n"
    shown = CliRunner().invoke(app, ["--version", "-v"]).output
    assert CliRunner().invoke(app, ["-v", "--version"]).output == shown
    for name in ("torch", "open_clip_torch", "ray", "dvc", "prefect"):
        assert f"\n{name} {metadata.version(name)}\n" in shown
    assert "\nCUDA " in shown


def test_a_package_that_is_not_installed_is_said_to_be_so(monkeypatch):
    def version(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr("csdn.cli.versions.metadata.version", version)
    assert "\nray not installed\n" in CliRunner().invoke(app, ["--version", "-v"]).output


def test_the_command_line_starts_without_the_packages_that_take_seconds_to_import():
    program = """
import sys, runpy
sys.argv = ["csdn", "--version", "-v"]
try:
    runpy.run_module("csdn", run_name="__main__")
except SystemExit as end:
    assert not end.code
assert not {"torch", "ray", "dvc", "prefect", "open_clip"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_no_title_of_a_group_of_commands_is_cut_in_a_terminal_of_80_columns():
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "80"}).output
    titles = {command.rich_help_panel for command in app.registered_commands}
    assert titles and [title for title in titles if f" {title} " not in shown] == []


def test_the_help_of_demo_images_names_the_built_in_sets():
    shown = " ".join(CliRunner().invoke(app, ["demo-images", "--help"]).output.split())
    assert all(name in shown for name in SETS)


def test_completion_is_offered():
    assert "--install-completion" in CliRunner().invoke(app, ["--help"]).output


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("pydantic", "search"),
        ("ruamel.yaml", "search"),
        ("prometheus_client.core", "service"),
        ("onnxscript", "export"),
        ("gto", "pipeline"),
        ("ray", "ray"),
        ("prefect", "prefect"),
    ],
)
def test_a_missing_module_is_answered_with_the_extra_that_has_it(module, extra, monkeypatch):
    monkeypatch.setattr("csdn.runtime.errors.metadata.requires", lambda name: requirements())
    message = explain_missing_package(ModuleNotFoundError(f"No module named {module!r}", name=module))
    assert message.startswith(f"{module} is not installed: pip install 'csdn[{extra}]'")


def requirements():
    """Of pyproject.toml, as the metadata of an installation has them."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    return [f'{package}; extra == "{name}"' for name, packages in extras.items() for package in packages]


def test_a_missing_module_of_no_extra_is_a_defect_and_keeps_its_traceback():
    assert explain_missing_package(ModuleNotFoundError("No module named 'csdn.x'", name="csdn.x")) is None
    assert explain_missing_package(ModuleNotFoundError("No module named 'xyz'", name="xyz")) is None
