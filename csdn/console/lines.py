"""Progress as lines: for people who read a log, and for machines (CSDN_LOG=json).

    embedding: 120/1000 steps, 845 images/s, 50 s left  loss 7.042

    {"event": "progress", "time": "2026-11-21T10:21:03.512Z", "stage": "embedding", "phase": "embedding",
     "unit": "steps", "done": 120, "total": 1000, "rate": 17.604, "images_per_second": 845.01,
     "seconds": 6.8, "seconds_left": 50.0, "values": {"loss": 7.042}}

`event` is start, progress (at the first unit, then every ten seconds), note, which has a `text`, or end,
which has `error`: null, or the name of what ended it early. `phase` is null in the start and end of a whole
stage. `rate` is in units a second; what nobody knows yet is null. The lines go to standard error, where the
text of an error goes too.
"""

from __future__ import annotations

import json
import math
import sys
import time
from datetime import UTC, datetime
from typing import Any

from csdn.console.work import Work, duration

LOG_SECONDS = 10.0


class _Now:
    """True at the first question, then every LOG_SECONDS."""

    def __init__(self) -> None:
        self.next = -math.inf

    def __call__(self) -> bool:
        now = time.monotonic()
        if now < self.next:
            return False
        self.next = now + LOG_SECONDS
        return True


class TextLines:
    """Plain lines; the last state is always among them, so that quick work shows its result too."""

    def __init__(self) -> None:
        self.now = _Now()

    def start(self, work: Work) -> None:
        """Nothing is known of it yet."""

    def update(self, work: Work) -> None:
        if work.done != work.total and self.now():
            _print(work, work.count(), work.speed(), work.left())

    def note(self, work: Work, text: str) -> None:
        print(f"{work.phase}: {text}", file=sys.stderr, flush=True)
        self.now = _Now()  # what comes next is shown too

    def end(self, work: Work, failure: str | None) -> None:
        if failure:
            _print(work, f"stopped at {work.count()}" if work.total else "stopped")
        elif work.total is not None:
            _print(work, f"{work.count()} in {duration(work.seconds)}", work.speed())


def _print(work: Work, *parts: str) -> None:
    line = f"{work.phase}: {', '.join(filter(None, parts))}  {work.figures()}"
    print(line.rstrip(), file=sys.stderr, flush=True)


class JsonLines:
    """One JSON object a line."""

    def __init__(self) -> None:
        self.now = _Now()

    def start(self, work: Work) -> None:
        json_line("start", stage=work.stage, phase=work.phase, unit=work.unit)

    def update(self, work: Work) -> None:
        if self.now():
            json_line("progress", **_state(work))

    def note(self, work: Work, text: str) -> None:
        json_line("note", stage=work.stage, phase=work.phase, text=text)
        self.now = _Now()

    def end(self, work: Work, failure: str | None) -> None:
        json_line("end", **_state(work), error=failure)


def _state(work: Work) -> dict[str, Any]:
    place = ("stage", "phase", "unit", "done", "total", "values")
    speed = ("rate", "images_per_second", "seconds", "seconds_left")
    return {name: getattr(work, name) for name in (*place, *speed)}


def json_line(event: str, **fields: Any) -> None:
    """Print an event with the time, in UTC; numbers with six digits, NaN and infinity as null."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    print(json.dumps({"event": event, "time": now, **_plain(fields)}), file=sys.stderr, flush=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
