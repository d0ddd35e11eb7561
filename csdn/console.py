"""What a person sees while a stage works: a live line in a terminal, a plain line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

# Called as report(units done, units in all, figures to show); safe to call very often.
Report = Callable[..., None]

LOG_SECONDS = 10.0


@contextmanager
def progress(title: str, unit: str) -> Iterator[Report]:
    """Yields `report(done, total, values)`; shows rate, time left and the values (such as losses).

    `unit` names what is counted ("images", "steps"). Goes to standard error: outputs stay clean.
    """
    if sys.stderr.isatty():
        with _bar() as bar:
            yield _Terminal(bar, title, unit)
    else:
        log = _Log(title, unit)
        yield log
        log.end()


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[values]}", style="dim"),
        console=Console(stderr=True),
    )


class _Rate:
    """Units a second since the first report: a resumed run does not count what it found done."""

    def __init__(self) -> None:
        self.began: tuple[float, int] | None = None

    def __call__(self, done: int) -> float:
        now = time.monotonic()
        if self.began is None:
            self.began = (now, done)
        seconds = now - self.began[0]
        return (done - self.began[1]) / seconds if seconds > 0 else 0.0


class _Terminal:
    def __init__(self, bar: Progress, title: str, unit: str) -> None:
        self.bar, self.unit, self.rate = bar, unit, _Rate()
        self.task = bar.add_task(title, total=None, rate="", values="")

    def __call__(self, done: int, total: int, values: Mapping[str, float] | None = None) -> None:
        rate = f"{self.rate(done):.3g} {self.unit}/s"
        self.bar.update(self.task, completed=done, total=total, rate=rate, values=_figures(values))


class _Log:
    def __init__(self, title: str, unit: str) -> None:
        self.title, self.unit, self.rate = title, unit, _Rate()
        self.waiting = ""
        self.next_line = 0.0

    def __call__(self, done: int, total: int, values: Mapping[str, float] | None = None) -> None:
        rate = self.rate(done)
        left = f", {(total - done) / rate:.0f} s left" if rate and done < total else ""
        speed = f", {rate:.3g}/s" if rate else ""
        self.waiting = f"{self.title}: {done}/{total} {self.unit}{speed}{left}  {_figures(values)}".rstrip()
        if time.monotonic() >= self.next_line:
            self.end()
            self.next_line = time.monotonic() + LOG_SECONDS

    def end(self) -> None:
        """Print the last state unless it has been: quick work shows its result too."""
        if self.waiting:
            print(self.waiting, file=sys.stderr, flush=True)
            self.waiting = ""


def _figures(values: Mapping[str, float] | None) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in (values or {}).items())
