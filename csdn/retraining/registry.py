"""The registry of models: promote, reject and roll back, on main, the tags and the remotes.

Each decision is one atomic push to `origin`, if there is one, and then the same update of this clone. If a
call is killed, the next one finds either nothing of it or the complete decision, and continues.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from csdn.ingest.forgotten import FORGOTTEN, read_forgotten
from csdn.ingest.ledger import LEDGER, Drop, Status, as_document, merge_ledgers
from csdn.retraining import branches, dvc, git, versions
from csdn.retraining.branches import READY, ROLLBACK
from csdn.retraining.gate import PROMOTE, REJECT, UNDECIDED
from csdn.retraining.git import PushRejected, RemoteUnavailable
from csdn.retraining.lock import RUNS
from csdn.retraining.workspace import Run, open_run
from csdn.runtime.documents import expected_in, read_json
from csdn.runtime.errors import UserError
from csdn.runtime.files import as_json, atomic_folder
from csdn.search.model_card import CARD, MODEL, write_card
from csdn.training.champion import CHAMPION, Champion, ChampionFile, read_champion, write_champion


@dataclass(frozen=True)
class Outcome:
    """The result of a run; "ready": the gate let it pass, but main could not move. `reasons`: for people."""

    event: Literal["promoted", "ready", "rejected", "undecided"]
    version: str | None
    reasons: tuple[str, ...]

    @property
    def lines(self) -> list[str]:
        """The new champion and the reasons, for people."""
        return [*([f"{self.version} is champion"] if self.version else []), *self.reasons]


def promote(run: Run) -> Outcome:
    """Make a run's model the champion: push the weights to the DVC remote, then move main, branch and tags.

    If main has moved or its files have changed since the run began, they are not touched: the run becomes
    "ready", and `promote_ready` promotes it later. Raises UserError, and RemoteUnavailable if a remote does
    not respond; the same call can then be repeated.
    """
    branch = branches.main_branch(run.workspace)
    newest = branches.newest_commit(run.workspace, branch)
    if git.contains(run.workspace, newest, run.tip):  # decided by a call that was killed
        return _promoted(run, branch, run.tip, versions.missing_tags(run.workspace, newest))
    run.commit("results")
    if not git.contains(run.workspace, run.tip, newest):
        return _ready(run, f"{branch} has moved since the run began")
    if problems := branches.blocking_changes(run.workspace, branch, run.tip):
        return _ready(run, "; ".join(problems))
    tip = _name_champion(run)
    dvc.push(run.folder)
    tags = versions.tags_for(run.workspace, versions.named_champion(run.workspace, tip).version, tip)
    refs = {f"refs/heads/{branch}": tip, f"refs/heads/{run.branch}": tip}
    try:
        git.push(run.workspace, refs | versions.known_tags(run.workspace) | tags)
    except PushRejected as error:
        return _ready(run, str(error))
    return _promoted(run, branch, tip, tags)


def promote_ready(workspace: str | Path, identifier: str) -> Outcome:
    """Promote a run that is ready, after merging main's new commits into it.

    Raises UserError if the run is not ready, if the champion is not the one that the gate compared with, or
    if the merge has conflicts.
    """
    run = open_run(workspace, identifier)
    branch = branches.main_branch(run.workspace)
    newest = branches.newest_commit(run.workspace, branch)
    if not git.contains(run.workspace, newest, run.tip):
        ended = branches.decided(run.workspace, newest, run.id)
        said = branches.decisions(run.workspace, run.tip, run.id)[0].decision
        if ended or said not in (READY, PROMOTE):
            state = f"was {_ENDED[ended.decision]}" if ended else "has no decision"
            raise UserError(f"run {run.id} {state} by the gate; only a run that is ready can be promoted")
        _check_same_people(run, newest)
        _merge(run, newest, branch)
    return promote(run)


def _check_same_people(run: Run, newest: str) -> None:
    """Raise UserError if a person was forgotten (`csdn forget`) since the run began: it may have them."""
    then, now = (git.file_at(run.workspace, commit, str(FORGOTTEN)) for commit in (run.base, newest))
    if then != now:
        raise UserError(
            f"run {run.id} began before a person was forgotten, and may have that person in its data and "
            "models; `csdn retrain --now` trains without"
        )


TRIES = 5  # of a commit on main, while others push to it


def record(run: Run, decision: str, reasons: Sequence[str], hold: Sequence[Drop] = ()) -> Outcome:
    """End a run with REJECT or UNDECIDED: a commit on the newest main that changes only the ledger.

    main's ledger becomes the run's, with the drops of `hold` held; an entry that has changed on main since
    the run began stays as it is there. A run by another method leaves the ledger as it is. `origin` gets the
    commit and the run's branch in one push. If the run is ended already, in whatever way, this clone is
    updated, and the outcome is that one. Raises UserError if `origin` does not accept the commit, and
    RemoteUnavailable; the same call can then be repeated.
    """
    run.commit("results")
    workspace, branch = run.workspace, branches.main_branch(run.workspace)
    newest = branches.newest_commit(workspace, branch)
    for _ in range(TRIES):
        if ended := branches.decided(workspace, newest, run.id):  # a call was killed, or another clone did
            if ended.decision == PROMOTE:
                return _promoted(run, branch, newest, versions.missing_tags(workspace, newest))
            said = branches.reasons_of(workspace, ended.commit)
            return _recorded(run, ended.decision, said, branch, newest)
        _check_same_people(run, newest)
        commit = _decision_commit(run, decision, reasons, hold, newest)
        try:
            git.push(workspace, {f"refs/heads/{branch}": commit, f"refs/heads/{run.branch}": run.tip})
        except PushRejected as error:
            rejected, before = error, newest
            newest = branches.newest_commit(workspace, branch)
            if newest == before:  # nobody was faster: origin does not accept one of the two
                break
        else:
            return _recorded(run, decision, reasons, branch, commit)
    with suppress(PushRejected):  # another machine may have continued the run: its branch differs at origin
        git.push(workspace, {f"refs/heads/{branch}": commit})
        return _recorded(run, decision, reasons, branch, commit)
    raise UserError(
        f"{rejected}\nThe decision on run {run.id} is not recorded. Allow this user to push to {branch}; the "
        "next call continues the run at this point"
    )


def _decision_commit(run: Run, decision: str, reasons: Sequence[str], hold: Sequence[Drop], main: str) -> str:
    """The commit on top of `main`; no ref is moved."""
    reason = f"gate of run {run.id}: {'; '.join(reasons)}"
    held = {drop.id: replace(drop, status=Status.HELD, reason=reason) for drop in hold}
    decided = [held.get(drop.id, drop) for drop in run.drops]
    ledger = merge_ledgers(branches.ledger_at(run.workspace, main), run.before, decided)
    path = run.folder / "metrics/headline.json"  # missing if the run has made no model
    untried = [drop.id for drop in ledger if drop.status is Status.ACCEPTED and drop not in run.drops]
    facts = {
        "Figures": json.dumps(read_json(path), sort_keys=True) if path.exists() else "",
        "Overrides": " ".join(run.other_method),
        "Untried": " ".join(untried),
    }
    subject = f"Run {run.id}: {_ENDED[decision]}"
    text = branches.commit_message(subject, run.id, decision, "\n".join(reasons), facts)
    files = {} if run.other_method else {str(LEDGER): as_json(as_document(ledger))}
    return git.commit_files(run.workspace, main, files, text)


_ENDED = {REJECT: "rejected", UNDECIDED: "left undecided", PROMOTE: "promoted"}


def _recorded(run: Run, decision: str, reasons: Sequence[str], branch: str, commit: str) -> Outcome:
    notes = branches.sync_local(run.workspace, branch, commit, {})
    return Outcome("rejected" if decision == REJECT else "undecided", None, (*reasons, *notes))


def _merge(run: Run, newest: str, branch: str) -> None:
    """Merge main into the run, unless the champion has changed since the run began.

    Both have added drops to the ledger: an entry that has changed on main stays as it is there.
    """
    then, now = (versions.champion_at(run.workspace, commit) for commit in (run.base, newest))
    if then != now:
        raise UserError(
            f"run {run.id} was compared with {then.version if then else 'no champion'}, and the champion is "
            f"{now.version if now else 'missing'} now; run again, so that the gate compares it with this one"
        )
    if git.contains(run.workspace, run.tip, newest):  # a person has merged it
        return
    text = branches.commit_message(f"Run {run.id}: {branch} merged", run.id, READY)
    ledger = merge_ledgers(branches.ledger_at(run.workspace, newest), run.before, run.drops)
    merged = {str(LEDGER): as_json(as_document(ledger))}
    if files := git.merge(run.folder, newest, text, merged):
        raise UserError(
            f"run {run.id} and {branch} both changed {', '.join(files)}; merge {branch} into {run.branch} by "
            f"hand in {run.folder}, then: csdn promote {run.id}"
        )


def _name_champion(run: Run) -> str:
    """Commit champion.json with the run as champion, and its model card, unless a call whose push failed has
    done so.
    """
    present = read_champion(run.folder)
    candidate = _champion(run, versions.next_version(run.workspace))
    if left := versions.same_weights(run.workspace, candidate.embedding):
        raise UserError(
            f"run {run.id} has the weights of {left}, which a rollback has left, and is not promoted; "
            f"`csdn rollback {left}` makes that version the champion again"
        )
    if present.champion and branches.decision_of(run.workspace, run.tip) == PROMOTE:
        candidate = candidate.model_copy(update={"date": present.champion.date})  # decided on that day
        if present.champion == candidate:
            return run.tip
    write_champion(ChampionFile(champion=candidate, start=present.start), run.folder)
    write_card(run.folder, run.folder / MODEL, run.folder / CARD)
    return run.commit(f"champion {candidate.version}", PROMOTE)


def _champion(run: Run, version: str) -> Champion:
    """champion.json's entry for the run's results. Raises UserError naming a missing file."""
    metrics, advice = run.folder / "metrics", "the run is unfinished"
    ingest, figures = (read_json(metrics / f"{name}.json", advice) for name in ("ingest", "headline"))
    with expected_in(f"{metrics}/ingest.json or headline.json", advice):
        return Champion(
            version=version,
            prompts=_hash(run.folder / "models/prompts/prompts.safetensors"),
            embedding=_hash(run.folder / "models/embedding/model.safetensors"),
            run=run.id,
            people=ingest["people"]["train"],
            images=sum(ingest["images"]["train"].values()),
            date=datetime.now(UTC).date(),
            figures=figures,
        )


def _hash(path: Path) -> str:
    value = versions.sha256(path)
    if value is None:
        raise UserError(f"{path}: no such file; the run is unfinished")
    return value


def _ready(run: Run, reason: str) -> Outcome:
    """Keep the run for a later `promote_ready`, and push its branch if `origin` responds."""
    if branches.decision_of(run.workspace, run.tip) not in (READY, PROMOTE):
        run.commit("ready", READY, reason)
    reasons = [f"{reason}. Later: csdn promote {run.id}"]
    try:
        git.push(run.workspace, {f"refs/heads/{run.branch}": run.tip})
    except (PushRejected, RemoteUnavailable) as error:
        reasons.append(f"its branch is in this clone only: {error}")
    return Outcome("ready", None, tuple(reasons))


def _promoted(run: Run, branch: str, tip: str, tags: dict[str, str]) -> Outcome:
    notes = branches.sync_local(run.workspace, branch, tip, tags)
    return Outcome("promoted", versions.named_champion(run.workspace, tip).version, tuple(notes))


# Rollback: a commit on main that names an older version, and a tag; no stage runs again.


def rollback(workspace: str | Path, version: str | None = None, reason: str = "") -> tuple[str, list[str]]:
    """Make an older version the champion again, by default the previous one; the caller holds the lock.

    Returns the version, and notes for people. Its files are fetched first, so that a version whose weights
    are lost cannot become champion. Raises UserError before anything is changed.
    """
    workspace = Path(workspace).resolve()
    branch = branches.main_branch(workspace)
    branches.check_clean(workspace, branch)
    newest = branches.update_main(workspace, branch)
    file = versions.champion_file_at(workspace, newest)
    version = version or _previous_version(workspace, file.champion)
    older = _champion_of(workspace, version)
    fetched = workspace / RUNS / "champion"
    versions.fetch_champion(workspace, version, fetched)
    notes = []
    if file.champion != older:
        text = branches.commit_message(f"Champion: back to {version}", older.run, ROLLBACK, reason)
        changed = ChampionFile(champion=older, start=file.start).model_dump(mode="json")
        card = git.file_at(workspace, versions.version_tag(version), CARD)
        none = f"# Model card: CSDN {version}\n\nThis version was promoted without a model card.\n"
        files = {CHAMPION: as_json(changed), CARD: card or none.encode()}
        commit = git.commit_files(workspace, newest, files, text)
        tags = versions.tags_for(workspace, version, commit)
        git.push(workspace, {f"refs/heads/{branch}": commit} | versions.known_tags(workspace) | tags)
        notes = branches.sync_local(workspace, branch, commit, tags)
    with atomic_folder(workspace / "champion") as temporary:
        shutil.copytree(fetched, temporary, dirs_exist_ok=True)
    shutil.rmtree(fetched)
    return version, notes


def _previous_version(workspace: Path, present: Champion | None) -> str:
    """The version that was champion before this one."""
    older = versions.versions_before(workspace, present.version) if present else []
    if not older:
        raise UserError(
            f"{workspace}: there is no version before {present.version if present else 'the first'}; "
            "`csdn history` lists what there is"
        )
    return older[-1]


def _champion_of(workspace: Path, version: str) -> Champion:
    """The entry in champion.json with which a version was promoted."""
    commit = versions.commit_of_version(workspace, version)
    champion = versions.champion_at(workspace, commit) if commit else None
    champion = versions.with_present_weights(champion, read_forgotten(workspace / FORGOTTEN))
    if champion is None:
        known = ", ".join(versions.all_versions(workspace)) or "none yet"
        raise UserError(f"{workspace}: no version is called {version!r}; there are: {known}")
    return champion
