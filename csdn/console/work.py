"""How far a phase is, in numbers; how it is shown is for a View."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass
class Work:
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

    def start(self, work: Work) -> None: ...
    def update(self, work: Work) -> None: ...
    def note(self, work: Work, text: str) -> None: ...
    def end(self, work: Work, failure: str | None) -> None: ...


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
