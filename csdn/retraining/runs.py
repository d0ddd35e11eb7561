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

from csdn.champion import CHAMPION, read_champion, write_champion
from csdn.data.drops import LEDGER, Drop, Status, parse_ledger, write_ledger
from csdn.errors import UserError
from csdn.presets import set_value
from csdn.retraining import dvc_files
from csdn.retraining.champions import fetch_champion
from csdn.retraining.git import ORIGIN, commit, commit_of, contains, file_at, git
from csdn.retraining.lock import RUNS
from csdn.retraining.mainline import branch_of, check_clean, up_to_date
from csdn.retraining.overrides import allowed, check_overrides

RESULTS = ("dvc.lock", "metrics", "params.yaml", str(LEDGER), CHAMPION)
BEGIN, READY, REFUSE, PROMOTE = "begin", "ready", "refuse", "promote"
ROLLBACK = "rollback"


class Decided(UserError):
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
        there = [path for path in RESULTS if (self.folder / path).exists()]
        git(self.folder, "add", "--force", "--", *there)
        if not decision and not git(self.folder, "diff", "--cached", "--name-only"):
            return self.tip
        return commit(self.folder, as_message(f"Run {self.id}: {message}", self.id, decision, body), there)

    def forget(self) -> None:
        """Remove the working tree; the branch, the commits and DVC's cache stay."""
        _remove_tree(self)


def branch_name(identifier: str) -> str:
    return f"run/{identifier}"


def as_message(subject: str, run: str = "", decision: str = "", body: str = "") -> str:
    """A commit's message; its last lines say which run it is of and what was decided."""
    lines = {"Csdn-Run": run, "Csdn-Decision": decision}
    trailers = "\n".join(f"{key}: {value}" for key, value in lines.items() if value)
    return "\n\n".join(part for part in (subject, body, trailers) if part)


def trailer(name: str) -> str:
    """What makes git print the value of one of `as_message`'s last lines."""
    return f"%(trailers:key=Csdn-{name},valueonly,separator=)"


def decision_of(folder: Path, revision: str) -> str:
    """What a commit of a run decided; empty for any other."""
    return git(folder, "show", "--no-patch", f"--format={trailer('Decision')}", revision)


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
    drops = ledger_change(adopted(_ledger_at(workspace, base), refused_ledgers(workspace)))
    digits = _digits(base, drops, values)
    known = next((name for name in run_tips(workspace) if name.endswith(digits)), None)
    if known is None or not _begun(workspace, known):
        run = Run(known or f"{datetime.now(UTC):%Y%m%d}-{digits}", workspace, base)
        _make(run, drops, values)
        return open_run(workspace, run.id)
    _check_undecided(workspace, known)
    return open_run(workspace, known)


def open_run(workspace: str | Path, identifier: str) -> Run:
    """A run that has begun, with its working tree, which is made again where it is gone. Raises UserError."""
    workspace = Path(workspace).resolve()
    tip = run_tips(workspace).get(identifier)
    first = _begun(workspace, identifier) if tip else None
    if first is None:
        raise UserError(f"no run is called {identifier!r}; `csdn history` lists them")
    base = git(workspace, "rev-parse", f"{first}^")
    before = {drop.id for drop in _ledger_at(workspace, base)}
    new = [drop for drop in _ledger_at(workspace, first) if drop.id not in before]
    run = Run(identifier, workspace, base, tuple(drop for drop in new if drop.status is Status.ACCEPTED))
    if commit_of(workspace, f"refs/heads/{run.branch}") is None:
        git(workspace, "branch", "--no-track", run.branch, tip)
    if not (run.folder / ".git").exists():
        _remove_tree(run)
        git(workspace, "worktree", "add", "--quiet", str(run.folder), run.branch)
        dvc_files.share(workspace, run.folder)
        dvc_files.bring_all(run.folder)
    dvc_files.share(workspace, run.folder)
    _bring_champion(run)
    return run


def adopted(ledger: Sequence[Drop], refused: Sequence[Sequence[Drop]]) -> list[Drop]:
    """main's ledger, then what the ledgers of refused runs have held beyond it, each drop once.

    A drop that main's ledger has stays as it is there: a person may have accepted it since.
    """
    drops = {drop.id: drop for drop in ledger}
    for drop in (drop for other in refused for drop in other):
        if drop.status is Status.HELD:
            drops.setdefault(drop.id, drop)
    return list(drops.values())


def refused_ledgers(workspace: Path) -> list[list[Drop]]:
    """Ledgers of the runs that the gate refused, oldest run first."""
    tips = sorted(run_tips(workspace).items())
    return [_ledger_at(workspace, tip) for _, tip in tips if decision_of(workspace, tip) == REFUSE]


def run_tips(workspace: Path) -> dict[str, str]:
    """{run's id: newest commit} of the runs' branches, here and at `origin`."""
    tips: dict[str, str] = {}
    for place in ("refs/heads", f"refs/remotes/{ORIGIN}"):
        listed = git(workspace, "for-each-ref", "--format=%(objectname) %(refname)", f"{place}/run/")
        for line in listed.splitlines():
            tip, _, name = line.partition(" ")
            here = tips.setdefault(name.rpartition("/")[2], tip)
            if contains(workspace, tip, here):
                tips[name.rpartition("/")[2]] = tip
    return tips


def _digits(base: str, drops: Sequence[Drop], values: Mapping[str, Any]) -> str:
    ledger = [asdict(drop) for drop in drops]
    text = json.dumps({"base": base, "ledger": ledger, "overrides": dict(values)}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _ledger_at(workspace: Path, revision: str) -> list[Drop]:
    return parse_ledger(
        file_at(workspace, revision, str(LEDGER)) or b"", f"{LEDGER} in commit {revision[:12]}"
    )


def _begun(workspace: Path, identifier: str) -> str | None:
    """The commit with which a run began; None where a kill came before it."""
    form = f"--format=%H {trailer('Run')} {trailer('Decision')}"
    log = git(workspace, "log", form, run_tips(workspace)[identifier]).splitlines()
    found = (line.split(" ") for line in log)
    return next((first for first, *said in found if said == [identifier, BEGIN]), None)


def _check_undecided(workspace: Path, identifier: str) -> None:
    decision = decision_of(workspace, run_tips(workspace)[identifier])
    if decision == REFUSE:
        raise Decided(f"run {identifier} had the same data and parameters, and the gate refused it")
    if decision == READY:
        raise Decided(f"run {identifier} had the same data and parameters; `csdn promote {identifier}`")


def _make(run: Run, drops: Sequence[Drop], values: Mapping[str, Any]) -> None:
    """The working tree up to its first commit; what a kill left before that is made anew."""
    _remove_tree(run)
    git(run.workspace, "worktree", "add", "--quiet", "-B", run.branch, str(run.folder), run.base)
    dvc_files.share(run.workspace, run.folder)
    dvc_files.bring_all(run.folder)
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
