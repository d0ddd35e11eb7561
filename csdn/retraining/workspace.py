"""A retraining run: a working tree and a branch of its own, so that nobody's files are touched.

    .runs/<id>/     the run's working tree, with the workspace's cache and remotes
    run/<id>        its branch: a commit when it begins, one with its results, one for each decision
    <id>            <YYYYMMDD>-<8 hex>: the hex is the SHA-256 of what decides the result

The same run, found unfinished, is continued where it is.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from csdn.cli.presets import set_value
from csdn.ingest.ledger import LEDGER, Drop, Status, write_ledger
from csdn.retraining import dvc
from csdn.retraining.branches import (
    BEGIN,
    READY,
    REFUSE,
    adopted,
    as_message,
    branch_name,
    decision_of,
    first_commit,
    ledger_at,
    refused_ledgers,
    run_tips,
)
from csdn.retraining.champions import fetch_champion
from csdn.retraining.git import anything_staged, commit, commit_of, file_at, git, set_refs, stage_files
from csdn.retraining.lock import RUNS
from csdn.retraining.mainline import branch_of, check_clean, up_to_date
from csdn.retraining.overrides import allowed, check_overrides
from csdn.runtime.errors import UserError
from csdn.training.champion import CHAMPION, read_champion, write_champion

RESULTS = ("dvc.lock", "metrics", "params.yaml", str(LEDGER), CHAMPION)


class AlreadyDecided(UserError):
    """There is nothing to run: the same data and parameters have had their run, and its decision."""


@dataclass(frozen=True)
class Run:
    """A run in its working tree. `base`: the commit it began on; `new_drops`: accepted ones, new with it."""

    id: str
    workspace: Path
    base: str
    new_drops: tuple[Drop, ...] = ()

    @property
    def folder(self) -> Path:
        """Its working tree."""
        return self.workspace / RUNS / self.id

    @property
    def branch(self) -> str:
        return branch_name(self.id)

    @property
    def tip(self) -> str:
        """The newest commit of its branch."""
        return git(self.workspace, "rev-parse", f"refs/heads/{self.branch}")

    def commit(self, message: str, decision: str = "", body: str = "") -> str:
        """Commit the results as they are now; returns the branch's newest commit.

        Without a decision nothing is committed where nothing has changed.
        """
        stage_files(self.folder, RESULTS)
        if not decision and not anything_staged(self.folder):
            return self.tip
        return commit(self.folder, as_message(f"Run {self.id}: {message}", self.id, decision, body))

    def forget(self) -> None:
        """Remove the working tree; the branch, the commits and DVC's cache stay."""
        _remove_tree(self)


def begin(
    workspace: str | Path,
    ledger_change: Callable[[list[Drop]], list[Drop]],
    overrides: Mapping[str, Any] | None = None,
) -> Run:
    """Begin a run on the newest main, or continue the same one; the caller holds the workspace's lock.

    ledger_change: main's ledger, with the drops that refused runs have held, -> the run's ledger.
    overrides: nested or dotted keys of params.yaml with their values for this run.
    Raises UserError before anything is made: changed files, wrong overrides, branches that have parted;
    Decided where the same run has had its decision.
    """
    workspace = Path(workspace).resolve()
    branch = branch_of(workspace)
    allowed(overrides or {})
    check_clean(workspace, branch)
    base = up_to_date(workspace, branch)
    values = check_overrides(overrides or {}, file_at(workspace, base, "params.yaml") or "")
    drops = ledger_change(adopted(ledger_at(workspace, base), refused_ledgers(workspace)))
    digits = _digits(base, drops, values)
    known = next((name for name in run_tips(workspace) if name.endswith(digits)), None)
    if known is None or not first_commit(workspace, known):
        run = Run(known or f"{datetime.now(UTC):%Y%m%d}-{digits}", workspace, base)
        _make(run, drops, values)
        return open_run(workspace, run.id)
    _check_undecided(workspace, known)
    return open_run(workspace, known)


def open_run(workspace: str | Path, identifier: str) -> Run:
    """A run that has begun, with its working tree, which is made again where it is gone. Raises UserError."""
    workspace = Path(workspace).resolve()
    tip = run_tips(workspace).get(identifier)
    first = first_commit(workspace, identifier) if tip else None
    if first is None:
        raise UserError(f"no run is called {identifier!r}; `csdn history` lists them")
    base = git(workspace, "rev-parse", f"{first}^")
    before = {drop.id for drop in ledger_at(workspace, base)}
    new = [drop for drop in ledger_at(workspace, first) if drop.id not in before]
    run = Run(identifier, workspace, base, tuple(drop for drop in new if drop.status is Status.ACCEPTED))
    if commit_of(workspace, f"refs/heads/{run.branch}") is None:
        set_refs(workspace, {f"refs/heads/{run.branch}": tip})
    gone = not (run.folder / ".git").exists()
    if gone:
        _remove_tree(run)
        git(workspace, "worktree", "add", "--quiet", str(run.folder), run.branch)
    dvc.link_cache(workspace, run.folder)
    if gone:
        dvc.pull_available(run.folder)
    _bring_champion(run)
    return run


def _digits(base: str, drops: Sequence[Drop], values: Mapping[str, Any]) -> str:
    ledger = [asdict(drop) for drop in drops]
    text = json.dumps({"base": base, "ledger": ledger, "overrides": dict(values)}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _check_undecided(workspace: Path, identifier: str) -> None:
    decision = decision_of(workspace, run_tips(workspace)[identifier])
    if decision == REFUSE:
        raise AlreadyDecided(f"run {identifier} had the same data and parameters, and the gate refused it")
    if decision == READY:
        raise AlreadyDecided(
            f"run {identifier} had the same data and parameters; `csdn promote {identifier}`"
        )


def _make(run: Run, drops: Sequence[Drop], values: Mapping[str, Any]) -> None:
    """The working tree up to its first commit; what a kill left before that is made anew."""
    _remove_tree(run)
    git(
        run.workspace, "worktree", "add", "--quiet", "--no-track", "-B", run.branch, str(run.folder), run.base
    )
    dvc.link_cache(run.workspace, run.folder)
    dvc.pull_available(run.folder)
    for key, value in values.items():
        set_value(run.folder / "params.yaml", key, value)
    write_ledger(drops, run.folder / LEDGER)
    file = read_champion(run.folder)
    start = file.champion and file.champion.as_start()
    write_champion(file.model_copy(update={"start": start}), run.folder)
    _bring_champion(run)
    run.commit("begin", BEGIN)


def _bring_champion(run: Run) -> None:
    start = read_champion(run.folder).start
    if start is not None:
        fetch_champion(run.folder, start.version, run.folder / "champion")


def _remove_tree(run: Run) -> None:
    if run.folder.exists():
        shutil.rmtree(run.folder)
    git(run.workspace, "worktree", "prune")
