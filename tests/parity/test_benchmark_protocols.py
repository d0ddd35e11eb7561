"""Protocols of the benchmarks: draws as published, and for each an example that paper is enough for."""

from __future__ import annotations

import csv
import json
import random

import numpy as np
import pytest
from command_line import csdn
from make_images import Project

from csdn.data.catalog import load_dataset
from csdn.evaluation import evaluate_features, protocol, rank_metrics, rule_cameras
from csdn.evaluation.headline import notes
from csdn.evaluation.protocols import PROTOCOLS, options_of, published_counts
from csdn.params import EvaluationParams
from csdn.synthetic.miniatures import write_miniature


def index_of(rows):
    """Columns from rows (person, modality, camera, path)."""
    columns = zip(*rows, strict=True)
    index = dict(zip(("person", "modality", "camera", "path"), map(list, columns), strict=True))
    return index | {"key": index["path"]}


def metrics_of(name, rows, similarities, direction="infrared_to_visible", **options):
    """rank_metrics of a protocol's search; similarities: {query's path: {gallery image's path: value}}."""
    index = index_of(rows)
    search = next(one for one in protocol(name, index, **options) if one.name == direction)
    people = np.unique(index["person"], return_inverse=True)[1]
    cameras = rule_cameras(name, index)
    queries, gallery = search.queries_of(0), search.galleries[0]
    distances = [
        [-similarities[index["path"][query]][index["path"][row]] for row in gallery] for query in queries
    ]
    return rank_metrics(
        np.array(distances), people[queries], people[gallery], cameras[queries], cameras[gallery], search.rule
    )


SYSU = [
    (1, "visible", "cam1", "1-cam1"),
    (1, "visible", "cam2", "1-cam2"),
    (2, "visible", "cam1", "2-cam1"),
    (2, "visible", "cam2", "2-cam2"),
    (3, "visible", "cam4", "3-cam4"),
    (1, "infrared", "cam3", "q-cam3"),
    (1, "infrared", "cam6", "q-cam6"),
    (4, "infrared", "cam6", "stranger"),
]
SEEN = {"2-cam1": 0.9, "2-cam2": 0.8, "1-cam2": 0.7, "3-cam4": 0.6, "1-cam1": 0.5}


def test_sysu_by_hand():
    """Queries of camera 3 skip camera 2, whoever is there; CMC counts people; a stranger's query is left out.

    From camera 6: 2 2 1 3 1. People in order 2, 1: rank 2. AP = (1/3 + 2/5) / 2 = 11/30; INP = 2/5.
    From camera 3, without camera 2: 2 3 1. People in order 2, 3, 1: rank 3. AP = INP = 1/3.
    """
    found = metrics_of("sysu", SYSU, dict.fromkeys(("q-cam3", "q-cam6", "stranger"), SEEN), trials=1)
    assert found.valid_queries == 2
    assert found.cmc[:3].tolist() == [0, 1 / 2, 1]
    assert found.mean_ap == pytest.approx((1 / 3 + 11 / 30) / 2)
    assert found.mean_inp == pytest.approx((1 / 3 + 2 / 5) / 2)


def test_a_ranking_of_fewer_than_twenty_people_is_padded():
    found = metrics_of("sysu", SYSU, dict.fromkeys(("q-cam3", "q-cam6", "stranger"), SEEN), trials=1)
    assert found.cmc.shape == (20,)
    assert found.cmc[3:].tolist() == [1.0] * 17


def test_sysu_indoor_has_the_gallery_of_cameras_1_and_2():
    """From camera 6: 2 2 1 1, so AP = (1/3 + 2/4) / 2 = 5/12; from camera 3: 2 1, so AP = 1/2."""
    found = metrics_of(
        "sysu", SYSU, dict.fromkeys(("q-cam3", "q-cam6", "stranger"), SEEN), trials=1, mode="indoor"
    )
    assert found.mean_ap == pytest.approx((1 / 2 + 5 / 12) / 2)


def test_regdb_by_hand():
    """Nothing is excluded, CMC counts images. 2 2 1 1: rank 3, AP = (1/3 + 2/4) / 2 = 5/12, INP = 2/4."""
    rows = [
        *((person, "visible", "visible", f"{person}-{n}") for person in (1, 2) for n in (1, 2)),
        (1, "infrared", "thermal", "query"),
    ]
    similarities = {"query": {"2-1": 0.9, "2-2": 0.8, "1-1": 0.7, "1-2": 0.6}}
    found = metrics_of("regdb", rows, similarities)
    assert found.cmc[:4].tolist() == [0, 0, 1, 1]
    assert found.mean_ap == pytest.approx(5 / 12)
    assert found.mean_inp == pytest.approx(1 / 2)
    # The reverse: each visible image has one right answer, and no other image is there to be wrong.
    back = metrics_of(
        "regdb", rows, {path: {"query": 1.0} for path in ("1-1", "1-2", "2-1", "2-2")}, "visible_to_infrared"
    )
    assert (back.valid_queries, back.cmc[0], back.mean_ap) == (2, 1, 1)


