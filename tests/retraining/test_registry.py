"""Promotion, rejection and rollback: what they do to main, to the tags and to the Git remote."""

import json
import re
import subprocess
import sys

import pytest
from registry_project import (
    DROPS,
    add_origin,
    arrive,
    champion,
    clone,
    commit_file,
    ledger,
    tags,
    work,
)
from repository import git
from typer.testing import CliRunner

from csdn.cli.main import app
from csdn.retraining import branches, dvc
from csdn.retraining import git as git_module
from csdn.retraining.branches import history, update_main
from csdn.retraining.git import RemoteUnavailable, set_refs
from csdn.retraining.lock import workspace_lock
from csdn.retraining.registry import promote, promote_ready, record
from csdn.retraining.versions import all_versions, tags_for, versions_before
from csdn.retraining.workspace import begin, open_run
from csdn.runtime.errors import UserError
from csdn.training.champion import read_champion

FIRST = ["csdn#champion#1", "csdn@v1.0.0"]


def finished(project, *drops, **overrides):
    """A run that has reached its gate."""
    run = begin(project, arrive(*drops), overrides)
    work(run)
    return run


def whole(folder):
    """What Git has, and that its files are those of its commit."""
    assert git(folder, "status", "--porcelain") == ""
    return git(
        folder, "for-each-ref", "--format=%(refname) %(objectname)", "refs/heads/main", "refs/tags"
    ).split("\n")


def test_a_promotion_without_a_remote(project):
    run = finished(project, DROPS[1])
    done = promote(run)
    assert (done.event, done.version, done.reasons) == ("promoted", "v1", ())
    entry = read_champion(project).champion
    assert (entry.run, entry.people, entry.images) == (run.id, 3, 9)
    assert entry.figures == {"vis_to_ir": {"rank1": 52}, "test_people": 2}
    assert [drop.address for drop in ledger(project)] == ["/in/monday-1", "/in/monday-2"]
    assert tags(project) == FIRST
    assert git(project, "rev-parse", "main", "csdn@v1.0.0^{}", "csdn#champion#1^{}").split() == [run.tip] * 3
    assert promote(run) == done and tags(project) == FIRST
    assert whole(project)


def test_the_commit_of_a_promotion_has_the_model_card(project):
    (project / "MODEL_CARD.md").write_text("of `csdn card`, and not in Git")
    run = finished(project, DROPS[1])
    assert not (run.folder / "MODEL_CARD.md").exists()
    assert "MODEL_CARD.md" in promote(run).reasons[0]  # moved aside
    card = git(project, "show", "csdn@v1.0.0:MODEL_CARD.md")
    assert card.startswith("# Model card: CSDN v1\n")
    assert read_champion(project).champion.embedding in card and DROPS[1].id in card
    assert (project / "MODEL_CARD.md").read_text() == card and whole(project)


def test_a_promotion_reaches_origin_in_one_push(project, origin):
    run = finished(project, DROPS[1])
    assert promote(run).version == "v1"
    there = git(origin, "for-each-ref", "--format=%(refname)").split()
    assert there == ["refs/heads/main", f"refs/heads/{run.branch}", *(f"refs/tags/{tag}" for tag in FIRST)]
    assert champion(origin, "main") == "v1" and whole(project)


def test_changed_files_are_not_touched_and_the_run_becomes_ready(project, fault):
    run = finished(project, DROPS[1])
    (project / "stage.py").write_text("# my work\n")
    before = git(project, "for-each-ref", "refs/heads/main", "refs/tags")
    done = promote(run)
    assert done.event == "ready" and "changed and not committed: stage.py" in done.reasons[0]
    assert git(project, "for-each-ref", "refs/heads/main", "refs/tags") == before
    assert (project / "stage.py").read_text() == "# my work\n"
    fault("registry", "files of main are changed during a run", done.reasons[0].replace(run.id, "RUN"))
    git(project, "checkout", "stage.py")
    assert promote_ready(project, run.id).version == "v1" and whole(project)


def test_csdn_promote_does_the_same(project, monkeypatch):
    run = finished(project, DROPS[1])
    (project / "stage.py").write_text("# my work\n")
    promote(run)
    monkeypatch.chdir(project)
    again = CliRunner().invoke(app, ["promote", run.id])
    assert isinstance(again.exception, UserError) and "stage.py" in str(again.exception)
    git(project, "checkout", "stage.py")
    with workspace_lock(project, "a run"):
        assert "busy: a run" in str(CliRunner().invoke(app, ["promote", run.id]).exception)
    assert f"run {run.id} is version v1" in CliRunner().invoke(app, ["promote", run.id]).stdout


def test_main_that_moved_meanwhile_is_merged_by_a_person(project):
    run = finished(project, DROPS[1])
    commit_file(project, "notes.md", "hello")
    done = promote(run)
    assert done.event == "ready" and "main has moved since the run began" in done.reasons[0]
    assert champion(project) is None and tags(project) == []
    assert promote_ready(project, run.id).version == "v1"
    assert champion(project) == "v1" and (project / "notes.md").exists() and whole(project)


