"""How far a phase is, in numbers; how it is shown is for a View."""

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


@dataclass
class Phase:
    """A phase of a stage: `done` of `total` units (None: not known yet), of `images` images each."""

    stage: str
    phase: str
    unit: str
    images: float = 1
    done: int = 0
    total: int | None = None
    values: dict[str, float] = field(default_factory=dict)  # such as the loss
    rate: float | None = None  # units a second; None where one report cannot tell
    began: float = field(default_factory=time.monotonic)
    first: tuple[float, int] | None = None  # time and units of the first report

    def update(self, done: int, total: int, values: Mapping[str, float] | None = None) -> None:
        """Take a report. The rate counts from the first one: not what a resumed run found done."""
        now = time.monotonic()
        self.first = self.first or (now, done)
        seconds, units = now - self.first[0], done - self.first[1]
        self.rate = units / seconds if units > 0 and seconds > 0 else None
        self.done, self.total, self.values = done, total, dict(values or {})

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    @property
    def seconds_left(self) -> float | None:
        return (self.total - self.done) / self.rate if self.rate and self.done < self.total else None

    @property
    def images_per_second(self) -> float | None:
        return self.rate * self.images if self.rate else None

    def count(self) -> str:
        """As in "120/1000 steps"."""
        return f"{self.done}/{self.total} {self.unit}"

    def speed(self) -> str:
        """As in "845 images/s"; empty where nobody knows."""
        found = self.images_per_second
        return "" if found is None else f"{found:.0f} images/s" if found >= 100 else f"{found:.3g} images/s"

    def left(self) -> str:
        """As in "50 s left"; whole seconds, since nobody knows better; empty where nobody knows at all."""
        found = self.seconds_left
        if found is None:
            return ""
        return f"{duration(found) if found >= 9.5 else f'{found:.0f} s'} left"

    def figures(self) -> str:
        """As in "loss 7.042"."""
        return "  ".join(f"{name} {value:.4g}" for name, value in self.values.items())


class View(Protocol):
    """Somebody who watches one phase; `failure` is the name of the error that ended it early."""

    def start(self, work: Phase) -> None: ...
    def update(self, work: Phase) -> None: ...
    def note(self, work: Phase, text: str) -> None: ...
    def end(self, work: Phase, failure: str | None) -> None: ...


def duration(seconds: float) -> str:
    """For people: 4.2 s, 58 s, 1:12, 2:03:04.

    >>> duration(4.21), duration(58.3), duration(72), duration(7384)
    ('4.2 s', '58 s', '1:12', '2:03:04')
    """
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


# Progress as lines: for people who read a log, and for machines (CSDN_LOG=json).
#
#     embedding: 120/1000 steps, 845 images/s, 50 s left  loss 7.042
#
#     {"event": "progress", "time": "2026-11-21T10:21:03.512Z", "stage": "embedding", "phase": "embedding",
#      "unit": "steps", "done": 120, "total": 1000, "rate": 17.604, "images_per_second": 845.01,
#      "seconds": 6.8, "seconds_left": 50.0, "values": {"loss": 7.042}}
#
# `event` is start, progress (at the first unit, then every ten seconds), note, which has a `text`, or end,
# which has `error`: null, or the name of what ended it early. `phase` is null in the start and end of a whole
# stage. `rate` is in units a second; what nobody knows yet is null. The lines go to standard error, where the
# text of an error goes too.


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

    def start(self, work: Phase) -> None:
        """Nothing is known of it yet."""

    def update(self, work: Phase) -> None:
        if work.done != work.total and self.now():
            _print(work, work.count(), work.speed(), work.left())

    def note(self, work: Phase, text: str) -> None:
        print(f"{work.phase}: {text}", file=sys.stderr, flush=True)
        self.now = _Now()  # what comes next is shown too

    def end(self, work: Phase, failure: str | None) -> None:
        if failure:
            _print(work, f"stopped at {work.count()}" if work.total else "stopped")
        elif work.total is not None:
            _print(work, f"{work.count()} in {duration(work.seconds)}", work.speed())


def _print(work: Phase, *parts: str) -> None:
    line = f"{work.phase}: {', '.join(filter(None, parts))}  {work.figures()}"
    print(line.rstrip(), file=sys.stderr, flush=True)


class JsonLines:
    """One JSON object a line."""

    def __init__(self) -> None:
        self.now = _Now()

    def start(self, work: Phase) -> None:
        json_line("start", stage=work.stage, phase=work.phase, unit=work.unit)

    def update(self, work: Phase) -> None:
        if self.now():
            json_line("progress", **_state(work))

    def note(self, work: Phase, text: str) -> None:
        json_line("note", stage=work.stage, phase=work.phase, text=text)
        self.now = _Now()

    def end(self, work: Phase, failure: str | None) -> None:
        json_line("end", **_state(work), error=failure)


