"""`csdn history | champion | promote | rollback`: the registry of models by hand."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from csdn.champion import read_champion
from csdn.errors import UserError
from csdn.params import leaves
from csdn.safe import printable

Version = Annotated[str | None, typer.Argument(metavar="[VERSION]", help="Such as v3.")]


def history() -> None:
    """List what the runs came to: promoted, rolled back, refused, ready, measured or unfinished."""
    from csdn.retraining.history import history as events

    for event in events(Path()):
        figures = " ".join(f"{name}={value}" for name, value in leaves(event.figures))
        parts = [
            f"{event.time:%Y-%m-%d %H:%M}",
            f"{event.outcome:11}",
            f"{event.version or '-':4}",
            event.run,
        ]
        print(printable("  ".join([*parts, *filter(None, (figures, event.reason))])))


def champion(version: Version = None) -> None:
    """Fetch the champion's files to champion/, or those of another version."""
    from csdn.retraining.champions import fetch_champion

    present = read_champion().champion
    if version is None and present is None:
        raise UserError(
            "champion.json names no champion yet; a retraining run that the gate lets pass makes one"
        )
    version = version or present.version
    fetch_champion(Path(), version, Path("champion"))
    print(f"champion/: version {version}")


def promote(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run that `csdn history` calls ready.")],
) -> None:
    """Make the model of a run the champion that could not be it at its end."""
    from csdn.retraining.lock import workspace_lock
    from csdn.retraining.registry import promote_ready

    with workspace_lock(Path(), f"csdn promote {run}"):
        done = promote_ready(Path(), run)
    if done.decision != "promoted":
        raise UserError(done.reason)
    print(f"run {run} is version {done.version}, and the champion")
    _print(done.notes)


def rollback(
    version: Version = None,
    reason: Annotated[str, typer.Option(help="Why; others read it in the history.")] = "",
) -> None:
    """Make an older version the champion again, by default the one before."""
    from csdn.retraining.lock import workspace_lock
    from csdn.retraining.rollback import rollback as back

    with workspace_lock(Path(), "csdn rollback"):
        version, notes = back(Path(), version, reason)
    print(f"version {version} is the champion; its files are in champion/")
    _print(notes)


def _print(notes: Iterable[str]) -> None:
    for note in notes:
        print(f"note: {note}")
