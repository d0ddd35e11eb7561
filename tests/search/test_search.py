"""Search: exact to a plain ranking, filters before ranking, people, and the index."""

import numpy as np
import pytest
from test_gallery import MODEL, rows, unit

from csdn.evaluation.rerank import rerank
from csdn.runtime.errors import UserError
from csdn.search import search as module
from csdn.search.build import make_index, recall, wants_index
from csdn.search.gallery import Gallery
from csdn.search.search import Filters, Searcher


def filled(folder, features, dtype="float32", parts=3, **facts):
    """A gallery of these features in several parts; facts: lists for each image."""
    gallery = Gallery.create(str(folder), MODEL, features.shape[1], dtype, True)
    for some in np.array_split(np.arange(len(features)), parts):
        own = {name: [values[n] for n in some] for name, values in facts.items()}
        table = rows(some.tolist())
        for name, values in own.items():
            place = table.schema.get_field_index(name)
            table = table.set_column(place, name, [values])
        gallery.add(features[some], table.cast(rows([0]).schema))
    return gallery


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("seed", range(4))
def test_exact_search_is_a_sorted_matrix_product(tmp_path, monkeypatch, dtype, seed):
    monkeypatch.setattr(module, "_BLOCK_BYTES", 40 * 4 * 8)  # several blocks a part
    monkeypatch.setattr(module, "_QUERIES", 4)  # and of queries
    features, queries = unit(300, seed).astype(dtype), unit(10, 100 + seed)
    features[150:170] = features[10:30]  # ties, in the order of the gallery
    searcher = Searcher(filled(tmp_path / "g", features, dtype))
    scores, positions = searcher.nearest(queries, 25)
    full = queries @ features.astype(np.float32).T
    expected = np.argsort(-full.round(6), axis=1, kind="stable")[:, :25]
    np.testing.assert_array_equal(positions, expected)
    np.testing.assert_allclose(scores, np.take_along_axis(full, expected, axis=1), atol=1e-6)


def test_more_results_than_images_and_no_queries(tmp_path):
    searcher = Searcher(filled(tmp_path / "g", unit(5)))
    _, positions = searcher.nearest(unit(2), 9)
    assert (np.sort(positions, axis=1) == [-1] * 4 + list(range(5))).all()
    assert searcher.nearest(unit(0), 3)[0].shape == (0, 3)
    assert searcher.search(unit(0)) == []


def test_filters_decide_before_the_ranking(tmp_path):
    features = unit(60, 3)
    cameras = [("north", "south", "east")[n % 3] for n in range(60)]
    times = [None if n % 5 == 0 else 1000 * n for n in range(60)]
    modality = ["visible" if n % 2 else "infrared" for n in range(60)]
    gallery = filled(tmp_path / "g", features, camera=cameras, time=times, modality=modality)
    query = features[:1]
    (found,) = Searcher(gallery).search(query, 100, Filters("visible", ["South"], 10_000, 40_000))
    kept = [n for n in range(60) if n % 2 and n % 3 == 1 and n % 5 and 10 <= n < 40]
    ranked = sorted(kept, key=lambda n: -float(query[0] @ features[n]))
    assert [match.source for person in found for match in person.images] == [f"/images/{n}" for n in ranked][
        :3
    ]
    mask = Filters("visible", ["South"], 10_000, 40_000).mask(gallery)
    assert np.flatnonzero(mask).tolist() == kept


def test_a_person_scores_as_the_best_image_and_nobody_is_one_person(tmp_path):
    features = np.eye(8, dtype=np.float32)[[0, 0, 1, 1, 2, 3, 3]]
    people = ["ana", "ana", "ben", "ben", "cleo", "", ""]
    searcher = Searcher(filled(tmp_path / "g", features, parts=2, person=people))
    query = np.array([[0.1, 0.7, 0.5, 0.4, 0, 0, 0, 0]], np.float32)
    (found,) = searcher.search(query, 4)
    assert [(one.person, round(one.score, 3), len(one.images)) for one in found] == [
        ("ben", 0.7, 2),
        ("cleo", 0.5, 1),
        ("", 0.4, 1),
        ("", 0.4, 1),
    ]
    assert searcher.counts(Filters()) == (5, 7)


def test_ten_people_are_found_behind_one_person_with_very_many_images(tmp_path):
    draws, axis = np.random.default_rng(0), np.eye(8, dtype=np.float32)[0]
    near = axis + 0.01 * draws.standard_normal((500, 8)).astype(np.float32)
    others = unit(30, 1)
    features = np.concatenate([near / np.linalg.norm(near, axis=1, keepdims=True), others])
    people = ["crowd"] * 500 + [f"p{n}" for n in range(30)]
    (found,) = Searcher(filled(tmp_path / "g", features, person=people)).search(axis[None], 10)
    best = sorted(range(30), key=lambda n: -float(others[n] @ axis))[:9]
    assert [one.person for one in found] == ["crowd", *(f"p{n}" for n in best)]


