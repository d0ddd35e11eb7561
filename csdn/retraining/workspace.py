"""A retraining run: it has a working tree and a branch of its own, and leaves the workspace's files alone.

    .runs/<id>/     the run's working tree, with the workspace's cache and remotes
    run/<id>        its branch: one commit at its beginning, one with its results, one if it is promoted
    <id>            <YYYYMMDD>-<8 hex>: the hex digits are of the SHA-256 of all that decides the result

An unfinished run with the same hash is continued.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from csdn.ingest.forgotten import FORGOTTEN, read_forgotten
from csdn.ingest.ledger import LEDGER, Drop, Status, as_entry, write_ledger
from csdn.params import Params, leaves, load_params, parse_params, set_value
from csdn.retraining import branches, dvc, git
from csdn.retraining.branches import BEGIN, READY
from csdn.retraining.gate import REJECT, UNDECIDED
from csdn.retraining.lock import RUNS
from csdn.retraining.versions import fetch_champion, start_after
from csdn.runtime.documents import check_values, parse_yaml
from csdn.runtime.errors import UserError
from csdn.search.model_card import CARD
from csdn.training.champion import CHAMPION, read_champion, write_champion

# A run must not choose itself who is tested, by which rule, and where data comes from.
FORBIDDEN = (
    *("data", "gate", "retrain", "registry", "ingest.watch", "ingest.store"),
    *("evaluation.protocol", "evaluation.trials", "evaluation.mode", "evaluation.shots"),
)
GATE = "metrics/gate.json"  # if a run has it, its gate has decided
RESULTS = ("dvc.lock", "metrics", "params.yaml", str(LEDGER), CHAMPION, CARD)


class AlreadyDecided(UserError):
    """A run with the same data and parameters has been decided already."""


@dataclass(frozen=True)
class Run:
    """A run. `base`: main's commit when it began; `before`: its ledger; `drops`: the run's ledger.

    overrides: its parameters that are others than main's, by dotted keys.
    """

    id: str
    workspace: Path
    base: str
    before: tuple[Drop, ...] = ()
    drops: tuple[Drop, ...] = ()
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def other_method(self) -> tuple[str, ...]:
        """The keys of overrides that may change the model; `scaling` only says where it is trained."""
        return tuple(key for key in self.overrides if not key.startswith("scaling."))

    @property
    def new_drops(self) -> tuple[Drop, ...]:
        """The drops that came with the run and that it uses: those that are accepted."""
        known = {drop.id for drop in self.before}
        return tuple(drop for drop in self.drops if drop.status is Status.ACCEPTED and drop.id not in known)

    @property
    def held(self) -> tuple[Drop, ...]:
        """The drops that are held in the run, and not in main's ledger when it began."""
        return tuple(drop for drop in self.drops if drop.status is Status.HELD and drop not in self.before)

    @property
    def folder(self) -> Path:
        """The run's working tree."""
        return self.workspace / RUNS / self.id

    @property
    def branch(self) -> str:
        return branches.branch_name(self.id)

    @property
    def tip(self) -> str:
        """The newest commit of the run's branch."""
        return git.git(self.workspace, "rev-parse", f"refs/heads/{self.branch}")

    def commit(self, message: str, decision: str = "", body: str = "") -> str:
        """Commit the present results; returns the branch's newest commit.

        Without a decision, nothing is committed if nothing has changed.
        """
        git.stage_files(self.folder, RESULTS)
        if not decision and not git.has_staged_changes(self.folder):
            return self.tip
        return git.commit(
            self.folder, branches.commit_message(f"Run {self.id}: {message}", self.id, decision, body)
        )

    def remove_worktree(self) -> None:
        """Remove the working tree; the branch and DVC's cache stay."""
        _remove_tree(self)


