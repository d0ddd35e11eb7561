"""Progress: a log has the first and last state and few lines between; a terminal one line for each phase."""

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
from csdn.runtime.console import TIMES, Phase, live_line, parse_event, read_times, text_line
from csdn.runtime.errors import Diverged, ServiceUnavailable, UserError


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
    assert shown[1] == "embedding: 6/100 steps, 20 images/s, 3:46 left"  # the clock: 12 s for 5 steps


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
    assert (work.rate, work.seconds_left) == (2, 248)
    line = text_line({"event": "progress", **work.fields()})
    assert line == "embedding: 504/1000 steps, 96 images/s, 4:08 left"


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


def test_an_event_gives_the_line_of_a_text_log_and_other_lines_are_no_events(capsys, monkeypatch):
    """A retraining runs its stages with CSDN_LOG=json, and shows their events as text."""

    def shown():
        with pytest.raises(ValueError), console.stage("s") as progress, progress("p", "steps") as report:
            report(1, 3, {"loss": float("nan")})
            report(0, None, None, "lost worker 1")
            report(2, 3, {"loss": 2.5})
            raise ValueError
        console.log_error("no drop\nlook there")
        return re.sub(r"[0-9.e+]+ images/s, [0-9.]+ s left", "...", capsys.readouterr().err)

    text = shown()
    assert text == (
        "p: 1/3 steps  loss nan\np: lost worker 1\np: 2/3 steps, ...  loss 2.5\n"
        "p: stopped at 2/3 steps  loss 2.5\nerror: no drop\nlook there\n"
    )
    monkeypatch.setenv("CSDN_LOG", "json")
    lines = map(text_line, map(parse_event, shown().splitlines()))
    again = "".join(f"{line}\n" for line in lines if line)
    assert re.sub(r"[0-9.e+]+ images/s, [0-9.]+ s left", "...", again) == text
    for line in ("error: no", "{", '{"event": "x', '{"event": "other program", "time": 1}', "[1]", ""):
        assert parse_event(line) is None


@pytest.mark.parametrize(
    ("error", "kind"),
    [(UserError("x"), "error"), (Diverged("x"), "diverged"), (ServiceUnavailable("x"), "unavailable")],
)
def test_an_error_event_says_whether_another_try_may_succeed(capsys, monkeypatch, error, kind):
    monkeypatch.setenv("CSDN_LOG", "json")
    console.log_error(error)
    (event,) = json_lines(capsys.readouterr().err)
    assert (event["event"], event["kind"], event["text"]) == ("error", kind, "x")


LONG = Phase("embedding", "integration", "images", 1, 1_234_567, 3_400_000, {"loss": 12.345678}, 123.4, 0)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_line_is_wider_than_the_terminal(width):
    screen = Console(width=width, force_terminal=True, color_system=None)
    with screen.capture() as capture:
        for work in (LONG, Phase("s", "embedding", "steps")):
            screen.print(live_line(work, screen).get_renderable())
    shown = [line.rstrip() for line in capture.get().splitlines()]
    assert len(shown) == 2
    assert all(len(line) <= width for line in shown)
    assert width < 200 or "left" in shown[0]


PHASES = """
from csdn.runtime.console import stage
with stage("prompts") as progress:
    for phase, unit in (("embed", "images"), ("prompts", "steps")):
        with progress(phase, unit, images=1) as report:
            for done in range(1, 31):
                report(done, 30, {"loss": 3 / done})
    with progress("integration", "steps") as report:
        report(0, None, None, "lost worker 1")
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
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor is not hidden"
    # A row shows what was written to it after it was last erased.
    rows = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", row.rpartition("\x1b[2K")[2]) for row in text.split("\n")]
    left = [" ".join(row.replace("━", "").split()) for row in rows if row.strip()]
    ended = [row for row in left if row[0] in "✓✗"]
    assert [row.split(" in ")[0] for row in ended] == [
        "✓ embed 30/30 images",
        "✓ prompts 30/30 steps",
        ended[2],
    ]
    assert ended[1].endswith("loss 0.1")
    assert ended[2].startswith("✗ integration") and ended[2].endswith("stopped at 5/30 steps")
    assert "integration lost worker 1" in left
