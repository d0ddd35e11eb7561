"""Weights go with the registry: to DVC's remote, into the next run, and to whoever clones the project."""

import re
import shutil
from types import SimpleNamespace

import pytest
from hostile_gitconfig import use_hostile_settings
from registry_project import DROPS, add_origin, arrive, champion, clone, make_project, tags, work
from repository import git
from typer.testing import CliRunner
from workspace import run

from csdn.cli.main import app
from csdn.retraining.branches import history
from csdn.retraining.dvc import ArtifactNotFound
from csdn.retraining.git import RemoteUnavailable
from csdn.retraining.registry import promote, rollback
from csdn.retraining.versions import FILES, fetch_champion, sha256
from csdn.retraining.workspace import begin
from csdn.runtime.errors import UserError
from csdn.training.champion import read_champion, write_champion

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """Two promotions, the first before there was an `origin`; both remotes have all of it in the end."""
    folder = tmp_path_factory.mktemp("story")
    project = make_project(folder / "project")
    run(project, "dvc", "remote", "add", "--quiet", "--default", "weights", "../weights")
    git(project, "commit", "--quiet", "--all", "--message", "remote")
    first = begin(project, arrive(DROPS[1]))
    said = [work(first, by_dvc=True)]
    assert promote(first).version == "v1"
    bare = add_origin(project, folder / "origin.git")
    second = begin(project, arrive(DROPS[2]))
    said.append(work(second, by_dvc=True))
    assert promote(second).version == "v2"
    return SimpleNamespace(
        folder=folder, project=project, bare=bare, weights=folder / "weights", runs=(first, second), said=said
    )


@pytest.fixture
def places(story, tmp_path):
    """Copies of both remotes, and a fresh clone that knows them."""
    shutil.copytree(story.bare, tmp_path / "origin.git")
    shutil.copytree(story.weights, tmp_path / "weights")
    return SimpleNamespace(
        clone=clone(tmp_path / "origin.git", tmp_path / "clone"), weights=tmp_path / "weights"
    )


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


ALL = {
    *("prompts/prompts.safetensors", "prompts/config.json", "embedding/model.safetensors"),
    *("embedding/config.json", "data/samples.parquet", "data/people.parquet"),
    "evaluation/thresholds.json",
}


def test_a_run_starts_from_the_champion_and_reads_new_drops_only(story):
    first, second = story.runs
    assert re.findall("read (.)", story.said[0]) == ["1", "2"]
    assert re.findall("read (.)", story.said[1]) == ["3"]
    start = read_champion(second.folder).start
    assert start.version == "v1" and start == read_champion(first.folder).champion.as_start()
    assert files(second.folder / "champion") == ALL
    assert sha256(second.folder / "champion/embedding/model.safetensors") == start.embedding


def test_the_workspace_has_the_champions_results_and_nothing_to_do(story):
    assert champion(story.project) == "v2" and git(story.project, "status", "--porcelain") == ""
    model = story.project / "models/embedding/model.safetensors"
    assert sha256(model) == read_champion(story.project).champion.embedding
    assert "up to date" in run(story.project, "dvc", "status").stdout


def test_gto_reads_the_registry_as_its_own_and_origin_has_the_older_tags_too(story):
    from gto import api

    shown = api.show(str(story.project))["csdn"]
    assert shown["version"] == "v2.0.0" and shown["stage"] == {"champion": "v2.0.0"}
    assert sorted(one["version"] for one in api.show(str(story.project), "csdn")) == ["v1.0.0", "v2.0.0"]
    assert tags(story.bare) == ["csdn#champion#1", "csdn#champion#2", "csdn@v1.0.0", "csdn@v2.0.0"]


def test_a_clone_and_one_command_give_the_champion(places, monkeypatch):
    monkeypatch.chdir(places.clone)
    assert CliRunner().invoke(app, ["fetch-champion"]).stdout == "champion/: version v2\n"
    assert files(places.clone / "champion") == ALL
    assert git(places.clone, "status", "--porcelain") == ""
    shutil.rmtree(places.weights)
    assert CliRunner().invoke(app, ["fetch-champion"]).exit_code == 0  # it exists: no remote is used


def test_fetching_an_older_version_replaces_the_champions_files(places):
    fetch_champion(places.clone, "v2", places.clone / "champion")
    fetch_champion(places.clone, "v1", places.clone / "champion")
    older = git(places.clone, "show", "csdn@v1.0.0:champion.json")
    assert sha256(places.clone / "champion/embedding/model.safetensors") in older


def test_weights_that_neither_cache_nor_remote_has(places, fault):
    shutil.rmtree(places.weights)
    places.weights.mkdir()
    with pytest.raises(
        ArtifactNotFound, match="neither in DVC's cache nor in the DVC remote weights"
    ) as error:
        fetch_champion(places.clone, "v2", places.clone / "champion")
    assert not (places.clone / "champion").exists()
    fault("registry", "the champion's weights are neither in the cache nor in the remote", error.value)
    with pytest.raises(ArtifactNotFound):
        begin(places.clone, arrive())


def test_weights_that_the_cache_lacks_without_a_remote(places, fault):
    run(places.clone, "dvc", "remote", "remove", "weights")
    with pytest.raises(ArtifactNotFound, match="no DVC remote is set") as error:
        fetch_champion(places.clone, "v2", places.clone / "champion")
    fault("registry", "the champion's weights are not here, and no DVC remote is set", error.value)


