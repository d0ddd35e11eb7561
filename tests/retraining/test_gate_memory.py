"""A candidate must not be worse than the best of the last versions: many small losses add up to none."""

import json
import shutil
from contextlib import nullcontext
from itertools import pairwise

import numpy as np
import pytest
import yaml
from gate_project import GateProject, name_champion
from repository import git
from safetensors.torch import load_file, save_file
from workspace import ROOT, run

from csdn.data.catalog import load_dataset
from csdn.evaluation import protocol
from csdn.evaluation.distances import FeatureDistances
from csdn.evaluation.run import Experiment
from csdn.evaluation.scores import Labels
from csdn.ingest.forgotten import FORGOTTEN, Forgotten, ForgottenPerson, forgotten_text
from csdn.params import load_params
from csdn.retraining import gate_memory
from csdn.retraining.comparison import compare
from csdn.retraining.dvc import ArtifactNotFound
from csdn.retraining.gate import TODAY, decide
from csdn.retraining.gate_memory import compare_with_best
from csdn.retraining.gate_run import run_gate
from csdn.retraining.git import RemoteUnavailable, set_refs
from csdn.retraining.versions import sha256, tags_for
from csdn.runtime.errors import ServiceUnavailable
from csdn.training.champion import read_champion, write_champion

RULE = load_params(ROOT / "params.yaml").gate
PEOPLE = 150


# Models that lose a little at each promotion: their features are their people's, with more and more noise.


def experiment():
    """Each person has 4 images by one visible and by one infrared camera."""
    images = [(n, m, k) for m in ("infrared", "visible") for n in range(PEOPLE) for k in range(4)]
    people, modalities, numbers = zip(*images, strict=True)
    cameras = [f"cam {modality}" for modality in modalities]
    index = {"person": people, "modality": modalities, "camera": cameras, "key": numbers}
    searches = protocol("cameras", index, trials=3)
    labels = Labels(np.array(people), np.array(cameras))
    return Experiment(labels.people, index, labels, searches, "cameras", {})


@pytest.fixture(scope="module")
def models():
    draws, found = np.random.default_rng(0), experiment()
    own = draws.standard_normal((PEOPLE, 32))[found.labels.people]
    noise = draws.standard_normal(own.shape)

    def model(level):
        return FeatureDistances(own + level * (noise + 0.03 * draws.standard_normal(own.shape)))

    levels = {"v1": 1.2, "v2": 1.215, "champion": 1.23, "candidate": 1.245}
    return found, {name: model(level) for name, level in levels.items()}


def test_a_slow_decay_ends_at_the_best_of_the_last_versions(models):
    found, model = models
    for older, newer in pairwise(model):
        alone = compare(found, model[older], model[newer], TODAY, RULE, seed=0)
        assert decide(alone, RULE).decision == "promote"
    best, against, notes = compare_with_best(found, model.__getitem__, ["v1", "v2"], RULE, seed=0)
    assert (best, notes) == ("v1", [])
    decision = decide([*alone, *against], RULE, best)
    assert decision.decision == "undecided"
    assert all("version v1" in reason and "`csdn rollback v1`" in reason for reason in decision.reasons)


def test_if_the_champion_is_the_best_nothing_more_is_compared(models):
    found, model = models
    order = {"champion": "v1", "v1": "v2", "v2": "champion", "candidate": "candidate"}
    best, against, notes = compare_with_best(
        found, lambda name: model[order[name]], ["v1", "v2"], RULE, seed=0
    )
    assert (best, against) == (None, []) and f"on {PEOPLE} test people" in notes[0] and "v1" in notes[0]


def test_too_few_people_are_no_evidence(models):
    found, model = models
    rule = RULE.model_copy(update={"min_people": PEOPLE + 1})
    best, against, notes = compare_with_best(found, model.__getitem__, ["v1"], rule, seed=0)
    assert (best, against) == (None, [])
    assert f"{PEOPLE} test people" in notes[0] and f"{PEOPLE + 1} are needed" in notes[0]