def test_a_merge_conflict_is_left_to_a_person(project, fault):
    run = finished(project, DROPS[1], seed=3)
    text = (project / "params.yaml").read_text()
    commit_file(project, "params.yaml", text.replace("seed: 0 ", "seed: 4 "))
    promote(run)
    with pytest.raises(UserError, match=r"both changed params\.yaml") as error:
        promote_ready(project, run.id)
    assert git(run.folder, "status", "--porcelain") == "" and champion(project) is None
    fault("registry", "a run and main changed the same file", str(error.value).replace(run.id, "RUN"))


def test_a_conflict_that_a_person_has_merged_is_promoted(project):
    run = finished(project, DROPS[1], seed=3)
    text = (project / "params.yaml").read_text()
    commit_file(project, "params.yaml", text.replace("seed: 0 ", "seed: 4 "))
    promote(run)
    git(run.folder, "merge", "--quiet", "--strategy-option", "ours", "--no-edit", "main")
    assert promote_ready(project, run.id).version == "v1" and whole(project)


def test_a_ready_run_and_a_later_decision_both_add_drops(project):
    ready, other = finished(project, DROPS[1], DROPS[3]), finished(project, DROPS[2], DROPS[3])
    record(other, "reject", ["worse"], other.new_drops)
    assert promote(ready).event == "ready"
    assert promote_ready(project, ready.id).version == "v1" and whole(project)
    statuses = {drop.address[-1]: drop.status.value for drop in ledger(project)}
    assert statuses == {"1": "accepted", "2": "accepted", "3": "held", "4": "held"}


def test_a_run_that_was_compared_with_another_champion_is_not_promoted(project, fault):
    slow, quick = finished(project, DROPS[1]), finished(project, DROPS[1], seed=1)
    promote(quick)
    assert promote(slow).event == "ready"
    with pytest.raises(UserError, match="compared with no champion, and the champion is v1 now") as error:
        promote_ready(project, slow.id)
    fault("registry", "another run was promoted since", str(error.value).replace(slow.id, "RUN"))


def test_csdn_promote_accepts_only_a_run_that_is_ready(project, fault):
    rejected, unfinished = finished(project, DROPS[1]), begin(project, arrive(DROPS[2]))
    record(rejected, "reject", ["worse"], rejected.new_drops)
    with pytest.raises(UserError, match="was rejected by the gate") as error:
        promote_ready(project, rejected.id)
    fault("registry", "csdn promote of a rejected run", str(error.value).replace(rejected.id, "RUN"))
    with pytest.raises(UserError, match="has no decision by the gate"):
        promote_ready(project, unfinished.id)
    assert champion(project) is None


def test_an_unfinished_run_is_not_promoted(project):
    with pytest.raises(UserError, match=r"metrics/ingest.json"):
        promote(begin(project, arrive(DROPS[2])))
    assert champion(project) is None


def test_another_branch_stays_checked_out_and_main_moves(project):
    git(project, "checkout", "--quiet", "-b", "mine")
    (project / "stage.py").write_text("# my work\n")
    assert promote(finished(project, DROPS[1])).version == "v1"
    assert champion(project, "main") == "v1" and champion(project, "mine") is None
    assert (project / "stage.py").read_text() == "# my work\n"


def test_results_that_git_does_not_know_are_put_aside(project):
    """`dvc repro` in the workspace leaves some, and nobody commits them."""
    (project / "metrics").mkdir()
    (project / "metrics/ingest.json").write_text("of a demo run")
    done = promote(finished(project, DROPS[1]))
    assert "were not in Git; they are in" in done.reasons[0]
    aside = next((project / ".runs/replaced").glob("*/metrics/ingest.json"))
    assert aside.read_text() == "of a demo run" and whole(project)


def test_a_push_that_origin_rejects_leaves_no_tag_and_main_where_it_was(project, origin, fault):
    run = finished(project, DROPS[1])
    hook = origin / "hooks/update"
    hook.write_text('#!/bin/sh\ncase $1 in refs/heads/main) echo "main is protected" >&2; exit 1;; esac\n')
    hook.chmod(0o755)
    before = git(project, "rev-parse", "main")
    done = promote(run)
    assert done.event == "ready" and "main is protected" in done.reasons[0]
    assert tags(project) == tags(origin) == [] and git(project, "rev-parse", "main") == before
    fault("registry", "the Git remote rejects a promotion", done.reasons[0].replace(run.id, "RUN"))
    hook.unlink()
    assert promote_ready(project, run.id).version == "v1" and tags(origin) == FIRST


