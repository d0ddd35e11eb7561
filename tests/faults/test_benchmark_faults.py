"""Benchmarks with something wrong: named where it matters, quarantined where one image is at fault."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from benchmark_folders import make_llcm, make_regdb, make_sysu, regdb_path, write_text
from make_images import Project, jpeg, make_drop, people_named, write
from scipy.io import savemat

from csdn.cli.benchmarks import parse_trials
from csdn.cli.main import app
from csdn.data.catalog import load_dataset
from csdn.evaluation.distances import FeatureDistances
from csdn.evaluation.external import read_index
from csdn.evaluation.headline import notes
from csdn.evaluation.run import prepare
from csdn.evaluation.scores import mean_and_std, trial_metrics
from csdn.ingest.sources import open_source
from csdn.ingest.sources.sysu import PERMUTATIONS
from csdn.params import parse_params
from csdn.runtime.errors import UserError

ROOT = Path(__file__).parents[2]
AREA = "drops and images"


def refusal(root, layout):
    """What listing the folder is answered with."""
    with pytest.raises(UserError) as error:
        open_source(str(root), layout).listing()
    return error.value


def remove(folder):
    def spoil(root):
        for path in sorted((root / folder).rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        (root / folder).rmdir()

    return spoil


def lists(path, text):
    return lambda root: write_text(root / path, text)


def permutations(**cells):
    """Writes rand_perm_cam.mat for make_sysu: ten orders of two images, `cells` (c1p5=array) instead."""

    def spoil(root):
        cameras = np.empty((6, 1), object)
        for camera in range(6):
            people = np.empty((12, 1), object)
            for person in range(12):
                count = 0 if (camera, person) == (0, 4) else 2
                order = np.tile(np.arange(1, count + 1), (10, 1))
                people[person, 0] = cells.get(f"c{camera + 1}p{person + 1}", order)
            cameras[camera, 0] = people
        savemat(root / PERMUTATIONS, {"rand_perm_cam": cameras})

    return spoil


SYSU = {
    "SYSU-MM01 without a list of people": lambda root: (root / "exp/test_id.txt").unlink(),
    "SYSU-MM01: a person listed twice": lists("exp/train_id.txt", "1,2,1"),
    "SYSU-MM01: a person listed for training and for validation": lists("exp/val_id.txt", "2,3"),
    "SYSU-MM01: a person listed for training and for testing": lists("exp/test_id.txt", "5,12,2"),
    "SYSU-MM01: a list of something else": lists("exp/test_id.txt", "5,twelve"),
    "SYSU-MM01: a list that is no text": lambda root: (root / "exp/val_id.txt").write_bytes(b"\xff\xfe3"),
    "SYSU-MM01: an empty list": lists("exp/test_id.txt", "\n"),
    "SYSU-MM01: a camera without images": remove("cam3"),
    "SYSU-MM01: a listed person without images": lists("exp/test_id.txt", "5,12,77"),
    "SYSU-MM01: a permutation file for another number of images": permutations(
        c4p5=np.tile([3, 1, 2], (10, 1))
    ),
    "SYSU-MM01: a permutation file without a person": permutations(c4p12=np.zeros((10, 0))),
    "SYSU-MM01: a permutation file that permutes nothing": permutations(c2p5=np.ones((10, 2), int)),
    "SYSU-MM01: a permutation file that is none": lists(PERMUTATIONS, "not MATLAB"),
}


REGDB = {
    "RegDB without the list of a trial": lambda root: (root / "idx/test_thermal_7.txt").unlink(),
    "RegDB: a line without a label": lists("idx/train_visible_2.txt", f"{regdb_path('Visible', 1, 0)}\n"),
    "RegDB: an image listed twice": lists(
        "idx/test_visible_2.txt", f"{regdb_path('Visible', 1, 0)} 0\n{regdb_path('Visible', 1, 0)} 0\n"
    ),
    "RegDB: one label for two people": lists(
        "idx/test_visible_2.txt", f"{regdb_path('Visible', 3, 0)} 0\n{regdb_path('Visible', 4, 0)} 0\n"
    ),
    "RegDB: a person trained on and tested in one trial": lists(
        "idx/test_visible_2.txt", f"{regdb_path('Visible', 1, 0)} 0\n"
    ),
    "RegDB: no thermal image at all": remove("Thermal"),
}


LLCM = {
    "LLCM without a list of images": lambda root: (root / "idx/train_nir.txt").unlink(),
    "LLCM: a camera without test images": remove("test_nir/cam5"),
    "LLCM: a person listed for training and for testing": lists("idx/test_id.txt", "4,8"),
    "LLCM: no listed training image is there": remove("vis"),
}


SPOILT = [
    *((make_sysu, "sysu", what, spoil) for what, spoil in SYSU.items()),
    *((make_regdb, "regdb", what, spoil) for what, spoil in REGDB.items()),
    *((make_llcm, "llcm", what, spoil) for what, spoil in LLCM.items()),
]


@pytest.mark.parametrize(("make", "layout", "what", "spoil"), SPOILT)
def test_a_benchmark_that_cannot_be_trusted_is_not_added(tmp_path, fault, make, layout, what, spoil):
    root = make(tmp_path / layout)
    spoil(root)
    fault(AREA, what, refusal(root, layout))


def test_the_permutation_file_of_these_tests_is_good_where_nothing_is_spoilt(tmp_path):
    permutations()(make_sysu(tmp_path))
    records = open_source(str(tmp_path), "sysu").listing()
    assert {r.places for r in records if r.splits == ("test",) and r.modality == "visible"} == {
        (0,) * 10,
        (1,) * 10,
    }


def test_listed_images_that_are_not_there_are_quarantined(tmp_path, fault):
    root = make_regdb(tmp_path / "regdb")
    (root / regdb_path("Visible", 2, 1)).unlink()
    with (root / "idx/train_visible_1.txt").open("a") as file:
        file.write("../../etc/hostname.bmp 0\nVisible/hallway.bmp 1\n")
    source = open_source(str(root), "regdb")
    assert len(source.listing()) == 15
    fault(AREA, "a benchmark's list names images that are not there", f"quarantined: {source.refused}")


def test_a_training_image_whose_camera_is_not_in_its_name_is_quarantined(tmp_path, fault):
    root = make_llcm(tmp_path / "llcm")
    write(root / "vis/0003/0003.jpg", b"")
    with (root / "idx/train_vis.txt").open("a") as file:
        file.write("vis/0003/0003.jpg 0\n")
    source = open_source(str(root), "llcm")
    assert len(source.listing()) == 42
    fault(AREA, "LLCM: a training image without its camera", f"quarantined: {source.refused}")


def test_a_link_out_of_a_benchmark_is_quarantined(tmp_path):
    root = make_sysu(tmp_path / "sysu")
    secret = write(tmp_path / "secret.jpg", b"secret")
    (root / "cam1/0001/0009.jpg").symlink_to(secret)
    source = open_source(str(root), "sysu")
    assert len(source.listing()) == 58
    assert source.refused == [("cam1/0001/0009.jpg", "link out of the folder")]


def with_pictures(root):
    """The folder's empty images as real ones, each different."""
    for path in root.rglob("*.jpg"):
        path.write_bytes(jpeg(str(path.relative_to(root))))
    return root


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def test_a_trial_that_a_benchmark_does_not_have(project, tmp_path, fault):
    project.add(with_pictures(make_sysu(tmp_path / "sysu")), "sysu")
    with pytest.raises(UserError) as error:
        project.ingest(trial=2)
    fault("parameters", "data.trial is beyond the benchmark's splits", error.value)
    assert not (project.data / "people.parquet").exists()