# `csdn gate` with older versions.


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return GateProject(tmp_path_factory.mktemp("memory") / "made").make()


@pytest.fixture
def project(made, tmp_path):
    """Version v3 is the champion."""
    project = made.copy(tmp_path / "project")
    project.champion(seed=2)
    return project


def gate(project, **options):
    settings = {"memory": 5, "rank1_margin": 100.0, "map_margin": 100.0} | options
    return run_gate(project.params(**settings), project.root, lambda phase, unit: nullcontext(print))


def version(project, name, seed, worthless=False):
    """The files of a version as `fetch_champion` leaves them, trained on today's training people."""
    folder = project.root / gate_memory.FOLDER / name
    project.save(folder / "embedding", seed)
    if worthless:
        same_for_every_image(folder / "embedding")
    shutil.copytree(project.root / "champion/data", folder / "data")


def same_for_every_image(model):
    path = model / "model.safetensors"
    tensors = load_file(path)
    save_file(
        {name: tensor * 0 if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}, path
    )


def fetching(monkeypatch, errors=None):
    """The versions are there, or their fetching fails."""

    def fetch(root, name, folder):
        if error := (errors or {}).get(name):
            raise error

    monkeypatch.setattr(gate_memory, "fetch_champion", fetch)
    monkeypatch.setattr(gate_memory, "versions_before", lambda root, version: ["v1", "v2"])


def test_the_candidate_is_compared_with_the_best_version(project, monkeypatch):
    fetching(monkeypatch)
    version(project, "v1", seed=3)
    version(project, "v2", seed=4, worthless=True)
    version(project, "v0", seed=4)  # left from an earlier run: not one of the last
    same_for_every_image(project.root / "champion/embedding")
    same_for_every_image(project.root / "models/embedding")
    name_champion(project.root, project.root / "data")
    result = gate(project)
    against = [one for one in result["comparisons"] if one["data"] == "best"]
    assert (result["best"], len(against)) == ("v1", 4)
    assert all(one["query_camera"] is None for one in against)
    assert sum(one["difference"] for one in against) < 0
    assert not (project.root / gate_memory.FOLDER / "v0").exists()
    assert result == json.loads((project.root / "metrics/gate.json").read_text())
    strict = gate(project, rank1_margin=0.1, map_margin=0.1)
    assert strict["decision"] == "undecided" and "`csdn rollback v1`" in " ".join(strict["reasons"])
    assert gate(project, memory=1)["best"] is None  # v2 is not better than the champion


def test_a_version_that_was_trained_on_a_forgotten_person_is_still_compared(project, monkeypatch):
    """Its files are without the person, and it is a measure of what was lost since (docs/privacy.md)."""
    fetching(monkeypatch)
    version(project, "v1", seed=3)
    version(project, "v2", seed=4, worthless=True)
    someone = ForgottenPerson("0" * 64, ("0" * 64,), "2026-11-21", versions=("v1", "v3"))
    (project.root / FORGOTTEN).write_bytes(forgotten_text(Forgotten("salt", (someone,))))
    same_for_every_image(project.root / "champion/embedding")
    name_champion(project.root, project.root / "data")
    assert gate(project)["best"] == "v1"


def test_people_whom_an_older_version_saw_are_left_out(project, monkeypatch):
    """Version v2 was trained on all but two of today's test people."""
    fetching(monkeypatch)
    tests = sorted(set(load_dataset(project.root / "data").test_index(("person",))["person"]))
    project.save(project.root / gate_memory.FOLDER / "v2/embedding", 4, people=tests[2:])
    shutil.copytree(project.root / "champion/data", project.root / gate_memory.FOLDER / "v2/data")
    assert "not compared" not in " ".join(gate(project, memory=1)["reasons"])
    said = gate(project, memory=1, min_people=3)["reasons"]
    assert any("2 test people of today's data were seen in training by none" in reason for reason in said)


