"""Open set: rates worked on paper, cross-fitting, the rule of three, sizes of galleries, thresholds.json."""

import json

import numpy as np
import pytest

from csdn.evaluation import distances
from csdn.evaluation.distances import FeatureDistances
from csdn.evaluation.open_set import (
    SearchScores,
    cross_fitted_dir,
    cross_fitted_false_positives,
    folds_of,
    halves,
    least_fpir,
    open_set,
    open_set_of,
    person_shares,
    read_thresholds,
    search_scores,
    thresholds_of,
    write_thresholds,
)
from csdn.evaluation.protocols import Search
from csdn.evaluation.ranking import RULES
from csdn.evaluation.scores import Labels, trial_metrics, trial_statistics
from csdn.runtime.errors import UserError

NONE = -np.inf  # no image of the query's person can be found


def scores_of(rows, gallery_people=3):
    """Scores from rows (person, score of the person, best score of another)."""
    people, mate, other = zip(*rows, strict=True)
    return SearchScores(
        np.array(people), np.array(mate, "f4"), np.array(other, "f4"), gallery_people, gallery_people
    )


# Person 0 is searched twice: once found, once another person is ahead. Person 2 is in no gallery.
EXAMPLE = scores_of([(0, 0.9, 0.3), (0, 0.5, 0.6), (1, 0.7, 0.4), (2, NONE, 0.8), (3, 0.2, 0.1)])


def test_shares_at_a_threshold_worked_on_paper():
    shares = person_shares(EXAMPLE, np.ones(4, bool))
    np.testing.assert_allclose(shares.thresholds[:-1], [-1, 0.1, 0.3, 0.4, 0.6, 0.8], rtol=1e-6)
    # At 0.4 the other people reach 0.3 and 0.6, 0.4, 0.8, 0.1; at rank 1 are scores of 0.9, 0.7 and 0.2.
    assert shares.false_positive[:, 3].tolist() == [0.5, 1, 1, 0]
    assert shares.identified[:, 3].tolist() == [0.5, 1, 0, 0]
    assert shares.mated.tolist() == [True, True, False, True]
    assert not shares.false_positive[:, -1].any()


def test_dir_and_fpir_cross_fitted_worked_on_paper():
    folds = folds_of(EXAMPLE, np.array([True, True, False, False]))
    half = np.array([0.5])
    # The second half has the scores 0.8 and 0.1, so 0.8 gives an FPIR of a half. Of the first half, the one
    # search of person 0 with 0.9 is identified, and no other person is at 0.8.
    # The first half has 0.3, 0.6 and 0.4, each person counting once: at 0.6 the FPIR is a quarter, at 0.4
    # three quarters. At 0.6 person 3 is not identified, and the search of person 2 is a false positive.
    assert cross_fitted_dir(folds, half, np.ones((1, 4))).item() == pytest.approx((1 / 2 + 0 + 0) / 3)
    assert cross_fitted_false_positives(folds, half).tolist() == [[0], [0], [1], [0]]
    # Person 3 counts three times: in the second half an FPIR of a quarter at 0.8, three quarters of the
    # people have 0.1, so the threshold for three quarters is 0.8 still, and 0.1 only for all.
    thrice = np.array([[1.0, 1, 1, 3]])
    assert cross_fitted_dir(folds, np.array([0.75]), thrice).item() == pytest.approx((1 / 2 + 0 + 0) / 5)


def test_without_a_mated_search_there_are_thresholds_and_no_dir():
    found = open_set_of(scores_of([(person, NONE, 0.1 * person) for person in range(5)]), "a_to_b", seed=0)
    assert found.figures["mated_people"] == 0 and found.curve == []
    assert found.thresholds.people == 5


def test_nobody_sets_the_threshold_by_which_he_is_judged():
    draws = np.random.default_rng(0)
    first, people = halves(40, seed=3), np.repeat(np.arange(40), 5)
    assert first.sum() == 20
    other = draws.uniform(0, 0.5, 200).astype("f4")
    mate = np.where(first[people], draws.uniform(0.1, 1, 200), NONE)  # only the first half is judged
    mate[mate < other] = NONE

    def found(other):
        folds = folds_of(SearchScores(people, mate, other, 39, 39), first)
        return cross_fitted_dir(folds, np.array([0.1, 0.3]), np.ones((1, 40))).tolist()

    # Lower scores of other people change nobody's rank 1.
    assert found(np.where(first[people], other / 2, other)) == found(other)
    assert found(np.where(first[people], other, other / 2)) != found(other)


