"""A wrong parameter of a run is named before anything starts."""

from __future__ import annotations

import shutil

import pytest
from workspace import ROOT, set_params

from csdn.runtime.errors import UserError
from flows.tasks import check_parameters


@pytest.fixture
def folder(tmp_path):
    """A workspace with two DVC remotes, one of them its user's alone."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("['remote \"store\"']\n    url = s3://bucket/dvc%20\n")
    (tmp_path / ".dvc/config.local").write_text("['remote \"own\"']\n    url = /mnt/own\n")
    return tmp_path


@pytest.mark.parametrize(
    ("overrides", "ray_address", "remote", "says"),
    [
        ({"data.test_percent": 1}, None, None, "data.test_percent: not for one run"),
        ({"gate": {"rank1_margin": 100.0}}, None, None, "gate.rank1_margin: not for one run"),
        ({"ingest.watch": ["/in"]}, None, None, "ingest.watch: not for one run"),
        ({"embedding.epochs": 0}, None, None, "embedding.epochs = 0: Input should be greater"),
        ({"embedding.epoch": 3}, None, None, "embedding.epoch: unknown key"),
        ({}, "head:6379", None, "scaling.workers is 0"),
        ({"scaling.workers": 2, "scaling.address": "a:1"}, "b:2", None, "names a:1"),
        ({"scaling.workers": 2}, "ray://me:secret@head:1", None, "ray_address: a key or password is in it"),
        ({}, None, "nowhere", "no DVC remote of .* is called that; there are: own, store"),
    ],
)
def test_a_mistake_is_named(folder, overrides, ray_address, remote, says):
    with pytest.raises(UserError, match=says) as error:
        check_parameters(folder, overrides, ray_address, remote)
    assert "secret" not in str(error.value)


def test_a_folder_that_is_no_workspace(tmp_path):
    with pytest.raises(UserError, match="no such file; run the command in the project's root folder"):
        check_parameters(tmp_path, {}, None, None)


def test_what_the_stages_get(folder):
    assert check_parameters(folder, {}, None, "own").environment == {}
    assert check_parameters(folder, {"scaling.workers": 2}, "head:6379", "store").environment == {
        "RAY_ADDRESS": "head:6379"
    }
    set_params(folder, {"scaling.workers": 2})
    assert check_parameters(folder, {}, "head:6379", None).environment == {"RAY_ADDRESS": "head:6379"}
