"""The processes of a run: DVC with a stage or a remote, and the gate; their lines are handed on at once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from csdn.documents import expected_in, read_yaml
from csdn.errors import Away, Diverged, UserError
from csdn.process import EX_DATAERR, EX_TEMPFAIL
from csdn.retraining.commands import CommandFailed, run
from csdn.retraining.dvc_files import DVC

STAGES = ("ingest", "prompts", "embedding", "evaluate", "report")
# The code of the folder in which it runs, as the stages are.
CSDN = (sys.executable, "-c", "from csdn.cli import main; main()")
# How botocore, on which DVC's S3 is built, says that it got no answer.
SILENCE = (
    "Could not connect to the endpoint URL",
    "Connect timeout on endpoint URL",
    "Read timeout on endpoint URL",
    "Connection was closed before we received a valid response",
    "Please reduce your request rate",
    "ServiceUnavailable",
)

Log = Callable[[str], None]
Environment = Mapping[str, str]


class StepFailed(UserError):
    """A step of a run failed; the message is the step's own."""


class StepAway(StepFailed, Away):
    """It failed because a store or a remote did not answer."""


class StepDiverged(StepFailed, Diverged):
    """It failed because training diverged: the run is over, and has no model."""


def repro(stage: str, folder: Path, log: Log, environment: Environment | None = None) -> None:
    """Bring one stage of dvc.yaml up to date, if it is not. Raises StepFailed."""
    _run(stage, [*DVC, "repro", "--single-item", stage], folder, log, environment)


def gate(folder: Path, log: Log, environment: Environment | None = None) -> None:
    """Compare the run's model with the champion: metrics/gate.json. Raises StepFailed."""
    _run("gate", [*CSDN, "gate"], folder, log, environment)


def pull(folder: Path, remote: str, log: Log) -> None:
    """Bring what dvc.lock names and the folder lacks; what the remote lacks too is made by the stages.

    What is there stays as it is. Raises StepFailed.
    """
    if missing := missing_outs(folder):
        _run("pull", [*DVC, "pull", "--allow-missing", "--remote", remote, *missing], folder, log)


def push(folder: Path, remote: str, log: Log) -> None:
    """Copy what dvc.lock names to the remote, as far as it is not there. Raises StepFailed."""
    _run("push", [*DVC, "push", "--remote", remote], folder, log)


def missing_outs(folder: Path) -> list[str]:
    """Outs of dvc.lock that the folder has not, sorted; none before the first run."""
    lock = folder / "dvc.lock"
    if not lock.exists():
        return []
    advice = "`git checkout dvc.lock` brings it back"
    with expected_in(lock, advice):
        stages = read_yaml(lock, advice)["stages"]
        outs = {out["path"] for stage in stages.values() for out in stage.get("outs", ())}
    return sorted(path for path in outs if not (folder / path).exists())


def _run(
    name: str, command: Sequence[str], folder: Path, log: Log, environment: Environment | None = None
) -> None:
    try:
        run(command, folder, log, environment)
    except CommandFailed as failure:
        raise failed(name, failure) from None


def failed(name: str, failure: CommandFailed) -> StepFailed:
    """What the step said, without DVC's words around it; all its last lines where it said nothing."""
    lines = failure.lines
    begin = next((n for n, line in enumerate(lines) if line.startswith("error: ")), None)
    own = [line for line in lines[begin or 0 :] if not line.startswith("ERROR: failed to reproduce")]
    text = str(failure) if begin is None else "\n".join(own).removeprefix("error: ")
    said = "\n".join([str(failure), *lines])
    if any(words in said for words in (*_ended_with(EX_TEMPFAIL), *SILENCE)):
        return StepAway(f"{name}: {text}")
    diverged = any(words in said for words in _ended_with(EX_DATAERR))
    return (StepDiverged if diverged else StepFailed)(f"{name}: {text}")


def _ended_with(code: int) -> tuple[str, str]:
    """How DVC and csdn.retraining.commands say it."""
    return f"exited with {code}", f"exit code {code}"
