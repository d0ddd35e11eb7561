"""A command run for as long as its caller lives: its lines streamed, its whole group ended with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from csdn.retraining import dvc
from csdn.retraining.dvc import DVC
from csdn.runtime.documents import expected_in, read_yaml
from csdn.runtime.errors import Diverged, ServiceUnavailable, UserError
from csdn.runtime.process import EX_DATAERR, EX_TEMPFAIL
from csdn.runtime.sanitize import redact_text

GUARD = Path(__file__).with_name("guard.py")
LAST_LINES = 15  # of a failed command, shown in its error
GRACE_SECONDS = 5.0  # between SIGTERM and SIGKILL


class CommandFailed(RuntimeError):
    """A command ended with a non-zero code; the message ends with its last lines, which are `lines`."""

    def __init__(self, command: Sequence[str], code: int, lines: Sequence[str]) -> None:
        super().__init__("\n".join([f"{' '.join(command)} ended with {_reason(code)}:", *lines]))
        self.lines = list(lines)


def run(
    command: Sequence[str],
    folder: Path,
    log: Callable[[str], None],
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run `command` in `folder`, handing each line of its output (both streams) to `log` as it comes.

    environment: what is set besides what this process has.

    The command gets a process group of its own. Whatever ends this call early, a cancelled run among them,
    ends the group; and should this process be killed, Linux kills the command (csdn.retraining.guard).
    Raises CommandFailed.
    """
    process = subprocess.Popen(
        [sys.executable, "-P", str(GUARD), *command],
        cwd=folder,
        env=dvc.environment() | dict(environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    last: deque[str] = deque(maxlen=LAST_LINES)
    try:
        for line in process.stdout:
            if line.strip():
                last.append(redact_text(line.rstrip()))
                log(last[-1])
        code = process.wait()
    except BaseException:  # a cancelled run arrives as one
        end_group(process)
        raise
    if code:
        raise CommandFailed(command, code, last)


def end_group(process: subprocess.Popen[str]) -> None:
    """End the group that `process` leads: SIGTERM, and SIGKILL for all who are left when it had its time."""
    _signal(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_SECONDS)
    _signal(process.pid, signal.SIGKILL)
    process.wait()


def _signal(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def _reason(code: int) -> str:
    return f"exit code {code}" if code > 0 else signal.Signals(-code).name


# The processes of a run: DVC with a stage or a remote, and the gate; their lines are handed on at once.


STAGES = ("ingest", "prompts", "embedding", "evaluate", "report")
# The code of the folder in which it runs, as the stages are.
CSDN = (sys.executable, "-c", "from csdn.cli.main import main; main()")
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


class StepUnavailable(StepFailed, ServiceUnavailable):
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
        return StepUnavailable(f"{name}: {text}")
    diverged = any(words in said for words in _ended_with(EX_DATAERR))
    return (StepDiverged if diverged else StepFailed)(f"{name}: {text}")


def _ended_with(code: int) -> tuple[str, str]:
    """How DVC and csdn.retraining.steps say it."""
    return f"exited with {code}", f"exit code {code}"