def _state(work: Phase) -> dict[str, Any]:
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


# Progress in a terminal: one live line for a phase, which leaves a line behind when the phase ends.


TITLE = 12  # columns of a phase's name
BAR = 24  # columns of the bar, at most


class Terminal:
    """The live line is redrawn by a thread, so it moves while a long step computes."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)

    def start(self, work: Phase) -> None:
        # Nothing is redirected: processes of the feed are forked while the thread may hold rich's locks.
        self.live = Live(
            LiveLine(work),
            console=self.console,
            transient=True,
            refresh_per_second=8,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self.live.start()
        self.console.show_cursor(True)  # which a killed stage would leave hidden

    def update(self, work: Phase) -> None:
        """Nothing to do: the line looks at `work` when it is drawn."""

    def note(self, work: Phase, text: str) -> None:
        self.console.print(Text(f"  {work.phase:{TITLE}} {text}"))

    def end(self, work: Phase, failure: str | None) -> None:
        self.live.stop()
        line = Text("✗ " if failure else "✓ ", style="red" if failure else "green")
        line.append(ended(work, failure), style="default")
        self.console.print(line, no_wrap=True, overflow="ellipsis", crop=True)


class LiveLine:
    """The line as it is at the moment of drawing; the bar takes the room that is left."""

    def __init__(self, work: Phase) -> None:
        self.work = work

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        work, width = self.work, options.max_width - 1
        title, about = f"  {work.phase:{TITLE}} ", f" {underway(work)}"
        bar = min(BAR, width - len(title) - len(about))
        yield Text(title[:width], end="")
        if bar >= 4:
            yield ProgressBar(total=work.total, completed=work.done, width=bar, pulse=work.total is None)
        yield Text(about[: max(0, width - len(title))], no_wrap=True)


def underway(work: Phase) -> str:
    """What stands behind the bar: count, speed, figures, time left."""
    if work.total is None:
        return duration(work.seconds)
    return "  ".join(filter(None, (work.count(), work.speed(), work.figures(), work.left())))


def ended(work: Phase, failure: str | None) -> str:
    """The line that stays: what, how many, how long, how fast, with which figures."""
    if failure:
        count = f"stopped at {work.count()}" if work.total else "stopped"
        return f"{work.phase:{TITLE}} {count} after {duration(work.seconds)}"
    if work.total is None:
        return f"{work.phase:{TITLE}} nothing left to do"
    count = f"{work.done} {work.unit}"
    columns = f"{count:>14}  {duration(work.seconds):>8}  {work.speed():>14}  {work.figures()}"
    return f"{work.phase:{TITLE}} {columns}".rstrip()


# How long each stage took when it last ran here: beside the state, as no result must depend on it.


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


# What is seen of a stage at work, on standard error: outputs stay clean.
#
# In a terminal a phase is a live line, and leaves one line behind (csdn.runtime.console). Elsewhere a plain
# line comes every ten seconds, or, with CSDN_LOG=json, a JSON object (csdn.runtime.console).


# Called as report(units done, units in all, figures to show); safe to call very often. With a note as well,
# a sentence, that alone is shown, at once, and stays: units in all may then be None.
Report = Callable[..., None]


@contextmanager
def stage(name: str) -> Iterator[Callable]:
    """Yields `progress` for the phases of a stage; notes how long a stage took that succeeded."""
    began = time.monotonic()
    _stage_event("start", name)
    try:
        yield partial(progress, name)
    except BaseException as error:
        _stage_event("end", name, seconds=time.monotonic() - began, error=type(error).__name__)
        raise
    _stage_event("end", name, seconds=time.monotonic() - began, error=None)
    with suppress(OSError, UserError):  # the stage has succeeded: its time is no reason to fail it
        note_time(name, time.monotonic() - began)


@contextmanager
def progress(stage: str, phase: str, unit: str, images: float = 1) -> Iterator[Report]:
    """Yields `report(done, total, values)`; shows images a second, time left, values (such as the loss).

    `unit` names what is counted ("images", "steps"); one unit is `images` images.
    """
    work, view = Phase(stage, phase, unit, images), _view()

    def report(
        done: int, total: int | None, values: Mapping[str, float] | None = None, note: str | None = None
    ) -> None:
        if note:
            view.note(work, note)
        else:
            work.update(done, total, values)
            view.update(work)

    view.start(work)
    try:
        yield report
    except BaseException as error:
        view.end(work, type(error).__name__)
        raise
    view.end(work, None)


def _view() -> View:
    if _wants_json():
        return JsonLines()
    if not sys.stderr.isatty():
        return TextLines()
    pass

    return Terminal()


def _wants_json() -> bool:
    return os.environ.get("CSDN_LOG") == "json"


def _stage_event(event: str, name: str, **fields: float | str | None) -> None:
    if _wants_json():
        json_line(event, stage=name, phase=None, **fields)
