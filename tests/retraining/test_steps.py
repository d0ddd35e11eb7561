"""The error of a step that failed, and whether it is retried."""

from __future__ import annotations

import json

import pytest

from csdn.retraining.steps import CommandFailed, failed, missing_outs
from csdn.runtime.errors import Diverged, ServiceUnavailable, is_unavailable
from csdn.runtime.process import run_stage
from flows.tasks import service_was_unavailable

REPRODUCED = "ERROR: failed to reproduce 'ingest': failed to run: exec python -m stages.ingest, exited with "


class State:
    def __init__(self, data):
        self.data = data


@pytest.mark.parametrize(
    ("lines", "says", "away"),
    [
        (
            ["reading", "error: no image", "look there", f"{REPRODUCED}1"],
            "ingest: no image\nlook there",
            False,
        ),
        (["error: the store does not answer", f"{REPRODUCED}75"], "ingest: the store does not answer", True),
        (["ERROR: Unable to acquire lock"], "ingest: dvc ended with exit code 255:\nERROR: Unable", False),
        (
            ["ERROR: unexpected error - Could not connect to the endpoint URL: 'http://store'"],
            "ingest: dvc ended with exit code 255:\nERROR: unexpected error",
            True,
        ),
    ],
)
def test_the_error_is_the_step_s_own_message(lines, says, away):
    error = failed("ingest", CommandFailed(["dvc"], 255, lines))
    assert str(error).startswith(says) and "failed to reproduce" not in str(error)
    assert is_unavailable(error) == service_was_unavailable(None, None, State(error)) == away


def test_csdn_gate_reports_unavailability_by_its_exit_code():
    assert isinstance(failed("gate", CommandFailed(["csdn"], 75, ["error: no answer"])), ServiceUnavailable)


def test_a_stage_reports_divergence_by_its_exit_code(monkeypatch):
    """The retraining, which started it through DVC, then rejects the run."""

    def stage():
        raise Diverged("step 7")

    monkeypatch.setattr(
        "csdn.runtime.process.set_parent_death_signal", lambda: None
    )  # this process is no stage
    with pytest.raises(SystemExit) as ended:
        run_stage(stage, "embedding")
    error = failed(
        "embedding", CommandFailed(["dvc"], 255, ["error: step 7", f"{REPRODUCED}{ended.value.code}"])
    )
    assert isinstance(error, Diverged) and str(error) == "embedding: step 7" and not is_unavailable(error)
    for code in (1, 75):
        assert not isinstance(failed("x", CommandFailed(["dvc"], 255, [f"{REPRODUCED}{code}"])), Diverged)


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