def begin(
    workspace: str | Path,
    ledger_change: Callable[[list[Drop]], list[Drop]],
    overrides: Mapping[str, Any] | None = None,
) -> Run:
    """Begin a run on the newest main, or continue the same run; the caller holds the workspace's lock.

    ledger_change: maps main's ledger to the run's ledger.
    overrides: nested or dotted keys of params.yaml with their values for this run.
    Raises UserError before anything is created: for changed files, wrong overrides or diverged branches; and
    AlreadyDecided if the same run has been decided.
    """
    workspace = Path(workspace).resolve()
    branch = branches.main_branch(workspace)
    values = allowed(overrides or {})
    branches.check_clean(workspace, branch)
    base = branches.update_main(workspace, branch)
    overridden(values, git.file_at(workspace, base, "params.yaml") or "")
    drops = ledger_change(branches.ledger_at(workspace, base))
    digits = _hash_digits(workspace, base, drops, values)
    _check_not_decided(workspace, base, digits)
    last, like = branches.newest_decision(workspace, base), None
    if last and last.decision == UNDECIDED:
        like = branches.newest_tip(workspace, branches.branch_name(last.run))
    return _open_or_create(workspace, base, digits, drops, values, like)


def begin_trial(run: Run, left_out: Collection[Drop], reason: str) -> Run:
    """Begin a run like `run`, or continue it, in which some of its drops are held for a reason."""
    held = {drop.id for drop in left_out}
    drops = [
        replace(drop, status=Status.HELD, reason=reason) if drop.id in held else drop for drop in run.drops
    ]
    digits = _hash_digits(run.workspace, run.base, drops, run.overrides)
    return _open_or_create(run.workspace, run.base, digits, drops, run.overrides, run.tip)


def _open_or_create(
    workspace: Path,
    base: str,
    digits: str,
    drops: Sequence[Drop],
    values: Mapping[str, Any],
    like: str | None,
) -> Run:
    """like: a commit whose outputs are there at the beginning, instead of main's, so that no drop is read
    again that was read for them.
    """
    identifier = branches.find_run(workspace, digits) or f"{datetime.now(UTC):%Y%m%d}-{digits}"
    tip = branches.newest_tip(workspace, branches.branch_name(identifier))
    if branches.first_commit(workspace, tip, identifier) is None:
        lock = git.file_at(workspace, like or base, "dvc.lock")
        _create(Run(identifier, workspace, base), drops, values, lock)
    return open_run(workspace, identifier)


def open_run(workspace: str | Path, identifier: str) -> Run:
    """A run that has begun; its working tree is created again if it is missing. Raises UserError."""
    workspace = Path(workspace).resolve()
    tip = branches.newest_tip(workspace, branches.branch_name(identifier))
    first = branches.first_commit(workspace, tip, identifier)
    if tip is None or first is None:
        raise UserError(f"no run is called {identifier!r}; `csdn history` lists them")
    base = git.git(workspace, "rev-parse", f"{first}^")
    before, drops = (tuple(branches.ledger_at(workspace, commit)) for commit in (base, first))
    run = Run(identifier, workspace, base, before, drops, _overrides_of(workspace, base, first))
    if git.commit_of(workspace, f"refs/heads/{run.branch}") is None:
        git.set_refs(workspace, {f"refs/heads/{run.branch}": tip})
    missing = not (run.folder / ".git").exists()
    if missing:
        _remove_tree(run)
        git.git(workspace, "worktree", "add", "--quiet", str(run.folder), run.branch)
    dvc.link_cache(workspace, run.folder)
    _link_weights(run)
    if missing:
        dvc.pull_available(run.folder)
    _fetch_champion(run)
    return run


def _overrides_of(workspace: Path, base: str, first: str) -> dict[str, Any]:
    texts = (git.file_at(workspace, commit, "params.yaml") or b"" for commit in (base, first))
    then, now = (dict(leaves(parse_yaml(text, "params.yaml"))) for text in texts)
    return {key: value for key, value in now.items() if value != then.get(key)}


