"""The stage "evaluate": test features with the mirror image, figures with their spread, and its files."""

import csv
import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch
from make_images import Project, make_drop, people_named
from small_network import SMALL

from csdn.data.catalog import load_dataset
from csdn.evaluation import (
    RankMetrics,
    Search,
    distances,
    embed_with_flip_tta,
    query_metrics,
    rank_metrics,
    top_ranked,
)
from csdn.evaluation.distances import FeatureDistances, RandomDistances, Trial
from csdn.evaluation.headline import RERANKED, headline, notes
from csdn.evaluation.metrics import summary
from csdn.evaluation.protocols import sample_queries
from csdn.evaluation.rerank import RerankedDistances, rerank
from csdn.evaluation.run import Experiment, PeopleMaps, evaluate, prepare, run_evaluation, write_results
from csdn.evaluation.scores import (
    PAIRS,
    Labels,
    camera_pairs,
    mean_and_std,
    pair_searches,
    query_trials,
    trial_metrics,
    trial_statistics,
    with_sampling_error,
)
from csdn.evaluation.text_maps import TextMaps
from csdn.model import CSDN, load_clip, save
from csdn.params import load_params
from csdn.report.tables import camera_grids
from csdn.report.wording import pairs_left_out, sampling
from csdn.runtime.errors import UserError


def test_retrieval_feature_is_that_of_the_image_beside_that_of_its_mirror_image():
    model = CSDN(SMALL).eval()
    images = torch.rand(3, 3, 64, 32)
    feature = embed_with_flip_tta(model, images, "infrared")
    plain = torch.cat([model.embed(images, "infrared"), model.embed(images.flip(3), "infrared")], dim=1)
    torch.testing.assert_close(feature, plain)
    # Two parts of length 1 for the image, two for its mirror image.
    torch.testing.assert_close((feature * feature).sum(dim=1), torch.full((3,), 4.0))


def test_mean_and_std_have_the_sample_deviation_and_none_for_what_is_not_known():
    assert mean_and_std([10, 20, 30]) == {"mean": 20.0, "std": 10.0}
    assert mean_and_std([50]) == {"mean": 50.0, "std": None}
    assert mean_and_std([50, float("nan")]) == mean_and_std([50, None]) == {"mean": None, "std": None}


def test_statistics_are_the_ranks_of_the_cmc_in_percent():
    cmc = np.arange(1, 21) / 20
    found = trial_statistics([RankMetrics(cmc, 0.25, 0.125, 8)])
    assert {name: figure["mean"] for name, figure in found.items()} == {
        "rank1": 5.0,
        "rank5": 25.0,
        "rank10": 50.0,
        "rank20": 100.0,
        "mAP": 25.0,
        "mINP": 12.5,
    }


# Rows 0..3 are queries, 4..7 the gallery; the features are such that each query is nearest to the gallery
# image that stands four rows behind it.
LABELS = Labels(people=np.array([0, 1, 2, 2, 0, 1, 2, 0]), cameras=np.array([5, 5, 6, 6, 1, 1, 2, 2]))
FEATURES = np.tile(np.eye(4), (2, 1))
SEARCH = Search("infrared_to_visible", "cameras", np.arange(4), (np.arange(4, 8),) * 2)


def test_figures_of_a_search_are_those_of_its_own_rows():
    first, second = trial_metrics(SEARCH, LABELS, FeatureDistances(FEATURES))
    assert first.cmc[0] == second.cmc[0] == 3 / 4  # row 7 beats row 6 for query 3, and is person 0
    found = query_trials([SEARCH], LABELS, FeatureDistances(FEATURES), top=6)
    queries = found.trials[0][0]
    assert found.top.tolist()[0] == [4, 5, 6, 7]  # the gallery has four images
    assert found.top[:, 0].tolist() == [4, 5, 6, 7]
    assert queries.first_rank.tolist()[:3] == [1, 1, 1]
    # Query 3 ranks row 7 first; its match is row 6.
    assert SEARCH.galleries[0][queries.first_match].tolist() == [4, 5, 6, 6]


def drawn_search(rule):
    """A search of three trials over drawn labels, features of few values (many ties), and its labels."""
    draws = np.random.default_rng(5)
    labels = Labels(draws.integers(0, 12, 300), draws.integers(1, 4, 300))
    galleries = tuple(np.sort(draws.choice(np.arange(100, 300), 90, replace=False)) for _ in range(3))
    queries = tuple(np.sort(draws.choice(100, 60, replace=False)) for _ in range(3))
    search = Search("a_to_b", rule, queries[0], galleries, queries if rule == "llcm" else ())
    return search, labels, draws.integers(0, 3, (300, 3)).astype(np.float32)


