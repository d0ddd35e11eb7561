"""The statistics of images, and the test whether two samples of people differ."""

import numpy as np
import pytest
from scipy import stats
from scipy.ndimage import gaussian_filter, rotate

from csdn.evaluation.two_sample import (
    ALPHA,
    STATISTICS,
    image_statistics,
    means_of_people,
    p_of_features,
    p_of_statistics,
)


def statistics_of(*grey, sizes=None):
    """The statistics, by name, of grey pictures [H, W]."""
    pictures = np.stack([np.broadcast_to(one, (3, *one.shape)) for one in grey]).astype(np.uint8)
    found = image_statistics(pictures, np.full((len(grey), 2), 10) if sizes is None else sizes)
    return dict(zip(STATISTICS, found.T, strict=True))


def test_statistics_of_pictures_worked_by_hand():
    halves = np.full((8, 8), 50)
    halves[:4] = 150
    found = statistics_of(np.full((8, 8), 100), halves, halves.T, sizes=np.array([[8, 4], [30, 10], [5, 10]]))
    np.testing.assert_allclose(found["brightness"], 100, atol=1e-3)
    np.testing.assert_allclose(found["contrast"], [0, 50, 50], atol=1e-3)
    np.testing.assert_allclose(found["top"], [0, 100 / 101, 0], atol=1e-4)
    np.testing.assert_allclose(found["left"], [0, 0, 100 / 101], atol=1e-4)
    np.testing.assert_allclose(found["tilt"], 0, atol=1e-4)
    np.testing.assert_allclose(found["red"], 1 / 3, atol=1e-5)
    assert found["height"].tolist() == [8, 30, 5] and found["aspect"].tolist() == [0.5, 0.33333, 2]
    picture = np.zeros((1, 3, 4, 4), np.uint8)
    picture[:, 0], picture[:, 2] = 60, 20
    red, blue = image_statistics(picture, np.ones((1, 2)))[0, 6:8]
    np.testing.assert_allclose([red, blue], [0.75, 0.25], atol=1e-4)


def test_tilt_grows_with_the_angle_of_upright_and_level_edges_and_sharpness_falls_with_blur():
    window = np.kron(np.array([[0, 1, 0], [1, 1, 0], [0, 0, 1]]), np.ones((16, 16))) * 200.0
    angles = (-8, -4, 0, 4, 8)
    tilts = statistics_of(
        *(rotate(window, angle, reshape=False, order=1, mode="nearest") for angle in angles)
    )["tilt"]
    assert (np.diff(tilts) > 0.02).all() or (np.diff(tilts) < -0.02).all()
    assert abs(tilts[2]) < 0.01
    blurred = statistics_of(*(gaussian_filter(window, sigma) for sigma in (0, 0.6, 1.2)))
    assert (np.diff(blurred["sharpness"]) < -0.1).all()
    dimmer = statistics_of(window, window / 2)
    assert abs(np.diff(dimmer["sharpness"])) < 0.1  # darker is not blurred


def people(count, seed, shift=0.0):
    """Three statistics of people, one of them skewed; shift: of the first."""
    draws = np.random.default_rng(seed)
    normal, other = draws.normal(size=(2, count))
    return np.stack([normal + shift, draws.exponential(size=count), other], axis=1)


def test_p_of_one_statistic_is_that_of_the_permutation_test_of_scipy():
    before, now = people(40, 1)[:, :1], people(15, 2, 0.7)[:, :1]
    method = stats.PermutationMethod(20_000, rng=np.random.default_rng(0))
    expected = stats.ttest_ind(before, now, equal_var=False, method=method).pvalue
    assert 0.005 < expected[0] < 0.1
    np.testing.assert_allclose(p_of_statistics(before, now, 1) / 2, expected, atol=0.01)


@pytest.mark.parametrize("count", [5, 20])
def test_unchanged_drops_alarm_in_at_most_the_stated_share(count):
    drops = 100
    alarms = sum(
        p_of_statistics(people(40, seed), people(count, 1000 + seed), cameras=1).min() <= ALPHA
        for seed in range(drops)
    )
    # Half of the rate is the features'. More than 4 of 100 has a probability of 0.3 % at the stated 1 %.
    assert alarms <= 4


def test_a_change_is_found_and_named_among_many_cameras():
    p = p_of_statistics(people(60, 1), people(20, 2, shift=2.0), cameras=100)
    assert p[0] <= ALPHA and p[1] > ALPHA and p[2] > ALPHA


def test_images_of_one_person_are_one_observation():
    """Ten people with a hundred images each are no evidence for a change of a thousand images."""
    draws, alarms = np.random.default_rng(3), []
    for _ in range(30):
        sides = []
        for count in (40, 10):
            person = np.repeat(np.arange(count), 100)
            values = draws.normal(size=count)[person] + 0.1 * draws.normal(size=len(person))
            sides.append((person, values[:, None]))
        by_person = p_of_statistics(*(means_of_people(*side) for side in sides), cameras=1)
        (_, before), (_, now) = sides
        alarms.append((by_person[0] <= ALPHA, stats.ttest_ind(before[:, 0], now[:, 0]).pvalue <= 0.025))
    by_person, by_image = np.mean(alarms, axis=0)
    assert by_person <= 0.1 and by_image > 0.5


def test_means_of_people():
    people = np.array(["b", "a", "b"], object)
    assert means_of_people(people, np.array([[1.0, 0], [5, 5], [3, 2]])).tolist() == [[5, 5], [2, 1]]


def test_a_statistic_that_never_varies_changes_only_if_its_value_does():
    before, now = np.full((20, 1), 288.0), np.full((10, 1), 288.0)
    assert p_of_statistics(before, now, 1)[0] == 1
    assert p_of_statistics(before, now / 2, 1)[0] <= ALPHA


def test_a_shift_of_features_in_any_direction_is_found():
    draws = np.random.default_rng(5)
    before, now = draws.normal(size=(60, 200)), draws.normal(size=(20, 200))
    assert p_of_features(before, now, cameras=6) > ALPHA
    way = draws.normal(size=200)
    assert p_of_features(before, now + 4 * way / np.linalg.norm(way), cameras=6) <= ALPHA


def test_features_of_fewer_images_of_a_person_are_no_drift():
    """Means of two images vary more than means of four; the people of a drop are often fewer, too."""
    alarms = 0
    for seed in range(100):
        draws = np.random.default_rng(seed)
        before, now = draws.normal(size=(80, 32)), 1.4 * draws.normal(size=(10, 32))
        alarms += p_of_features(before, now, cameras=1) <= ALPHA
    assert alarms <= 4  # as above; 36 of 100 if the distance is not divided by its standard error
    same = np.ones((10, 4))
    assert p_of_features(same, same[:5], cameras=1) == 1
