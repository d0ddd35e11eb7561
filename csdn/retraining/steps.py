"""The steps of a run, each a process: DVC with one stage or with a remote, and the gate.

The output of a step is logged line by line. If the caller ends early, for example as its flow run is
cancelled, the step's process group is ended; if the caller is killed, Linux kills the step
(csdn.retraining.guard).
"""

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

STAGES = ("ingest", "prompts", "embedding", "evaluate", "report")
# Run in a working tree this uses the tree's own code, as the stages do.
CSDN = (sys.executable, "-c", "from csdn.cli.main import main; main()")
GUARD = Path(__file__).with_name("guard.py")
LAST_LINES = 15  # of a failed command, shown in its error
GRACE_SECONDS = 5.0  # between SIGTERM and SIGKILL
# Messages of botocore, which DVC's S3 client uses, if the object store does not respond.
UNAVAILABLE = (
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
    """A step failed because an object store or a remote did not respond."""


class StepDiverged(StepFailed, Diverged):
    """A step failed because training diverged: the run has no model."""


def repro(stage: str, folder: Path, log: Log, environment: Environment | None = None) -> None:
    """Bring one stage of dvc.yaml up to date. Raises StepFailed."""
    _run(stage, [*DVC, "repro", "--single-item", stage], folder, log, environment)


def gate(folder: Path, log: Log, environment: Environment | None = None) -> None:
    """Compare the run's model with the champion and write metrics/gate.json. Raises StepFailed."""
    _run("gate", [*CSDN, "gate"], folder, log, environment)


def pull(folder: Path, remote: str, log: Log) -> None:
    """Pull what dvc.lock names and the folder lacks; the stages make what the remote lacks too.

    Existing files are not changed. Raises StepFailed.
    """
    if missing := missing_outs(folder):
        _run("pull", [*DVC, "pull", "--allow-missing", "--remote", remote, *missing], folder, log)


def push(folder: Path, remote: str, log: Log) -> None:
    """Push what dvc.lock names to the remote. Raises StepFailed."""
    _run("push", [*DVC, "push", "--remote", remote], folder, log)


def missing_outs(folder: Path) -> list[str]:
    """The outs of dvc.lock that the folder lacks, sorted; none before the first run."""
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
    """The error of a step: its own message without DVC's, or all its last lines if it has none."""
    lines = failure.lines
    begin = next((n for n, line in enumerate(lines) if line.startswith("error: ")), None)
    own = [line for line in lines[begin or 0 :] if not line.startswith("ERROR: failed to reproduce")]
    message = str(failure) if begin is None else "\n".join(own).removeprefix("error: ")
    output = "\n".join([str(failure), *lines])
    if any(text in output for text in (*_exit_messages(EX_TEMPFAIL), *UNAVAILABLE)):
        return StepUnavailable(f"{name}: {message}")
    diverged = any(text in output for text in _exit_messages(EX_DATAERR))
    return (StepDiverged if diverged else StepFailed)(f"{name}: {message}")


def _exit_messages(code: int) -> tuple[str, str]:
    """How DVC, and CommandFailed, report an exit code."""
    return f"exited with {code}", f"exit code {code}"


class CommandFailed(RuntimeError):
    """A command ended with a non-zero code; the message ends with its last lines, which are `lines`."""

    def __init__(self, command: Sequence[str], code: int, lines: Sequence[str]) -> None:
        reason = f"exit code {code}" if code > 0 else signal.Signals(-code).name
        super().__init__("\n".join([f"{' '.join(command)} ended with {reason}:", *lines]))
        self.lines = list(lines)


def run(command: Sequence[str], folder: Path, log: Log, environment: Environment | None = None) -> None:
    """Run `command` in `folder` and pass each line of its output (both streams) to `log` as it comes.

    environment: variables added to this process's. The command gets a process group of its own, which is
    ended if this call is interrupted. Raises CommandFailed.
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
    except BaseException:  # Prefect raises one to cancel a run
        end_group(process)
        raise
    if code:
        raise CommandFailed(command, code, last)


def end_group(process: subprocess.Popen[str]) -> None:
    """End the process group that `process` leads: SIGTERM, and after GRACE_SECONDS SIGKILL for the rest."""
    _signal(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_SECONDS)
    _signal(process.pid, signal.SIGKILL)
    process.wait()


def _signal(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)