@pytest.mark.parametrize("rule", ["cameras", "llcm", "sysu", "regdb"])
def test_one_pass_over_many_searches_gives_what_each_whole_matrix_gives(rule, monkeypatch):
    search, labels, features = drawn_search(rule)
    pairs = [pair.search for pair in pair_searches(search, labels).searches]
    monkeypatch.setattr(distances, "BLOCK", {"cpu": 1000})
    monkeypatch.setattr(distances, "LEAST_QUERIES", 7)
    monkeypatch.setattr(distances, "GALLERY_AT_A_TIME", 16)
    found = query_trials([search, *pairs], labels, FeatureDistances(features), top=4)
    assert len(pairs) > 4
    for one, trials in zip([search, *pairs], found.trials, strict=True):
        for trial, metrics in enumerate(trials):
            queries, gallery = one.queries_of(trial), one.galleries[trial]
            rows = [labels.people[queries], labels.people[gallery]]
            rows += [labels.cameras[queries], labels.cameras[gallery]]
            whole = -features[queries] @ features[gallery].T
            for field, expected in zip(metrics, query_metrics(whole, *rows, rule), strict=True):
                np.testing.assert_array_equal(field, expected)
            if one is search and trial == 0:
                top = top_ranked(whole, *rows, rule, count=4)
                np.testing.assert_array_equal(found.top, np.append(gallery, -1)[top])


@pytest.mark.parametrize("threads", [1, 2])
def test_neither_blocks_nor_threads_change_a_figure(threads, monkeypatch):
    search, labels, features = drawn_search("cameras")
    methods = FeatureDistances(features), RandomDistances(3, 1)
    before = [query_trials([search], labels, method).trials[0] for method in methods]
    monkeypatch.setattr(distances, "BLOCK", {"cpu": 1})
    monkeypatch.setattr(distances, "LEAST_QUERIES", 7)
    torch.set_num_threads(threads)
    try:
        again = [query_trials([search], labels, method).trials[0] for method in methods]
    finally:
        torch.set_num_threads(1)
    for one, other in zip(np.ravel(before), np.ravel(again), strict=True):
        np.testing.assert_array_equal(one, other)


def test_memory_of_distances_is_bounded_by_the_block():
    """A hundred thousand queries and as many images would be 37 GiB."""
    rows = np.arange(200_000)
    features = FeatureDistances(np.ones((len(rows), 1), np.float32))
    trial = Trial(rows[:100_000], rows[100_000:], 0)
    (first,) = next(features.blocks([trial], rows))
    assert first.read().shape == (distances.LEAST_QUERIES, 100_000)
    (first,) = next(RandomDistances(0, 0).blocks([trial], rows))
    assert first.read().shape == (distances.LEAST_QUERIES, 100_000)


def test_features_that_are_not_finite_have_no_distance():
    bad = FEATURES.copy()
    bad[2, 1] = np.inf
    with pytest.raises(ValueError, match="finite"):
        trial_metrics(SEARCH, LABELS, FeatureDistances(bad))


@pytest.mark.parametrize("rule", ["cameras", "llcm"])
def test_a_sample_of_queries_estimates_the_figures_within_its_standard_error(rule):
    search, labels, features = drawn_search(rule)
    method = FeatureDistances(features)
    whole = trial_statistics(trial_metrics(search, labels, method))
    inside = []
    for seed in range(100):
        sample = sample_queries(search, 30, seed, number=0)
        assert (len(sample.queries), sample.sampled_from) == (30, 60)
        for drawn, every in zip(sample.drawn_queries, search.drawn_queries, strict=True):
            assert set(drawn) < set(every) and sorted(drawn) == drawn.tolist()
        trials = query_trials([sample], labels, method).trials[0]
        found = with_sampling_error(trial_statistics([summary(one) for one in trials]), sample, trials)
        for name in ("rank1", "mAP", "mINP"):  # rank-20 is 100 in every sample
            inside.append(abs(found[name]["mean"] - whole[name]["mean"]) <= found[name]["error"])
    # 68 % of normal estimates are within one standard error.
    assert 0.58 < np.mean(inside) < 0.78


