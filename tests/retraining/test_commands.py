"""A flow's command streams its lines, says why it failed, and never outlives who started it."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from csdn.retraining.steps import CommandFailed, run

ROOT = Path(__file__).parents[2]
# Tells the pid of a child that would go on for ever.
ENDLESS = "tail -f /dev/null & echo $!; wait"


def ends(pid: int) -> bool:
    """Whether a process ends within ten seconds, or has ended."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], 10)[0])
    finally:
        os.close(handle)


def test_lines_of_both_streams_arrive_in_order(tmp_path):
    lines = []
    run(["sh", "-c", "pwd; echo two >&2; echo; echo three"], tmp_path, lines.append)
    assert lines == [str(tmp_path.resolve()), "two", "three"]


def test_python_is_the_one_that_runs_the_flow(tmp_path):
    lines = []
    run(["python", "-c", "import sys; print(sys.executable)"], tmp_path, lines.append)
    assert Path(lines[0]).parent == Path(sys.executable).parent


def test_a_failure_shows_the_commands_own_last_lines(tmp_path):
    with pytest.raises(CommandFailed) as failure:
        run(["sh", "-c", "seq 100; echo params.yaml: wrong >&2; exit 3"], tmp_path, lambda line: None)
    first, *rest = str(failure.value).splitlines()
    assert "exit code 3" in first
    assert rest[-2:] == ["100", "params.yaml: wrong"]
    assert len(rest) == 15


class Cancelled(BaseException):
    """What Prefect raises into a run that is cancelled is no Exception either."""


@pytest.mark.skipif(sys.platform != "linux", reason="pidfd")
@pytest.mark.parametrize("deaf", ["", "trap '' TERM; "])
def test_an_exception_ends_the_whole_group(tmp_path, monkeypatch, deaf):
    monkeypatch.setattr("csdn.retraining.steps.GRACE_SECONDS", 0.1)
    child = []

    def cancel(line):
        child.append(int(line))
        raise Cancelled

    with pytest.raises(Cancelled):
        run(["sh", "-c", deaf + ENDLESS], tmp_path, cancel)
    assert ends(child[0])


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal")
def test_a_killed_caller_takes_the_command_with_it():
    command = ["sh", "-c", "echo $$; exec tail -f /dev/null"]
    code = f"from csdn.retraining.steps import run; run({command}, '.', print)"
    caller = subprocess.Popen([sys.executable, "-uc", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        command = int(caller.stdout.readline())
    finally:
        caller.send_signal(signal.SIGKILL)
        caller.wait()
        caller.stdout.close()
    assert ends(command)
