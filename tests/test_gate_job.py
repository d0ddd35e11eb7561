"""`csdn gate` on small projects: who is asked, what is compared, what is written, and what stops it."""

import json
import shutil
from contextlib import nullcontext

import numpy as np
import pyarrow.compute as pc
import pytest
from gate_project import GateProject
from make_images import Project, make_drop, people_named, write
from safetensors.torch import load_file, save_file

from csdn import cli_retrain
from csdn.builtin.mini import write_miniature
from csdn.data.dataset import load_dataset
from csdn.data.drops import Status, decide, read_ledger, write_ledger
from csdn.data.tables import SAMPLES_SCHEMA, read_table, write_table
from csdn.errors import UserError
from csdn.evaluation.job import prepare, run_evaluation
from csdn.evaluation.scores import camera_pairs, feature_distances, headline, trial_metrics
from csdn.params import GateParams
from csdn.retraining import comparison, gate_job
from csdn.retraining.comparison import compare, unjudged_pairs
from csdn.retraining.gate_job import run_gate
from csdn.walk import embedded_here

RULE = GateParams(margin=5, map_margin=3, collapse=15, pair_people=2, confidence=0.95, samples=200)


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


def test_the_figures_are_those_of_the_evaluation_and_both_models_answer_the_same(project):
    result = gate(project)
    assert [(one["data"], one["direction"], one["metric"]) for one in overall(result, "today")] == [
        ("today", "infrared_to_visible", "rank1"),
        ("today", "infrared_to_visible", "mAP"),
        ("today", "visible_to_infrared", "rank1"),
        ("today", "visible_to_infrared", "mAP"),
    ]
    for one in result["comparisons"]:
        assert one["difference"] == pytest.approx(one["newcomer"] - one["champion"], abs=2e-6)
        assert one["low"] <= one["difference"] <= one["high"]
    # The same people, queries and galleries: the data has not changed since the champion.
    assert [one | {"data": ""} for one in overall(result, "today")] == [
        one | {"data": ""} for one in overall(result, "champion")
    ]


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
    distances = [feature_distances(draws.random((len(experiment.table), 4))) for _ in range(2)]
    found = compare(experiment, *distances, "today", RULE, seed=0)
    expected = []
    for search in experiment.searches:
        before, after = (headline(trial_metrics(search, experiment.labels, one)) for one in distances)
        expected += [(before[metric]["mean"], after[metric]["mean"]) for metric in ("rank1", "mAP")]
    figures = [(one.champion, one.newcomer) for one in found if not one.of_pair]
    assert np.array(figures) == pytest.approx(np.array(expected), abs=2e-6)
    pairs = {
        (row["direction"], names[row["query_camera"]], names[row["gallery_camera"]]): row
        for search in experiment.searches
        for row in camera_pairs(search, experiment.labels, distances[1])[0]
    }
    of_pairs = [one for one in found if one.of_pair]
    assert of_pairs and all(one.people >= 1 for one in of_pairs)
    for one in of_pairs:
        row = pairs[one.direction, one.query_camera, one.gallery_camera]
        assert one.newcomer == pytest.approx(row[one.metric], abs=2e-6)


def test_pairs_with_too_few_people_are_not_compared_and_no_other_changes_for_it(tmp_path, monkeypatch):
    """The draws of a pair do not depend on which other pairs have people enough."""
    write_miniature("llcm", tmp_path / "drop")
    project = Project(tmp_path)
    project.add(tmp_path / "drop", "llcm")
    project.ingest()
    experiment = prepare(load_dataset(project.data), "llcm", trials=2)
    draws = np.random.default_rng(0)
    distances = [feature_distances(draws.random((len(experiment.table), 4))) for _ in range(2)]
    every, enough = (
        compare(experiment, *distances, "today", RULE.model_copy(update={"pair_people": least}), seed=0)
        for least in (1, 3)
    )
    assert enough == [one for one in every if not one.of_pair or one in enough]
    of_pairs = [one for one in every if one.of_pair]
    assert [one for one in enough if one.of_pair] == [one for one in of_pairs if one.people >= 3]
    pairs = {(one.direction, one.query_camera, one.gallery_camera) for one in of_pairs}
    monkeypatch.setattr(comparison, "JUDGED_PAIRS", 20)
    assert unjudged_pairs(experiment, RULE.model_copy(update={"pair_people": 1})) == len(pairs) - 2 * 20 > 0