def _hash_digits(workspace: Path, base: str, drops: Sequence[Drop], values: Mapping[str, Any]) -> str:
    """Of main's files, but for the ledger, of the run's ledger and of the overrides.

    Not of main's commit: a decision on main changes only the ledger, or nothing.
    """
    files = git.git(workspace, "ls-tree", "-r", base).splitlines()
    tree = [line for line in files if not line.endswith(f"\t{LEDGER}")]
    ledger = [as_entry(drop) for drop in drops]
    text = json.dumps({"files": tree, "ledger": ledger, "overrides": dict(values)}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


_SAID = {REJECT: "and the gate rejected it", UNDECIDED: "and the gate could not decide"}


def _check_not_decided(workspace: Path, main: str, digits: str) -> None:
    same = "had the same data and parameters"
    if found := branches.decided(workspace, main, f"-{digits}"):
        raise AlreadyDecided(f"run {found.run} {same}, {_SAID.get(found.decision, 'and was promoted')}")
    run = branches.find_run(workspace, digits)
    tip = run and branches.newest_tip(workspace, branches.branch_name(run))
    if tip and branches.decision_of(workspace, tip) == READY:
        raise AlreadyDecided(f"run {run} {same}; `csdn promote {run}`")


def _create(run: Run, drops: Sequence[Drop], values: Mapping[str, Any], lock: bytes | None) -> None:
    """Create the working tree and the first commit; leftovers of a killed call are removed.

    lock: the content of dvc.lock to begin with; None if there is none.
    """
    _remove_tree(run)
    git.git(
        run.workspace, "worktree", "add", "--quiet", "--no-track", "-B", run.branch, str(run.folder), run.base
    )
    dvc.link_cache(run.workspace, run.folder)
    if lock is not None:
        (run.folder / "dvc.lock").write_bytes(lock)
    dvc.pull_available(run.folder)
    (run.folder / GATE).unlink(missing_ok=True)  # the champion's
    for key, value in values.items():
        set_value(run.folder / "params.yaml", key, value)
    write_ledger(drops, run.folder / LEDGER)
    file = read_champion(run.folder)
    start = start_after(run.folder, file.champion, read_forgotten(run.folder / FORGOTTEN))
    write_champion(file.model_copy(update={"start": start}), run.folder)
    _fetch_champion(run)
    run.commit("begin", BEGIN)


def _link_weights(run: Run) -> None:
    """Give the run the workspace's weights of CLIP, which Git does not keep (`csdn fetch-clip`)."""
    weights = load_params(run.folder / "params.yaml").model.weights
    source, target = run.workspace / weights, run.folder / weights
    if source.exists() and not target.exists():  # an absolute path is the same file
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            target.hardlink_to(source)
        except OSError:  # on another file system
            shutil.copyfile(source, target)


def _fetch_champion(run: Run) -> None:
    start = read_champion(run.folder).start
    if start is not None:
        fetch_champion(run.folder, start.version, run.folder / "champion")


def _remove_tree(run: Run) -> None:
    if run.folder.exists():
        shutil.rmtree(run.folder)
    git.git(run.workspace, "worktree", "prune")


# Overrides: parameters of one run that differ from params.yaml, checked before the run begins.


def allowed(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides as {dotted key: value}. Raises UserError naming each key that a run must not override."""
    check_values(overrides, "overrides")
    values = dict(leaves(overrides))
    forbidden = [
        key for key in values if any(key == name or key.startswith(f"{name}.") for name in FORBIDDEN)
    ]
    if forbidden:
        lines = [f"  {key}: not for one run; change params.yaml and commit it" for key in forbidden]
        raise UserError("\n".join(["overrides: not usable", *lines]))
    return values


def overridden(overrides: Mapping[str, Any], params: str | bytes) -> Params:
    """The parameters of a params.yaml's text with the overrides applied. Raises UserError."""
    values = allowed(overrides)
    raw = parse_yaml(params, "params.yaml")
    if isinstance(raw, dict):
        for key, value in values.items():
            _set(raw, key, value)
    return parse_params(raw, source="params.yaml with the overrides" if values else "params.yaml")


def _set(raw: Any, key: str, value: Any) -> None:
    *path, last = key.split(".")
    section = raw
    for name in path:
        inner = section.get(name)
        section[name] = section = inner if isinstance(inner, dict) else {}
    section[last] = value
