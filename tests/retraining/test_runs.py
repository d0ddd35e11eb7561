"""A run has a working tree and a branch of its own, and touches no other files."""

import json
import shutil

import pytest
from registry_project import DROPS, add_origin, arrive, clone, commit_file, ledger, work
from repository import git
from workspace import set_params

from csdn.params import load_params
from csdn.retraining import dvc
from csdn.retraining import git as git_module
from csdn.retraining import workspace as runs_module
from csdn.retraining.git import RemoteUnavailable
from csdn.retraining.registry import record
from csdn.retraining.workspace import AlreadyDecided, begin, open_run
from csdn.runtime.errors import UserError


def same(drops):
    return drops


def everything(folder):
    """Names and contents of all files, and their state in Git."""
    files = {
        path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and ".git/" not in str(path)
    }
    return files, git(folder, "status", "--porcelain"), git(folder, "for-each-ref")


def test_a_run_has_what_decides_it_in_its_first_commit_and_main_has_nothing(project):
    before = git(project, "rev-parse", "main")
    run = begin(project, arrive(DROPS[1]), {"embedding.epochs": 3, "embedding.schedule": {"gamma": 0.5}})
    assert run.folder == project / ".runs" / run.id and run.branch == f"run/{run.id}"
    assert [drop.address for drop in run.new_drops] == ["/in/monday-2"]
    params = load_params(run.folder / "params.yaml")
    assert (params.embedding.epochs, params.embedding.schedule.gamma) == (3, 0.5)
    assert (
        "  epochs: 3\n  identities_per_batch: 8   # P: identities per batch"
        in (run.folder / "params.yaml").read_text()
    )
    assert len(ledger(run.folder)) == 2
    assert git(run.folder, "status", "--porcelain") == ""
    assert git(project, "rev-parse", "main") == before and git(project, "status", "--porcelain") == ""


def test_a_run_has_the_weights_of_clip_that_git_does_not_keep(project):
    """`csdn fetch-clip` writes them to weights/, which .gitignore names."""
    set_params(project, {"model.weights": "weights/RN50-openai.safetensors"})
    git(project, "commit", "--quiet", "--all", "--message", "RN50")
    (project / "weights").mkdir()
    (project / "weights/RN50-openai.safetensors").write_text("weights")
    run = begin(project, arrive(DROPS[1]))
    assert (run.folder / "weights/RN50-openai.safetensors").read_text() == "weights"
    assert git(run.folder, "status", "--porcelain") == ""


def test_a_run_that_was_killed_is_continued(project):
    first = begin(project, arrive(DROPS[1]))
    (first.folder / "models").mkdir()
    (first.folder / "models/half").write_text("of a stage")
    again = begin(project, arrive(DROPS[1]))
    assert again == first and (again.folder / "models/half").exists()
    assert begin(project, arrive(DROPS[1]), {"seed": 1}).id != first.id
    assert begin(project, arrive(DROPS[1], DROPS[2])).id != first.id


def test_a_run_continues_on_another_day_under_its_name(project, monkeypatch):
    first = begin(project, same)

    class Later(runs_module.datetime):
        @classmethod
        def now(cls, zone=None):
            return super().now(zone).replace(year=2999)

    monkeypatch.setattr(runs_module, "datetime", Later)
    assert begin(project, same).id == first.id
    assert begin(project, arrive(DROPS[1])).id.startswith("2999")


@pytest.mark.parametrize("moment", ["link_cache", "pull_available", "commit"])
def test_a_kill_while_a_run_is_made_leaves_nothing_that_stops_the_next(project, monkeypatch, moment):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(git_module if moment == "commit" else dvc, moment, killed)
        with pytest.raises(KeyboardInterrupt):
            begin(project, arrive(DROPS[1]))
    run = begin(project, arrive(DROPS[1]))
    assert len(ledger(run.folder)) == 2 and len(list((project / ".runs").iterdir())) == 1


def test_a_working_tree_that_is_gone_is_made_again(project):
    run = begin(project, same)
    run.remove_worktree()
    assert not run.folder.exists() and run.branch in git(project, "branch")
    shutil.rmtree(project / ".runs")
    assert begin(project, same) == run and (run.folder / "params.yaml").exists()