def test_a_remote_that_does_not_respond_is_not_one_without_the_weights(places, monkeypatch, fault):
    for name, value in {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "MAX_ATTEMPTS": "1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    address = ("remote", "add", "--quiet", "--force", "--default", "weights", "s3://bucket/weights")
    run(places.clone, "dvc", *address)
    run(places.clone, "dvc", "remote", "modify", "weights", "endpointurl", "http://127.0.0.1:9")
    with pytest.raises(RemoteUnavailable, match="the DVC remote weights") as error:
        fetch_champion(places.clone, "v2", places.clone / "champion")
    assert not (places.clone / "champion").exists()
    fault("registry", "the DVC remote does not answer", str(error.value).split("\n")[0])


def test_weights_that_are_not_those_of_champion_json(places, fault):
    (places.clone / "champion").mkdir()
    (places.clone / "champion/mine").write_text("before")
    file = read_champion(places.clone)
    other = file.champion.model_copy(update={"embedding": "0" * 64})
    write_champion(file.model_copy(update={"champion": other}), places.clone)
    with pytest.raises(UserError, match=r"embedding/model.safetensors is not the file") as error:
        fetch_champion(places.clone, "v2", places.clone / "champion")
    assert files(places.clone / "champion") == {"mine"}
    fault("registry", "the champion's weights have another SHA-256 than champion.json says", error.value)


def test_an_unknown_version(places, fault):
    with pytest.raises(UserError, match=r"no tag csdn@v9\.0\.0") as error:
        fetch_champion(places.clone, "v9", places.clone / "champion")
    fault("registry", "csdn fetch-champion of a version that there is not", error.value)


def test_back_to_the_version_before(places, monkeypatch):
    from gto import api

    monkeypatch.chdir(places.clone)
    done = CliRunner().invoke(app, ["rollback", "--reason", "cam3 was moved"])
    assert done.stdout.startswith("version v1 is the champion")
    assert champion(places.clone) == champion(places.clone, "origin/main") == "v1"
    assert files(places.clone / "champion") == ALL
    assert (places.clone / "MODEL_CARD.md").read_text().startswith("# Model card: CSDN v1\n")
    assert api.show(".")["csdn"]["stage"] == {"champion": "v1.0.0"}
    last = history(places.clone)[-1]
    assert (last.outcome, last.version, last.reason) == ("rolled back", "v1", "cam3 was moved")
    assert "csdn#champion#3" in git(places.clone, "ls-remote", "--tags", "origin")
    assert read_champion(places.clone).start.version == "v1"  # what the model in this commit began from
    begun = begin(places.clone, arrive())
    assert read_champion(begun.folder).start.version == "v1"
    assert rollback(places.clone, "v1") == ("v1", [])
    with pytest.raises(UserError, match="no version before v1"):
        rollback(places.clone)


def test_weights_that_dvc_finds_again_after_a_rollback_are_not_promoted(places, monkeypatch):
    """The next run has the data of v2 and starts from v1, as v2 did: DVC skips the stage."""
    monkeypatch.chdir(places.clone)
    said = CliRunner().invoke(app, ["rollback"]).stdout
    assert "v2: the same weights are not promoted again" in said and str(DROPS[2]) in said
    again = begin(places.clone, arrive())
    assert "didn't change, skipping" in work(again, by_dvc=True)
    with pytest.raises(UserError, match="has the weights of v2, which a rollback has left"):
        promote(again)
    assert champion(places.clone) == champion(places.clone, "origin/main") == "v1"


def test_back_to_an_older_version_under_a_hostile_configuration(places, tmp_path, monkeypatch):
    git(places.clone.parent / "origin.git", "config", "core.hooksPath", "hooks")
    use_hostile_settings(tmp_path / "home", monkeypatch)
    assert rollback(places.clone, "v1", "camera 3") == ("v1", [])
    assert champion(places.clone) == champion(places.clone, "origin/main") == "v1"
    last = history(places.clone)[-1]
    assert (last.outcome, last.version, last.reason) == ("rolled back", "v1", "camera 3")


def test_a_rollback_that_origin_rejects_changes_nothing(places, fault):
    hook = places.clone.parent / "origin.git/hooks/update"
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    before = git(places.clone, "for-each-ref")
    with pytest.raises(UserError, match="rejected the push"):
        rollback(places.clone)
    assert git(places.clone, "for-each-ref") == before and champion(places.clone) == "v2"
    assert not (places.clone / "champion").exists()


def test_no_rollback_to_a_version_whose_weights_are_gone(places):
    shutil.rmtree(places.weights)
    places.weights.mkdir()
    with pytest.raises(ArtifactNotFound):
        rollback(places.clone)
    assert champion(places.clone, "origin/main") == "v2"


def test_every_file_of_a_version_is_one_that_the_pipeline_writes():
    import yaml
    from workspace import ROOT

    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values()
    outs = [out for stage in stages for out in stage["outs"]]
    assert set(FILES) <= {out for out in outs if isinstance(out, str)}


def test_a_version_from_before_the_thresholds_is_fetched_without_them(places):
    """As in a cache and a remote that lack them."""
    manifest = next(path for path in places.weights.rglob("*.dir") if b"thresholds.json" in path.read_bytes())
    manifest.unlink()
    fetch_champion(places.clone, "v2", places.clone / "champion")
    assert files(places.clone / "champion") == ALL - {"evaluation/thresholds.json"}
