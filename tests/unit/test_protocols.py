"""Protocol "cameras": who asks, who answers, and that a draw stays as it is."""

import hashlib
import json

import numpy as np

from csdn.evaluation import protocol
from csdn.evaluation.protocols import excluded_pairs


def index_of(rows):
    """Columns from rows (person, modality, camera, key)."""
    columns = zip(*rows, strict=True)
    return dict(zip(("person", "modality", "camera", "key"), map(list, columns), strict=True))


ROWS = [
    (person, modality, camera, f"{person}-{modality}-{camera}-{number}")
    for person in ("ann", "bob")
    for modality, cameras in (("visible", ("c1", "c2")), ("infrared", ("c2", "c3")))
    for camera in cameras
    for number in range(5)
]


def drawn_keys(rows, direction=0, trials=10):
    """For each trial, {(person, camera): key} of the gallery."""
    found = protocol("cameras", index_of(rows), trials=trials)[direction]
    return [{(rows[n][0], rows[n][2]): rows[n][3] for n in gallery} for gallery in found.galleries]


def test_each_modality_looks_for_the_other():
    first, second = protocol("cameras", index_of(ROWS))
    assert (first.name, second.name) == ("infrared_to_visible", "visible_to_infrared")
    modality = np.array([row[1] for row in ROWS])
    for search, queries, other in ((first, "infrared", "visible"), (second, "visible", "infrared")):
        assert search.queries.tolist() == np.flatnonzero(modality == queries).tolist()
        assert len(search.galleries) == 10
        for gallery in search.galleries:
            assert set(modality[gallery]) == {other}


def test_gallery_has_one_image_of_each_person_and_camera_the_one_with_the_lowest_hash():
    for trial, gallery in enumerate(drawn_keys(ROWS)):
        for (person, camera), key in gallery.items():
            candidates = [row[3] for row in ROWS if row[:3] == (person, "visible", camera)]
            digests = {
                name: hashlib.sha256(json.dumps([trial, person, camera, name]).encode()).hexdigest()
                for name in candidates
            }
            assert key == min(candidates, key=digests.__getitem__)
        assert set(gallery) == {("ann", "c1"), ("ann", "c2"), ("bob", "c1"), ("bob", "c2")}


def test_trials_differ():
    assert len({tuple(sorted(gallery.items())) for gallery in drawn_keys(ROWS)}) > 1


def test_new_people_and_another_order_change_no_draw():
    arrived = [("eve", "visible", "c1", f"eve-{n}") for n in range(3)]
    before = drawn_keys(ROWS)
    for rows in (ROWS + arrived, arrived + ROWS[::-1]):
        for old, new in zip(before, drawn_keys(rows), strict=True):
            assert old.items() <= new.items()


def test_fewer_trials_are_the_first_of_more():
    assert drawn_keys(ROWS, trials=3) == drawn_keys(ROWS, trials=10)[:3]


def test_counts_what_the_rule_excludes():
    # Infrared at c2: 5 queries a person, one gallery image of that person at c2. Nobody is visible at c3.
    found = protocol("cameras", index_of(ROWS))[0]
    assert excluded_pairs(found, index_of(ROWS)) == 2 * 5
    apart = [row for row in ROWS if row[2] != "c2"]
    assert excluded_pairs(protocol("cameras", index_of(apart))[0], index_of(apart)) == 0
