"""Progress of a stage on standard error: a live line in a terminal, else plain lines, or JSON for machines.

    embedding: 120/1000 steps, 845 images/s, 50 s left  loss 7.042

With CSDN_LOG=json each line is an object:

    {"event": "progress", "time": "2026-11-21T10:21:03.512Z", "stage": "embedding", "phase": "embedding",
     "unit": "steps", "done": 120, "total": 1000, "rate": 17.604, "images_per_second": 845.01,
     "seconds": 6.8, "seconds_left": 50.0, "values": {"loss": 7.042}}

`event` is start, progress (at the first unit, then every ten seconds), note (with a `text`) or end (with
`error`: null, or the class name of the exception that ended it). `phase` is null in the start and end of a
whole stage. `rate` is in units a second. Values that are not known yet are null.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

from csdn.runtime.documents import read_json
from csdn.runtime.errors import UserError
from csdn.runtime.files import locked, write_json

TIMES = Path(".state/times.json")  # how long each stage took; no result depends on it
LOG_SECONDS = 10.0  # between two progress lines of a log
TITLE_WIDTH, BAR_WIDTH = 12, 24  # columns in a terminal; the bar may be narrower

# Called as report(units done, units in total, values to show); cheap enough to call at every step.
# With a fourth argument, a text, only that text is shown, at once; the total may then be None.
Report = Callable[..., None]


@contextmanager
def stage(name: str) -> Iterator[Callable]:
    """Yield `progress` for the phases of a stage; record how long a successful stage took."""
    started = time.monotonic()
    _stage_event("start", name)
    try:
        yield partial(progress, name)
    except BaseException as error:
        _stage_event("end", name, seconds=time.monotonic() - started, error=type(error).__name__)
        raise
    _stage_event("end", name, seconds=time.monotonic() - started, error=None)
    with suppress(OSError, UserError):  # a stage that succeeded must not fail here
        record_time(name, time.monotonic() - started)


def record_time(stage: str, seconds: float) -> None:
    with locked(TIMES):
        write_json(TIMES, read_times() | {stage: round(seconds, 1)})


def read_times() -> dict[str, float]:
    """Stage -> seconds of its last successful run here; empty if the file is missing or invalid."""
    try:
        times = read_json(TIMES)
    except UserError:
        return {}
    valid = isinstance(times, dict) and all(isinstance(value, int | float) for value in times.values())
    return times if valid else {}


@contextmanager
def progress(stage: str, phase: str, unit: str, images: float = 1) -> Iterator[Report]:
    """Yield `report(done, total, values, note)` for one phase.

    `unit` names what is counted ("images", "steps"); one unit is `images` images.
    """
    state, view = Phase(stage, phase, unit, images), _view()

    def report(
        done: int, total: int | None, values: Mapping[str, float] | None = None, note: str | None = None
    ) -> None:
        if note:
            view.note(state, note)
        else:
            state.update(done, total, values)
            view.update(state)

    view.start(state)
    try:
        yield report
    except BaseException as error:
        view.end(state, type(error).__name__)
        raise
    view.end(state, None)


def _view() -> View:
    if _wants_json():
        return JsonLines()
    return Terminal() if sys.stderr.isatty() else TextLines()


def _wants_json() -> bool:
    return os.environ.get("CSDN_LOG") == "json"


def _stage_event(event: str, name: str, **fields: float | str | None) -> None:
    if _wants_json():
        json_line(event, stage=name, phase=None, **fields)


# ---- the state of a phase


@dataclass
class Phase:
    """Progress of one phase: `done` of `total` units (None: not known yet), each of `images` images."""

    stage: str
    phase: str
    unit: str
    images: float = 1
    done: int = 0
    total: int | None = None
    values: dict[str, float] = field(default_factory=dict)  # such as the loss
    rate: float | None = None  # units a second; None before the second report
    started: float = field(default_factory=time.monotonic)
    first: tuple[float, int] | None = None  # time and units of the first report

    def update(self, done: int, total: int | None, values: Mapping[str, float] | None = None) -> None:
        """Record a report. The rate excludes units that were done before the first report (a resumed run)."""
        now = time.monotonic()
        self.first = self.first or (now, done)
        seconds, units = now - self.first[0], done - self.first[1]
        self.rate = units / seconds if units > 0 and seconds > 0 else None
        self.done, self.total, self.values = done, total, dict(values or {})

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def seconds_left(self) -> float | None:
        return (self.total - self.done) / self.rate if self.rate and self.done < self.total else None

    @property
    def images_per_second(self) -> float | None:
        return self.rate * self.images if self.rate else None

    def count_text(self) -> str:
        """As in "120/1000 steps"."""
        return f"{self.done}/{self.total} {self.unit}"

    def speed_text(self) -> str:
        """As in "845 images/s"; empty if unknown."""
        speed = self.images_per_second
        return "" if speed is None else f"{speed:.0f} images/s" if speed >= 100 else f"{speed:.3g} images/s"

    def left_text(self) -> str:
        """As in "50 s left", in whole seconds, since it is an estimate; empty if unknown."""
        left = self.seconds_left
        if left is None:
            return ""
        return f"{duration(left) if left >= 9.5 else f'{left:.0f} s'} left"

    def values_text(self) -> str:
        """As in "loss 7.042"."""
        return "  ".join(f"{name} {value:.4g}" for name, value in self.values.items())

    def stopped_text(self) -> str:
        return f"stopped at {self.count_text()}" if self.total else "stopped"


def duration(seconds: float) -> str:
    """A duration for people: 4.2 s, 58 s, 1:12, 2:03:04.

    >>> duration(4.21), duration(58.3), duration(72), duration(7384)
    ('4.2 s', '58 s', '1:12', '2:03:04')
    """
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class View(Protocol):
    """Shows one phase; `failure` is the class name of the exception that ended it early."""

    def start(self, state: Phase) -> None: ...
    def update(self, state: Phase) -> None: ...
    def note(self, state: Phase, text: str) -> None: ...
    def end(self, state: Phase, failure: str | None) -> None: ...


# ---- lines of a log


class _Throttle:
    """Returns true at the first call, then once every LOG_SECONDS."""

    def __init__(self) -> None:
        self.next = -math.inf

    def __call__(self) -> bool:
        now = time.monotonic()
        if now < self.next:
            return False
        self.next = now + LOG_SECONDS
        return True


class TextLines:
    """Plain lines. The last state is always shown, so that a short phase shows its result too."""

    def __init__(self) -> None:
        self.due = _Throttle()

    def start(self, state: Phase) -> None:
        """Nothing is known yet."""

    def update(self, state: Phase) -> None:
        if state.done != state.total and self.due():
            self._print(state, state.count_text(), state.speed_text(), state.left_text())

    def note(self, state: Phase, text: str) -> None:
        print(f"{state.phase}: {text}", file=sys.stderr, flush=True)
        self.due = _Throttle()  # show the next state as well

    def end(self, state: Phase, failure: str | None) -> None:
        if failure:
            self._print(state, state.stopped_text())
        elif state.total is not None:
            self._print(state, f"{state.count_text()} in {duration(state.seconds)}", state.speed_text())

    def _print(self, state: Phase, *parts: str) -> None:
        line = f"{state.phase}: {', '.join(filter(None, parts))}  {state.values_text()}"
        print(line.rstrip(), file=sys.stderr, flush=True)


class JsonLines:
    """One JSON object a line."""

    def __init__(self) -> None:
        self.due = _Throttle()

    def start(self, state: Phase) -> None:
        json_line("start", stage=state.stage, phase=state.phase, unit=state.unit)

    def update(self, state: Phase) -> None:
        if self.due():
            json_line("progress", **_fields(state))

    def note(self, state: Phase, text: str) -> None:
        json_line("note", stage=state.stage, phase=state.phase, text=text)
        self.due = _Throttle()

    def end(self, state: Phase, failure: str | None) -> None:
        json_line("end", **_fields(state), error=failure)


def _fields(state: Phase) -> dict[str, Any]:
    position = ("stage", "phase", "unit", "done", "total", "values")
    speed = ("rate", "images_per_second", "seconds", "seconds_left")
    return {name: getattr(state, name) for name in (*position, *speed)}


def json_line(event: str, **fields: Any) -> None:
    """Print an event with the time in UTC; floats have six digits, NaN and infinity become null."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    print(json.dumps({"event": event, "time": now, **_json_value(fields)}), file=sys.stderr, flush=True)


