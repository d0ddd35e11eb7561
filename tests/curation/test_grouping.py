"""Groups of images without a person: the thresholds that test people set, and what is grouped at them."""

import numpy as np
import pytest

from csdn.curation import grouping
from csdn.curation.grouping import Images, calibrate, grouped, known_means, pair_counts

CAMERAS = ((0, 0), (0, 1), (1, 2))  # modality code, camera
SIZES = {"visible": 160, "infrared": 80, "all": 240}


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


@pytest.fixture(scope="module")
def cuts():
    return calibrate(*people_images(range(40), 0.5), SIZES, 40, 0.95)


def known_of(images, who):
    return known_means([(images.features, who, images.modality)], 1000, 32)


def test_new_people_are_grouped_over_cameras_and_modalities_and_known_ones_are_named(cuts):
    known = known_of(*people_images(range(100, 140), 0.5, seed=1))
    images, who = people_images([*range(100, 140), *range(200, 240)], 0.5, seed=2)
    found = grouped(images, known, cuts)
    is_known = who < 200
    named = found.person >= 0
    assert (found.person[is_known] == who[is_known]).mean() > 0.9
    assert (found.person[named] == who[named]).mean() > 0.9
    counts = pair_counts(found.group[~is_known], who[~is_known])
    assert counts[:, 0].sum() / counts.sum() > 0.9
    assert counts[:, 0].sum() > 0.9 * 40 * 6 * 5 / 2  # of the pairs of six images


def test_where_the_modalities_are_unlike_nothing_is_proposed_across_them():
    images, who = people_images(range(40), 0.5, between=5.0)
    cuts = calibrate(images, who, SIZES, 40, 0.95)
    assert cuts["cross",].threshold is None
    assert cuts["known", "visible", "infrared"].threshold is None
    assert cuts["known", "visible", "visible"].threshold
    found = grouped(images, known_of(images, who), cuts | {("known", "visible", "visible"): cuts["cross",]})
    modalities = [set(images.modality[found.group == one]) for one in np.unique(found.group)]
    assert max(map(len, modalities)) == 1


def test_features_that_say_nothing_support_no_threshold():
    images, who = people_images(range(40), 1000.0)
    assert {cut.threshold for cut in calibrate(images, who, SIZES, 40, 0.95).values()} == {None}


def test_a_larger_drop_takes_a_larger_share_and_more_test_people():
    """Ten times the images: a stranger is found about ten times as often, so 0.5 % may be wrong, not 5 %."""
    images, who = people_images(range(40), 0.5)
    larger = {name: 10 * size for name, size in SIZES.items()}
    cuts = calibrate(images, who, larger, 40, 0.95)
    assert cuts["camera", "visible"].wanted == pytest.approx(0.95**0.1)
    assert cuts["camera", "visible"].threshold is None  # 40 people do not show 0.5 %
    assert cuts["known", "visible", "visible"].wanted == pytest.approx(0.95)
    few = calibrate(images, who, SIZES, 400, 0.95)
    assert few["known", "visible", "visible"].threshold is None
    assert few["camera", "visible"].threshold


def test_pairs_are_counted_by_person():
    """Groups {a, a, b} and {b, c}: one right pair of a; wrong pairs a-b twice, b-c once, half for each."""
    counts = pair_counts(np.array([0, 0, 0, 3, 3]), np.array([0, 0, 1, 1, 2]))
    assert counts.tolist() == [[1, 1], [0, 1.5], [0, 0.5]]


def test_the_number_of_images_that_are_linked_at_a_time_only_parts_groups(cuts, monkeypatch):
    images, who = people_images(range(300, 320), 0.3, seed=3)
    nobody = known_of(*people_images([900], 0.5))
    whole = grouped(images, nobody, cuts)
    monkeypatch.setattr(grouping, "LINKED", 7)
    monkeypatch.setattr(grouping, "COMPARED", 5)
    parts = grouped(images, nobody, cuts)
    assert len(np.unique(whole.group)) == 20
    assert len(np.unique(parts.group)) >= 20
    assert pair_counts(parts.group, who - 300)[:, 1].sum() == 0


def test_a_drop_of_one_image_or_of_one_modality_is_grouped(cuts):
    known = known_of(*people_images(range(100, 140), 0.5, seed=1))
    images, _ = people_images([500], 0.3)
    for rows in (np.arange(1), np.flatnonzero(images.modality == 1)):
        assert len(grouped(images.of(rows), known, cuts).group) == len(rows)
