"""The steps of a run, each a process: DVC with one stage or with a remote, and the gate.

A stage logs JSON events (csdn.runtime.console), from which readable lines and the step's error are made; the
lines of other programs, such as DVC, are logged as they are. If the caller ends early, for example as its
flow run is cancelled, the step's process group is ended; if the caller is killed, Linux kills the step.
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
from typing import Any

from csdn.retraining import dvc
from csdn.retraining.dvc import DVC
from csdn.retraining.handover import checkpoints_of_run, share
from csdn.runtime.console import Event, parse_event, text_line, wants_json
from csdn.runtime.documents import expected_in, read_yaml
from csdn.runtime.errors import Diverged, ServiceUnavailable, UserError
from csdn.runtime.process import with_parent
from csdn.runtime.sanitize import escape_control_chars, redact_text

STAGES = ("ingest", "prompts", "embedding", "evaluate", "report")
# Run in a working tree this uses the tree's own code, as the stages do.
CSDN = (sys.executable, "-c", "from csdn.cli.main import main; main()")
# Lines in which DVC tells a person what to do next; a run commits and pushes by itself.
DVC_HINTS = (
    *("To track the changes with git, run:", "git add ", "To enable auto staging, run:"),
    *("dvc config core.autostage true", "Use `dvc push` to send your updates to remote storage."),
)
LAST_LINES = 15  # of a failed command, shown in its error
GRACE_SECONDS = 5.0  # between SIGTERM and SIGKILL

Log = Callable[[str], None]
OnEvent = Callable[[Event], None]
Environment = Mapping[str, str]


class StepFailed(UserError):
    """A step of a run failed; the message is the step's own."""


class StepUnavailable(StepFailed, ServiceUnavailable):
    """A step failed because an object store or a remote did not respond; it may be retried."""


class StepDiverged(StepFailed, Diverged):
    """A step failed because training diverged: the run has no model."""


KINDS = {"unavailable": StepUnavailable, "diverged": StepDiverged}  # of an error event


def repro(
    stage: str,
    folder: Path,
    log: Log,
    environment: Environment | None = None,
    on_event: OnEvent | None = None,
) -> None:
    """Bring one stage of dvc.yaml up to date; on_event: called with its events. Raises StepFailed.

    In a run's working tree another machine can go on from there (csdn.retraining.handover).
    """
    environment = {**(environment or {}), **checkpoints_of_run(folder)}
    _run(stage, [*DVC, "repro", "--single-item", stage], folder, log, environment, on_event)
    share(stage, folder, log)


def gate(folder: Path, log: Log, environment: Environment | None = None) -> None:
    """Compare the run's model with the champion and write metrics/gate.json. Raises StepFailed."""
    _run("gate", [*CSDN, "gate"], folder, log, environment)


def pull(folder: Path, remote: str, log: Log) -> None:
    """Pull what dvc.lock names and the folder lacks; the stages make what the remote lacks too.

    Existing files are not changed. Raises StepUnavailable: DVC does not say why, so it may be retried.
    """
    if missing := missing_outs(folder):
        command = [*DVC, "pull", "--allow-missing", "--remote", remote, *missing]
        _run("pull", command, folder, log, failed=StepUnavailable)


def push(folder: Path, remote: str, log: Log) -> None:
    """Push what dvc.lock names to the remote. Raises StepUnavailable, as `pull`."""
    _run("push", [*DVC, "push", "--remote", remote], folder, log, failed=StepUnavailable)


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


def _run(name: str, *arguments: Any, failed: type[StepFailed] = StepFailed) -> None:
    """`run` with these arguments. Raises what its error event says, or else `failed` with the last lines."""
    try:
        run(*arguments)
    except CommandFailed as failure:
        if failure.event is None:
            raise failed(f"{name}: {failure}") from None
        error = KINDS.get(failure.event["kind"], StepFailed)
        raise error(f"{name}: {failure.event['text']}") from None


class CommandFailed(RuntimeError):
    """A command ended with a non-zero code; the message ends with its last lines. `event`: of the error."""

    def __init__(
        self, command: Sequence[str], code: int, lines: Sequence[str], event: Event | None = None
    ) -> None:
        reason = f"exit code {code}" if code > 0 else signal.Signals(-code).name
        super().__init__("\n".join([f"{' '.join(command)} ended with {reason}:", *lines]))
        self.event = event


def run(
    command: Sequence[str],
    folder: Path,
    log: Log,
    environment: Environment | None = None,
    on_event: OnEvent | None = None,
) -> None:
    """Run `command` in `folder` and pass each line of its output (both streams) to `log` as it comes.

    An event is passed to `on_event`, and to `log` as text (as JSON if this process logs JSON).
    environment: variables added to this process's. The command gets a process group of its own, which is
    ended if this call is interrupted. Raises CommandFailed.
    """
    process = subprocess.Popen(
        with_parent(*command),
        cwd=folder,
        env=dvc.environment() | {"CSDN_LOG": "json"} | dict(environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    last: deque[str] = deque(maxlen=LAST_LINES)
    error = None
    try:
        for line in process.stdout or ():
            event = parse_event(line)
            if event and on_event:
                on_event(event)
            if event and event["event"] == "error":
                error = event
            shown = text_line(event) if event and not wants_json() else line
            for text in filter(str.strip, shown.split("\n")):
                if text.strip().startswith(DVC_HINTS):
                    continue
                last.append(escape_control_chars(redact_text(text.rstrip())))
                log(last[-1])
        code = process.wait()
    except BaseException:  # Prefect raises one to cancel a run
        end_group(process)
        raise
    if code:
        raise CommandFailed(command, code, last, error)


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
