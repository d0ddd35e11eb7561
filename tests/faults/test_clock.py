"""Clocks and file times decide nothing: they may be wrong, and may jump."""

from __future__ import annotations

import itertools
import os
import time

import pytest
from make_images import Project, make_drop, people_named

from csdn.ingest import pack
from csdn.runtime.console import Phase

FAR_PAST, FAR_FUTURE = 86_400, 32_503_680_000  # 1970 and 3000


@pytest.fixture
def drop(tmp_path):
    return make_drop(tmp_path / "drop", people_named(10))


def test_file_times_decide_nothing(tmp_path, drop, monkeypatch, fault):
    outputs = []
    for name, when in (("present", None), ("past", FAR_PAST), ("future", FAR_FUTURE)):
        for path in drop.rglob("*"):
            os.utime(path, None if when is None else (when, when))
        project = Project(tmp_path / name)
        project.add(drop)
        project.ingest()
        for path in project.data.rglob("*"):
            os.utime(path, None if when is None else (when, when))
        with monkeypatch.context() as patch:
            patch.setattr(pack, "pack", lambda task: pytest.fail("a shard was made again"))
            project.ingest()
        outputs.append(project.outputs())
    assert outputs[0] == outputs[1] == outputs[2]
    fault(
        "disk and memory",
        "times of files in 1970 or in the year 3000",
        "Nothing: they decide nothing. Same bytes; shards are hashed once more, and not made again.",
    )


def test_a_jumping_clock_changes_no_byte(tmp_path, drop, monkeypatch, fault):
    outputs = []
    jumps = itertools.cycle([FAR_FUTURE, FAR_PAST])
    for name in ("steady", "jumping"):
        project = Project(tmp_path / name)
        project.add(drop)
        project.ingest()
        outputs.append(project.outputs())
        monkeypatch.setattr(time, "time", lambda: next(jumps))
        monkeypatch.setattr(time, "time_ns", lambda: 10**9 * next(jumps))
    assert outputs[0] == outputs[1]
    fault("disk and memory", "the system's clock jumps", "Nothing: no result and no progress depends on it.")


def test_speed_and_time_left_come_from_a_clock_that_cannot_jump(monkeypatch):
    now = iter(range(100))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(now)))
    monkeypatch.setattr(time, "time", lambda: pytest.fail("the wall clock was asked"))
    work = Phase("stage", "phase", "images")
    work.update(10, 100)
    work.update(30, 100)
    assert work.rate == 20 and work.seconds_left == pytest.approx(3.5)
