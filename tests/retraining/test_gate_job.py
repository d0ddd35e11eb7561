"""`csdn gate` on small projects: who is compared, on what, what is written, and what is an error."""

import json
import shutil
from contextlib import nullcontext
from functools import partial

import numpy as np
import pyarrow.compute as pc
import pytest
from gate_project import GateProject
from make_images import Project, make_drop, people_named, write
from memory_bucket import fill
from safetensors.torch import load_file, save_file

from csdn.cli import retraining as cli_retrain
from csdn.data.catalog import SAMPLES_SCHEMA, load_dataset, read_table, write_table
from csdn.data.features import extract_local
from csdn.evaluation.distances import FeatureDistances
from csdn.evaluation.run import prepare, run_evaluation
from csdn.evaluation.scores import camera_pairs, pair_searches, query_trials, trial_metrics, trial_statistics
from csdn.ingest.ledger import Status, decide, read_ledger, write_ledger
from csdn.params import GateParams
from csdn.retraining import comparison, gate_run
from csdn.retraining.comparison import compare, omitted_pairs
from csdn.retraining.gate_run import check_shards, run_gate
from csdn.retraining.versions import sha256
from csdn.runtime.errors import UserError
from csdn.synthetic.miniatures import write_miniature

RULE = GateParams(
    rank1_margin=5,
    map_margin=3,
    max_pair_drop=15,
    min_people=2,
    confidence=0.95,
    bootstrap_samples=200,
    memory=0,
)


def silent(phase, unit):
    return nullcontext(lambda done, total: None)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return GateProject(tmp_path_factory.mktemp("gate") / "made").make()


@pytest.fixture
def first(made, tmp_path):
    """A project without a champion."""
    return made.copy(tmp_path / "project")


@pytest.fixture
def project(first):
    first.champion(seed=2)
    return first


def gate(project, **options):
    return run_gate(project.params(**options), project.root, silent)


def overall(result, data):
    return [one for one in result["comparisons"] if one["data"] == data and one["query_camera"] is None]


def test_a_model_is_as_good_as_itself(project):
    project.champion(seed=1)
    result = gate(project)
    assert (result["decision"], result["champion"]) == ("promote", "v3")
    assert all(one["difference"] == one["low"] == one["high"] == 0 for one in result["comparisons"])
    assert result == json.loads((project.root / "metrics/gate.json").read_text())


def test_the_metrics_are_those_of_the_evaluation_and_both_models_have_the_same_queries(project):
    result = gate(project)
    assert [(one["data"], one["direction"], one["metric"]) for one in overall(result, "today")] == [
        ("today", "infrared_to_visible", "rank1"),
        ("today", "infrared_to_visible", "mAP"),
        ("today", "visible_to_infrared", "rank1"),
        ("today", "visible_to_infrared", "mAP"),
    ]
    for one in result["comparisons"]:
        assert one["difference"] == pytest.approx(one["candidate"] - one["champion"], abs=2e-6)
        assert one["low"] <= one["difference"] <= one["high"]
    # The same people, queries and galleries: the data has not changed since the champion.
    assert [one | {"data": ""} for one in overall(result, "today")] == [
        one | {"data": ""} for one in overall(result, "champion")
    ]


def rows_of_pairs(search, labels, distances):
    pairs = pair_searches(search, labels).searches
    return camera_pairs(
        search, pairs, query_trials([pair.search for pair in pairs], labels, distances).trials
    )