def test_a_limit_that_is_not_reached_samples_nothing_and_a_sample_depends_on_the_seed_alone():
    search, *_ = drawn_search("cameras")
    assert sample_queries(search, 60, 0, 0) is search
    one, again, other = (sample_queries(search, 20, seed, 0).queries.tolist() for seed in (4, 4, 5))
    assert one == again != other


def test_counts_and_notes_state_the_sample(project):
    experiment = prepare(load_dataset(project.data), "cameras", max_queries=5, seed=1, trials=2)
    features = np.random.default_rng(0).random((len(experiment.table), 4), np.float32)
    methods = dict.fromkeys(("trained", "clip", "hog"), FeatureDistances(features))
    figures = evaluate(experiment, methods, 1, RerankedDistances(features)).figures
    counts = figures["counts"]["infrared_to_visible"]
    assert counts["queries"] == 5 < counts["sampled_from"]
    assert figures["trained"]["infrared_to_visible"]["mAP"]["error"] > 0
    assert "error" not in figures[RERANKED]["infrared_to_visible"]["mAP"]
    (said,) = [note for note in notes(figures["counts"]) if "5 of" in note and "infrared to visible" in note]
    assert "evaluation.max_queries" in said
    assert "standard error" in sampling(figures)[0]


def rows_of_pairs(search, labels, features):
    pairs = pair_searches(search, labels).searches
    found = query_trials([pair.search for pair in pairs], labels, FeatureDistances(features))
    return camera_pairs(search, pairs, found.trials)


def test_camera_pairs_search_between_two_cameras_alone():
    found = rows_of_pairs(SEARCH, LABELS, FEATURES)
    assert pair_searches(SEARCH, LABELS).left_out == 0
    assert [(row["query_camera"], row["gallery_camera"]) for row in found] == [(5, 1), (5, 2), (6, 1), (6, 2)]
    # Camera 6 saw only person 2, who is not in the gallery of camera 1: no figure, not a zero.
    assert [row["queries"] for row in found] == [2, 1, 0, 2]
    assert found[0]["rank1"] == 100.0
    assert found[2]["rank1"] is None


def people_before_cameras(people, cameras_of):
    """A search of each person's infrared image for the visible ones; cameras_of: infrared, visible camera."""
    cameras = np.array([cameras_of(person) for person in range(people)]).T.ravel()
    labels = Labels(people=np.tile(np.arange(people), 2), cameras=cameras)
    queries, gallery = np.arange(people), np.arange(people, 2 * people)
    return Search("infrared_to_visible", "cameras", queries, (gallery,) * 2), labels


def test_a_camera_for_each_image_gives_a_table_of_stated_length():
    search, labels = people_before_cameras(640, lambda person: (person, 640 + person))
    rows = rows_of_pairs(search, labels, np.tile(np.eye(640, dtype="f4"), (2, 1)))
    pairs = pair_searches(search, labels)
    # Of 640 * 640 pairs these have a person in common; no other is searched.
    assert len(rows) == len(pairs.searches) == PAIRS
    assert pairs.left_out == 640 * 640 - PAIRS
    assert all(row["gallery_camera"] == 640 + row["query_camera"] and row["rank1"] == 100.0 for row in rows)
    assert (
        sum(len(pair.search.queries) + len(pair.search.galleries[0]) for pair in pairs.searches) == 2 * PAIRS
    )


def test_all_cameras_of_one_person_that_are_hundreds_on_either_side_are_not_paired():
    many = np.arange(1000)
    labels = Labels(people=np.zeros(2000, np.int64), cameras=np.arange(2000))
    pairs = pair_searches(Search("a_to_b", "cameras", many, (1000 + many,)), labels)
    assert (len(pairs.searches), pairs.every, pairs.left_out) == (PAIRS, 1_000_000, 1_000_000 - PAIRS)


def test_of_too_many_pairs_those_with_the_most_people_in_common_have_figures():
    # Thirty places with a camera of each kind: 900 pairs, of which the thirty of one place have people.
    search, labels = people_before_cameras(90, lambda person: (person % 30, 30 + person % 30))
    pairs = pair_searches(search, labels)
    assert [(pair.query_camera, pair.gallery_camera) for pair in pairs.searches] == [
        (n, 30 + n) for n in range(30)
    ]
    assert [pair.number for pair in pairs.searches] == [31 * n for n in range(30)]
    assert [pair.search.queries.tolist() for pair in pairs.searches[:2]] == [[0, 30, 60], [1, 31, 61]]
    assert pairs.left_out == 900 - 30
    # The first place loses a person to the second: with few pairs to show, the second is the first chosen.
    labels.cameras[[0, 90]] = 1, 31
    (most,) = pair_searches(search, labels, most_pairs=1).searches
    assert (most.query_camera, most.gallery_camera) == (1, 31)