def drawn_search(rule, people=12):
    """A search of three trials over drawn labels and features of different lengths."""
    draws = np.random.default_rng(5)
    labels = Labels(draws.integers(0, people, 300), draws.integers(1, 4, 300))
    galleries = tuple(np.sort(draws.choice(np.arange(100, 300), 90, replace=False)) for _ in range(3))
    queries = tuple(np.sort(draws.choice(100, 60, replace=False)) for _ in range(3))
    search = Search("infrared_to_visible", rule, queries[0], galleries, queries if rule == "llcm" else ())
    features = draws.standard_normal((300, 6)) + 2 * draws.standard_normal((people, 6))[labels.people]
    return search, labels, (features * draws.uniform(0.5, 2, (300, 1))).astype("f4")


@pytest.mark.parametrize("rule", ["cameras", "llcm", "sysu", "regdb"])
def test_scores_are_those_of_a_plain_loop_over_what_the_rule_leaves(rule, monkeypatch):
    search, labels, features = drawn_search(rule)
    monkeypatch.setattr(distances, "BLOCK", {"cpu": 1000})
    monkeypatch.setattr(distances, "LEAST_QUERIES", 7)
    found = search_scores(search, labels, FeatureDistances(features))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    expected = []
    for trial, gallery in enumerate(search.galleries):
        for query in search.queries_of(trial):
            mate = other = NONE
            for image in gallery:
                same = labels.people[query] == labels.people[image]
                cameras = labels.cameras[query], labels.cameras[image]
                if not RULES[rule].excluded(*map(np.array, cameras), np.array(same)):
                    score = float(unit[query] @ unit[image])
                    mate, other = (max(mate, score), other) if same else (mate, max(other, score))
            expected.append((mate, other))
    np.testing.assert_allclose(np.stack([found.mate, found.other], axis=1), expected, atol=1e-6)
    assert found.gallery_people == 11


def test_without_a_threshold_dir_is_the_rank_1_of_the_closed_set():
    """Each person has as many queries, so a mean over people is one over queries."""
    draws = np.random.default_rng(1)
    labels = Labels(np.tile(np.arange(20), 6), np.repeat([1, 1, 1, 2, 2, 2], 20))
    features = draws.standard_normal((120, 8)) + 0.7 * draws.standard_normal((20, 8))[labels.people]
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype("f4")
    search = Search("infrared_to_visible", "cameras", np.arange(60), (np.arange(60, 120),))
    rank1 = trial_statistics(trial_metrics(search, labels, FeatureDistances(features)))["rank1"]["mean"]
    last = open_set(search, labels, FeatureDistances(features), seed=0).curve[-1]
    assert last["fpir"] == 100 and 0 < rank1 < 100
    assert 100 - last["fnir"] == pytest.approx(rank1)


@pytest.mark.parametrize(
    ("people", "shown"), [(3, []), (29, []), (30, ["fpir_10"]), (300, ["fpir_10", "fpir_1"])]
)
def test_no_fpir_below_three_by_the_people_is_shown(people, shown):
    draws = np.random.default_rng(people)
    labels = Labels(np.tile(np.arange(people), 2), np.repeat([1, 2], people))
    features = draws.standard_normal((2 * people, 4)).astype("f4")
    search = Search("infrared_to_visible", "cameras", np.arange(people), (np.arange(people, 2 * people),))
    found = open_set(search, labels, FeatureDistances(features), seed=0)
    assert [name for name in found.figures if name.startswith("fpir")] == shown
    least = 100 * least_fpir(people)
    if people == 3:
        assert found.curve == [] and found.thresholds is None
        return
    assert min(row["fpir"] for row in found.curve) == pytest.approx(least)
    assert min(row["measured_fpir"] for row in found.curve) >= round(least, 6)
    for name in shown:
        low = found.figures[name]["fpir"]["low"]
        assert low == 0 or low > least  # below the limit there is no low end
        assert found.figures[name]["dir"]["low"] <= found.figures[name]["dir"]["value"]
        assert found.figures[name]["dir"]["value"] <= found.figures[name]["dir"]["high"]
    assert min(found.thresholds.fpir) == least_fpir(people)


def test_the_interval_of_a_dir_holds_the_truth_about_as_often_as_it_says(monkeypatch):
    """People differ in how easily a stranger is taken for them, and in how alike their own images are."""
    monkeypatch.setattr("csdn.evaluation.open_set.RESAMPLES", 200)

    def drawn(people, draws):
        person = np.repeat(np.arange(people), 4)
        other = 0.45 + draws.normal(0, 0.05, people)[person] + draws.normal(0, 0.05, 4 * people)
        mate = 0.45 + draws.normal(0, 0.1, people)[person] + draws.normal(0, 0.05, 4 * people)
        return SearchScores(person, mate, other, 79, 79)

    every = drawn(50_000, np.random.default_rng(1000))
    truth = 100 * np.mean(every.identified >= np.quantile(every.other, 0.9))
    found = [
        open_set_of(drawn(80, np.random.default_rng(run)), "infrared_to_visible", run).figures["fpir_10"]
        for run in range(60)
    ]
    inside = [of["dir"]["low"] <= truth <= of["dir"]["high"] for of in found]
    assert np.mean(inside) >= 0.85
    assert np.mean([of["dir"]["value"] for of in found]) == pytest.approx(truth, abs=1.5)