@pytest.mark.parametrize(
    "benchmark, protocol, options",
    [
        ("sysu", "sysu", {"trials": 3}),
        ("sysu", "sysu_official", {"trials": 2, "mode": "indoor"}),
        ("regdb", "regdb", {}),
        ("llcm", "llcm", {"trials": 2}),
    ],
)
def test_any_protocol_gives_the_figures_of_its_evaluation(tmp_path, benchmark, protocol, options):
    write_miniature(benchmark, tmp_path / "drop")
    project = Project(tmp_path)
    project.add(tmp_path / "drop", benchmark)
    project.ingest()
    experiment = prepare(load_dataset(project.data), protocol, **options)
    names = dict(zip(experiment.labels.cameras.tolist(), experiment.index["camera"], strict=True))
    draws = np.random.default_rng(0)
    distances = [FeatureDistances(draws.random((len(experiment.table), 4))) for _ in range(2)]
    found = compare(experiment, *distances, "today", RULE, seed=0)
    expected = []
    for search in experiment.searches:
        before, after = (trial_statistics(trial_metrics(search, experiment.labels, one)) for one in distances)
        expected += [(before[metric]["mean"], after[metric]["mean"]) for metric in ("rank1", "mAP")]
    figures = [(one.champion, one.candidate) for one in found if not one.of_pair]
    assert np.array(figures) == pytest.approx(np.array(expected), abs=2e-6)
    pairs = {
        (row["direction"], names[row["query_camera"]], names[row["gallery_camera"]]): row
        for search in experiment.searches
        for row in rows_of_pairs(search, experiment.labels, distances[1])
    }
    of_pairs = [one for one in found if one.of_pair]
    assert of_pairs and all(one.people >= 1 for one in of_pairs)
    for one in of_pairs:
        row = pairs[one.direction, one.query_camera, one.gallery_camera]
        assert one.candidate == pytest.approx(row[one.metric], abs=2e-6)


def test_omitting_pairs_with_too_few_people_changes_no_other_pair(tmp_path, monkeypatch):
    """The draws of a pair do not depend on which other pairs have people enough."""
    write_miniature("llcm", tmp_path / "drop")
    project = Project(tmp_path)
    project.add(tmp_path / "drop", "llcm")
    project.ingest()
    experiment = prepare(load_dataset(project.data), "llcm", trials=2)
    draws = np.random.default_rng(0)
    distances = [FeatureDistances(draws.random((len(experiment.table), 4))) for _ in range(2)]
    every, enough = (
        compare(experiment, *distances, "today", RULE.model_copy(update={"min_people": least}), seed=0)
        for least in (1, 3)
    )
    assert enough == [one for one in every if not one.of_pair or one in enough]
    of_pairs = [one for one in every if one.of_pair]
    assert [one for one in enough if one.of_pair] == [one for one in of_pairs if one.people >= 3]
    pairs = {(one.direction, one.query_camera, one.gallery_camera) for one in of_pairs}
    monkeypatch.setattr(comparison, "pair_searches", partial(pair_searches, most_pairs=20))
    assert omitted_pairs(experiment, RULE.model_copy(update={"min_people": 1})) == len(pairs) - 2 * 20 > 0


def test_omitted_pairs_are_counted_in_the_reasons(project, monkeypatch):
    monkeypatch.setattr(gate_run, "omitted_pairs", lambda experiment, rule: 7)
    said = [reason for reason in gate(project)["reasons"] if "not compared" in reason]
    assert len(said) == 2 and all(reason.startswith("note: 7 pairs of cameras") for reason in said)


def test_both_models_search_with_the_same_sample_of_queries(project):
    project.champion(seed=1)
    params = project.params()
    evaluation = params.evaluation.model_copy(update={"max_queries": 4})
    result = run_gate(params.model_copy(update={"evaluation": evaluation}), project.root, silent)
    assert all(one["queries"] <= 4 for one in result["comparisons"])
    assert all(one["difference"] == one["low"] == one["high"] == 0 for one in result["comparisons"])
    said = [reason for reason in result["reasons"] if "evaluation.max_queries" in reason]
    assert len(said) == 4 and all(": 4 of " in reason for reason in said)


def test_each_image_is_embedded_once_by_each_model(project):
    embedded = []

    def counting(walk, make_embeds, params, device, start):
        for rows, found in extract_local(walk, make_embeds, params, device, start):
            embedded.extend((name, walk.table.key(row)) for row in rows for name in found)
            yield rows, found

    more_people(project)
    run_gate(project.params(), project.root, silent, counting)
    table = load_dataset(project.root / "data").test_table()
    keys = [table.key(row) for row in range(len(table))]
    assert sorted(embedded) == sorted((name, key) for name in ("champion", "candidate") for key in keys)


