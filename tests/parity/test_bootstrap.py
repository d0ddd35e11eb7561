"""The paired bootstrap over people: against a plain loop, and how often its interval holds the truth."""

import numpy as np
import pytest

from csdn.data.rng import generator
from csdn.evaluation.bootstrap import PeopleSums, bootstrap_people, sums_of_people

# Three people of ten, two trials, one figure; person 7 has no query in the second trial.
TRIALS = [
    (np.array([[1.0], [0.0], [0.5], [1.0]]), np.array([7, 7, 8, 9])),
    (np.array([[1.0], [0.0]]), np.array([8, 9])),
]


def test_a_figure_is_the_mean_over_trials_of_the_mean_over_their_queries():
    people = sums_of_people(TRIALS, people=10)
    assert people.counts.tolist() == [[2, 0], [1, 1], [1, 1]]
    found = bootstrap_people(people, 100, 0.95, generator(0))
    # Trial 0: (1 + 0 + 0.5 + 1) / 4; trial 1: (1 + 0) / 2.
    assert found.value.tolist() == [(2.5 / 4 + 1 / 2) / 2]


def test_the_interval_is_that_of_a_plain_loop_over_drawn_people():
    people = sums_of_people(TRIALS, people=10)
    found = bootstrap_people(people, 300, 0.9, generator(5))
    draws, drawn = generator(5), []
    for _ in range(300):
        counts = draws.multinomial(3, np.full(3, 1 / 3))
        who = np.repeat([7, 8, 9], counts)
        means = []
        for values, labels in TRIALS:
            sampled = np.concatenate([values[labels == one, 0] for one in who])
            if len(sampled):
                means.append(sampled.mean())
        drawn.append(np.mean(means))
    assert found.low[0] == pytest.approx(np.quantile(drawn, 0.05), abs=1e-12)
    assert found.high[0] == pytest.approx(np.quantile(drawn, 0.95), abs=1e-12)


def test_how_many_are_drawn_at_a_time_changes_nothing(monkeypatch):
    people = sums_of_people(TRIALS, people=10)
    whole = bootstrap_people(people, 200, 0.95, generator(1))
    monkeypatch.setattr("csdn.evaluation.bootstrap._MAX_COUNTS", 3 * 7)
    assert np.array_equal(whole, bootstrap_people(people, 200, 0.95, generator(1)))


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    """Queries of a person are alike: an interval over queries is far too short, one over people holds."""
    people, queries, truth, inside, inside_by_query = 60, 8, 0.1, 0, 0
    for run in range(300):
        draws = np.random.default_rng(run)
        of_person = draws.normal(truth, 0.3, (people, 1))
        values = (of_person + draws.normal(0, 0.3, (people, queries))).reshape(-1, 1)
        who = np.repeat(np.arange(people), queries)
        found = bootstrap_people(sums_of_people([(values, who)], people), 400, 0.95, generator(run))
        inside += found.low[0] <= truth <= found.high[0]
        by_query = sums_of_people([(values, np.arange(len(values)))], len(values))
        found = bootstrap_people(by_query, 100, 0.95, generator(run))
        inside_by_query += found.low[0] <= truth <= found.high[0]
    assert 0.90 <= inside / 300 <= 0.98
    assert inside_by_query / 300 < 0.75


def test_a_pair_of_equal_models_has_no_difference_at_all():
    people = sums_of_people([(np.zeros((40, 2)), np.arange(40) % 10)], people=10)
    found = bootstrap_people(people, 100, 0.95, generator(0))
    assert not np.any(found)


def test_nobody_gives_no_figure_and_one_person_no_spread():
    nobody = sums_of_people([(np.zeros((0, 2)), np.zeros(0, np.int64))] * 3, people=5)
    assert np.isnan(bootstrap_people(nobody, 100, 0.95, generator(0))).all()
    alone = PeopleSums(np.full((1, 1, 1), 0.5), np.ones((1, 1)))
    assert np.array(bootstrap_people(alone, 100, 0.95, generator(0))).tolist() == [[0.5]] * 3


@pytest.mark.parametrize(
    "values, people, says",
    [
        (np.zeros((3, 1)), np.arange(2), "do not fit"),
        (np.zeros(3), np.arange(3), "do not fit"),
        (np.array([[0.0], [np.nan], [1.0]]), np.arange(3), "not finite"),
    ],
)
def test_what_does_not_fit_is_refused(values, people, says):
    with pytest.raises(ValueError, match=says):
        sums_of_people([(values, people)], people=3)
