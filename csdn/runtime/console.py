"""Progress of a stage on standard error: a live line in a terminal, else a log of lines, for people or JSON.

    embedding: 120/1000 steps, 845 images/s, 50 s left  loss 7.042

With CSDN_LOG=json each line is an object, an event:

    {"event": "progress", "time": "2026-11-21T10:21:03.512Z", "stage": "embedding", "phase": "embedding",
     "unit": "steps", "done": 120, "total": 1000, "values": {"loss": 7.042}, "rate": 17.604,
     "images_per_second": 845.01, "seconds": 6.8, "seconds_left": 50.0}

`event` is start, progress (at the first unit, then every ten seconds), note (with a `text`), end (with
`error`: null, or the class name of the exception that ended it), error (with a `text` and a `kind`:
unavailable, diverged or error) or decision, the result of a retraining. `phase` is null in the start and end
of a whole stage. `rate` is in units a second. Values that are not known yet are null. A retraining reads
these events (csdn.retraining.steps), and logs the decision:

    {"event": "decision", "time": "2026-11-21T10:25:40.101Z", "run": "20261121-0a1b2c3d",
     "outcome": "promoted", "version": "v2", "reasons": ["not worse by more than 5 points of ..."],
     "figures": {"ir_to_vis": {"mAP": 24.1, "rank1": 23.64}, "test_people": 80, "vis_to_ir": ...}}

`outcome` is promoted, ready, rejected or undecided; `version` is null unless it was promoted; `figures` are
those of metrics/headline.json, empty if the run has made no model.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from csdn.runtime.documents import read_json
from csdn.runtime.errors import Diverged, UserError, is_unavailable
from csdn.runtime.files import locked, write_json

TIMES = Path(".state/times.json")  # how long each stage took; no result depends on it
LOG_SECONDS = 10.0  # between two progress lines of a log

Event = Mapping[str, Any]
# Called as report(units done, units in total, values to show); cheap enough to call at every step.
# With a fourth argument, a text, only that text is shown, at once; the total may then be None.
Report = Callable[..., None]


@contextmanager
def stage(name: str) -> Iterator[Callable[..., AbstractContextManager[Report]]]:
    """Yield `progress` for the phases of a stage; record how long a successful stage took."""
    started, failure = time.monotonic(), None
    log("start", stage=name, phase=None)
    try:
        yield partial(progress, name)
    except BaseException as error:
        failure = type(error).__name__
        raise
    finally:
        log("end", stage=name, phase=None, seconds=time.monotonic() - started, error=failure)
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
    state, next_line = Phase(stage, phase, unit, images), -math.inf
    live = live_line(state, Console(stderr=True, highlight=False)) if _in_terminal() else None
    show = partial(_draw, live) if live else log

    def report(
        done: int, total: int | None, values: Mapping[str, float] | None = None, note: str | None = None
    ) -> None:
        nonlocal next_line
        if note:
            show("note", stage=stage, phase=phase, text=note)
            next_line = -math.inf  # the next state is shown as well
            return
        state.update(done, total, values)
        if live or time.monotonic() >= next_line:
            show("progress", **state.fields())
            next_line = time.monotonic() + LOG_SECONDS

    failure = None
    with live or nullcontext():
        show("start", stage=stage, phase=phase, unit=unit)
        try:
            yield report
        except BaseException as error:
            failure = type(error).__name__
            raise
        finally:
            show("end", **state.fields(), error=failure)


def _in_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not wants_json()


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
    def seconds_left(self) -> float | None:
        if not self.rate or self.total is None or self.done >= self.total:
            return None
        return (self.total - self.done) / self.rate

    def fields(self) -> dict[str, Any]:
        """The fields of its events."""
        position = ("stage", "phase", "unit", "done", "total", "values", "rate")
        return {name: getattr(self, name) for name in position} | {
            "images_per_second": self.rate and self.rate * self.images,
            "seconds": time.monotonic() - self.started,
            "seconds_left": self.seconds_left,
        }


# ---- a terminal: one line for a phase, which stays when the phase ends


def live_line(state: Phase, console: Console) -> Progress:
    """The line of a phase. A thread redraws it, so it moves during a long step too."""
    title = TextColumn("{task.fields[mark]} {task.description:12}")
    bar = BarColumn(bar_width=None, table_column=Column(max_width=24))  # it shrinks if the text is long
    live = Progress(
        title,
        bar,
        _StateColumn(state),
        console=console,
        refresh_per_second=8,
        redirect_stdout=False,  # rich would replace the streams of all libraries and threads
        redirect_stderr=False,
    )
    live.add_task(state.phase, total=None, mark=" ", event="progress", error=None)
    return live


def _draw(live: Progress, event: str, **fields: Any) -> None:
    """Show an event of a phase in its line, or a note above it."""
    (task,) = live.task_ids
    if event == "start":
        live.console.show_cursor(True)  # a killed stage would leave it hidden
    elif event == "note":
        live.console.print(Text(f"  {fields['phase']:12} {fields['text']}"))
    elif event == "progress":
        live.update(task, completed=fields["done"], total=fields["total"])
    else:
        mark = "[red]✗[/]" if fields["error"] else "[green]✓[/]"
        total = fields["total"] or 1  # else the bar would look as if it moved
        live.update(task, mark=mark, event=event, error=fields["error"], total=total)


class _StateColumn(ProgressColumn):
    """The text of a phase at the moment of drawing."""

    def __init__(self, state: Phase) -> None:
        super().__init__(table_column=Column(no_wrap=True, overflow="ellipsis"))
        self.state = state

    def render(self, task: Task) -> Text:
        event = self.state.fields() | task.fields
        unknown = "nothing left to do" if event["event"] == "end" else duration(event["seconds"])
        return Text(state_text(event) or unknown)


# ---- events as lines of a log


def log(event: str, **fields: Any) -> None:
    """Log an event on standard error."""
    LOG.info(event, extra={"fields": fields})


def log_error(error: UserError | str) -> None:
    """Log the error that ends this process."""
    kind = "diverged" if isinstance(error, Diverged) else "error"
    unavailable = isinstance(error, UserError) and is_unavailable(error)
    log("error", kind="unavailable" if unavailable else kind, text=str(error))


def wants_json() -> bool:
    return os.environ.get("CSDN_LOG") == "json"


class JsonFormatter(logging.Formatter):
    """An event as JSON with the time in UTC; floats have six digits, NaN and infinity become null."""

    def format(self, record: logging.LogRecord) -> str:
        now = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        event = {"event": record.msg, "time": now.replace("+00:00", "Z")}
        return json.dumps(event | _json_value(vars(record)["fields"]))


class TextFormatter(logging.Formatter):
    """An event as a line for people; empty for those that a text log leaves out."""

    def format(self, record: logging.LogRecord) -> str:
        return text_line({"event": record.msg, **vars(record)["fields"]})


class _StandardError(logging.Handler):
    """Prints events on the standard error of the moment, which tests and notebooks replace."""

    def emit(self, record: logging.LogRecord) -> None:
        if line := (JsonFormatter() if wants_json() else TextFormatter()).format(record):
            print(line, file=sys.stderr, flush=True)


LOG = logging.getLogger("csdn.events")
LOG.setLevel(logging.INFO)
LOG.propagate = False
LOG.addHandler(_StandardError())


def _json_value(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _json_value(inner) for name, inner in value.items()}
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def parse_event(line: str) -> Event | None:
    """The event in a line of a JSON log; None for a line of another program."""
    with suppress(ValueError):
        event = json.loads(line) if line.startswith('{"event": "') else {}
        if "time" in event and ("phase" in event or "kind" in event):
            return event
    return None


# ---- events as text


def text_line(event: Event) -> str:
    """The line of a text log; empty for an event that it leaves out."""
    if "text" in event:  # a note or an error
        return f"{event.get('phase', 'error')}: {event['text']}"
    left_out = "done" not in event or (event["event"] == "progress" and event["done"] == event["total"])
    text = "" if left_out else state_text(event)
    return text and f"{event['phase']}: {text}"


def state_text(event: Event) -> str:
    """How far a phase is, as in "120/1000 steps, 845 images/s, 50 s left  loss 7.042"; empty if unknown."""
    if event["total"] is None:
        return "stopped" if event.get("error") else ""
    parts = [f"{event['done']}/{event['total']} {event['unit']}"]
    if event.get("error"):
        parts[0] = f"stopped at {parts[0]}"
    else:
        ended = event["event"] == "end"
        if ended:
            parts[0] += f" in {duration(event['seconds'])}"
        if speed := event["images_per_second"]:
            parts.append(f"{speed:.0f} images/s" if speed >= 100 else f"{speed:.3g} images/s")
        if (left := event["seconds_left"]) and not ended:
            parts.append(f"{duration(left)} left")
    # JSON has null for NaN.
    values = [f"{name} {math.nan if value is None else value:.4g}" for name, value in event["values"].items()]
    return "  ".join([", ".join(parts), *values])


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