def test_the_champions_data_is_compared_on_its_own_people_and_galleries(project):
    people_then = overall(gate(project), "champion")[0]["people"]
    before = overall(gate(project), "champion")
    more_people(project)
    result = gate(project)
    assert overall(result, "champion") == before
    assert overall(result, "today")[0]["people"] > people_then


def test_models_of_other_sizes_are_compared_too(project):
    project.candidate(seed=1, image_size=(96, 48), embed_dim=8, normalize="clip")
    result = gate(project)
    # Two directions, two metrics, two data sets; in each direction one pair of cameras has queries.
    assert len(result["comparisons"]) == 2 * 2 * 2 * (1 + 1)


def test_identities_seen_in_training_are_excluded(project):
    """data.test_percent falls: people who were test people are trained on now."""
    project.ingest(test_percent=20)
    project.candidate(seed=1)
    result = gate(project)
    today, then = (overall(result, data)[0]["people"] for data in ("today", "champion"))
    assert today == then
    there = len(set(load_dataset(project.root / "champion/data").test_table().person_row))
    assert result["reasons"][-1] == (
        f"note: {there - then} of {there} test people of the champion's data are left out: a model was "
        "trained on them"
    )


def test_a_person_with_a_new_name_is_known_by_the_images(project):
    """Without the salt's say: the aliases rename a training person, who is then a test person."""
    people = load_dataset(project.root / "data").people.to_pylist()
    trained = next(one["person"] for one in people if one["status"] == "train")
    before = overall(gate(project), "today")[0]["people"]
    other = next(name for name in (f"new {n}" for n in range(99)) if is_test(project, name))
    write(project.ingested.aliases, json.dumps({trained: other}).encode())
    project.ingest()
    project.candidate(seed=1)
    assert other in [one["person"] for one in load_dataset(project.root / "data").people.to_pylist()]
    assert overall(gate(project), "today")[0]["people"] == before


def test_drops_that_were_rejected_since_are_excluded(project):
    more = more_people(project)
    project.champion(seed=2)
    ledger = project.root / "data/drops.json"
    write_ledger(decide(read_ledger(ledger), more.id, Status.REJECTED, "wrong labels"), ledger)
    project.ingest()
    for shard in (project.root / "data/shards").glob(f"{more.id[:16]}-*"):
        shard.unlink()
    result = gate(project)
    assert [one["people"] for one in overall(result, "champion")] == [
        one["people"] for one in overall(result, "today")
    ]
    assert "are of drops rejected since, and left out" in result["reasons"][-1]


def test_if_no_test_person_of_the_champions_data_is_left_todays_data_decides(project):
    ledger = project.root / "data/drops.json"
    first = read_ledger(ledger)[0]
    more_people(project)
    write_ledger(decide(read_ledger(ledger), first.id, Status.REJECTED, "gone"), ledger)
    project.ingest()
    project.candidate(seed=1)
    result = gate(project, rank1_margin=100.0, map_margin=100.0)
    assert result["decision"] == "promote"
    assert not overall(result, "champion")
    assert result["reasons"][-1] == (
        "note: the data that the champion was chosen on has no test person left to compare on"
    )