LLCM = [
    (1, "visible", "cam1", "1-cam1"),
    (1, "visible", "cam2", "1-cam2"),
    (2, "visible", "cam1", "2-cam1"),
    (2, "visible", "cam3", "2-cam3"),
    (3, "visible", "cam1", "3-cam1"),
    (1, "infrared", "cam1", "query 1"),
    (2, "infrared", "cam2", "query 2"),
    (3, "infrared", "cam1", "query 3"),
]


def test_llcm_by_hand():
    """The query's person at the query's camera is removed; others at that camera are not. CMC counts people.

    Query 1 (camera 1), 1-cam1 removed: 2 2 1 3. People in order 2, 1: rank 2; AP = INP = 1/3.
    Query 2 (camera 2), nothing removed: 1 2 2 1 3. Rank 2; AP = (1/2 + 2/3) / 2 = 7/12, INP = 2/3.
    Query 3: its only image is by its own camera, so it has no match: left out.
    """
    similarities = {
        "query 1": {"1-cam1": 0.9, "2-cam1": 0.8, "2-cam3": 0.7, "1-cam2": 0.6, "3-cam1": 0.5},
        "query 2": {"1-cam1": 0.9, "2-cam1": 0.8, "2-cam3": 0.7, "1-cam2": 0.6, "3-cam1": 0.5},
        "query 3": dict.fromkeys(("1-cam1", "1-cam2", "2-cam1", "2-cam3", "3-cam1"), 0.5),
    }
    found = metrics_of("llcm", LLCM, similarities, trials=1)
    assert found.valid_queries == 2
    assert found.cmc[:2].tolist() == [0, 1]
    assert found.mean_ap == pytest.approx((1 / 3 + 7 / 12) / 2)
    assert found.mean_inp == pytest.approx((1 / 3 + 2 / 3) / 2)


def many(cameras, people=(10, 9, 101), images=12):
    """Several images of each person by each (modality, camera), in an order that no protocol likes."""
    rows = [
        (f"sysu-{person:04d}", modality, f"cam{camera}", f"cam{camera}/{person:04d}/{number:04d}.jpg")
        for person in people
        for modality, camera in cameras
        for number in range(images, 0, -1)
        if (person, camera) != (9, 2)
    ]
    return index_of(rows)


SYSU_CAMERAS = [
    ("infrared", 6),
    ("visible", 5),
    ("visible", 4),
    ("visible", 2),
    ("visible", 1),
    ("infrared", 3),
]


def published_draw(index, cameras, trial, draw, modality="visible"):
    """A draw in the order of the literature's codes: the module's generator, nested loops, sorted names."""
    random.seed(trial)
    gallery = []
    for person in sorted(set(index["person"])):
        for camera in cameras:
            files = sorted(
                path
                for path, who, which, kind in zip(
                    index["path"], index["person"], index["camera"], index["modality"], strict=True
                )
                if (who, which, kind) == (person, f"cam{camera}", modality)
            )
            if files:
                gallery += draw(files)
    return gallery


@pytest.mark.parametrize(("mode", "cameras"), [("all", (1, 2, 4, 5)), ("indoor", (1, 2))])
@pytest.mark.parametrize(
    ("shots", "draw"),
    [(1, lambda files: [random.choice(files)]), (10, lambda files: random.sample(files, 10))],
)
def test_sysu_draws_one_shot_as_the_literature_and_ten_with_the_trials_seed(mode, cameras, shots, draw):
    index = many(SYSU_CAMERAS)
    (search,) = protocol("sysu", index, mode=mode, shots=shots)
    assert len(search.galleries) == 10
    for trial, gallery in enumerate(search.galleries):
        assert [index["path"][row] for row in gallery] == published_draw(index, cameras, trial, draw)
    assert len(search.queries) == 3 * 2 * 12


def test_llcm_draws_what_the_literature_draws_in_both_directions():
    index = many([(kind, camera) for kind in ("visible", "infrared") for camera in (1, 2, 7)])
    for search in protocol("llcm", index):
        queries, gallery_of = search.name.split("_to_")
        assert {index["modality"][row] for row in search.queries} == {queries}
        assert len(search.queries) == 12 * 8
        for trial, gallery in enumerate(search.galleries):
            expected = published_draw(
                index, (1, 2, 7), trial, lambda files: [random.choice(files)], gallery_of
            )
            assert [index["path"][row] for row in gallery] == expected