def test_pairs_with_too_few_people_in_common_are_not_searched():
    search, labels = people_before_cameras(7, lambda person: (person % 2, 2 + person % 2))
    for least, expected in ((0, 4), (1, 2), (3, 2), (4, 1), (5, 0)):
        pairs = pair_searches(search, labels, least)
        assert (len(pairs.searches), pairs.left_out) == (expected, 0)


def test_the_pairs_that_are_left_out_are_in_the_table_and_in_the_counts(fault):
    search, labels = people_before_cameras(30, lambda person: (person, 30 + person))
    names = [f"c{code}" for code in labels.cameras]
    index = {"key": names, "person": [f"p{n}" for n in labels.people], "camera": names}
    experiment = Experiment(None, index, labels, [search], "cameras", {})
    features = np.tile(np.eye(30, dtype="f4"), (2, 1))
    methods = dict.fromkeys(("trained", "clip", "hog"), FeatureDistances(features))
    results = evaluate(experiment, methods, seed=0)
    assert results.figures["counts"]["infrared_to_visible"]["camera_pairs_left_out"] == 870
    *rows, rest = results.camera_pairs
    assert len(rows) == 30 and rest["query_camera"] == "870 other pairs" and rest["queries"] is None
    (said,) = [note for note in notes(results.figures["counts"]) if "870 pairs of cameras" in note]
    fault("report", "more pairs of cameras than 200 in a direction, as with a camera for each image", said)
    (grid,) = camera_grids(
        [{name: str(value) for name, value in row.items()} for row in rows]
        + [{name: value or "" for name, value in rest.items()}]
    )
    assert len(grid.down) == len(grid.across) == 30 and "870" not in str(grid)
    assert "870 more pairs" in pairs_left_out(results.figures)[0]


def test_notes_name_a_rule_that_excludes_nothing_and_queries_without_a_match():
    counts = {
        "infrared_to_visible": {"queries": 4, "valid_queries": 4, "excluded_pairs": 0},
        "visible_to_infrared": {"queries": 4, "valid_queries": 3, "excluded_pairs": 2},
    }
    assert notes(counts) == [
        "infrared to visible: no gallery image is of a query's own person and camera, so none is excluded",
        "visible to infrared: 1 of 4 queries have no match in the gallery and are left out",
    ]
    none_left = {"x_to_y": {"queries": 4, "valid_queries": 0, "excluded_pairs": 4}}
    assert notes(none_left) == ["x to y: no query has a right image to find, so there are no figures"]


@pytest.fixture
def project(tmp_path):
    """Twelve people, ingested; about half are test people."""
    project = Project(tmp_path)
    project.add(make_drop(tmp_path / "drop", people_named(12)))
    project.ingest(test_percent=50)
    return project


STAMP = ("0" * 64, True)  # the drawn features are of no model


def results_of(project):
    experiment = prepare(load_dataset(project.data), "cameras", trials=3)
    draws = np.random.default_rng(0)
    rows = len(experiment.table)
    features = {name: draws.random((rows, 4), np.float32) for name in ("trained", "clip", "hog")}
    methods = {name: FeatureDistances(found) for name, found in features.items()}
    maps = PeopleMaps(
        [{"key": "abc", "person": "x", "modality": "visible"}], TextMaps(*torch.zeros(3, 1, 4, 2))
    )
    return evaluate(experiment, methods, seed=0), features, maps


def test_files_of_the_evaluation(project, tmp_path):
    results, features, maps = results_of(project)
    write_results(results, features, maps, STAMP, tmp_path / "evaluation")
    counts = results.figures["counts"]["infrared_to_visible"]
    people = project.figures()["people"]["test"]
    # Two images of each person by each camera; "north" has both modalities, "south" is visible.
    assert counts == {
        "queries": 2 * people,
        "valid_queries": 2 * people,
        "gallery": 2 * people,
        "people": people,
        "trials": 3,
        "excluded_pairs": 2 * people,
    }
    queries = pq.read_table(tmp_path / "evaluation" / "queries.parquet").to_pylist()
    assert len(queries) == 2 * people + 4 * people
    assert all(row["first_rank"] >= 1 and 0 < row["ap"] <= 100 for row in queries if row["ap"] is not None)
    with (tmp_path / "evaluation" / "cmc.csv").open() as file:
        cmc = list(csv.DictReader(file))
    assert len(cmc) == 2 * 4 * 20
    assert {row["method"] for row in cmc} == {"trained", "clip", "hog", "chance"}
    json.dumps(results.figures, allow_nan=False)