def test_pairs_that_are_too_many_to_judge_are_counted_in_the_reasons(project, monkeypatch):
    monkeypatch.setattr(gate_job, "unjudged_pairs", lambda experiment, rule: 7)
    said = [reason for reason in gate(project)["reasons"] if "not judged" in reason]
    assert len(said) == 2 and all(reason.startswith("7 pairs of cameras") for reason in said)


def test_each_image_is_embedded_once_by_each_model(project):
    embedded = []

    def counting(walk, make_embeds, scaling, device, start):
        for rows, found in embedded_here(walk, make_embeds, scaling, device, start):
            embedded.extend((name, walk.table.key[row]) for row in rows for name in found)
            yield rows, found

    more_people(project)
    run_gate(project.params(), project.root, silent, counting)
    keys = load_dataset(project.root / "data").test_table().key
    assert sorted(embedded) == sorted((name, key) for name in ("champion", "newcomer") for key in keys)


def test_the_champions_data_is_compared_on_its_own_people_and_galleries(project):
    people_then = overall(gate(project), "champion")[0]["people"]
    before = overall(gate(project), "champion")
    more_people(project)
    result = gate(project)
    assert overall(result, "champion") == before
    assert overall(result, "today")[0]["people"] > people_then


def test_models_of_other_sizes_are_compared_too(project):
    project.newcomer(seed=1, image_size=(96, 48), embed_dim=8, normalize="clip")
    result = gate(project)
    # Two directions, two metrics, two data sets; in each direction one pair of cameras has queries.
    assert len(result["comparisons"]) == 2 * 2 * 2 * (1 + 1)