def test_a_later_candidate_that_is_worse_than_clip_is_promoted_with_a_note(project):
    (project.root / "evaluation").mkdir()
    weights = project.root / "models/embedding/model.safetensors"
    of = {"model": sha256(weights), "flip_tta": True, "directions": {}}
    (project.root / "evaluation/thresholds.json").write_text(json.dumps({"format": 1} | of))
    figures = {"rank1": {"mean": 30.0}, "mAP": {"mean": 20.0}}
    worse = {"rank1": {"mean": 31.0}, "mAP": {"mean": 19.0}}
    evaluation = {"clip": {"infrared_to_visible": figures}, "trained": {"infrared_to_visible": worse}}
    (project.root / "metrics").mkdir(exist_ok=True)
    (project.root / "metrics/evaluation.json").write_text(json.dumps(evaluation))
    result = gate(project, rank1_margin=100.0, map_margin=100.0)
    assert result["decision"] == "promote"
    (note,) = [reason for reason in result["reasons"] if "CLIP as it is" in reason]
    assert note.startswith("note: worse") and note.endswith("mAP, infrared to visible: 20.0 % to 19.0 %")
    project.candidate(seed=5)  # these figures are not of this candidate
    assert "CLIP" not in " ".join(gate(project, rank1_margin=100.0, map_margin=100.0)["reasons"])


def test_the_first_model_needs_no_champion(first):
    result = gate(first)
    assert (result["champion"], result["comparisons"]) == (None, [])
    assert "there is no champion yet" in result["reasons"][0]


def test_a_first_model_with_constant_features_does_not_become_champion(first):
    spoil(first, lambda tensor: tensor * 0)
    result = gate(first)
    assert result["decision"] == "undecided"
    assert any(reason.startswith("cannot be told from chance: mAP") for reason in result["reasons"])


def test_a_candidate_whose_features_are_not_finite_is_rejected(project):
    spoil(project, lambda tensor: tensor * 1e30)
    result = gate(project)
    assert result["decision"] == "reject"
    assert result["reasons"] == ["the candidate's features are not finite numbers: its training went wrong"]


@pytest.mark.parametrize(
    ("factor", "says"),
    [
        (float("nan"), r"models/embedding/model.safetensors: .*\n.* NaN or infinite"),
        (1e30, r"features of the method trained are not finite numbers for \d+ of \d+ test images"),
    ],
)
def test_a_model_with_infinite_values_is_not_evaluated(project, tmp_path, factor, says, fault):
    """Weights that are finite and too large give features that are not."""
    spoil(project, lambda tensor: tensor * factor)
    folder = project.root / "models/embedding"
    metrics = tmp_path / "evaluation.json"
    with pytest.raises(UserError, match=says) as error:
        run_evaluation(project.params(), project.root / "data", folder, tmp_path / "out", metrics, silent)
    if factor != factor:
        fault("weights and checkpoints", "the model to evaluate has weights that are NaN", error.value)
    assert not metrics.exists() and not (tmp_path / "out").exists()


def test_the_same_files_give_the_same_bytes(project):
    gate(project)
    first = (project.root / "metrics/gate.json").read_bytes()
    gate(project)
    assert (project.root / "metrics/gate.json").read_bytes() == first


def test_gate_by_hand_prints_the_table_and_the_decision(project, monkeypatch, capsys):
    monkeypatch.chdir(project.root)
    monkeypatch.setattr(cli_retrain, "load_params", lambda: project.params())
    cli_retrain.gate()
    shown = capsys.readouterr().out
    assert "infrared to visible" in shown and "candidate" in shown and "v3" in shown
    assert "the pair of cameras that lost most, of 2" in shown
    decision = json.loads((project.root / "metrics/gate.json").read_text())["decision"]
    assert f"\n{decision}: the " in shown


def test_what_is_missing_of_the_champion_is_named(project, fault):
    (project.root / "champion/data/people.parquet").unlink()
    with pytest.raises(UserError, match=r"csdn fetch-champion") as error:
        gate(project)
    assert not (project.root / "metrics/gate.json").exists()
    fault("weights and checkpoints", "csdn gate without the champion's files", error.value)


def test_weights_of_another_champion_are_an_error(project, fault):
    project.candidate(seed=5)
    shutil.copy(project.root / "models/embedding/model.safetensors", project.root / "champion/embedding")
    with pytest.raises(UserError, match="not the weights of v3") as error:
        gate(project)
    fault("weights and checkpoints", "csdn gate with weights that champion.json does not name", error.value)


