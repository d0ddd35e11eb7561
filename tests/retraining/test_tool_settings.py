"""Git and DVC behave alike under every user's configuration, and their own messages reach the user."""

from __future__ import annotations

import os

import pytest
from hostile_gitconfig import use_hostile_settings
from registry_project import (
    DROPS,
    add_origin,
    arrive,
    champion,
    clone,
    commit_file,
    make_project,
    tags,
    work,
)
from repository import git
from workspace import run

from csdn.cli import doctor
from csdn.retraining import git as git_module
from csdn.retraining.branches import history
from csdn.retraining.git import file_at
from csdn.retraining.registry import promote, promote_ready, record, rollback
from csdn.retraining.workspace import begin, open_run
from csdn.runtime.errors import UserError

FIRST = ["csdn#champion#1", "csdn@v1.0.0"]
METRICS = ["metrics/headline.json", "metrics/ingest.json"]


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """From here on the user has the worst of settings: call it once everything of theirs is made."""
    return lambda: use_hostile_settings(tmp_path / "home", monkeypatch)


def finished(project, *drops, **overrides):
    run_ = begin(project, arrive(*drops), overrides)
    work(run_)
    return run_


def another_s_origin(project, folder):
    bare = add_origin(project, folder / "origin.git")
    git(bare, "config", "core.hooksPath", "hooks")  # a user's settings do not count at another's
    return bare


def outcomes(project):
    return [(event.outcome, event.version) for event in history(project)]


def test_the_registry_under_a_hostile_configuration(project, hostile, tmp_path):
    bare = another_s_origin(project, tmp_path)
    other = clone(bare, tmp_path / "other")
    git(project, "tag", "--annotate", "--message", "mine", "private")
    git(project, "branch", "mine")
    commit_file(other, "notes.md", "hello")
    hostile()
    first, rejected = finished(project, DROPS[1]), finished(project, DROPS[2])
    git(
        other,
        "-c",
        "core.hooksPath=/dev/null",
        "-c",
        "push.pushOption=",
        "push",
        "--quiet",
        "--no-signed",
        str(bare),
        "HEAD:main",
    )
    assert promote(first).event == "ready"
    assert promote_ready(project, first.id).version == "v1"
    reasons = ["Camera 3 im Hof: schlechter für Füße", "Csdn: not a trailer"]
    record(rejected, "reject", reasons, rejected.new_drops)
    assert git(bare, "for-each-ref", "--format=%(refname)").split() == [
        "refs/heads/main",
        *sorted(f"refs/heads/{one.branch}" for one in (first, rejected)),
        "refs/tags/csdn#champion#1",
        "refs/tags/csdn@v1.0.0",
    ]
    assert outcomes(project) == [("promoted", "v1"), ("rejected", None)]
    assert history(project)[-1].reason == "; ".join(reasons)
    assert champion(bare, "main") == champion(project, "main") == "v1"
    assert git(project, "rev-parse", "main") == git(bare, "rev-parse", "main")
    assert git(project, "diff-index", "HEAD") == "" and (project / "notes.md").read_text() == "hello"


def test_local_tags_that_origin_lacks_stay(project, hostile, tmp_path):
    """fetch.prune deleted the versions that were made before there was an origin."""
    assert promote(finished(project, DROPS[1])).version == "v1"
    bare = add_origin(project, tmp_path / "origin.git")
    git(project, "branch", "mine")
    git(project, "fetch", "--quiet", "origin")
    git(project, "update-ref", "refs/remotes/origin/gone", "main")
    hostile()
    before = git(project, "for-each-ref")
    git_module.fetch(project)
    assert git(project, "for-each-ref") == before
    assert tags(project) == FIRST and tags(bare) == []


def test_a_remote_without_an_address_is_none(project, hostile):
    hostile()  # it has settings of remote.origin, and no address
    assert "origin" in git(project, "remote").split()
    assert promote(finished(project, DROPS[1])).version == "v1"


