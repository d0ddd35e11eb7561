"""Whichever list or camera of a benchmark is wanting, it is named and the drop is not added."""

import pytest
from benchmark_folders import MAKERS, regdb_path, write_text

from csdn.evaluation import protocol
from csdn.ingest.sources import open_source
from csdn.runtime.errors import UserError

LISTS = [
    *(("sysu", f"exp/{name}_id.txt") for name in ("train", "val", "test")),
    *(("llcm", f"idx/{name}.txt") for name in ("train_vis", "train_nir", "test_id")),
    *(
        ("regdb", f"idx/{split}_{kind}_{trial}.txt")
        for split in ("train", "test")
        for kind in ("visible", "thermal")
        for trial in (1, 10)
    ),
]
CAMERAS = [
    *(("sysu", f"cam{camera}") for camera in range(1, 7)),
    *(("llcm", f"test_vis/cam{camera}") for camera in range(1, 10)),
    *(("llcm", f"test_nir/cam{camera}") for camera in (1, 2, 4, 5, 6, 7, 8, 9)),
    ("regdb", "Visible"),
    ("regdb", "Thermal"),
]
TWICE = [
    *(("sysu", f"exp/{name}_id.txt", f"{people}") for name, people in (("train", "1,2,2"), ("val", "3,3"))),
    ("sysu", "exp/test_id.txt", "5,12,5"),
    ("llcm", "idx/test_id.txt", "20,4,20"),
    ("regdb", "idx/test_thermal_2.txt", f"{regdb_path('Thermal', 3, 0)} 0\n" * 2),
]


def refused(root, layout):
    with pytest.raises(UserError) as error:
        open_source(str(root), layout).listing()
    return str(error.value)


@pytest.mark.parametrize(("layout", "name"), LISTS)
def test_a_missing_list_is_named(tmp_path, layout, name):
    root = MAKERS[layout](tmp_path / layout)
    (root / name).unlink()
    assert name in refused(root, layout)


@pytest.mark.parametrize(("layout", "camera"), CAMERAS)
def test_a_camera_whose_folder_is_empty_is_named(tmp_path, layout, camera):
    root = MAKERS[layout](tmp_path / layout)
    for path in (root / camera).rglob("*.*"):
        path.unlink()
    said = refused(root, layout)
    assert camera in said or camera.lower() in said


@pytest.mark.parametrize(("layout", "name", "text"), TWICE)
def test_somebody_or_something_listed_twice_is_refused_by_the_list(tmp_path, layout, name, text):
    root = MAKERS[layout](tmp_path / layout)
    write_text(root / name, text)
    said = refused(root, layout)
    assert name in said and "twice" in said


@pytest.mark.parametrize("trials", [0, -1])
@pytest.mark.parametrize("name", ["cameras", "sysu", "sysu_official", "llcm", "llcm_swapped"])
def test_trials_that_no_protocol_has(name, trials):
    index = {column: [] for column in ("person", "modality", "camera", "path", "key", "places")}
    with pytest.raises(ValueError, match=f"trials = {trials}: a whole number, at least 1"):
        protocol(name, index, trials=trials)