def test_llcm_swapped_takes_the_drawn_infrared_images_as_queries_of_all_visible_ones():
    index = many([(kind, camera) for kind in ("visible", "infrared") for camera in (1, 2, 7)])
    (search,) = protocol("llcm_swapped", index, trials=3)
    drawn = protocol("llcm", index, trials=3)[1].galleries
    assert [search.queries_of(trial).tolist() for trial in range(3)] == [rows.tolist() for rows in drawn]
    assert search.queries_of(0).tolist() != search.queries_of(1).tolist()
    visible = [row for row, kind in enumerate(index["modality"]) if kind == "visible"]
    assert [gallery.tolist() for gallery in search.galleries] == [visible] * 3


def test_llcm_swapped_evaluates_each_trials_own_queries():
    """One image of ten is right for its person; the mean over the trials counts how often it was drawn."""
    index = many([("visible", 1), ("infrared", 2)], people=(1, 2), images=10)
    rng = np.random.default_rng(0)
    features = rng.random((len(index["path"]), 4))
    whole = evaluate_features(features, index, "llcm_swapped", trials=4)["features"]["infrared_to_visible"]
    (search,) = protocol("llcm_swapped", index, trials=4)
    people = np.unique(index["person"], return_inverse=True)[1]
    cameras = rule_cameras("llcm_swapped", index)
    maps = [
        rank_metrics(
            -features[queries] @ features[gallery].T,
            people[queries],
            people[gallery],
            cameras[queries],
            cameras[gallery],
            "llcm",
        ).mean_ap
        for queries, gallery in ((search.queries_of(trial), search.galleries[trial]) for trial in range(4))
    ]
    assert whole["mAP"]["mean"] == pytest.approx(100 * np.mean(maps), abs=1e-5)


def test_sysu_official_takes_the_first_of_each_permutation():
    index = many(SYSU_CAMERAS, images=3)
    rng = np.random.default_rng(3)
    orders = {}
    for person in set(index["person"]):
        for camera in (1, 2, 4, 5):
            orders[person, f"cam{camera}"] = [rng.permutation(3) + 1 for _ in range(10)]
    places = []
    for person, camera, path in zip(index["person"], index["camera"], index["path"], strict=True):
        number = int(path[-8:-4])
        trials = orders.get((person, camera), [])
        places.append([order.tolist().index(number) for order in trials])
    (search,) = protocol("sysu_official", index | {"places": places}, mode="indoor")
    for trial, gallery in enumerate(search.galleries):
        assert [index["path"][row] for row in gallery] == [
            f"cam{camera}/{person[-4:]}/{orders[person, f'cam{camera}'][trial][0]:04d}.jpg"
            for person in sorted(set(index["person"]))
            for camera in (1, 2)
            if (person, camera) != ("sysu-0009", 2)
        ]
    (ten,) = protocol("sysu_official", index | {"places": places}, shots=10)
    assert {len(gallery) for gallery in ten.galleries} == {11 * 3}  # a folder of three gives all


def test_numbers_and_names_that_end_in_numbers_are_the_same_people_and_cameras():
    index = many(SYSU_CAMERAS)
    plain = index | {
        "person": [int(person[-4:]) for person in index["person"]],
        "camera": [int(camera[-1]) for camera in index["camera"]],
    }
    (one,), (other,) = protocol("sysu", index), protocol("sysu", plain)
    for first, second in zip(one.galleries, other.galleries, strict=True):
        assert first.tolist() == second.tolist()
    assert rule_cameras("sysu", index).tolist() == rule_cameras("sysu", plain).tolist() == plain["camera"]


@pytest.mark.parametrize(
    ("name", "index", "options", "message"),
    [
        ("regdb", many(SYSU_CAMERAS), {"trials": 2}, "protocol regdb has no option trials; it has: none"),
        ("llcm", many(SYSU_CAMERAS), {"mode": "all"}, "protocol llcm has no option mode; it has: trials"),
        ("sysu", many(SYSU_CAMERAS), {"mode": "outdoor"}, "mode = 'outdoor'; allowed: all, indoor"),
        ("sysu", many(SYSU_CAMERAS), {"shots": 5}, "shots = 5; allowed: 1, 10"),
        ("sysu", many([("visible", 3)]), {}, "camera 3 has images of the other modality"),
        ("sysu", index_of([(1, "visible", "north", "a")]), {}, "'north' is no number"),
        ("sysu_official", many(SYSU_CAMERAS), {}, "no column places"),
        (
            "sysu_official",
            many(SYSU_CAMERAS) | {"places": [[]] * len(many(SYSU_CAMERAS)["path"])},
            {},
            r"rand_perm_cam.mat was not there",
        ),
        (
            "sysu_official",
            many(SYSU_CAMERAS) | {"places": [[]] * len(many(SYSU_CAMERAS)["path"])},
            {"trials": 11},
            "give 10 permutations",
        ),
        ("sysu_official", many(SYSU_CAMERAS) | {"places": [[]]}, {}, "different lengths"),
        ("llcm", index_of([(1, "thermal", "cam1", "a")]), {}, "modality 'thermal'; allowed: visible"),
        ("sysu", {"person": [], "modality": [], "camera": []}, {}, "no column path"),
    ],
)
def test_a_protocol_refuses_what_it_does_not_have(name, index, options, message):
    with pytest.raises(ValueError, match=message):
        protocol(name, index, **options)