def test_re_ranking_orders_the_images_that_pass_the_filters(tmp_path, monkeypatch):
    features, queries = unit(60, 3), unit(4, 9)
    cameras = [("north", "south")[n % 2] for n in range(60)]
    searcher = Searcher(filled(tmp_path / "g", features, camera=cameras))
    distances = rerank(queries, features[1::2])
    found = searcher.search_reranked(queries, 30, Filters(cameras=["south"]))
    for query, row, people in zip(queries, distances, found, strict=True):
        (images,) = [person.images for person in people]
        nearest = 1 + 2 * np.argsort(row, kind="stable")[: module.SHOWN]
        assert [image.source for image in images] == [f"/images/{n}" for n in nearest]
        assert images[0].score == pytest.approx(float(query @ features[nearest[0]]), abs=1e-6)
    monkeypatch.setattr(module, "RERANKED_UP_TO", 63)
    with pytest.raises(UserError, match="camera or time"):
        searcher.search_reranked(queries)
    assert searcher.search_reranked(unit(0)) == []


@pytest.fixture
def indexed(tmp_path, monkeypatch):
    """A gallery of 3,000 clustered images with an index, which any search of more than 100 images uses."""
    monkeypatch.setattr(module, "EXACT_UP_TO", 100)
    monkeypatch.setattr("csdn.search.index.PROBES", 8)  # of 128 clusters
    draws = np.random.default_rng(0)
    centres = unit(200, 1, 32)
    features = centres[np.arange(3000) % 200] + 0.1 * draws.standard_normal((3000, 32)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    gallery = filled(tmp_path / "g", features, "float16", person=[f"p{n % 200}" for n in range(3000)])
    make_index(gallery)
    return gallery


def test_the_index_finds_what_exact_search_finds_and_scores_it_exactly(indexed):
    assert indexed.manifest.index.recall >= 0.95
    searcher = Searcher(Gallery.open(indexed.address))
    queries = searcher.features(np.arange(0, 3000, 100)) + 0
    exact, through = searcher.nearest(queries, 10, exact=True), searcher.nearest(queries, 10)
    same = [np.isin(a, b).mean() for a, b in zip(exact[1], through[1], strict=True)]
    assert np.mean(same) >= 0.95
    np.testing.assert_allclose(through[0][:, 0], exact[0][:, 0], atol=1e-6)
    assert recall(searcher, searcher.index, np.arange(50)) >= 0.95


def test_images_after_the_index_are_found_and_filters_hold(indexed):
    new = unit(1, 77, 32)
    indexed.add(new, rows(["new"], "zoe", camera="west"))
    searcher = Searcher(indexed)
    (found,) = searcher.search(new, 1)
    assert found[0].person == "zoe"
    (found,) = searcher.search(new, 20, Filters(cameras=["north"]))
    assert len(found) == 20
    assert {image.camera for one in found for image in one.images} == {"north"}


def test_a_removed_person_is_in_no_index(indexed):
    before = indexed.manifest.index.images
    assert indexed.remove(["p7"]) == 15
    assert indexed.manifest.index.images == before - 15
    searcher = Searcher(Gallery.open(indexed.address))
    assert searcher.index.ntotal == before - 15
    assert len(list(indexed.folder.glob("index-*"))) == 1
    _, positions = searcher.nearest(unit(20, 5, 32), 10)
    assert (positions >= 0).all()
    assert "p7" not in {searcher.facts(n)["person"] for n in positions.ravel()}


def test_features_that_were_replaced_leave_the_index_with_the_person(indexed):
    """Image 7 of p7 gets a new feature; then the index has the old one, which no id of the gallery names."""
    indexed.add(unit(1, 50, 32), rows([7], "p7"))
    assert indexed.remove(["p7"]) == 15
    assert Searcher(indexed).index.ntotal == 3000 - 15


def test_a_small_gallery_is_ranked_by_people_and_not_by_all_its_images(tmp_path, monkeypatch):
    """With fewer people than are asked for, no further images are ranked."""
    people = [f"p{n % 3}" for n in range(400)]
    searcher = Searcher(filled(tmp_path / "g", unit(400), person=people))
    counts = []
    nearest = searcher.nearest
    monkeypatch.setattr(searcher, "nearest", lambda q, n, *more: counts.append(n) or nearest(q, n, *more))
    assert [len(found) for found in searcher.search(unit(5, 2), 10)] == [3] * 5
    assert max(counts) < 400


def test_an_index_is_wanted_once_exact_search_has_too_much_to_do(indexed, monkeypatch):
    from csdn.search import build

    monkeypatch.setattr(build, "EXACT_UP_TO", 100)
    assert not wants_index(indexed)
    indexed.add(unit(101, 8, 32), rows(range(5000, 5101)))
    assert wants_index(indexed)