def test_a_trial_of_data_without_splits(project, tmp_path, fault):
    project.add(make_drop(tmp_path / "drop", people_named(12)))
    with pytest.raises(UserError) as error:
        project.ingest(trial=3)
    fault("parameters", "data.trial is set for own cameras", error.value)


def test_two_copies_of_a_benchmark_that_contradict(project, tmp_path, fault):
    for name, val, test in (("one", "3", "5,12"), ("two", "12", "5,3")):
        root = make_sysu(tmp_path / name)
        write_text(root / "exp/val_id.txt", val)
        write_text(root / "exp/test_id.txt", test)
        for path in root.rglob("*.jpg"):
            path.write_bytes(jpeg(f"{name} {path.relative_to(root)}"))
        project.add(root, "sysu")
    with pytest.raises(UserError) as error:
        project.ingest()
    fault(AREA, "two drops in use that put a person into different splits", error.value)


def raw_params(**changes):
    raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for key, value in changes.items():
        section, _, name = key.partition("__")
        raw[section][name] = value
    return raw


WRONG_PARAMETERS = {
    "data.trial is out of range": {"data__trial": 11},
    "an option that the protocol does not have": {"evaluation__mode": "indoor"},
    "several galleries for RegDB": {"evaluation__protocol": "regdb", "evaluation__trials": 10},
    "more galleries than SYSU-MM01's authors drew": {
        "evaluation__protocol": "sysu_official",
        "evaluation__trials": 11,
    },
}


@pytest.mark.parametrize("what", WRONG_PARAMETERS)
def test_parameters_that_fit_no_benchmark(fault, what):
    with pytest.raises(UserError) as error:
        parse_params(raw_params(**WRONG_PARAMETERS[what]), "params.yaml")
    fault("parameters", what, error.value)


@pytest.mark.parametrize("text", ["0-3", "11", "3-1", "all", ""])
def test_trials_on_the_command_line_are_checked(text):
    with pytest.raises(UserError, match="trials are numbers from 1 to 10"):
        parse_trials(text)


def test_trials_on_the_command_line():
    assert parse_trials("1-10") == list(range(1, 11))
    assert parse_trials("7, 1-2") == [1, 2, 7]


def test_a_protocol_that_does_not_fit_the_data(project, tmp_path, fault):
    project.add(make_drop(tmp_path / "drop", people_named(12)))
    project.ingest()
    with pytest.raises(UserError) as error:
        prepare(load_dataset(project.data), "sysu", trials=1)
    fault("parameters", "the protocol of a benchmark for own cameras", error.value)


