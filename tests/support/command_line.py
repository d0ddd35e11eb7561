"""`csdn` in this process."""

from __future__ import annotations

from typer.testing import CliRunner

from csdn.cli.main import app


def csdn(*arguments: str) -> str:
    """Run the command; returns its output, raises what it raises."""
    result = CliRunner().invoke(app, arguments)
    if result.exception:
        raise result.exception
    return result.output