def test_parameters_know_the_protocols_and_their_options():
    assert EvaluationParams.model_fields["protocol"].annotation.__args__ == tuple(PROTOCOLS)
    for name in PROTOCOLS:
        options = {"trials": 1, "mode": "indoor", "shots": 10} if name.startswith("sysu") else {"trials": 1}
        params = EvaluationParams(protocol=name, flip_tta=True, rerank=False, batch_size=1, **options)
        assert sorted(params.options()) == sorted(options_of(name))


def test_counts_of_the_published_experiments_are_compared_and_those_of_miniatures_are_not():
    whole = {"people": 96, "queries": 3803, "valid_queries": 2208, "gallery": 112}
    assert published_counts("sysu_official", whole, mode="indoor") == whole
    assert published_counts("sysu", {**whole, "people": 8}, mode="indoor") == {}
    assert published_counts("regdb", {"people": 206})["gallery"] == 2060
    assert published_counts("cameras", {"people": 500}, trials=10) == {}
    less = {**whole, "gallery": 111, "excluded_pairs": None, "published": whole}
    assert notes({"infrared_to_visible": less}) == [
        "infrared to visible: WARNING: 111 gallery, the published experiment has 112",
        "infrared to visible: 1595 of 3803 queries have no match in the gallery and are left out",
    ]


def test_figures_of_own_features_are_those_of_the_protocol():
    """Each person's features point their own way, so all is found; one image points elsewhere."""
    index = many(SYSU_CAMERAS, images=2)
    people = np.unique(index["person"], return_inverse=True)[1]
    features = np.eye(3)[people]
    figures = evaluate_features(features, index, "sysu", trials=2)
    assert figures["features"]["infrared_to_visible"]["rank1"] == {"mean": 100.0, "std": 0.0}
    assert figures["counts"]["infrared_to_visible"]["queries"] == 12
    features[index["path"].index("cam6/0010/0001.jpg")] = np.eye(3)[0]  # person 9's
    worse = evaluate_features(features, index, "sysu", trials=2)["features"]["infrared_to_visible"]
    assert worse["rank1"]["mean"] == pytest.approx(100 * 11 / 12, abs=1e-5)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The miniature of SYSU-MM01, ingested."""
    root = tmp_path_factory.mktemp("sysu")
    write_miniature("sysu", root / "sysu")
    project = Project(root)
    project.add(root / "sysu", "sysu")
    project.ingest()
    return project


def features_of(index, path):
    """Features that tell people apart, as a file."""
    people = np.unique(index["person"], return_inverse=True)[1]
    np.save(path, np.eye(people.max() + 1, dtype=np.float32)[people])
    return str(path)


@pytest.mark.parametrize(
    ("options", "gallery", "left_out"),
    [
        (("--protocol", "sysu"), 26, 0),
        (("--protocol", "sysu_official", "--shots", "10"), 260, 0),
        (("--protocol", "sysu_official", "--mode", "indoor"), 10, 24),
    ],
)
def test_somebodys_features_are_evaluated_by_one_command(project, tmp_path, options, gallery, left_out):
    index = load_dataset(project.data).test_index()
    features = features_of(index, tmp_path / "features.npy")
    out = tmp_path / "figures.json"
    printed = csdn("evaluate-features", features, *options, "--index", str(project.data), "--out", str(out))
    figures = json.loads(out.read_text())
    assert figures["features"]["infrared_to_visible"]["mAP"] == {"mean": 100.0, "std": 0.0}
    assert figures["counts"]["infrared_to_visible"]["gallery"] == gallery
    assert ("100.00" in printed) and (f"{left_out} of 60 queries" in printed) == bool(left_out)


def test_a_csv_file_says_the_same_as_the_projects_own_index(project, tmp_path):
    index = load_dataset(project.data).test_index()
    features = features_of(index, tmp_path / "features.npy")
    with (tmp_path / "index.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "person", "camera", "modality", "remark"))
        for row in zip(index["path"], index["person"], index["camera"], index["modality"], strict=True):
            writer.writerow((*row, "x"))
    printed = []
    for place in (project.data, tmp_path / "index.csv"):
        command = (
            "evaluate-features",
            features,
            "--protocol",
            "sysu",
            "--index",
            str(place),
            "--trials",
            "3",
        )
        printed.append(csdn(*command))
    assert printed[0] == printed[1]