def test_a_model_that_does_not_name_its_training_people_is_an_error(project, fault):
    project.candidate(seed=1, people=None)
    with pytest.raises(UserError, match="does not name the people") as error:
        gate(project)
    fault("weights and checkpoints", "csdn gate with a model that names no people", error.value)


def test_a_shard_of_the_champions_data_that_is_gone_is_named(project, fault):
    more = more_people(project)
    project.champion(seed=2)
    ledger = project.root / "data/drops.json"
    write_ledger([drop for drop in read_ledger(ledger) if drop.id != more.id], ledger)
    project.ingest()
    next((project.root / "data/shards").glob(f"{more.id[:16]}-*")).unlink()
    with pytest.raises(UserError, match="no such shard, and the champion was chosen on its images") as error:
        gate(project)
    fault("shards and index", "csdn gate without a shard that the champion was chosen on", error.value)


def test_shards_in_an_object_store_are_looked_up_there(project):
    params = project.params()
    stored = params.ingest.model_copy(update={"store": "memory://bucket/shards"})
    params, dataset = params.model_copy(update={"ingest": stored}), load_dataset(project.root / "data")
    shards = {f"shards/{path.name}": path.read_bytes() for path in project.root.glob("data/shards/*.tar")}
    fill("bucket", shards)
    check_shards(dataset, params, project.root)
    shards.pop(gone := max(shards))
    fill("bucket", shards)
    with pytest.raises(UserError, match=f"memory://bucket/{gone} .* no such shard"):
        check_shards(dataset, params, project.root)


def test_without_test_people_nothing_is_decided(project, fault):
    everybody = [one["person"] for one in load_dataset(project.root / "data").people.to_pylist()]
    project.candidate(seed=1, people=everybody)
    with pytest.raises(UserError, match="nothing to test with") as error:
        gate(project)
    assert not (project.root / "metrics/gate.json").exists()
    fault("training", "csdn gate where both models know every test person", error.value)


def test_without_any_match_nothing_is_decided(project, fault):
    """Each of them is seen by one camera of one modality."""
    for name in ("data", "champion/data"):
        path = project.root / name / "samples.parquet"
        samples = read_table(path, SAMPLES_SCHEMA)
        odd = pc.not_equal(pc.bit_wise_and(samples["person_row"], 1), 0)
        visible = pc.equal(samples["modality"], "visible")
        write_table(path, samples.filter(pc.or_(pc.equal(samples["split"], "train"), pc.xor(odd, visible))))
    with pytest.raises(UserError, match="no test image has a match") as error:
        gate(project)
    fault("training", "csdn gate where no test image has another to find", error.value)


def test_features_of_other_images_are_not_resumed(project):
    """Stopped, then a drop is rejected: the images are others, and so is the state."""

    def stopping(walk, make_embeds, params, device, start):
        yield from extract_local(walk, make_embeds, params, device, start)
        raise KeyboardInterrupt

    more = more_people(project)
    project.champion(seed=2)
    with pytest.raises(KeyboardInterrupt):
        run_gate(project.params(), project.root, silent, stopping)
    states = set((project.root / ".state").glob("*/stage"))
    ledger = project.root / "data/drops.json"
    write_ledger(decide(read_ledger(ledger), more.id, Status.REJECTED, "wrong labels"), ledger)
    with pytest.raises(KeyboardInterrupt):
        run_gate(project.params(), project.root, silent, stopping)
    assert len(set((project.root / ".state").glob("*/stage")) - states) == 1


def more_people(project):
    """A second drop with people of its own, ingested."""
    drop = project.ingested.add(make_drop(project.root / "more", people_named(20, "newly seen")))
    project.ingest()
    project.candidate(seed=1)
    return drop


def is_test(project, name):
    from csdn.ingest.identities import SplitRule

    identity = SplitRule("csdn", project.test_percent)
    return identity.split(identity.bucket(name)) == "test"


def spoil(project, change):
    path = project.root / "models/embedding/model.safetensors"
    tensors = {
        name: change(tensor) if tensor.is_floating_point() else tensor
        for name, tensor in load_file(path).items()
    }
    save_file(tensors, path)
