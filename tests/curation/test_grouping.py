"""Groups of images without a person: the thresholds that test people set, and what is grouped at them."""

import numpy as np
import pytest

from csdn.curation import grouping
from csdn.curation.grouping import LEVELS, NAMES, NOBODY, Images, grouped, known_means, pair_counts

CAMERAS = ((0, 0), (0, 1), (1, 2))  # modality code, camera


def people_images(people, noise, seed=0, shots=2, between=0.0):
    """Images of people, whose features are a vector of their own and noise; between: of the modalities."""
    draws = np.random.default_rng(seed)
    own = np.random.default_rng(99).normal(size=(1000, 32))
    apart = np.random.default_rng(98).normal(size=(2, 1000, 32)) * between
    rows = [(one, *camera) for one in people for camera in CAMERAS for _ in range(shots)]
    who, modality, camera = (np.array(column) for column in zip(*rows, strict=True))
    features = own[who] + apart[modality, who] + noise * draws.normal(size=(len(who), 32))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return Images(features.astype(np.float32), modality, camera), who


TEST = people_images(range(200), 0.5)


def known_of(images, who):
    return known_means([(images.features, who, images.modality)], 1000, 32)


KNOWN = known_of(*people_images(range(300, 340), 0.5, seed=1))


def test_new_people_are_grouped_over_cameras_and_modalities_and_known_ones_are_named():
    images, who = people_images([*range(300, 340), *range(400, 440)], 0.5, seed=2)
    found = grouped(images, KNOWN, *TEST, 0.95)
    named, is_known = found.person != NOBODY, who < 400
    assert (found.person[is_known] == who[is_known]).mean() > 0.9
    assert (found.person[named] == who[named]).mean() > 0.95
    counts = pair_counts(found.group[~is_known], who[~is_known] - 400)
    assert counts[:, 0].sum() / counts.sum() > 0.95
    assert counts[:, 0].sum() > 0.8 * 40 * 6 * 5 / 2  # of the pairs of six images


@pytest.mark.parametrize("shots, people", [(2, 80), (6, 20), (6, 80)])
def test_the_wanted_share_is_right_whatever_the_drop_has_of_a_person(shots, people):
    right = total = 0
    for seed in range(5):
        images, who = people_images(range(500, 500 + people), 0.9, seed, shots)
        found = grouped(images, KNOWN, *people_images(range(200), 0.9), 0.9)
        counts = pair_counts(found.group, who - 500)
        right, total = right + counts[:, 0].sum(), total + counts.sum()
    assert total > 100
    assert right / total > 0.9


def test_where_the_modalities_are_unlike_nothing_is_proposed_across_them():
    images, who = people_images(range(500, 540), 0.5, between=5.0)
    found = grouped(images, known_of(images, who), *people_images(range(200), 0.5, between=5.0), 0.95)
    assert found.cuts["cross",].threshold is None
    assert found.cuts["known", "visible", "infrared"].threshold is None
    assert found.cuts["known", "visible", "visible"].threshold


def test_features_that_say_nothing_propose_nothing():
    images, _ = people_images(range(500, 540), 1000.0)
    known = known_of(*people_images(range(300, 340), 1000.0, seed=1))
    found = grouped(images, known, *people_images(range(200), 1000.0, seed=2), 0.95)
    assert {cut.threshold for cut in found.cuts.values()} == {None}
    assert len(np.unique(found.group)) == len(found.group)
    assert set(found.cuts) == {*LEVELS, *NAMES}


def test_few_test_people_support_nothing():
    """One mistake more or less among ten people is more than 5 %."""
    found = grouped(people_images(range(500, 540), 0.5)[0], KNOWN, *people_images(range(10), 0.5), 0.95)
    assert {cut.threshold for cut in found.cuts.values()} == {None}


def test_more_known_people_take_a_higher_threshold():
    images, _ = people_images(range(300, 340), 0.5, seed=2)
    many = known_of(*people_images(range(300, 900), 0.5, seed=1))
    cuts = [
        grouped(images, known, *TEST, 0.95).cuts["known", "visible", "visible"] for known in (KNOWN, many)
    ]
    assert cuts[1].threshold is None or cuts[1].threshold > cuts[0].threshold


def test_pairs_are_counted_by_person():
    """Groups {a, a, b} and {b, c}: one right pair of a; wrong pairs a-b twice, b-c once, half for each."""
    counts = pair_counts(np.array([0, 0, 0, 3, 3]), np.array([0, 0, 1, 1, 2]))
    assert counts.tolist() == [[1, 1], [0, 1.5], [0, 0.5]]


def test_images_that_are_linked_in_parts_are_proposed_as_precisely(monkeypatch):
    images, who = people_images(range(500, 600), 0.5, seed=3)
    monkeypatch.setattr(grouping, "LINKED", 100)
    monkeypatch.setattr(grouping, "COMPARED", 7)
    counts = pair_counts(grouped(images, KNOWN, *TEST, 0.95).group, who - 500)
    assert counts[:, 0].sum() > 100
    assert counts[:, 0].sum() / counts.sum() > 0.93


def test_a_drop_of_one_image_or_of_one_modality_is_grouped():
    images, _ = people_images([500], 0.3)
    for rows in (np.arange(1), np.flatnonzero(images.modality == 1)):
        assert len(grouped(images.of(rows), KNOWN, *TEST, 0.95).group) == len(rows)


def test_there_may_be_no_known_people():
    nobody = known_means([], 0, 32)
    images, _ = people_images(range(500, 520), 0.3)
    assert (grouped(images, nobody, *TEST, 0.95).person == NOBODY).all()


def test_a_small_drop_is_not_matched_across_modalities_that_are_unlike():
    """In a small drop a group's nearest is as often a stranger, though fewer pairs are compared."""
    images, _ = people_images(range(500, 530), 0.5, seed=4, between=5.0)
    test = people_images(range(200), 0.5, between=5.0)
    assert grouped(images, KNOWN, *test, 0.8).cuts["cross",].threshold is None