def test_changed_files_of_main_stop_a_run_before_anything_is_made(project, fault):
    (project / "stage.py").write_text("# my work\n")
    git(project, "add", "stage.py")
    (project / "params.yaml").write_text((project / "params.yaml").read_text() + "# mine\n")
    before = everything(project)
    with pytest.raises(UserError, match=r"not committed: params\.yaml, stage\.py") as error:
        begin(project, same)
    assert everything(project) == before
    fault("registry", "a run begins while files of main are changed", error.value)


def test_the_error_says_how_to_bring_back_the_metrics_that_a_failed_stage_removed(project):
    """DVC removes a stage's outputs before it starts, and metrics are in Git once a model was promoted."""
    (project / "metrics").mkdir()
    (project / "metrics/embedding.json").write_text("{}")
    git(project, "add", "metrics")
    git(project, "commit", "--quiet", "--message", "promoted")
    (project / "metrics/embedding.json").unlink()
    with pytest.raises(UserError, match=r"metrics/embedding\.json.*`git checkout dvc\.lock metrics`"):
        begin(project, same)
    git(project, "checkout", "--quiet", "metrics")
    begin(project, same)


def test_changed_files_of_another_branch_do_not_matter(project):
    git(project, "checkout", "--quiet", "-b", "mine")
    (project / "stage.py").write_text("# my work\n")
    run = begin(project, same)
    assert "my work" not in (run.folder / "stage.py").read_text()
    assert (project / "stage.py").read_text() == "# my work\n"


@pytest.mark.parametrize(
    ("overrides", "says", "what"),
    [
        (
            {"data.split_salt": "x"},
            r"data\.split_salt: not for one run",
            "a run with another salt of the people's buckets",
        ),
        (
            {"gate": {"rank1_margin": 99}},
            r"gate\.rank1_margin: not for one run",
            "a run with another rule of the gate",
        ),
        ({"ingest.watch": []}, r"ingest\.watch: not for one run", None),
        ({"ingest": {"store": None}}, r"ingest\.store: not for one run", None),
        ({"registry.branch": "x"}, r"registry\.branch: not for one run", None),
        ({"retrain.days": 1}, r"retrain\.days: not for one run", None),
        (
            {"embedding.image_per_identity": 4},
            r"embedding\.image_per_identity: unknown key",
            "a run with a misspelt parameter",
        ),
        ({"colour.red": 4}, "colour: unknown key", None),
        ({"seed.x": 4}, r"seed = \{'x': 4\}|seed: Input", None),
        (
            {"embedding.identities_per_batch": "4"},
            r"embedding\.identities_per_batch = '4': Input should be",
            None,
        ),
    ],
)
def test_wrong_overrides_stop_a_run_before_anything_is_made(project, overrides, says, what, fault):
    before = everything(project)
    with pytest.raises(UserError, match=says) as error:
        begin(project, same, overrides)
    assert everything(project) == before
    if what:
        fault("registry", what, error.value)


def test_ingest_may_be_tuned_for_a_run(project):
    run = begin(project, same, {"ingest.max_bad_fraction": 0.5})
    assert load_params(run.folder / "params.yaml").ingest.max_bad_fraction == 0.5


def test_a_run_begins_on_what_origin_has_and_main_follows(project, tmp_path):
    bare = add_origin(project, tmp_path / "origin.git")
    newest = commit_file(clone(bare, tmp_path / "colleague"), "notes.md", "hello")
    git(tmp_path / "colleague", "push", "--quiet")
    run = begin(project, same)
    assert run.base == newest and (project / "notes.md").read_text() == "hello"
    assert git(project, "rev-parse", "main").strip() == newest and git(project, "status", "--porcelain") == ""


def test_main_follows_origin_while_another_branch_is_checked_out(project, tmp_path):
    bare = add_origin(project, tmp_path / "origin.git")
    newest = commit_file(clone(bare, tmp_path / "colleague"), "notes.md", "hello")
    git(tmp_path / "colleague", "push", "--quiet")
    git(project, "checkout", "--quiet", "-b", "mine")
    assert begin(project, same).base == newest == git(project, "rev-parse", "main").strip()
    assert not (project / "notes.md").exists()


