"""What is seen of a stage at work, on standard error: outputs stay clean.

In a terminal a phase is a live line, and leaves one line behind (csdn.console.terminal). Elsewhere a plain
line comes every ten seconds, or, with CSDN_LOG=json, a JSON object (csdn.console.lines).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial

from csdn.console.lines import JsonLines, TextLines, json_line
from csdn.console.times import note_time
from csdn.console.work import View, Work
from csdn.errors import UserError

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
    work, view = Work(stage, phase, unit, images), _view()

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
    from csdn.console.terminal import Terminal  # rich is not needed elsewhere

    return Terminal()


def _wants_json() -> bool:
    return os.environ.get("CSDN_LOG") == "json"


def _stage_event(event: str, name: str, **fields: float | str | None) -> None:
    if _wants_json():
        json_line(event, stage=name, phase=None, **fields)
