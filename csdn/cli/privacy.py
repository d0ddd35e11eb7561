"""The command csdn forget."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from csdn.runtime.errors import UserError
from csdn.runtime.sanitize import escape_control_chars


def forget(
    person: Annotated[str, typer.Argument(metavar="PERSON", help="As the drops name the person.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done; change nothing.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Search everywhere for what is left; change nothing.")
    ] = False,
    shared: Annotated[
        bool,
        typer.Option(
            "--shared", help="Remove old files from DVC remotes and buckets, which other clones may use, too."
        ),
    ] = False,
    gallery: Annotated[
        list[str] | None, typer.Option(help="A gallery outside this folder; may be repeated.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why; Git keeps it, so without the name.")] = "",
) -> None:
    """Remove a person from data, models' rows, caches, versions and galleries (docs/privacy.md)."""
    from csdn.privacy.forget import forget as forget_person
    from csdn.privacy.plan import plan, plan_lines
    from csdn.privacy.verify import verify as search
    from csdn.retraining.lock import workspace_lock

    if dry_run and verify:
        raise UserError("--dry-run says what would be done, --verify searches: choose one")
    if dry_run or verify:
        with TemporaryDirectory() as work:
            found = plan(Path().resolve(), person, Path(work))
            if dry_run:
                return _print(*plan_lines(found, shared))
            if found.person is None:
                _print("nobody of this name was forgotten here: see that it is spelled as in the drops")
            missing = found.survey.missing
            result = search(
                found.root, found.params, found.removal, found.objects, missing, gallery or (), _note
            )
    else:
        with workspace_lock(Path(), "csdn forget"):
            result = forget_person(Path(), person, reason, gallery or (), shared, _print)
    _print(*result.lines)
    raise typer.Exit(result.exit_code if verify else 0)


def _note(line: str) -> None:
    typer.echo(escape_control_chars(line), err=True)


def _print(*lines: str) -> None:
    print(*map(escape_control_chars, lines), sep="\n", flush=True)
