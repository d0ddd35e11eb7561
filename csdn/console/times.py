"""How long each stage took when it last ran here: beside the state, as no result must depend on it."""

from __future__ import annotations

import json
from pathlib import Path

from csdn.files import locked, write_json

TIMES = Path(".state/times.json")


def note_time(stage: str, seconds: float) -> None:
    with locked(TIMES):
        write_json(TIMES, read_times() | {stage: round(seconds, 1)})


def read_times() -> dict[str, float]:
    """Stage -> seconds; empty where nothing has run, or the file is not ours."""
    try:
        found = json.loads(TIMES.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
