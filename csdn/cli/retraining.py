"""Commands of retraining: csdn retrain, gate, history, promote, rollback, fetch-champion."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from csdn.params import leaves, load_params
from csdn.runtime.documents import parse_yaml
from csdn.runtime.errors import UserError
from csdn.runtime.sanitize import escape_control_chars
from csdn.training.champion import read_champion

Version = Annotated[str | None, typer.Argument(metavar="[VERSION]", help="Such as v3.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A value of params.yaml for this run only."),
]


def retrain(
    set_: Settings = None,
    now: Annotated[
        bool,
        typer.Option("--now", help="Even if there is less new data than params.yaml (retrain) asks for."),
    ] = False,
) -> None:
    """Scan for new camera data; if there is enough, train on it, and promote the model if it passes the gate.

    For cron: a second call while the first one works requests another scan, and ends.
    """
    from csdn.retraining.lock import WorkspaceLocked, scan_on_request
    from csdn.retraining.run import retrain_local

    overrides = dict(_setting(text) for text in set_ or ())
    try:
        scan_on_request(Path(), "csdn retrain", lambda: retrain_local(Path(), overrides, now))
    except WorkspaceLocked as locked:
        print(f"{locked}\nThe retraining that holds the workspace scans again before it ends.")


def _setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise UserError(f"--set {text}: expected KEY=VALUE, such as --set embedding.epochs=6")
    return key, parse_yaml(value, f"--set {text}")


def gate() -> None:
    """Decide whether models/embedding may replace the champion. Writes metrics/gate.json."""
    # Imported here: torch takes seconds.
    from csdn.retraining.gate import table_lines
    from csdn.runtime.console import stage

    with stage("gate") as progress:
        from csdn.model.device import with_precision
        from csdn.retraining.gate_run import WEIGHTS, run_gate
        from csdn.retraining.versions import fetch_champion, sha256

        # Training may have started from another version, if the champion was trained on a forgotten person.
        champion, folder = read_champion().champion, Path("champion")
        if champion and sha256(folder / WEIGHTS) != champion.embedding:
            fetch_champion(Path(), champion.version, folder)
        params = with_precision(load_params(), partial(print, "gate:"))
        if params.scaling.workers:
            from csdn.cluster.extract import extract_on_ray

            result = run_gate(params, Path(), progress, extract_on_ray)
        else:
            from csdn.data.features import extract_local

            result = run_gate(params, Path(), progress, extract_local)
    print(*table_lines(result), sep="\n")


def history() -> None:
    """List the runs with their reasons, oldest first: promoted, rejected, undecided, ready, rolled back."""
    from csdn.ingest.forgotten import read_forgotten
    from csdn.retraining.branches import history as events

    for event in events(Path()):
        figures = " ".join(f"{name}={value}" for name, value in leaves(event.figures))
        parts = [
            f"{event.time:%Y-%m-%d %H:%M}",
            f"{event.outcome:11}",
            f"{event.version or '-':4}",
            event.run,
        ]
        print(escape_control_chars("  ".join([*parts, *filter(None, (figures, event.reason))])))
    for version in sorted(read_forgotten().versions, key=lambda name: int(name[1:])):
        print(f"{version} was trained on a person who was forgotten since; no training starts from it")


def promote(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run that is ready in `csdn history`.")],
) -> None:
    """Promote the model of a run that passed the gate and could not be promoted at its end."""
    from csdn.retraining.lock import workspace_lock
    from csdn.retraining.registry import promote_ready

    with workspace_lock(Path(), f"csdn promote {run}"):
        done = promote_ready(Path(), run)
    if done.event != "promoted":
        raise UserError("\n".join(done.reasons))
    print(f"run {run} is version {done.version}, and the champion now")
    _print(done.reasons)


def rollback(
    version: Version = None,
    reason: Annotated[str, typer.Option(help="Why; shown in the history.")] = "",
) -> None:
    """Make an older version the champion again, by default the previous one."""
    from csdn.retraining.lock import workspace_lock
    from csdn.retraining.registry import rollback as back
    from csdn.retraining.scan import after_rollback

    with workspace_lock(Path(), "csdn rollback"):
        version, notes = back(Path(), version, reason)
    print(f"version {version} is the champion now; its files are in champion/")
    for line in after_rollback(Path(), version):
        print(escape_control_chars(line))
    _print(notes)


def _print(notes: Iterable[str]) -> None:
    for note in notes:
        print(f"note: {note}")


def fetch_champion_command(version: Version = None) -> None:
    """Fetch the champion's files to champion/, or those of another version."""
    from csdn.retraining.versions import fetch_champion

    champion = read_champion().champion
    version = version or (champion.version if champion else None)
    if version is None:
        raise UserError(
            "champion.json names no champion yet; the first retraining that passes the gate makes one"
        )
    fetch_champion(Path(), version, Path("champion"))
    print(f"champion/: version {version}")