def test_a_version_that_cannot_be_fetched_is_a_note(project, monkeypatch):
    fetching(monkeypatch, {"v1": ArtifactNotFound("files of version v1: neither here\nnor there")})
    version(project, "v2", seed=4)
    result = gate(project)
    assert result["decision"] == "promote"
    assert (
        "note: version v1 is not compared: files of version v1: neither here nor there" in result["reasons"]
    )


def test_a_remote_that_does_not_respond_is_an_error_to_be_retried(project, monkeypatch):
    fetching(monkeypatch, {"v1": RemoteUnavailable("files of version v1: the DVC remote failed")})
    with pytest.raises(ServiceUnavailable, match="version v1"):
        gate(project)
    assert not (project.root / "metrics/gate.json").exists()


def test_without_git_there_are_no_older_versions_to_compare_with(project):
    result = gate(project)
    assert result["decision"] == "promote"
    assert sum("no version before v3 is compared: " in reason for reason in result["reasons"]) == 1


def test_a_candidate_with_the_weights_of_a_version_that_was_left_is_undecided(project):
    """A rollback has left v4 for v3; the same data and parameters have made the same weights again."""
    root, file = project.root, read_champion(project.root)
    bad = {"version": "v4", "embedding": sha256(root / "models/embedding/model.safetensors")}
    git(root, "init", "--quiet", "--initial-branch", "main")
    for entry in (file.champion, file.champion.model_copy(update=bad), file.champion):
        write_champion(file.model_copy(update={"champion": entry}), root)
        git(root, "add", "champion.json")
        git(root, "commit", "--quiet", "--message", entry.version)
        set_refs(root, tags_for(root, entry.version, git(root, "rev-parse", "HEAD").strip()))
    result = gate(project)
    assert (result["decision"], result["champion"], result["comparisons"]) == ("undecided", "v3", [])
    assert "has the weights of v4, which a rollback has left" in result["reasons"][0]
    project.candidate(seed=7)
    assert gate(project)["decision"] == "promote"


@pytest.mark.slow
def test_versions_come_from_gits_tags_and_dvcs_cache(project):
    """v1 is a commit with a tag, its files are in DVC's cache; a rollback to it has left v2."""
    root = project.root
    for name in (".gitignore", ".dvcignore", ".dvc/config", ".dvc/.gitignore", "params.yaml"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    shutil.copytree(root / "models/embedding", root / "models/prompts")
    (root / "models/prompts/model.safetensors").rename(root / "models/prompts/prompts.safetensors")
    outs = ["models/prompts", "models/embedding", "data/samples.parquet", "data/people.parquet"]
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"train": {"cmd": "true", "outs": outs}}}))
    champion = read_champion(root)
    hashes = {
        "prompts": sha256(root / "models/prompts/prompts.safetensors"),
        "embedding": sha256(root / "models/embedding/model.safetensors"),
    }
    first = champion.champion.model_copy(update={"version": "v1"} | hashes)
    write_champion(champion.model_copy(update={"champion": first}), root)
    git(root, "init", "--quiet", "--initial-branch", "main")
    run(root, "dvc", "commit", "--quiet", "--force", "train")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "v1")
    for name in ("v1", "v2", "v1", "v3"):
        git(root, "commit", "--quiet", "--allow-empty", "--message", name)
        set_refs(root, tags_for(root, name, git(root, "rev-parse", "HEAD").strip()))
    write_champion(champion, root)
    project.candidate(seed=7)
    result = gate(project)
    said = " ".join(result["reasons"])
    assert "is not compared" not in said and not (root / gate_memory.FOLDER / "v2").exists()
    assert sha256(root / gate_memory.FOLDER / "v1/embedding/model.safetensors") == hashes["embedding"]
    assert result["best"] == "v1" or "is not worse than the best of the last versions, v1" in said