# thresholds.json.


def independent(people, size, draws):
    """Searches in galleries in which every person's score is an independent draw."""
    other = draws.uniform(0, 1, people) ** (1 / size)  # the largest of `size` uniform draws
    return SearchScores(np.arange(people), np.full(people, 1.0), other.astype("f4"), size, size)


@pytest.fixture
def thresholds(tmp_path):
    path = tmp_path / "thresholds.json"
    of = thresholds_of(independent(3000, 100, np.random.default_rng(0)))
    write_thresholds(path, "ab" * 32, True, {"infrared_to_visible": of})
    return path


def test_thresholds_for_other_sizes_hold_where_people_are_independent(thresholds):
    found = read_thresholds(thresholds)
    assert (found.model, found.flip_tta, found.gallery_people("infrared")) == ("ab" * 32, True, 100)
    for size in (100, 800):
        scores = independent(40_000, size, np.random.default_rng(size))
        measured = np.mean(scores.other >= found.threshold("infrared", 0.1, size))
        assert measured == pytest.approx(0.1, abs=0.02), size
    assert found.threshold("infrared", 0.1, 100) < found.threshold("infrared", 0.01, 100)
    assert found.threshold("infrared", 0.1, 20) == found.threshold("infrared", 0.1, 100)
    more_images = found.threshold(
        "infrared", 0.1, 100, gallery_images=800
    )  # one image a person in `independent`
    assert more_images == found.threshold("infrared", 0.1, 800)
    assert found.threshold("infrared", 0.1, 100, gallery_images=60) == found.threshold("infrared", 0.1, 100)


def test_a_size_or_an_fpir_that_the_people_do_not_support_is_refused(thresholds):
    found = read_thresholds(thresholds)
    assert found.threshold("infrared", 0.001, 100)  # 3 / 3000
    with pytest.raises(UserError, match=r"0\.09 %"):
        found.threshold("infrared", 0.0009, 100)
    # 1 - (1 - 0.001)^20, and 100 log(1 - 0.01) / log(1 - 0.001), both by hand.
    with pytest.raises(UserError, match=r"no less than 1\.99 % there.*at most 1004 people"):
        found.threshold("infrared", 0.01, 2000)
    assert found.threshold("infrared", 0.01, 1004)
    with pytest.raises(UserError, match="visible queries"):
        found.threshold("visible", 0.1, 100)
    for fpir, people in ((0, 10), (1, 10), (0.1, 0)):
        with pytest.raises(UserError, match="between 0 and 100 %"):
            found.threshold("infrared", fpir, people)


def changed(**values):
    return lambda content: {**content, **values}


def changed_direction(**values):
    def change(content):
        content["directions"]["infrared_to_visible"].update(values)
        return content

    return change


@pytest.mark.parametrize(
    "change",
    [
        changed(format=2),
        changed(model="ab"),
        changed(flip_tta="yes"),
        changed(directions={"up": {}}),
        changed(more=1),
        changed_direction(people=0),
        changed_direction(thresholds=[0.5, 0.4], fpir=[0.5, 0.001]),
        changed_direction(thresholds=[0.4, 0.5], fpir=[0.001, 0.5]),
        changed_direction(thresholds=[0.4, 0.5]),
        changed_direction(thresholds=[0.4, 0.5], fpir=[0.5, 0.0001]),  # less than 3 / people
        lambda content: [],
    ],
)
def test_a_file_that_is_damaged_or_of_another_format_is_refused(thresholds, change):
    content = json.loads(thresholds.read_text())
    thresholds.write_text(json.dumps(change(content)))
    with pytest.raises(UserError, match=r"thresholds\.json.*`dvc repro evaluate`"):
        read_thresholds(thresholds)


def test_a_file_that_is_cut_short_or_missing_is_refused(thresholds):
    thresholds.write_bytes(thresholds.read_bytes()[:500])
    with pytest.raises(UserError, match=r"thresholds\.json is not valid JSON"):
        read_thresholds(thresholds)
    thresholds.unlink()
    with pytest.raises(UserError, match="no such file"):
        read_thresholds(thresholds)
