"""CMC, mAP and mINP equal the golden figures, examples worked on paper, and a slow plain loop."""

import json
from pathlib import Path

import numpy as np
import plain
import pytest
import torch
from golden_vectors import assert_within
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from csdn.evaluation import metrics, query_metrics, rank_metrics, top_ranked

GOLDEN = Path(__file__).parent / "golden_metrics"


@pytest.mark.parametrize(
    ("name", "rule", "replaced"),
    [
        ("eval_sysu", "sysu", {}),
        ("eval_regdb", "regdb", {}),
        ("eval_sysu_3_queries_without_match", "sysu", {"q_pids": "q_pids_missing"}),
        ("eval_regdb_3_queries_without_match", "regdb", {"q_pids": "q_pids_missing"}),
        (
            "eval_sysu_id4_only_cam2",
            "sysu",
            {"g_cams": "g_cams_allcam2_id4", "q_cams": "q_cams_id4_cam3"},
        ),
    ],
)
def test_equals_the_published_implementation(name, rule, replaced):
    inputs = load_file(GOLDEN / "inputs.safetensors")
    names = ("distmat", "q_pids", "g_pids", "q_cams", "g_cams")
    found = rank_metrics(*(inputs[replaced.get(n, n)] for n in names), rule)
    expected = json.loads((GOLDEN / "expected.json").read_text())[name]
    assert_within(np.abs(found.cmc - expected["cmc"]).max(), 1e-6, "CMC (absolute)")
    assert_within(abs(found.mean_ap - expected["mAP"]), 1e-6, "mAP (absolute)")
    assert_within(abs(found.mean_inp - expected["mINP"]), 1e-6, "mINP (absolute)")


# One query of person 7 before camera 3. Ranked gallery, with cameras:
#   place   1    2    3    4    5
#   person  5    5    7    6    7
#   camera  1    2    3    2    2
EXAMPLE = {
    "distances": np.array([[0.1, 0.2, 0.3, 0.4, 0.5]]),
    "query_ids": np.array([7]),
    "gallery_ids": np.array([5, 5, 7, 6, 7]),
    "query_cameras": np.array([3]),
    "gallery_cameras": np.array([1, 2, 3, 2, 2]),
}


@pytest.mark.parametrize(
    ("rule", "first_rank", "ap", "inp"),
    [
        # Everything counts: right at places 3 and 5 of 5.
        ("regdb", 3, (1 / 3 + 2 / 5) / 2, 2 / 5),
        # Cameras 2 are not seen: left are 5, 7; right at place 2, which is the second person.
        ("sysu", 2, 1 / 2, 1 / 2),
        # Person 7 at camera 3 is not seen: left are 5, 5, 6, 7; place 4, but only the third person.
        ("llcm", 3, 1 / 4, 1 / 4),
        # The same ranking, counting images.
        ("cameras", 4, 1 / 4, 1 / 4),
    ],
)
def test_example_worked_on_paper(rule, first_rank, ap, inp):
    found = query_metrics(**EXAMPLE, rule=rule)
    assert found.first_rank.tolist() == [first_rank]
    assert found.ap[0] == pytest.approx(ap)
    assert found.inp[0] == pytest.approx(inp)
    cmc = rank_metrics(**EXAMPLE, rule=rule).cmc
    assert cmc.tolist() == [0.0] * (first_rank - 1) + [1.0] * (21 - first_rank)


def test_top_ranked_shows_only_what_the_query_may_see():
    assert top_ranked(**EXAMPLE, rule="sysu", count=4).tolist() == [[0, 2, -1, -1]]
    assert top_ranked(**EXAMPLE, rule="llcm", count=4).tolist() == [[0, 1, 3, 4]]


def test_query_that_sees_no_image_of_its_person_is_left_out_and_counted():
    found = rank_metrics(
        np.array([[0.1, 0.2], [0.1, 0.2], [0.1, 0.2]]),
        query_ids=np.array([1, 2, 3]),  # 2 stands only before its own camera, 3 is not in the gallery
        gallery_ids=np.array([1, 2]),
        query_cameras=np.array([0, 0, 0]),
        gallery_cameras=np.array([1, 0]),
        rule="cameras",
    )
    assert found.valid_queries == 1
    assert found.mean_ap == 1.0
    assert found.cmc.tolist() == [1.0] * 20


