"""`dvc repro` as a process that is killed at a moment of one of its stages."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from workspace import STAGES, environment

# Whom the signal is for, in turn: the stage's process, DVC's, or their group (Ctrl-C in a terminal).
KILLS = (
    ("stage", signal.SIGKILL),
    ("dvc", signal.SIGKILL),
    ("stage", signal.SIGKILL),
    ("dvc", signal.SIGKILL),
    ("group", signal.SIGINT),
    ("group", signal.SIGTERM),
)


@dataclass(frozen=True)
class Point:
    """Which stage is killed, who gets the signal, and when: 0 is the stage's start, 1 the end of its DVC."""

    stage: str
    target: str
    number: signal.Signals
    moment: float


def points(count: int, seed: int) -> Iterator[Point]:
    """Points in turn over the stages and over who is killed, at moments drawn with the seed."""
    draws = random.Random(seed)
    for number in range(count):
        turn, stage = divmod(number, len(STAGES))
        target, kill = KILLS[(turn + stage) % len(KILLS)]
        yield Point(STAGES[stage], target, kill, draws.random())


class Run:
    """`dvc repro` up to a stage, in a process group of its own."""

    def __init__(self, folder: Path, stage: str) -> None:
        self.stage = stage
        self.lines: list[str] = []
        self.began = 0.0
        self._running = threading.Event()
        self.process = subprocess.Popen(
            ["dvc", "repro", stage],
            cwd=folder,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line)
            if f"Running stage '{self.stage}'" in line:
                self._running.set()
        self._running.set()

    def begun(self) -> None:
        """Wait for the stage's start."""
        self._running.wait()
        self.began = time.monotonic()

    def kill(self, point: Point, life: float) -> str | None:
        """Send the point's signal at its moment of a life of so many seconds; returns who got it, if any.

        Where the stage's process has ended and DVC stores its outputs, DVC is killed in its place.
        """
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(point.moment * life)
            return None
        stages = children(self.process.pid) if point.target == "stage" else []
        with suppress(ProcessLookupError):
            if point.target == "group":
                os.killpg(self.process.pid, point.number)
            else:
                os.kill([*stages, self.process.pid][0], point.number)
        target = point.target if stages or point.target != "stage" else "dvc (no stage)"
        return f"{target}, {point.number.name}"

    def ended(self, within: float) -> int:
        """Wait until nobody is left who could write to this run's output; returns DVC's exit code."""
        self._reader.join(within)
        assert not self._reader.is_alive(), f"processes live on:\n{self.text()}"
        self.process.stdout.close()
        return self.process.wait()

    def text(self) -> str:
        return "".join(self.lines)


def children(pid: int) -> list[int]:
    """Processes that a process has started and that live."""
    with suppress(FileNotFoundError):
        return [
            int(child)
            for file in Path(f"/proc/{pid}/task").glob("*/children")
            for child in file.read_text().split()
        ]
    return []