def test_a_gallery_without_images(project, tmp_path, fault):
    """Indoors, the gallery is of cameras 1 and 2: here, the test people were outdoors only."""
    root = with_pictures(make_sysu(tmp_path / "sysu"))
    for folder in (f"cam{camera}/{person:04d}" for camera in (1, 2) for person in (5, 12)):
        if (root / folder).is_dir():
            remove(folder)(root)
    project.add(root, "sysu")
    project.ingest()
    with pytest.raises(UserError) as error:
        prepare(load_dataset(project.data), "sysu", trials=2, mode="indoor")
    fault(AREA, "no test image of the cameras that the gallery is of", error.value)


def test_the_authors_galleries_without_their_permutation_file(project, tmp_path, fault):
    project.add(with_pictures(make_sysu(tmp_path / "sysu")), "sysu")
    project.ingest()
    with pytest.raises(UserError) as error:
        prepare(load_dataset(project.data), "sysu_official", trials=1)
    fault("parameters", "protocol sysu_official without rand_perm_cam.mat", error.value)


def test_queries_without_a_match_and_few_people_give_figures_all_the_same(project, tmp_path, fault):
    """Person 5 is seen by cameras 2 to 6 only: indoors, its queries of camera 3 find nobody."""
    root = with_pictures(make_sysu(tmp_path / "sysu"))
    project.add(root, "sysu")
    project.ingest()
    experiment = prepare(load_dataset(project.data), "sysu", trials=2, mode="indoor")
    (search,) = experiment.searches
    features = np.random.default_rng(0).random((len(experiment.table), 4))
    trials = trial_metrics(search, experiment.labels, FeatureDistances(features))
    assert [trial.valid_queries for trial in trials] == [6, 6]
    assert all(trial.cmc.shape == (20,) and trial.cmc[19] == 1 for trial in trials)
    assert mean_and_std([trial.mean_ap for trial in trials])["mean"] is not None
    counts = {"queries": 8, "valid_queries": 6, "excluded_pairs": None}
    fault(AREA, "queries without a match in the gallery", *notes({search.name: counts}))
    fault(AREA, "fewer than 20 people in the gallery", "the CMC keeps its last value up to rank 20")


def command(*arguments):
    with pytest.raises(UserError) as error:
        app(list(map(str, arguments)), standalone_mode=False)
    return error.value


CSV = "person,modality,camera,path\n1,visible,1,a\n1,infrared,2,b\n"


def test_features_with_code_in_them_are_refused_and_not_run(tmp_path, fault):
    np.save(tmp_path / "f.npy", np.array([print], dtype=object), allow_pickle=True)
    index = write_text(tmp_path / "index.csv", CSV)
    answer = command("evaluate-features", tmp_path / "f.npy", "--protocol", "llcm", "--index", index)
    fault("weights and checkpoints", "features as a NumPy file with pickled objects", answer)


@pytest.mark.parametrize(
    ("features", "text", "options", "message"),
    [
        (np.zeros((3, 2)), CSV, (), "3 features, but the index has 2 images"),
        (np.zeros((2, 2), int), CSV, (), "expected floats"),
        (np.full((2, 2), np.nan), CSV, (), "must be finite"),
        (np.zeros((2, 2)), CSV.replace("camera", "place"), (), "column camera is missing"),
        (np.zeros((2, 2)), CSV + "1,visible\n", (), "more or fewer entries"),
        (np.zeros((2, 2)), CSV, ("--shots", 0), "has no option shots"),
        (None, CSV, (), "No such file"),
    ],
)
def test_features_that_do_not_fit_are_refused(tmp_path, features, text, options, message):
    if features is not None:
        np.save(tmp_path / "f.npy", features)
    index = write_text(tmp_path / "index.csv", text)
    answer = command(
        "evaluate-features", tmp_path / "f.npy", "--protocol", "llcm", "--index", index, *options
    )
    assert message in str(answer)


def test_a_csv_file_as_excel_saves_it_is_read(tmp_path):
    (tmp_path / "index.csv").write_text(CSV, encoding="utf-8-sig")  # with a byte-order mark
    assert read_index(tmp_path / "index.csv")["person"] == ["1", "1"]


@pytest.mark.parametrize("text", ["{", "[]", '{"trained": {"a_to_b": {}}, "counts": {}}', None])
def test_files_without_figures_have_no_average(tmp_path, text):
    if text:
        write_text(tmp_path / "a.json", text)
    error = command("average", tmp_path / "a.json")
    assert isinstance(error, UserError)
    assert str(tmp_path / "a.json") in str(error)


def test_an_unknown_benchmark_and_a_full_folder_are_refused(tmp_path):
    write(tmp_path / "full/file", b"")
    assert "no benchmark is called 'market'" in str(
        command("mini-dataset", "market", "--out", tmp_path / "x")
    )
    assert "not an empty folder" in str(command("mini-dataset", "sysu", "--out", tmp_path / "full"))
    assert "no benchmark is called 'market'" in str(command("benchmark", "market", tmp_path))