def test_ranked_images_of_a_query_are_those_it_may_see(project):
    results, *_ = results_of(project)
    table = load_dataset(project.data).test_table()
    keys = [table.key(row) for row in range(len(table))]
    camera = {key: table.camera_names[code] for key, code in zip(keys, table.camera, strict=True)}
    person = dict(zip(keys, table.label, strict=True))
    for row in results.queries:
        own = [key for key in row["top_keys"] if person[key] == person[row["key"]]]
        assert all(camera[key] != row["camera"] for key in own)


def test_the_same_data_and_features_give_the_same_bytes(project, tmp_path):
    for name in ("first", "second"):
        write_results(*results_of(project), STAMP, tmp_path / name)
    for file in sorted((tmp_path / "first").iterdir()):
        assert file.read_bytes() == (tmp_path / "second" / file.name).read_bytes()


def test_test_people_of_one_modality_alone_are_refused(tmp_path):
    project = Project(tmp_path)
    project.add(make_drop(tmp_path / "both", people_named(12)))
    project.ingest(test_percent=50)
    dataset = load_dataset(project.data)
    infrared = dataset.samples.filter(ds.field("modality") == "infrared")
    one_sided = type(dataset)(samples=infrared, people=dataset.people)
    with pytest.raises(UserError, match="no test person has a visible image"):
        prepare(one_sided, "cameras", trials=1)


def test_reranked_figures_have_rows_of_their_own_and_change_no_others(project):
    experiment = prepare(load_dataset(project.data), "cameras", trials=2)
    features = np.random.default_rng(0).standard_normal((len(experiment.table), 4)).astype(np.float32)
    methods = dict.fromkeys(("trained", "clip", "hog"), FeatureDistances(features))
    without = evaluate(experiment, methods, seed=0)
    results = evaluate(experiment, methods, 0, RerankedDistances(features))
    reranked = results.figures.pop(RERANKED)
    assert results.figures == without.figures
    assert headline(results.figures) == headline(without.figures)
    assert [row for row in results.cmc if row["method"] != RERANKED] == without.cmc
    assert (results.queries, results.camera_pairs) == (without.queries, without.camera_pairs)
    labels = experiment.labels
    for search in experiment.searches:
        # The whole gallery is re-ranked; the rule then removes images from each query's list.
        trials = [
            rank_metrics(
                rerank(features[search.queries], features[gallery]),
                *(of[rows] for of in (labels.people, labels.cameras) for rows in (search.queries, gallery)),
                rule="cameras",
            )
            for gallery in search.galleries
        ]
        assert reranked[search.name] == trial_statistics(trials)


@pytest.mark.slow
def test_stage_on_built_in_people_with_a_model_that_was_not_trained(tmp_path):
    root = Path(__file__).parents[2]
    params = load_params(root / "params.yaml")
    weights = root / params.model.weights
    model = params.model.model_copy(update={"weights": str(weights)})
    reranked = params.evaluation.model_copy(update={"rerank": True})
    save(CSDN.from_clip(load_clip(model.clip, weights), 19, (64, 32)), tmp_path / "model")
    project = Project(tmp_path)
    project.add("builtin:tiny", "builtin")
    project.ingest()
    figures = run_evaluation(
        params.model_copy(update={"model": model, "evaluation": reranked}),
        data=project.data,
        model=tmp_path / "model",
        out=tmp_path / "evaluation",
        metrics=tmp_path / "metrics" / "evaluation.json",
        progress=lambda title, unit: nullcontext(lambda done, total: None),
    )
    assert figures == json.loads((tmp_path / "metrics" / "evaluation.json").read_text())
    for direction in ("infrared_to_visible", "visible_to_infrared"):
        people = figures["counts"][direction]["people"]
        assert figures["chance"][direction]["rank1"]["mean"] == pytest.approx(100 / people, abs=5)
        assert figures[RERANKED][direction]["mAP"] != figures["trained"][direction]["mAP"]
        # What CLIP knows of people it knows across modalities too, before any training.
        assert figures["clip"][direction]["mAP"]["mean"] > figures["chance"][direction]["mAP"]["mean"]