def test_a_promotion_without_origin_is_repeated_by_the_same_call(project, origin):
    run = finished(project, DROPS[1])
    away = origin.rename(f"{origin}.away")
    with pytest.raises(RemoteUnavailable):
        promote(run)
    assert tags(project) == []
    away.rename(origin)
    assert promote(run).version == "v1" and whole(project)


def test_two_clones_that_promote_at_once_make_one_champion(project, origin, tmp_path, monkeypatch):
    other = clone(origin, tmp_path / "other")
    here, there = finished(project, DROPS[1]), finished(other, DROPS[2])
    push = git_module.push

    def others_push_first(folder, updates):
        monkeypatch.undo()
        assert promote(there).version == "v1"
        return push(folder, updates)

    monkeypatch.setattr(git_module, "push", others_push_first)
    done = promote(here)
    assert done.event == "ready" and champion(origin, "main") == "v1"
    assert git(origin, "rev-parse", "csdn@v1.0.0^{}").strip() == there.tip
    assert update_main(project, "main") == there.tip and tags(project) == FIRST


KILLED = [
    (False, branches, "sync_local"),
    (False, git_module, "set_refs"),
    (False, dvc, "checkout"),
    (True, git_module, "push"),
    (True, branches, "sync_local"),
    (True, branches, "fast_forward_branch"),
]


@pytest.mark.parametrize(("remote", "module", "name"), KILLED)
def test_a_promotion_that_is_killed_is_ended_by_the_next_call(
    project, tmp_path, monkeypatch, module, name, remote
):
    if remote:
        add_origin(project, tmp_path / "origin.git")
    run = finished(project, DROPS[1])

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, name, killed)
        with pytest.raises(KeyboardInterrupt):
            promote(run)
    assert promote(open_run(project, run.id)).version == "v1"
    assert tags(project) == FIRST and champion(project) == "v1" and whole(project)


def test_history_has_the_outcome_of_each_run(project, monkeypatch):
    first, rejected = finished(project, DROPS[1]), finished(project, DROPS[1], seed=1)
    waiting, begun = finished(project, DROPS[1], seed=2), begin(project, arrive())
    promote(first)
    promote(waiting)
    record(rejected, "reject", ["cam1 to cam5 collapsed"], rejected.new_drops)
    outcomes = {event.run: (event.outcome, event.version) for event in history(project)}
    assert outcomes == {
        first.id: ("promoted", "v1"),
        rejected.id: ("rejected", None),
        waiting.id: ("ready", None),
        begun.id: ("unfinished", None),
    }
    monkeypatch.chdir(project)
    lines = CliRunner().invoke(app, ["history"]).stdout.splitlines()
    line = rf"20\S+ \S+  promoted     v1    {first.id}  test_people=2 vis_to_ir.rank1=52"
    assert re.fullmatch(line, next(line for line in lines if first.id in line))
    assert next(line for line in lines if rejected.id in line).endswith("cam1 to cam5 collapsed")


def test_the_program_itself_reads_the_history(project):
    command = [sys.executable, "-c", "from csdn.cli.main import main; main()", "history"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert json.loads((project / "champion.json").read_text()) == {"champion": None, "start": None}


def test_the_eleventh_change_of_champion_follows_the_tenth(project):
    """GTO itself orders changes by the clocks of the machines that made them."""
    for number in range(1, 11):
        git(project, "tag", "--annotate", "--message", "a change", f"csdn#champion#{number}")
        git(project, "commit", "--quiet", "--allow-empty", "--message", "another")
    git(project, "tag", "--annotate", "--message", "v1", "csdn@v1.0.0")
    git(project, "tag", "csdn@not-a-version")
    head = git(project, "rev-parse", "HEAD").strip()
    made = tags_for(project, "v1", head)
    assert list(made) == ["refs/tags/csdn#champion#11"] and all_versions(project) == ["v1"]
    set_refs(project, made)
    assert tags_for(project, "v1", head) == {}


def test_versions_that_a_rollback_has_left_are_not_before_later_ones(project):
    """v3 and v2 were found bad: the second change of champion to v1 is a rollback."""
    for version in ("v1", "v2", "v3", "v1", "v4", "v2", "v5"):
        commit = commit_file(project, "notes.md", f"{version} {git(project, 'rev-parse', 'HEAD')}")
        set_refs(project, tags_for(project, version, commit))
    assert versions_before(project, "v4") == ["v1"]
    assert versions_before(project, "v5") == ["v1", "v4", "v2"]  # v2 was made champion again
    assert versions_before(project, "v1") == []


def test_a_version_s_tag_that_gto_did_not_make_is_named(project, fault):
    run = finished(project, DROPS[1])
    git(project, "tag", "csdn@v1.0.0", run.tip)
    with pytest.raises(UserError, match=r"GTO: .*v1\.0\.0.*git tag --list") as error:
        promote(run)
    assert champion(project) is None
    fault("registry", "a version's tag was made without GTO", error.value)
