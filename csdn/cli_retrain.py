"""`csdn retrain`, and `csdn gate`, its last step before the decision."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from csdn.documents import parse_yaml
from csdn.errors import UserError
from csdn.params import load_params
from csdn.process import quick_imports

Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A value of params.yaml for this run alone."),
]


def gate() -> None:
    """Compare models/embedding with the champion: may it replace it? Writes metrics/gate.json."""
    # Imported here: torch takes seconds.
    from csdn.console import stage
    from csdn.retraining.gate_table import table_lines

    params = load_params()
    with stage("gate") as progress:
        with quick_imports():
            from csdn.retraining.gate_job import run_gate

        if params.scaling.workers:
            from csdn.cluster.walk import embedded_on_ray as embedder
        else:
            from csdn.walk import embedded_here as embedder
        result = run_gate(params, Path(), progress, embedder)
    print(*table_lines(result), sep="\n")


def retrain(
    set_: Settings = None,
    now: Annotated[bool, typer.Option("--now", help="Also where params.yaml (retrain) would wait.")] = False,
) -> None:
    """Look for new camera data; if there is enough, train on it, and promote what the gate lets pass.

    From cron: a second call while the first one works asks it to look again, and ends.
    """
    from csdn.retraining.by_hand import retrain_here
    from csdn.retraining.lock import Busy, when_asked

    overrides = dict(_setting(text) for text in set_ or ())
    try:
        when_asked(Path(), "csdn retrain", lambda: retrain_here(Path(), overrides, now))
    except Busy as busy:
        print(f"{busy}\nA retraining that works there looks again before it ends.")


def _setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise UserError(f"--set {text}: expected KEY=VALUE, such as --set embedding.epochs=6")
    return key, parse_yaml(value, f"--set {text}")