def test_a_file_in_the_way_of_what_origin_has_stays(project, tmp_path, fault):
    bare = add_origin(project, tmp_path / "origin.git")
    commit_file(clone(bare, tmp_path / "colleague"), "notes.md", "hello")
    git(tmp_path / "colleague", "push", "--quiet")
    (project / "notes.md").write_text("my own")
    with pytest.raises(UserError, match=r"in the way and not in Git: notes\.md") as error:
        begin(project, same)
    assert (project / "notes.md").read_text() == "my own" and not (project / ".runs").exists()
    fault("registry", "origin's main brings a file that lies here without Git's knowledge", error.value)


def test_commits_of_ones_own_on_main_are_named(project, tmp_path, fault):
    bare = add_origin(project, tmp_path / "origin.git")
    commit_file(project, "mine.md", "mine")
    with pytest.raises(UserError, match="has commits that origin/main has not; `git push") as error:
        begin(project, same)
    fault("registry", "main has a commit that origin has not", error.value)
    commit_file(clone(bare, tmp_path / "colleague"), "notes.md", "hello")
    git(tmp_path / "colleague", "push", "--quiet")
    with pytest.raises(UserError, match="have diverged") as error:
        begin(project, same)
    fault("registry", "main and origin's main have parted", error.value)


def test_an_origin_that_does_not_respond_is_an_error_that_may_be_retried(project, tmp_path, fault):
    bare = add_origin(project, tmp_path / "origin.git")
    bare.rename(tmp_path / "away")
    with pytest.raises(RemoteUnavailable, match=r"the remote origin failed:\nfatal: ") as error:
        begin(project, same)
    fault("registry", "the Git remote is away when a run begins", str(error.value).split("\n")[0])
    (tmp_path / "away").rename(bare)
    assert begin(project, same)


def test_a_folder_without_git_is_no_place_for_runs(tmp_path, fault):
    (tmp_path / "w").mkdir()
    with pytest.raises(UserError, match="not a git repository") as error:
        begin(tmp_path / "w", same)
    fault("registry", "a run in a folder that is no Git repository", error.value)


def test_the_same_data_and_parameters_are_not_run_twice(project, fault):
    run = begin(project, same, {"seed": 5})
    work(run)
    record(run, "reject", ["worse"], run.new_drops)
    run.remove_worktree()
    git(project, "branch", "--quiet", "-D", run.branch)  # main knows the decision
    with pytest.raises(AlreadyDecided, match="the gate rejected it") as error:
        begin(project, same, {"seed": 5})
    fault(
        "registry",
        "a run whose data and parameters the gate has rejected",
        str(error.value).replace(run.id, "RUN"),
    )
    assert begin(project, same, {"seed": 6})


def test_commits_need_no_configured_user(project, monkeypatch, tmp_path):
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("HOME", str(tmp_path))
    run = begin(project, same)
    assert run.commit("results") == run.tip
    made = git(run.folder, "log", "-1", "--format=%an <%ae> %cn").strip()
    assert made == "csdn <csdn@localhost> csdn"


def test_hooks_of_the_clone_do_not_run(project):
    hook = project / ".git/hooks/pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    assert begin(project, same)


def test_an_unknown_run_is_named(project, fault):
    with pytest.raises(UserError, match="no run is called '20260101-00000000'") as error:
        open_run(project, "20260101-00000000")
    fault("registry", "csdn promote of a run that there is not", error.value)


def test_a_remote_with_a_relative_address_is_the_same_from_the_runs_folder(project, tmp_path):
    (project / ".dvc/config.local").write_text(
        "[core]\n    remote = near\n['remote \"near\"']\n    url = ../../weights\n"
        "['remote \"far\"']\n    url = s3://bucket/weights\n    secret_access_key = hush\n"
    )
    run = begin(project, same)
    assert dvc.default_remote(run.folder) == f"near ({tmp_path / 'weights'})"
    local = run.folder / ".dvc/config.local"
    assert local.stat().st_mode & 0o077 == 0 and "hush" in local.read_text()
    assert "hush" not in git(run.folder, "log", "-p")
    assert json.loads(git(project, "show", f"{run.branch}:champion.json")) == {
        "champion": None,
        "start": None,
    }