def test_nobody_is_asked_whom_a_model_was_trained_on(project):
    """data.test_percent falls: people who were test people are trained on now, and say nothing of either."""
    project.ingest(test_percent=20)
    project.newcomer(seed=1)
    result = gate(project)
    today, then = (overall(result, data)[0]["people"] for data in ("today", "champion"))
    assert today == then
    there = len(set(load_dataset(project.root / "champion/data").test_table().person_row))
    assert result["reasons"][-1] == (
        f"{there - then} of {there} test people of the champion's data are left out: a model was "
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
    project.newcomer(seed=1)
    assert other in [one["person"] for one in load_dataset(project.root / "data").people.to_pylist()]
    assert overall(gate(project), "today")[0]["people"] == before


def test_drops_that_were_rejected_since_are_asked_nothing(project):
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


def test_where_nobody_of_the_champions_data_is_left_todays_decides(project):
    ledger = project.root / "data/drops.json"
    first = read_ledger(ledger)[0]
    more_people(project)
    write_ledger(decide(read_ledger(ledger), first.id, Status.REJECTED, "gone"), ledger)
    project.ingest()
    project.newcomer(seed=1)
    result = gate(project, margin=100.0, map_margin=100.0)
    assert result["decision"] == "promote"
    assert not overall(result, "champion")
    assert result["reasons"][-1] == "nobody of the data that the champion was chosen on can be asked any more"


def test_the_first_model_needs_no_champion(first):
    result = gate(first)
    assert (result["champion"], result["comparisons"]) == (None, [])
    assert "there is no champion yet" in result["reasons"][0]


def test_a_first_model_to_whom_all_images_are_alike_is_refused(first):
    spoil(first, lambda tensor: tensor * 0)
    result = gate(first)
    assert result["decision"] == "keep"
    assert any(reason.startswith("cannot be told from chance: mAP") for reason in result["reasons"])


def test_a_newcomer_without_numbers_is_refused(project):
    """Weights that are NaN are no model (csdn.load); of these it is the features."""
    spoil(project, lambda tensor: tensor * 1e30)
    result = gate(project)
    assert result["decision"] == "keep"
    assert result["reasons"] == ["the newcomer's features are not finite numbers: its training went wrong"]


@pytest.mark.parametrize(
    ("factor", "says"),
    [
        (float("nan"), "models/embedding/model.safetensors"),
        (1e30, r"features of the method trained are not finite numbers for \d+ of \d+ test images"),
    ],
)
def test_a_model_without_numbers_is_not_evaluated(project, tmp_path, factor, says, fault):
    """Of weights that are finite and too large it is the features."""
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
    assert "infrared to visible" in shown and "newcomer" in shown and "v3" in shown
    assert "the pair of cameras that lost most, of 2" in shown
    assert ("keep: the newcomer" in shown) != ("promote: the newcomer" in shown)


def test_what_is_missing_of_the_champion_is_named(project, fault):
    (project.root / "champion/data/people.parquet").unlink()
    with pytest.raises(UserError, match=r"csdn champion") as error:
        gate(project)
    assert not (project.root / "metrics/gate.json").exists()
    fault("weights and checkpoints", "csdn gate without the champion's files", error.value)


def test_weights_of_another_champion_are_refused(project, fault):
    project.newcomer(seed=5)
    shutil.copy(project.root / "models/embedding/model.safetensors", project.root / "champion/embedding")
    with pytest.raises(UserError, match="not the weights of v3") as error:
        gate(project)
    fault("weights and checkpoints", "csdn gate with weights that champion.json does not name", error.value)


def test_a_model_that_does_not_say_whom_it_knows_is_refused(project, fault):
    project.newcomer(seed=1, people=None)
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


def test_without_anybody_to_ask_nothing_is_decided(project, fault):
    everybody = [one["person"] for one in load_dataset(project.root / "data").people.to_pylist()]
    project.newcomer(seed=1, people=everybody)
    with pytest.raises(UserError, match="nothing to test with") as error:
        gate(project)
    assert not (project.root / "metrics/gate.json").exists()
    fault("training", "csdn gate where both models know every test person", error.value)


def test_test_people_who_find_nobody_decide_nothing(project, fault):
    """Each of them is seen by one camera of one modality."""
    for name in ("data", "champion/data"):
        path = project.root / name / "samples.parquet"
        samples = read_table(path, SAMPLES_SCHEMA)
        odd = pc.not_equal(pc.bit_wise_and(samples["person_row"], 1), 0)
        visible = pc.equal(samples["modality"], "visible")
        write_table(path, samples.filter(pc.or_(pc.equal(samples["side"], "train"), pc.xor(odd, visible))))
    with pytest.raises(UserError, match="no test image has a right image") as error:
        gate(project)
    fault("training", "csdn gate where no test image has another to find", error.value)


def test_what_was_embedded_for_other_people_is_not_taken_up(project):
    """Stopped, then a drop is rejected: the images are others, and so is the state."""

    def stopping(walk, make_embeds, scaling, device, start):
        yield from embedded_here(walk, make_embeds, scaling, device, start)
        raise KeyboardInterrupt

    more = more_people(project)
    project.champion(seed=2)
    with pytest.raises(KeyboardInterrupt):
        run_gate(project.params(), project.root, silent, stopping)
    states = set((project.root / ".state").glob("*/lock"))
    ledger = project.root / "data/drops.json"
    write_ledger(decide(read_ledger(ledger), more.id, Status.REJECTED, "wrong labels"), ledger)
    with pytest.raises(KeyboardInterrupt):
        run_gate(project.params(), project.root, silent, stopping)
    assert len(set((project.root / ".state").glob("*/lock")) - states) == 1


def more_people(project):
    """A second drop with people of its own, ingested."""
    drop = project.ingested.add(make_drop(project.root / "more", people_named(20, "newly seen")))
    project.ingest()
    project.newcomer(seed=1)
    return drop


def is_test(project, name):
    from csdn.data.people import Identity

    identity = Identity("csdn", project.test_percent)
    return identity.side(identity.bucket(name)) == "test"


def spoil(project, change):
    path = project.root / "models/embedding/model.safetensors"
    tensors = {
        name: change(tensor) if tensor.is_floating_point() else tensor
        for name, tensor in load_file(path).items()
    }
    save_file(tensors, path)
