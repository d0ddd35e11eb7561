"""The error of a step that failed, and whether it is retried."""

from __future__ import annotations

import json
import sys

import pytest

from csdn.retraining import steps
from csdn.retraining.dvc import dvc
from csdn.retraining.run import Steps
from csdn.retraining.steps import StepFailed, missing_outs, repro
from csdn.runtime.errors import Diverged, ServiceUnavailable, UserError
from flows.tasks import service_was_unavailable


class State:
    def __init__(self, data):
        self.data = data


@pytest.fixture
def stage(tmp_path):
    """stage(code): a project whose stage `ingest` runs code in a stage's `main`."""

    def made(code):
        (tmp_path / "work.py").write_text(
            "from csdn.runtime import errors\n"
            "from csdn.runtime.console import stage\n"
            "from csdn.runtime.process import run_stage\n"
            "def main():\n"
            "    with stage('ingest') as progress, progress('p', 'steps') as report:\n"
            f"        {code}\n"
            "run_stage(main, 'embedding')\n"
        )
        command = {"ingest": {"cmd": f"exec {sys.executable} work.py"}}
        (tmp_path / "dvc.yaml").write_text(json.dumps({"stages": command}))
        assert dvc(tmp_path, "init", "--no-scm", "--quiet").returncode == 0
        return tmp_path

    return made


@pytest.mark.parametrize(
    ("name", "kinds"),
    [("UserError", ()), ("ServiceUnavailable", (ServiceUnavailable,)), ("Diverged", (Diverged,))],
)
def test_the_error_of_a_step_is_the_stage_s_own(stage, name, kinds):
    log = []
    with pytest.raises(StepFailed) as failure:
        repro("ingest", stage(f"raise errors.{name}('no image\\nlook there')"), log.append)
    assert str(failure.value) == "ingest: no image\nlook there"
    of = [kind for kind in (ServiceUnavailable, Diverged) if isinstance(failure.value, kind)]
    assert tuple(of) == kinds
    assert service_was_unavailable(None, None, State(failure.value)) == (name == "ServiceUnavailable")
    begin = log.index("error: no image")
    assert log[begin + 1] == "look there"


def test_events_are_logged_as_text_and_passed_on(stage):
    log, events = [], []
    folder = stage("report(3, 10, {'loss': 2.5}); print('done')")
    repro("ingest", folder, log.append, None, events.append)
    assert "p: 3/10 steps  loss 2.5" in log and "done" in log
    assert not [line for line in log if line.startswith("{")]
    assert [(one["event"], one["phase"]) for one in events[:3]] == [
        ("start", None),
        ("start", "p"),
        ("progress", "p"),
    ]


def test_a_retraining_that_logs_json_passes_events_on_as_they_are(stage, monkeypatch):
    monkeypatch.setenv("CSDN_LOG", "json")
    log = []
    repro("ingest", stage("pass"), log.append)
    assert [json.loads(line)["event"] for line in log if line.startswith("{")] == [
        *("start", "start", "end", "end")
    ]


def test_csdn_retrain_prints_events_in_json_on_standard_error_and_text_on_standard_output(
    stage, monkeypatch, capsys
):
    monkeypatch.setenv("CSDN_LOG", "json")
    Steps().ingest(stage("report(3, 10); print('done')"))
    shown = capsys.readouterr()
    assert [json.loads(line)["event"] for line in shown.err.splitlines()] == [
        *("start", "start", "progress", "end", "end")
    ]
    assert "done" in shown.out.splitlines() and "{" not in shown.out


def test_an_error_of_dvc_is_its_last_lines(stage):
    with pytest.raises(StepFailed, match=r"^nothing: .*exit code 255") as failure:
        repro("nothing", stage("pass"), print)
    assert not service_was_unavailable(None, None, State(failure.value))


@pytest.mark.parametrize("transfer", ["pull", "push"])
def test_a_failed_pull_or_push_is_retried(stage, transfer):
    folder = stage("pass")
    outs = {"ingest": {"cmd": "true", "outs": [{"path": "a", "hash": "md5", "md5": "0" * 32, "size": 1}]}}
    (folder / "dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": outs}))
    with pytest.raises(UserError, match=f"^{transfer}: ") as failure:
        getattr(steps, transfer)(folder, "nowhere", print)
    assert service_was_unavailable(None, None, State(failure.value))


@pytest.mark.parametrize("data", [None, KeyError("a defect"), {"a": "value"}])
def test_other_failures_of_a_task_are_not_retried(data):
    assert not service_was_unavailable(None, None, State(data))


def test_only_outs_that_are_not_there_are_missing(tmp_path):
    assert missing_outs(tmp_path) == []
    stages = {
        "one": {"cmd": "true", "outs": [{"path": "b"}, {"path": "a"}]},
        "two": {"cmd": "true"},
    }
    (tmp_path / "dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": stages}))
    (tmp_path / "b").mkdir()
    assert missing_outs(tmp_path) == ["a"]