@pytest.mark.slow
def test_a_stage_under_a_hostile_configuration_neither_asks_nor_stages(project, hostile):
    hostile()
    run_ = begin(project, arrive(DROPS[1]))
    work(run_, by_dvc=True)
    assert git(run_.folder, "diff-index", "--cached", "--name-only", "HEAD") == ""
    assert promote(run_).version == "v1"
    changed = git(project, "diff-tree", "-r", "--name-only", run_.base, "main").split()
    assert changed == ["MODEL_CARD.md", "champion.json", "data/drops.json", "dvc.lock", *METRICS]


def test_bytes_of_files_are_those_of_the_repository(hostile, tmp_path):
    """core.autocrlf would change the hashes that DVC compares; .gitattributes says so to every Git."""
    project = make_project(tmp_path / "origin")
    hostile()
    mine = tmp_path / "mine"
    run(project, "git", "-c", "core.hooksPath=/dev/null", "clone", "--quiet", str(project), str(mine))
    for name in ("stage.py", "params.yaml", "data/drops.json"):
        assert (mine / name).read_bytes() == file_at(project, "main", name)


@pytest.mark.parametrize("variable", ["GIT_DIR", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY"])
def test_a_hook_that_calls_us_names_no_other_repository(project, monkeypatch, tmp_path, variable):
    monkeypatch.setenv(variable, str(tmp_path / "elsewhere"))
    assert begin(project, arrive(DROPS[1])).tip


def test_the_user_s_own_settings_in_the_environment_stay(project, monkeypatch):
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "user.name")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "somebody")
    assert git_module.git(project, "config", "user.name") == "somebody"
    assert git_module.git(project, "config", "core.hooksPath") == os.devnull


def test_a_promotion_that_is_repeated_after_midnight_commits_nothing_more(project, monkeypatch, tmp_path):
    """The push failed before it; the same call goes on the day after."""
    bare = add_origin(project, tmp_path / "origin.git")
    run_ = finished(project, DROPS[1])
    away = bare.rename(f"{bare}.away")
    monkeypatch.setattr("csdn.retraining.branches.newest_commit", lambda *_: run_.base)
    with pytest.raises(git_module.RemoteUnavailable):
        promote(run_)
    decided = run_.tip
    away.rename(bare)
    monkeypatch.undo()
    tomorrow(monkeypatch)
    assert promote(open_run(project, run_.id)).version == "v1"
    assert run_.tip == decided == git(bare, "rev-parse", "main").strip()


def tomorrow(monkeypatch):
    import datetime

    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return super().now(tz) + datetime.timedelta(days=1)

    for module in ("registry", "workspace", "scan"):
        monkeypatch.setattr(f"csdn.retraining.{module}.datetime", Later)


@pytest.mark.parametrize("question", [begin, history, rollback])
def test_a_clone_of_another_owner_gets_git_s_message(project, monkeypatch, fault, question):
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # Git's own tests set it
    arguments = (arrive(),) if question is begin else ()
    with pytest.raises(UserError, match="dubious ownership") as error:
        question(project, *arguments)
    assert f"\n    git config --global --add safe.directory {project}" in str(error.value)
    fault("registry", "the clone belongs to another user", error.value)


def test_the_doctor_shows_git_s_message(project, monkeypatch, tmp_path):
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    check = next(one for one in doctor.report(project) if one.name == "git")
    assert check.state == "problem"
    assert f"git config --global --add safe.directory {project}" in check.found
    monkeypatch.setenv("PATH", str(tmp_path))
    check = next(one for one in doctor.report(project) if one.name == "git")
    assert check.state == "problem" and "no program git" in check.found


def test_a_damaged_repository_is_not_one_without_a_model(project):
    """What Git cannot read was taken for a file that is not there."""
    blob = git(project, "rev-parse", "main:champion.json").strip()
    path = project / ".git/objects" / blob[:2] / blob[2:]
    path.chmod(0o644)
    path.write_bytes(b"damaged")
    with pytest.raises(UserError, match="cat-file failed") as error:
        file_at(project, "main", "champion.json")
    assert blob in str(error.value)
