"""Layouts `sysu`, `regdb`, `llcm`: folders and lists become records; the lists say who is tested."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from benchmark_folders import MAKERS, make_llcm, make_regdb, make_sysu, regdb_path, write_text
from make_images import Project, jpeg, write
from memory_bucket import memory_tree

from csdn.data.catalog import PEOPLE_SCHEMA, load_dataset, read_table
from csdn.ingest.counts import unlike_published
from csdn.ingest.ledger import drop_id
from csdn.ingest.sources import open_source
from csdn.synthetic.miniatures import write_miniature


def listed(root, layout):
    source = open_source(str(root), layout)
    return {record.path: record for record in source.listing()}, source


def splits_of(records):
    """person -> splits, which all images of a person share."""
    splits = {}
    for record in records.values():
        assert splits.setdefault(record.person, record.splits) == record.splits
    return splits


def test_sysu_has_four_visible_and_two_infrared_cameras(tmp_path):
    records, source = listed(make_sysu(tmp_path), "sysu")
    assert len(records) == 5 * 6 * 2 - 2
    modality = {record.camera: record.modality for record in records.values()}
    assert modality == {
        **dict.fromkeys(("cam1", "cam2", "cam4", "cam5"), "visible"),
        **dict.fromkeys(("cam3", "cam6"), "infrared"),
    }
    assert records["cam2/0012/0001.jpg"].person == "sysu-0012"
    assert source.complete and not source.refused and source.ignored == []


def test_sysu_validation_people_are_training_people(tmp_path):
    assert splits_of(listed(make_sysu(tmp_path), "sysu")[0]) == {
        **dict.fromkeys(("sysu-0001", "sysu-0002", "sysu-0003"), ("train",)),
        **dict.fromkeys(("sysu-0005", "sysu-0012"), ("test",)),
    }


def test_people_on_no_list_and_other_files_are_left_alone(tmp_path):
    make_sysu(tmp_path)
    for path in ("cam1/0099/0001.jpg", "cam1/0001/Thumbs.db", "readme.txt", "masks/cam1/0001/0001.jpg"):
        write(tmp_path / path, b"")
    write(tmp_path / "cam1/somebody/0001.jpg", b"")
    records, source = listed(tmp_path, "sysu")
    assert len(records) == 58 and len(source.ignored) == 4
    assert source.refused == [("cam1/somebody/0001.jpg", "not at camera/person/name")]


def test_regdb_gives_each_image_a_split_in_each_of_the_ten_trials(tmp_path):
    records, source = listed(make_regdb(tmp_path), "regdb")
    assert len(records) == 16 and not source.refused and source.ignored == []
    splits = splits_of(records)
    assert set(splits) == {"regdb-0001", "regdb-0002", "regdb-0003", "regdb-0004"}
    for trial in range(1, 11):
        test = {person for person in splits if splits[person][trial - 1] == "test"}
        assert test == {f"regdb-000{1 + trial % 4}", f"regdb-000{1 + (trial + 1) % 4}"}
    thermal = records[regdb_path("Thermal", 3, 1)]
    assert (thermal.modality, thermal.camera) == ("infrared", "thermal")


def test_llcm_trains_on_its_lists_and_tests_with_folders(tmp_path):
    make_llcm(tmp_path)
    write(tmp_path / "vis/0003/0003_c02_s1_f1_vis.jpg", b"")  # on no list
    write(tmp_path / "test_vis/cam1/0099/a.jpg", b"")  # no test person
    records, source = listed(tmp_path, "llcm")
    assert splits_of(records) == {
        "llcm-0003": ("train",),
        "llcm-0008": ("train",),
        "llcm-0004": ("test",),
        "llcm-0020": ("test",),
    }
    record = records["nir/0008/0008_c07_s185535_f7010_nir.jpg"]
    assert (record.camera, record.modality) == ("cam7", "infrared")
    assert records["test_nir/cam7/0020/a_7.jpg"].camera == "cam7"  # one camera sees both ways
    assert len(records) == 8 + 2 * 17 and len(source.ignored) == 2


@pytest.mark.parametrize("layout", MAKERS)
def test_an_object_store_lists_the_same_as_a_folder(tmp_path, layout):
    root = MAKERS[layout](tmp_path)
    files = [path for path in root.rglob("*") if path.is_file()]
    objects = {f"{layout}/{path.relative_to(root)}": path.read_bytes() for path in files}
    source = open_source(str(root), layout)
    expected = source.listing()
    source.tree = memory_tree(layout, objects)
    assert source.listing() == expected


def test_another_split_is_another_drop(tmp_path):
    def identity():
        records, source = listed(tmp_path, "sysu")
        return drop_id(records.values(), ["same"] * len(records), source.refused)

    make_sysu(tmp_path)
    before = identity()
    write_text(tmp_path / "exp/val_id.txt", "3")  # as before, without the end of the line
    assert identity() == before
    write_text(tmp_path / "exp/val_id.txt", "5")
    write_text(tmp_path / "exp/test_id.txt", "3,12")
    assert identity() != before


@pytest.fixture(scope="module")
def miniatures(tmp_path_factory):
    """A function that gives the folder of a miniature, written once."""
    made = {}

    def folder(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("mini") / name
            write_miniature(name, made[name])
        return made[name]

    return folder


def ingested(root, folder, layout, **settings):
    root.mkdir()
    project = Project(root)
    project.add(folder, layout)
    project.ingest(**settings)
    return project


def people_of(project):
    return {
        row["person"]: row for row in read_table(project.data / "people.parquet", PEOPLE_SCHEMA).to_pylist()
    }


@pytest.mark.parametrize(("layout", "train", "test"), [("sysu", 24, 8), ("regdb", 16, 16), ("llcm", 24, 8)])
def test_a_miniature_is_ingested_whole_and_in_silence(miniatures, tmp_path, layout, train, test):
    figures = ingested(tmp_path / "project", miniatures(layout), layout).figures()
    assert (figures["people"]["train"], figures["people"]["test"]) == (train, test)
    assert figures["people"]["waiting"] == figures["ignored_files"] == figures["duplicates"] == 0
    assert figures["quarantined"] == {} and figures["unlike_published"] == []


def test_miniatures_lack_people_in_some_cameras_as_the_real_ones_do(miniatures):
    sysu, llcm = miniatures("sysu"), miniatures("llcm")
    assert {len(list((sysu / f"cam{n}").iterdir())) for n in (1, 3, 6)} == {22, 28, 32}
    assert not (llcm / "test_nir/cam3").exists()
    assert all(len(list((llcm / f"test_vis/cam{n}").iterdir())) < 8 for n in range(1, 10))


def test_a_miniature_is_the_same_each_time(miniatures, tmp_path):
    write_miniature("sysu", tmp_path / "again")
    for path in sorted(miniatures("sysu").rglob("*")):
        again = tmp_path / "again" / path.relative_to(miniatures("sysu"))
        assert path.is_dir() or path.read_bytes() == again.read_bytes()


def test_the_lists_decide_whatever_the_buckets_say(miniatures, tmp_path):
    people = people_of(ingested(tmp_path / "project", miniatures("sysu"), "sysu", test_percent=99))
    assert {name for name, row in people.items() if row["split"] == "test"} == {
        f"sysu-{number:04d}" for number in range(2, 33, 4)
    }


def test_another_trial_of_regdb_moves_people_and_writes_no_shard_again(miniatures, tmp_path):
    project = ingested(tmp_path / "project", miniatures("regdb"), "regdb")
    before = {path: path.stat().st_mtime_ns for path in project.data.glob("*/*") if path.is_file()}
    first = people_of(project)
    project.ingest(trial=2)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    second = people_of(project)
    assert {name: row["row"] for name, row in first.items()} == {n: row["row"] for n, row in second.items()}
    for trial, people in ((1, first), (2, second)):
        listed = (miniatures("regdb") / f"idx/test_visible_{trial}.txt").read_text().split()
        tested = {int(path.split("/")[1]) for path in listed[::2]}
        assert {int(name[-4:]) for name, row in people.items() if row["split"] == "test"} == tested


def test_an_image_that_comes_twice_counts_twice_in_a_benchmark(tmp_path):
    make_llcm(tmp_path / "llcm")
    for path in (tmp_path / "llcm").rglob("*.jpg"):
        person = path.name.split("_")[0] if path.name[0] != "a" else path.parent.name
        path.write_bytes(jpeg(f"{person} {'vis' in str(path.relative_to(tmp_path))}"))
    project = ingested(tmp_path / "project", tmp_path / "llcm", "llcm")
    assert project.figures()["images"]["test"] == {"visible": 18, "infrared": 16}
    assert project.figures()["duplicates"] == 0


def test_own_cameras_beside_a_benchmark_keep_their_buckets(miniatures, tmp_path):
    project = ingested(tmp_path / "project", miniatures("sysu"), "sysu")
    project.add("builtin:tiny", "builtin")
    project.ingest()
    people = people_of(project)
    assert len(people) == 32 + 32
    assert all(
        (row["split"] == "test") == (row["bucket"] >= 60) for name, row in people.items() if name[0] == "p"
    )


def test_places_of_gallery_images_are_those_of_the_permutation_file(miniatures, tmp_path):
    from scipy.io import loadmat

    project = ingested(tmp_path / "project", miniatures("sysu"), "sysu")
    cells = loadmat(miniatures("sysu") / "exp/rand_perm_cam.mat")["rand_perm_cam"]
    index = load_dataset(project.data).test_index()
    seen = 0
    for path, places, modality in zip(index["path"], index["places"], index["modality"], strict=True):
        camera, person, number = (int("".join(filter(str.isdigit, part))) for part in path.split("/"))
        if modality == "visible":
            orders = cells[camera - 1, 0][person - 1, 0]
            assert [int(orders[trial][place]) for trial, place in enumerate(places)] == [number] * 10
            seen += 1
        else:
            assert places is None
    assert seen == project.figures()["images"]["test"]["visible"]


def counts_of(drop, train_people, test_people, images=1, cameras=None):
    """The counts of a drop with so many visible and infrared images of each person."""
    cameras = cameras or {"visible": "cam1", "infrared": "cam1"}
    rows = [
        {
            "drop": drop.id,
            "split": "train" if person < train_people else "test",
            "person_row": person,
            "modality": modality,
            "camera": cameras[modality],
            "images": 1,
        }
        for person in range(train_people + test_people)
        for modality in ("visible", "infrared")
        for _ in range(images)
    ]
    return pa.Table.from_pylist(rows)


def test_a_copy_that_is_not_the_published_data_is_named(tmp_path):
    drop = Project(tmp_path).add("builtin:tiny", "builtin")
    llcm = type(drop)(drop.id, "/data/llcm", "llcm")
    assert unlike_published([llcm], counts_of(llcm, 713, 1)) == []
    assert unlike_published([llcm], counts_of(llcm, 300, 1)) == []  # a miniature
    assert unlike_published([llcm], counts_of(llcm, 712, 1)) == [
        f"{llcm}: 712 train people, llcm as published has 713"
    ]
    regdb = type(drop)(drop.id, "/data/regdb", "regdb")
    genuine = counts_of(regdb, 206, 206, 10, {"visible": "visible", "infrared": "thermal"})
    assert unlike_published([regdb], genuine) == []  # a camera is called as its modality
    assert unlike_published([regdb], genuine.slice(0, genuine.num_rows - 1)) == [
        f"{regdb}: 2059 test infrared images, regdb as published has 2060"
    ]
    sysu = type(drop)(drop.id, "/data/sysu", "sysu")
    assert [line.split(": ")[1] for line in unlike_published([sysu], counts_of(sysu, 395, 96))] == [
        "96 test infrared images, sysu as published has 3803",
        "0 test cam3 images, sysu as published has 1883",
        "0 test cam6 images, sysu as published has 1920",
    ]
    assert np.size(unlike_published([drop], counts_of(drop, 395, 96))) == 0  # no benchmark
