"""A mistyped command is answered with the nearest one; every command has a help text."""

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from csdn.cli.main import app


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
