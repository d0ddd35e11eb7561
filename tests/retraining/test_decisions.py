"""Decisions on main: a rejected or undecided run is one commit there, and needs no other branch."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import pytest
from make_images import people_named
from registry_project import (
    DROPS,
    add_origin,
    arrive,
    clone,
    ledger,
    make_champion,
    make_watching_project,
    upload,
    work,
)
from repository import git
from typer.testing import CliRunner
from workspace import run as run_command

from csdn.cli.main import app
from csdn.ingest.ledger import Drop, Status, decide, write_ledger
from csdn.retraining import git as git_module
from csdn.retraining.branches import history
from csdn.retraining.git import RemoteUnavailable
from csdn.retraining.registry import promote, record
from csdn.retraining.scan import scan
from csdn.retraining.workspace import begin
from csdn.runtime.errors import UserError

WORSE = ["cam3 to cam5 collapsed", "rank-1 is 4 points lower"]


def finished(project, *drops):
    """A run that has reached its gate."""
    run = begin(project, arrive(*drops))
    work(run)
    return run


def statuses(folder) -> dict[str, str]:
    return {drop.address: str(drop.status) for drop in ledger(folder)}


@pytest.mark.parametrize(("decision", "status"), [("reject", "held"), ("undecided", "accepted")])
def test_a_decision_is_one_commit_on_main_that_changes_the_ledger_alone(project, origin, decision, status):
    before = git(project, "rev-parse", "main").strip()
    run = finished(project, DROPS[1], DROPS[2])
    record(run, decision, WORSE, run.new_drops if decision == "reject" else ())
    assert git(project, "rev-parse", "main^").strip() == before
    assert git(project, "diff", "--name-only", before, "main").split() == ["data/drops.json"]
    assert statuses(project) == {"/in/monday-1": "accepted", "/in/monday-2": status, "/in/monday-3": status}
    reasons = {drop.reason for drop in ledger(project)[1:]}
    assert reasons == ({f"gate of run {run.id}: {'; '.join(WORSE)}"} if status == "held" else {""})
    assert git(project, "status", "--porcelain") == ""
    here = git(project, "rev-parse", "main", run.branch)
    assert git(origin, "rev-parse", "main", run.branch) == here


def test_branches_of_runs_may_be_deleted(project, origin, tmp_path, monkeypatch):
    rejected = finished(project, DROPS[1])
    record(rejected, "reject", WORSE, rejected.new_drops)
    undecided = finished(project, DROPS[2])
    record(undecided, "undecided", ["only 5 test people"])
    known = history(project)
    for run in (rejected, undecided):
        run.remove_worktree()
        git(project, "push", "--quiet", "origin", "--delete", run.branch)
        git(project, "branch", "--quiet", "-D", run.branch)
    fresh = clone(origin, tmp_path / "fresh")
    assert git(fresh, "branch", "--all", "--list", "*run/*") == ""
    assert [(event.outcome, event.run) for event in known] == [
        ("rejected", rejected.id),
        ("undecided", undecided.id),
    ]
    assert history(project) == history(fresh) == known
    following = begin(fresh, arrive(DROPS[1], DROPS[2], DROPS[3]))
    assert following.new_drops == (DROPS[3],)
    assert list(statuses(following.folder).values()) == ["accepted", "held", "accepted", "accepted"]
    monkeypatch.chdir(fresh)
    line = CliRunner().invoke(app, ["history"]).stdout.splitlines()[0]
    assert f"  rejected     -     {rejected.id}  test_people=2 vis_to_ir.rank1=52  {WORSE[0]}" in line


def test_what_a_person_decided_meanwhile_stays(project, origin, tmp_path):
    run = finished(project, DROPS[1], DROPS[2])
    colleague = clone(origin, tmp_path / "colleague")
    drops = decide([DROPS[0], DROPS[1]], DROPS[1].id, Status.ACCEPTED, "looked at it")
    write_ledger(drops, colleague / "data/drops.json")
    git(colleague, "commit", "--quiet", "--all", "--message", "take it")
    git(colleague, "push", "--quiet")
    record(run, "reject", WORSE, run.new_drops)
    assert list(statuses(project).values()) == ["accepted", "accepted", "held"]
    assert ledger(project)[1].reason == "looked at it"


def test_of_two_clones_that_decide_at_once_both_are_recorded(project, origin, tmp_path, monkeypatch):
    other = clone(origin, tmp_path / "other")
    here, there = finished(project, DROPS[1]), finished(other, DROPS[2])
    push = git_module.push

    def others_push_first(folder, updates):
        monkeypatch.undo()
        record(there, "undecided", ["too few"])
        return push(folder, updates)

    monkeypatch.setattr(git_module, "push", others_push_first)
    assert record(here, "reject", WORSE, here.new_drops).event == "rejected"
    assert statuses(project) == {
        "/in/monday-1": "accepted",
        "/in/monday-3": "accepted",
        "/in/monday-2": "held",
    }
    assert git(project, "rev-parse", "main") == git(origin, "rev-parse", "main")


@pytest.mark.parametrize("said", ["undecided", "promote"])
def test_a_run_that_another_clone_has_ended_otherwise_ends_as_there(project, origin, tmp_path, said):
    """Two machines have trained the same run, and their models differ."""
    other = clone(origin, tmp_path / "other")
    here, there = finished(project, DROPS[1]), finished(other, DROPS[1])
    assert here.id == there.id
    ended = promote(there) if said == "promote" else record(there, said, ["few people", "and images"])
    outcome = record(here, "reject", WORSE, here.new_drops)
    assert (outcome.event, outcome.version, outcome.reasons) == (ended.event, ended.version, ended.reasons)
    assert statuses(project)["/in/monday-2"] == "accepted"
    assert git(project, "rev-parse", "main") == git(origin, "rev-parse", "main")


def test_an_origin_that_does_not_accept_the_commit(project, origin, fault):
    run = finished(project, DROPS[1])
    hook = origin / "hooks/update"
    hook.write_text('#!/bin/sh\ncase $1 in refs/heads/main) echo "main is protected" >&2; exit 1;; esac\n')
    hook.chmod(0o755)
    before = git(project, "rev-parse", "main")
    with pytest.raises(UserError, match="main is protected") as error:
        record(run, "reject", WORSE, run.new_drops)
    fault(
        "registry",
        "the Git remote rejects the commit of a rejection",
        str(error.value).replace(run.id, "RUN"),
    )
    assert git(project, "rev-parse", "main") == git(origin, "rev-parse", "main") == before
    hook.unlink()
    assert begin(project, arrive(DROPS[1])).id == run.id  # the run is unfinished
    record(run, "reject", WORSE, run.new_drops)
    assert statuses(project)["/in/monday-2"] == "held"


def test_a_branch_that_another_machine_has_moved_delays_no_decision(project, origin):
    run = finished(project, DROPS[1])
    other = git(origin, "commit-tree", "-m", "of another machine", "main^{tree}").strip()
    git(origin, "update-ref", f"refs/heads/{run.branch}", other)
    record(run, "reject", WORSE, run.new_drops)
    assert statuses(project)["/in/monday-2"] == "held"
    assert git(project, "rev-parse", "main") == git(origin, "rev-parse", "main")


def test_an_origin_that_does_not_respond_is_asked_again_by_the_same_call(project, origin):
    run = finished(project, DROPS[1])
    away = origin.rename(f"{origin}.away")
    with pytest.raises(RemoteUnavailable):
        record(run, "undecided", ["too few"])
    away.rename(origin)
    record(run, "undecided", ["too few"])
    assert statuses(project)["/in/monday-2"] == "accepted"


@pytest.mark.slow
@pytest.mark.parametrize("remote", [False, True])
def test_a_call_that_is_killed_before_any_change_is_ended_by_the_next(project, tmp_path, monkeypatch, remote):
    """Before each git command that changes something, until a call needs no more of them."""
    if remote:
        add_origin(project, tmp_path / "origin.git")
    changing = {"update-ref", "push", "fetch", "merge", "commit-tree", "update-index"}
    original, number, killed = git_module.run_git, 0, True
    while killed:
        number, count, killed = number + 1, 0, False
        run = finished(project, Drop(f"{number:064x}", f"/in/{number}", "cameras"))

        def run_git(folder, *arguments, number=number, **options):
            nonlocal count, killed
            count += not changing.isdisjoint(arguments)
            killed = count == number
            if killed:
                raise KeyboardInterrupt
            return original(folder, *arguments, **options)

        before = git(project, "rev-parse", "main").strip()
        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            patch.setattr(git_module, "run_git", run_git)
            record(run, "reject", WORSE, run.new_drops)
        record(run, "reject", WORSE, run.new_drops)
        assert git(project, "rev-parse", "main^").strip() == before
        assert len(ledger(project)) == number + 1 and git(project, "status", "--porcelain") == ""
    assert number > 5


# A look's cost.

RUNS, SECONDS = 1000, 2.0


def add_finished_runs(project: Path, count: int) -> None:
    """Rejected runs, each with a branch of two commits, and a decision on main."""
    main, when = git(project, "rev-parse", "main").strip(), "1700000000 +0000"
    stream = []

    def commit(ref, run, decision, *parent):
        text = f"Run {run}\n\nworse\n\nCsdn-Run: {run}\nCsdn-Decision: {decision}"
        stream.extend([f"commit {ref}", f"committer csdn <csdn@localhost> {when}", f"data {len(text)}", text])
        stream.extend(parent)

    for number in range(count):
        run = f"20230101-{number:08x}"
        branch = f"refs/heads/run/{run}"
        commit(branch, run, "begin", f"from {main}")
        commit(branch, run, "reject")
        commit("refs/heads/main", run, "reject", *([f"from {main}"] if not number else []))
    git_module.git(project, "fast-import", "--quiet", stdin="\n".join([*stream, "done", ""]).encode())


@pytest.mark.parametrize("remote", [False, True])
def test_a_look_costs_no_more_after_a_thousand_runs(tmp_path, monkeypatch, remote, record_property):
    """`pytest -s -k thousand tests/retraining/test_decisions.py` prints the seconds of docs/registry.md."""
    project = make_champion(make_watching_project(tmp_path), monkeypatch)
    add_finished_runs(project, RUNS)
    if remote:
        bare = add_origin(project, tmp_path / "origin.git")
        run_command(project, "git", "push", "--quiet", str(bare), "refs/heads/*:refs/heads/*")
        git_module.fetch(project)
    began = time.monotonic()
    assert scan(project).reason == "nothing is new"
    seconds = time.monotonic() - began
    print(f"{'with' if remote else 'without'} origin: {seconds:.2f} s")
    assert seconds < SECONDS
    upload(project, "tuesday", people_named(5, "new"))
    assert scan(project).run is not None
