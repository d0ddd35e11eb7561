"""How long each stage took when it last ran here: beside the state, as no result must depend on it."""

from __future__ import annotations

from pathlib import Path

from csdn.documents import read_json
from csdn.errors import UserError
from csdn.files import locked, write_json

TIMES = Path(".state/times.json")


def note_time(stage: str, seconds: float) -> None:
    with locked(TIMES):
        write_json(TIMES, read_times() | {stage: round(seconds, 1)})


def read_times() -> dict[str, float]:
    """Stage -> seconds; empty where nothing has run, or the file is not ours."""
    try:
        found = read_json(TIMES)
    except UserError:
        return {}
    ours = isinstance(found, dict) and all(isinstance(value, int | float) for value in found.values())
    return found if ours else {}