def test_no_valid_query_gives_no_figure():
    found = rank_metrics(
        np.array([[0.1]]), np.array([1]), np.array([2]), np.array([0]), np.array([0]), rule="regdb"
    )
    assert found.valid_queries == 0
    assert np.isnan([*found.cmc, found.mean_ap, found.mean_inp]).all()


def test_equal_distances_rank_in_the_order_of_the_gallery():
    same = np.zeros((1, 300))
    gallery = np.arange(300)
    for person in (0, 17, 299):
        found = query_metrics(same, np.array([person]), gallery, np.array([0]), gallery * 0 + 1, "regdb")
        assert found.first_rank.tolist() == [person + 1]


def test_tensors_give_what_arrays_give():
    tensors = {name: torch.from_numpy(value) for name, value in EXAMPLE.items()}
    assert query_metrics(**tensors, rule="llcm") == query_metrics(**EXAMPLE, rule="llcm")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rule": "market"}, "unknown rule 'market'; allowed: sysu, regdb, llcm, cameras"),
        ({"query_ids": np.array([7, 8])}, "2 queries, 5 gallery images"),
        ({"gallery_cameras": np.array([1, 2])}, "one camera"),
        ({"distances": np.array([[0.1, np.nan, 0.3, 0.4, 0.5]])}, "finite"),
    ],
)
def test_refuses_what_has_no_ranking(changed, message):
    with pytest.raises(ValueError, match=message):
        rank_metrics(**{**EXAMPLE, "rule": "cameras", **changed})


@settings(max_examples=120, deadline=None)
@given(data=st.data(), rule=st.sampled_from(sorted(metrics.RULES)))
def test_equals_a_plain_loop(data, rule):
    ids, cameras = st.integers(0, 4), st.integers(1, 3)
    gallery_ids = data.draw(st.lists(ids, min_size=1, max_size=12))
    gallery_cameras = data.draw(st.lists(cameras, min_size=len(gallery_ids), max_size=len(gallery_ids)))
    query_ids = data.draw(st.lists(ids, min_size=1, max_size=6))
    query_cameras = data.draw(st.lists(cameras, min_size=len(query_ids), max_size=len(query_ids)))
    # Few values: many are equal.
    row = st.lists(st.integers(0, 5), min_size=len(gallery_ids), max_size=len(gallery_ids))
    distances = np.array([data.draw(row) for _ in query_ids], dtype=float)
    found = query_metrics(
        distances,
        *map(np.array, (query_ids, gallery_ids, query_cameras, gallery_cameras)),
        rule,
    )
    for number, person in enumerate(query_ids):
        expected = plain.query_metrics(
            distances[number], person, query_cameras[number], gallery_ids, gallery_cameras, rule
        )
        if expected is None:
            assert not found.valid[number]
            assert np.isnan(found.ap[number])
        else:
            assert (found.first_rank[number], found.ap[number], found.inp[number]) == pytest.approx(expected)


def test_chunks_change_nothing(monkeypatch):
    draws = np.random.default_rng(0)
    arguments = (
        draws.random((70, 40)),
        draws.integers(0, 9, 70),
        draws.integers(0, 9, 40),
        draws.integers(1, 4, 70),
        draws.integers(1, 4, 40),
        "llcm",
    )
    whole = query_metrics(*arguments)
    monkeypatch.setattr(metrics, "QUERIES_AT_A_TIME", 7)
    for one, other in zip(whole, query_metrics(*arguments), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_tie_counts_whatever_other_queries_are_in_its_block():
    """Of two equal images the first in the gallery is the better; the other query has fewer matches."""
    distances = np.array([[0.1, 0.5, 0.5, 0.9], [0.9, 0.8, 0.7, 0.1]], np.float32)
    ids, cameras = np.array([1, 3, 1, 2]), np.zeros(4, int)
    together = query_metrics(distances, np.array([1, 2]), ids, np.zeros(2, int), cameras, "regdb")
    alone = query_metrics(distances[:1], np.array([1]), ids, np.zeros(1, int), cameras, "regdb")
    assert together.ap[0] == alone.ap[0] == pytest.approx((1 + 2 / 3) / 2)
