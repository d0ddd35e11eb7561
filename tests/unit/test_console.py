"""Progress: a log has the first and last state and few lines between; a terminal one line for each phase."""

import io
import json
import os
import pty
import re
import subprocess
import sys
from datetime import datetime

import pytest
from rich.console import Console

from csdn.runtime import console
from csdn.runtime.console import TIMES, Phase, read_times


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The current folder is empty; CSDN_LOG is not set."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CSDN_LOG", raising=False)


@pytest.fixture
def clock(monkeypatch):
    """A clock that advances by a second at each reading."""
    seconds = iter(range(100_000))
    monkeypatch.setattr(console.time, "monotonic", lambda: float(next(seconds)))


def test_a_short_phase_shows_its_result(capsys):
    with console.progress("ingest", "ingest", "images") as report:
        for done in range(1, 1001):
            report(done, 1000, {"loss": done / 1000})
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 2
    assert shown[0].startswith("ingest: 1/1000 images")
    assert re.fullmatch(r"ingest: 1000/1000 images in 0\.\d s, \d+ images/s  loss 1", shown[1])


def test_a_long_phase_shows_a_line_every_ten_seconds(capsys, clock):
    with console.progress("embedding", "embedding", "steps", images=48) as report:
        for done in range(1, 101):
            report(done, 100)
    shown = capsys.readouterr().err.splitlines()
    assert 10 <= len(shown) <= 40
    assert "images/s" in shown[1] and "3:08 left" in shown[1]


def test_a_phase_without_work_shows_nothing(capsys):
    with console.progress("ingest", "ingest", "images"):
        pass
    assert capsys.readouterr().err == ""


def test_a_stopped_phase_shows_how_far_it_got(capsys):
    with pytest.raises(KeyboardInterrupt), console.progress("s", "embedding", "steps") as report:
        report(3, 10, {"loss": 2.5})
        raise KeyboardInterrupt
    assert capsys.readouterr().err.splitlines()[-1] == "embedding: stopped at 3/10 steps  loss 2.5"


def test_rate_and_time_left_exclude_what_was_done_before_a_resume(monkeypatch):
    work = Phase("embedding", "embedding", "steps", images=48, started=0)
    for now, done in ((10, 500), (12, 504)):
        monkeypatch.setattr(console.time, "monotonic", lambda now=now: now)
        work.update(done, 1000)
    assert (work.rate, work.images_per_second, work.seconds_left) == (2, 96, 248)
    assert (work.speed_text(), work.left_text()) == ("96 images/s", "4:08 left")


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_note_is_shown_at_once_even_before_anything_is_done(capsys, monkeypatch, form):
    if form == "json":
        monkeypatch.setenv("CSDN_LOG", "json")
    with console.progress("embedding", "training", "steps") as report:
        report(0, None, None, "lost worker 1")
        first = capsys.readouterr().err.splitlines()[-1]
        report(3, 10)
        report(0, None, None, "lost worker 0")
        report(2, 10)
        second = capsys.readouterr().err.splitlines()
    if form == "json":
        note = json.loads(first)
        assert (note["event"], note["phase"], note["text"]) == ("note", "training", "lost worker 1")
    else:
        assert first == "training: lost worker 1"
    assert ["lost worker 0" in line for line in second] == [False, True, False]
    assert re.search(r'2/10 steps|"done": 2,', second[2]), "where it is after a loss is not held back"


def test_a_note_in_a_terminal_stays_above_the_live_line():
    shown = io.StringIO()
    view = console.Terminal()
    view.console = Console(file=shown, force_terminal=True, width=60, highlight=False)
    work = Phase("embedding", "training", "steps", done=3, total=10)
    view.start(work)
    view.note(work, "lost worker 1: back to the last checkpoint")
    view.end(work, None)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.getvalue()).replace("\r", "\n").splitlines()
    assert "  training     lost worker 1: back to the last checkpoint" in [line.rstrip() for line in lines]


def json_lines(text):
    return [json.loads(line) for line in text.splitlines()]


def test_every_line_of_the_json_log_is_an_event(capsys, monkeypatch, clock):
    monkeypatch.setenv("CSDN_LOG", "json")
    with console.stage("embedding") as progress, progress("training", "steps", images=48) as report:
        for done in range(1, 21):
            report(done, 20, {"loss": 1 / done, "nothing": float("nan")})
    found = json_lines(capsys.readouterr().err)
    kinds = [(line["event"], line["stage"], line["phase"]) for line in found]
    assert kinds[:2] == [("start", "embedding", None), ("start", "embedding", "training")]
    assert kinds[-2:] == [("end", "embedding", "training"), ("end", "embedding", None)]
    assert set(kinds[2:-2]) == {("progress", "embedding", "training")}
    for line in found:
        assert datetime.fromisoformat(line["time"]).utcoffset().total_seconds() == 0
    ended = found[-2]
    assert (ended["done"], ended["total"], ended["unit"], ended["error"]) == (20, 20, "steps", None)
    assert ended["images_per_second"] == pytest.approx(48 * ended["rate"], rel=1e-5)
    assert ended["values"] == {"loss": 0.05, "nothing": None}


def test_the_json_log_has_the_class_of_the_error_and_not_its_message(capsys, monkeypatch):
    monkeypatch.setenv("CSDN_LOG", "json")
    with (
        pytest.raises(ValueError),
        console.stage("ingest") as progress,
        progress("ingest", "images") as report,
    ):
        report(1, 2)
        raise ValueError("/home/ana/secret")
    text = capsys.readouterr().err
    assert [line["error"] for line in json_lines(text)[-2:]] == ["ValueError", "ValueError"]
    assert "/home" not in text


def test_only_a_successful_stage_records_its_time():
    with console.stage("prompts"):
        pass
    with pytest.raises(ValueError), console.stage("ingest"):
        raise ValueError
    assert list(read_times()) == ["prompts"]
    TIMES.write_text("[1")
    assert read_times() == {}


LONG = Phase("embedding", "integration", "images", 1, 1_234_567, 3_400_000, {"loss": 12.345678}, 123.4, 0)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_line_is_wider_than_the_terminal(width):
    screen = Console(width=width, force_terminal=True, color_system=None)
    with screen.capture() as capture:
        for work in (LONG, Phase("s", "embedding", "steps")):
            screen.print(console.LiveLine(work))
    shown = capture.get().splitlines()
    assert len(shown) == 2
    assert all(len(line) < width for line in shown)
    assert width < 80 or "left" in shown[0]


PHASES = """
from csdn.runtime.console import stage
with stage("prompts") as progress:
    for phase, unit in (("embed", "images"), ("prompts", "steps")):
        with progress(phase, unit, images=1) as report:
            for done in range(1, 31):
                report(done, 30, {"loss": 3 / done})
    with progress("integration", "steps") as report:
        report(5, 30)
        raise SystemExit
"""


def test_in_a_terminal_each_phase_leaves_one_line():
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    subprocess.run([sys.executable, "-c", PHASES], stderr=slave, env=environment, check=True)
    os.close(slave)
    text = os.read(master, 100_000).decode()
    os.close(master)
    # A row shows what was written to it after it was last erased.
    rows = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", row.rpartition("\x1b[2K")[2]) for row in text.split("\n")]
    left = [" ".join(row.split()) for row in rows if row.strip()]
    assert [row.split(" in ")[0][:20] for row in left if row[0] in "✓✗"] == [
        "✓ embed 30 images 0.",
        "✓ prompts 30 steps 0",
        "✗ integration stoppe",
    ]
    assert left[1].endswith("loss 0.1")
