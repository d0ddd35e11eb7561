"""The arithmetic of label checks: scores by hand, and wrong labels that are found among made-up people."""

from __future__ import annotations

import numpy as np
import pytest

from csdn.curation.labels import (
    CLIP,
    MODEL,
    Judge,
    compare,
    cross_validated,
    judge_labels,
    judge_people,
    standardised,
)

PEOPLE, IMAGES = 30, 8


@pytest.fixture
def drop():
    """(features, labels, views): 30 people with 8 images by two views, whose features differ by view."""
    rng = np.random.default_rng(0)
    labels, views = np.repeat(np.arange(PEOPLE), IMAGES), np.tile([0, 1], PEOPLE * IMAGES // 2)
    centres, of_view = rng.normal(size=(PEOPLE, 48)), rng.normal(size=(2, 48))
    features = centres[labels] + of_view[views] + 0.6 * rng.normal(size=(len(labels), 48))
    return unit(features), labels, views


def unit(features):
    features = np.asarray(features, np.float32)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def judged_by_model(features, labels, views):
    people, nobody = np.unique(labels), np.zeros(labels.max() + 1, bool)
    return judge_labels([Judge(MODEL, features, people, nobody)], labels, views, len(labels))


def test_shuffled_labels_rank_first_and_the_right_person_is_suggested(drop):
    features, labels, views = drop
    wrong = np.random.default_rng(1).choice(len(labels), 12, replace=False)
    given = labels.copy()
    given[wrong] = (labels[wrong] + 7) % PEOPLE
    found = judged_by_model(features, given, views)
    assert {*np.argsort(-found.score)[:12]} == {*wrong}
    assert (found.other[wrong] == labels[wrong]).all()


def test_judges_in_other_metrics_find_them_too(drop):
    features, labels, views = drop
    wrong = np.random.default_rng(1).choice(len(labels), 12, replace=False)
    given = labels.copy()
    given[wrong] = (labels[wrong] + 7) % PEOPLE
    judges = cross_validated(features, given, views, np.arange(PEOPLE))
    found = judge_labels(judges, given, views, len(given))
    assert {*np.argsort(-found.score)[:12]} == {*wrong} and {*found.kind} == {CLIP}


def test_one_person_under_two_labels_is_the_first_pair(drop):
    features, labels, views = drop
    given = labels.copy()
    given[np.flatnonzero(labels == 4)[::2]] = PEOPLE  # one view
    given[np.flatnonzero(labels == 9)[:4]] = PEOPLE + 1  # half of each view
    found = judged_by_model(features, given, views)
    best = np.argsort(-np.nan_to_num(found.pairs, nan=-np.inf), axis=None)[:4]
    pairs = {tuple(sorted(np.unravel_index(n, found.pairs.shape))) for n in best}
    assert pairs == {(4, PEOPLE), (9, PEOPLE + 1)}


def test_two_people_under_one_label_are_the_first_split_and_the_halves_are_they(drop):
    features, labels, views = drop
    given = np.where(labels == PEOPLE - 1, 9, labels)
    found = judged_by_model(features, given, views)
    assert found.judged[np.nanargmax(found.splits)] == 9
    assert len({*zip(labels[given == 9], found.part[given == 9], strict=True)}) == 2


def test_similarities_by_hand():
    """Two images of person 0 at right angles, one of person 1 between them."""
    features = unit([[1, 0], [0, 1], [1, 1]])
    own, best, other = compare(features, np.array([0, 0, 1]), np.arange(3))
    assert own[:2].tolist() == [0, 0] and np.isnan(own[2])  # never with itself
    np.testing.assert_allclose(best, np.sqrt(0.5), rtol=1e-6)
    assert other.tolist() == [1, 1, 0]


def test_an_image_is_compared_with_the_three_nearest_of_a_person():
    features = unit([[1, 0]] + [[np.cos(a), np.sin(a)] for a in (0.1, 0.2, 0.3, 1.5)])
    _, best, _ = compare(features, np.array([0, 1, 1, 1, 1]), np.array([0]))
    np.testing.assert_allclose(best, np.mean(np.cos([0.1, 0.2, 0.3])), rtol=1e-5)


def test_the_only_image_of_a_label_is_not_judged(drop):
    features, labels, views = drop
    labels = np.append(labels[:-1], PEOPLE)
    found = judged_by_model(features, labels, views)
    assert np.flatnonzero(np.isnan(found.score)).tolist() == [len(labels) - 1]


def test_a_fold_is_judged_in_a_metric_that_knows_nothing_of_its_labels(drop):
    features, labels, views = drop
    for fold, judge in enumerate(cross_validated(features, labels, views, np.arange(PEOPLE))):
        own = labels % 5 == fold
        assert {*judge.people} == {*labels[own]}
        shuffled = labels.copy()
        shuffled[own] = np.random.default_rng(2).permutation(labels[own])
        others = cross_validated(features, shuffled, views, np.arange(PEOPLE))
        np.testing.assert_array_equal(judge.features, others[fold].features)


def test_a_learned_person_does_not_say_how_alike_images_of_one_person_are(drop):
    """A model pulls the images of people it was trained on together: pairs with them would be lost."""
    features, labels, views = drop
    given = labels.copy()
    given[np.flatnonzero(labels == PEOPLE - 1)[:4]] = PEOPLE - 2  # in the drop; the learned ones are not
    given[labels == PEOPLE - 2] = 0
    features = features.copy()
    features[-4:] = unit(features[-4:] + 20 * features[-4:].mean(axis=0))
    learned = np.arange(PEOPLE) == PEOPLE - 1
    pairs = {}
    for name, mask in (("known", learned), ("not known", np.zeros(PEOPLE, bool))):
        judge = Judge(MODEL, features, np.arange(PEOPLE - 1), mask)
        pairs[name] = judge_labels([judge], given, views, len(labels) - 4).pairs
    best = np.unravel_index(np.nanargmax(pairs["known"]), pairs["known"].shape)
    assert best == (PEOPLE - 2, PEOPLE - 1)
    assert pairs["known"][best] > pairs["not known"][best]


def test_a_difference_between_views_is_no_split():
    """One label, two views that are not alike, as in all other labels; another label of two people."""
    rng = np.random.default_rng(0)
    labels, views = np.repeat(np.arange(30), 8), np.tile([0, 1], 120)
    centres, of_view = rng.normal(size=(31, 48)), 1.5 * rng.normal(size=(2, 48))
    true = np.where((labels == 5) & (np.arange(240) % 8 >= 4), 30, labels)
    features = unit(centres[true] + of_view[views] + 0.5 * rng.normal(size=(240, 48)))
    judge = Judge(MODEL, features, np.arange(30), np.zeros(30, bool))
    _, splits, half = judge_people(judge, labels, views)
    assert np.nanargmax(splits) == 5 and half[labels == 5].tolist() == [0] * 4 + [1] * 4


def test_two_labels_of_one_person_who_share_no_view_are_as_alike_as_one_label():
    """Without the means of the views, images by different views would always count against the pair."""
    rng = np.random.default_rng(3)
    labels, views = np.repeat(np.arange(40), 10), np.tile([0, 1], 200)
    features = unit(
        rng.normal(size=(40, 32))[labels]
        + 2 * rng.normal(size=(2, 32))[views]
        + 0.3 * rng.normal(size=(400, 32))
    )
    labels[(labels == 3) & (views == 1)] = 40
    judge = Judge(MODEL, features, np.arange(41), np.zeros(41, bool))
    pairs, _, _ = judge_people(judge, labels, views)
    assert np.unravel_index(np.nanargmax(pairs), pairs.shape) in {(3, 40), (40, 3)}
    assert abs(pairs[3, 40]) < 0.1


def test_standard_scores_by_hand():
    np.testing.assert_allclose(
        standardised(np.array([1.0, 2, 3, 4, 100, np.nan])),
        np.array([-2, -1, 0, 1, 97, np.nan]) / 1.4826,
    )
    assert np.isnan(standardised(np.full(3, np.nan))).all()
    assert standardised(np.full(3, 0.5)).tolist() == [0, 0, 0]