def _json_value(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _json_value(inner) for name, inner in value.items()}
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


# ---- a terminal: one live line for a phase, and one line that stays when the phase ends


class Terminal:
    """A thread redraws the live line, so it moves during a long step too."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)

    def start(self, state: Phase) -> None:
        # No redirection: loader processes are forked while this thread may hold rich's locks.
        self.live = Live(
            LiveLine(state),
            console=self.console,
            transient=True,
            refresh_per_second=8,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self.live.start()
        self.console.show_cursor(True)  # a killed stage would leave it hidden

    def update(self, state: Phase) -> None:
        """Nothing to do: the live line reads `state` whenever it is drawn."""

    def note(self, state: Phase, text: str) -> None:
        self.console.print(Text(f"  {state.phase:{TITLE_WIDTH}} {text}"))

    def end(self, state: Phase, failure: str | None) -> None:
        self.live.stop()
        line = Text("✗ " if failure else "✓ ", style="red" if failure else "green")
        line.append(f"{state.phase:{TITLE_WIDTH}} {_final_text(state, failure)}".rstrip(), style="default")
        self.console.print(line, no_wrap=True, overflow="ellipsis", crop=True)


class LiveLine:
    """The line at the moment of drawing; the bar takes the columns that are left."""

    def __init__(self, state: Phase) -> None:
        self.state = state

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        state, width = self.state, options.max_width - 1
        title, details = f"  {state.phase:{TITLE_WIDTH}} ", f" {_live_text(state)}"
        bar = min(BAR_WIDTH, width - len(title) - len(details))
        yield Text(title[:width], end="")
        if bar >= 4:
            yield ProgressBar(total=state.total, completed=state.done, width=bar, pulse=state.total is None)
        yield Text(details[: max(0, width - len(title))], no_wrap=True)


def _live_text(state: Phase) -> str:
    """The text behind the bar."""
    if state.total is None:
        return duration(state.seconds)
    parts = (state.count_text(), state.speed_text(), state.values_text(), state.left_text())
    return "  ".join(filter(None, parts))


def _final_text(state: Phase, failure: str | None) -> str:
    """The line that stays, after the phase's name."""
    if failure:
        return f"{state.stopped_text()} after {duration(state.seconds)}"
    if state.total is None:
        return "nothing left to do"
    count = f"{state.done} {state.unit}"
    return f"{count:>14}  {duration(state.seconds):>8}  {state.speed_text():>14}  {state.values_text()}"
