"""What a run shares, so that another machine can continue it, and where a failure leaves it."""

from __future__ import annotations

import pytest
from registry_project import DROPS, add_origin, arrive, clone, make_project, work
from repository import git
from workspace import run, set_params

from csdn.retraining.handover import checkpoints_of_run, share
from csdn.retraining.workspace import begin

pytestmark = pytest.mark.slow


@pytest.fixture
def project(tmp_path):
    project = make_project(tmp_path / "project")
    set_params(project, {"scaling.checkpoint_dir": str(tmp_path / "checkpoints")})
    run(project, "dvc", "remote", "add", "--default", "store", str(tmp_path / "remote"))
    git(project, "commit", "--quiet", "--all", "--message", "places that machines share")
    add_origin(project, tmp_path / "origin.git")
    return project


def test_another_clone_continues_with_the_outputs_of_the_finished_stages(project, tmp_path):
    started = begin(project, arrive(DROPS[1]))
    work(started, by_dvc=True)
    share("train", started.folder, pytest.fail)
    other = clone(tmp_path / "origin.git", tmp_path / "other")
    continued = begin(other, arrive(DROPS[1]))
    assert continued.id == started.id
    assert checkpoints_of_run(continued.folder) == checkpoints_of_run(started.folder) != {}
    assert "didn't change" in work(continued, by_dvc=True)
    for path in ("models/embedding/model.safetensors", "metrics/headline.json"):
        assert (continued.folder / path).read_bytes() == (started.folder / path).read_bytes()


def test_what_cannot_be_shared_stops_no_run_and_nothing_is_shared_without_a_place_for_checkpoints(
    project, tmp_path
):
    started, said = begin(project, arrive(DROPS[1])), []
    (tmp_path / "origin.git").rename(tmp_path / "away.git")
    share("train", started.folder, said.append)
    assert len(said) == 1 and said[0].startswith("train: not shared with other machines: ")
    set_params(started.folder, {"scaling.checkpoint_dir": None})
    share("train", started.folder, pytest.fail)
    share("train", project, pytest.fail)  # no working tree of a run
    assert checkpoints_of_run(project) == {}
