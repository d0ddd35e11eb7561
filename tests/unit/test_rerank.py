"""k-reciprocal re-ranking, compared with the formulas of the paper (arXiv 1701.08398) over sets and loops."""

import math

import numpy as np
import pytest

from csdn.evaluation import rerank as chapter
from csdn.evaluation.distances import Trial
from csdn.evaluation.rerank import RerankedDistances, ReRanking, rerank


def plain(queries, gallery, k1, k2, weight):
    """The paper's formulas, image by image, in float64."""
    features = [np.float64(row) for row in (*queries, *gallery)]
    images = range(len(features))
    squared = [[float(((one - other) ** 2).sum()) for other in features] for one in features]
    d = [[value / (max(row) or 1) for value in row] for row in squared]
    ranking = [sorted(images, key=lambda j, i=i: (j != i, squared[i][j], j)) for i in images]

    def reciprocal(i, k):
        return {j for j in ranking[i][: k + 1] if i in ranking[j][: k + 1]}

    def encoding(i):
        near = reciprocal(i, k1)
        found = set(near)
        for j in near:
            half = reciprocal(j, round(k1 / 2))
            if 3 * len(near & half) >= 2 * len(half):
                found |= half
        return np.array([math.exp(-d[i][j]) if j in found else 0.0 for j in images])

    own = [encoding(i) for i in images]
    spread = [np.mean([own[j] for j in ranking[i][:k2]], axis=0) for i in images]

    def jaccard(i, j):
        return 1 - np.minimum(spread[i], spread[j]).sum() / np.maximum(spread[i], spread[j]).sum()

    return np.array(
        [
            [(1 - weight) * jaccard(i, j) + weight * d[i][j] for j in images[len(queries) :]]
            for i in images[: len(queries)]
        ]
    )


def people(seed, queries, gallery, width=16, images=4):
    """Unit features of a few images of each person."""
    draws = np.random.default_rng(seed)
    count = queries + gallery
    centres = draws.standard_normal((math.ceil(count / images), width))
    rows = centres[draws.permutation(count) // images] + 0.5 * draws.standard_normal((count, width))
    rows = np.float32(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    return rows[:queries], rows[queries:]


@pytest.mark.parametrize(("queries", "gallery"), [(1, 40), (7, 60), (30, 90)])
@pytest.mark.parametrize("seed", range(3))
def test_equal_to_the_formulas_of_the_paper(seed, queries, gallery):
    features = people(seed, queries, gallery)
    np.testing.assert_allclose(rerank(*features), plain(*features, 20, 6, 0.3), atol=2e-6)


@pytest.mark.parametrize(
    ("k1", "k2", "weight"), [(1, 1, 0.0), (2, 6, 0.3), (5, 2, 0.5), (7, 3, 0.2), (9, 3, 1.0), (10, 4, 0)]
)
def test_equal_to_the_formulas_for_other_parameters(k1, k2, weight):
    features = people(5, 9, 50)
    np.testing.assert_allclose(rerank(*features, k1, k2, weight), plain(*features, k1, k2, weight), atol=2e-6)


@pytest.mark.parametrize("gallery", [1, 2, 5, 15, 20])
def test_equal_to_the_formulas_for_galleries_smaller_than_k1(gallery):
    features = people(gallery, 3, gallery)
    np.testing.assert_allclose(rerank(*features), plain(*features, 20, 6, 0.3), atol=2e-6)


@pytest.mark.parametrize("seed", range(6))
def test_ties_go_to_the_first_image(seed):
    # Small whole numbers: distances are exact in float32, most of them several times.
    draws = np.random.default_rng(seed)
    features = np.float32(draws.integers(0, 3, (70, 3)))
    features = features[:10], features[10:]
    np.testing.assert_allclose(rerank(*features, 6, 3), plain(*features, 6, 3, 0.3), atol=2e-6)


def test_images_that_are_all_alike_are_equally_far():
    same = np.ones((30, 4), np.float32)
    found = rerank(same[:5], same[5:])
    np.testing.assert_allclose(found, plain(same[:5], same[5:], 20, 6, 0.3), atol=2e-6)


def test_blocks_of_any_size_and_float16_memory_maps_give_the_same_distances(tmp_path, monkeypatch):
    queries, gallery = (rows.astype(np.float16) for rows in people(0, 20, 100))
    whole = rerank(np.float32(queries), np.float32(gallery))
    np.save(tmp_path / "gallery.npy", gallery)
    mapped = np.load(tmp_path / "gallery.npy", mmap_mode="r")
    monkeypatch.setattr(chapter, "NUMBERS", 1000)
    monkeypatch.setattr(chapter, "LEAST_ROWS", 3)
    np.testing.assert_allclose(rerank(queries, mapped), whole, atol=1e-6)
    assert list(ReRanking(queries, mapped).blocks())[:2] == [(0, 10), (10, 20)]


def test_a_match_that_shares_neighbours_passes_a_nearer_stranger():
    # A chain of one person's images, each near to the next; a stranger is nearer to the query than its end.
    chain = np.array([[0.3 * step, 0.0] for step in range(6)])
    stranger, others = [[0.0, 1.2]], [[0.2 * step, 4.0] for step in range(8)]
    query, gallery = chain[:1], np.concatenate([stranger, chain[1:], others]).astype(np.float32)
    before = np.linalg.norm(gallery - query, axis=1)
    after = rerank(np.float32(query), gallery, k1=4, k2=2)[0]
    assert before[0] < before[5] and after[0] > after[5]


def test_each_trial_is_reranked_alone_with_its_own_queries_and_gallery():
    queries, gallery = people(1, 10, 50)
    features = np.concatenate([queries, gallery])
    rows = np.arange(60)
    trials = [Trial(rows[:10], rows[10:40], 0), Trial(rows[4:10], rows[20:], 1)]
    found = [np.zeros((len(one.queries), len(one.gallery))) for one in trials]
    for block in RerankedDistances(features).blocks(trials, np.zeros(60, np.int64)):
        for number, places, read in block:
            found[number][places] = read()
    for one, distances in zip(trials, found, strict=True):
        np.testing.assert_array_equal(distances, rerank(features[one.queries], features[one.gallery]))


@pytest.mark.parametrize("wrong", [{"k1": 0}, {"k2": 0}, {"weight": 1.5}])
def test_parameters_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        rerank(*people(0, 2, 9), **wrong)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_features_without_finite_distances_are_refused(value):
    queries, gallery = people(0, 2, 9)
    gallery[3, 3] = value
    with pytest.raises(ValueError, match="finite"):
        rerank(queries, gallery)
