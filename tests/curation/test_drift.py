"""`csdn drift`: which camera of a drop has changed, in what, and what is shown of it."""

import json
import re
import shutil

import numpy as np
import pytest
from make_images import Project
from search_models import save_small_model
from typer.testing import CliRunner
from workspace import ROOT, set_params

from csdn.cli.main import app
from csdn.evaluation import drift
from csdn.evaluation.drift import Measured, View, compare, sampled
from csdn.evaluation.two_sample import STATISTICS
from csdn.runtime.errors import UserError
from csdn.search.images import GalleryImage
from csdn.synthetic.people import person
from csdn.synthetic.rendering import CAMERAS, encode, render
from csdn.synthetic.sets import write_files

PEOPLE = range(500, 512)


def csdn(*arguments):
    """What the command prints; progress is on standard error."""
    done = CliRunner().invoke(app, arguments)
    if done.exception:
        raise done.exception
    return done.stdout


def files(people, change=lambda name, image: (name, image)):
    """The files of a drop, two images of each person by each camera; change: of a camera's name and image."""
    for number in people:
        for camera in CAMERAS:
            for shot in (1, 2):
                name, image = change(camera.name, render(person(number), camera, shot))
                modality = "infrared" if camera.infrared else "visible"
                yield f"{modality}/{name}/p{number}/{shot}.png", encode(image)
    yield "_SUCCESS", b""


def darker_and_new(name, image):
    if name == "cam2":
        return name, (image * 0.5).astype(np.uint8)
    return ("cam<9>" if name == "cam4" else name), image


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A project whose data is the built-in people `tiny`, with a model of random weights."""
    root = tmp_path_factory.mktemp("project")
    project = Project(root)
    project.add("builtin:tiny", "builtin")
    project.ingest()
    save_small_model(root / "models/embedding")
    shutil.copy(ROOT / "params.yaml", root)
    set_params(root, {"scaling.threads": 1})
    return root


@pytest.fixture
def project(trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def drift_of(project, drop):
    write_files(drop, project / "drop")
    csdn("add", "drop")
    return json.loads(csdn("drift", "drop", "--json", "--html", "page.html"))


def test_the_changed_and_the_new_camera_are_named_and_shown(project):
    found = drift_of(project, files(PEOPLE, darker_and_new))
    alarms = {one["camera"]: one for one in found["cameras"] if one["alarm"]}
    assert set(alarms) == {"cam2", "cam<9>"}
    assert alarms["cam<9>"]["verdict"] == "new camera; people: 12, images: 24"
    (brightness,) = (one for one in alarms["cam2"]["statistics"] if one["statistic"] == "brightness")
    assert brightness["alarm"] and brightness["size"] < -1
    assert brightness["now"] == pytest.approx(brightness["before"] / 2, rel=0.3)
    page = (project / "page.html").read_text()
    assert page.count("data:image/jpeg") == 6 + 6 + 6  # now and before of cam2, some of the new camera
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert "cam&lt;9&gt;" in page and "cam<9>" not in page
    lines = csdn("drift", "drop").splitlines()
    assert [line for line in lines if line.startswith("!")] == [
        f"! visible camera {name}: {alarms[name]['verdict']}" for name in ("cam2", "cam<9>")
    ]


def test_other_people_by_the_same_cameras_are_no_drift(project):
    found = drift_of(project, files(PEOPLE))
    assert [one["verdict"] for one in found["cameras"]] == 6 * ["no change found"]
    assert csdn("drift", "drop", "--json") == csdn("drift", "drop", "--json")


def test_a_drop_that_was_ingested_is_not_compared_with_itself(project):
    drift_of(project, files(PEOPLE, darker_and_new))
    before = csdn("drift", "drop", "--json")
    Project(project).ingest()
    after = json.loads(csdn("drift", "drop", "--json"))
    assert [one["people_before"] for one in after["cameras"]] == [
        one["people_before"] for one in json.loads(before)["cameras"]
    ]
    assert [one["camera"] for one in after["cameras"] if one["alarm"]] == ["cam2", "cam<9>"]


def test_bad_images_are_left_out_and_images_without_a_person_are_counted(project):
    more = [("visible/cam1/p500/3.png", b"no image"), ("visible/cam1/lost.png", next(files(PEOPLE))[1])]
    drift_of(project, [*more, *files(PEOPLE)])
    said = csdn("drift", "drop")
    assert "visible camera cam1: no change found; images without a person, counted as people: 1" in said
    assert re.search(r"left out: 1 x not a png image \(.*visible/cam1/p500/3.png\)", said)


# Which images are compared.


def images(people, view=View("visible", "gate")):
    return [GalleryImage(f"{n}.png", name, *view[::-1], None, 1, bytes) for n, name in enumerate(people)]


def measured(people, unseen=True, seed=0, **changed):
    """Two random images of each person, with changed statistics."""
    draws, names = np.random.default_rng(seed), np.repeat(people, 2)
    statistics = draws.normal(size=(len(names), len(STATISTICS)))
    for name, value in changed.items():
        statistics[:, list(STATISTICS).index(name)] += value
    features = draws.normal(size=(len(names), 8))
    return Measured(images(names), names.astype(object), np.full(len(names), unseen), statistics, features)


def names(count, prefix):
    return [f"{prefix}{n}" for n in range(count)]


def test_the_first_alarm_decides_what_is_shown():
    before, now = measured(names(20, "a")), measured(names(10, "b"), seed=1, contrast=-5, sharpness=9)
    (found,) = compare({View("visible", "gate"): (before, now, 99)})
    assert [one.statistic for one in found.alarms] == ["sharpness", "contrast"] and found.images == 99
    sharpness = now.statistics[:, list(STATISTICS).index("sharpness")]
    assert found.moved[0] == now.images[sharpness.argmax()]
    assert len({image.person for image in found.moved}) == len(found.moved) == drift.SHOWN


def test_features_of_training_people_are_not_compared():
    before, now = measured(names(20, "a")), measured(names(10, "b"), unseen=False, seed=1)
    (found,) = compare({View("visible", "gate"): (before, now, 20)})
    assert "features" not in {one.statistic for one in found.shifts} and not found.alarm


def test_few_people_are_no_test():
    before, now = measured(names(20, "a")), measured(names(4, "b"), seed=1, contrast=-9)
    (found,) = compare({View("visible", "gate"): (before, now, 8)})
    assert found.verdict == "not tested; people now: 4, before: 20, needed: 5" and not found.alarm


def test_a_sample_bounds_people_and_images_of_a_person(monkeypatch):
    monkeypatch.setattr(drift, "PEOPLE", 3)
    people = np.array([*"aabbbbbbbcddddde"], object)
    chosen = sampled(people)
    counts = {name: int((people[chosen] == name).sum()) for name in set(people[chosen])}
    assert len(counts) == 3 and max(counts.values()) <= drift.IMAGES
    assert all(count == min(drift.IMAGES, (people == name).sum()) for name, count in counts.items())
    assert (np.diff(chosen) > 0).all() and (chosen == sampled(people)).all()
    assert len(sampled(np.array([], object))) == 0


def test_the_only_drop_of_a_project_has_nothing_to_be_compared_with(project):
    with pytest.raises(UserError, match="nothing to compare"):
        csdn("drift", "builtin:tiny")
