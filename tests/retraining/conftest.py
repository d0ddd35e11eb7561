"""A committed project without a champion, and a Git remote of it."""

from __future__ import annotations

import pytest
from registry_project import add_origin, make_project


@pytest.fixture
def project(tmp_path):
    return make_project(tmp_path / "project")


@pytest.fixture
def origin(project, tmp_path):
    return add_origin(project, tmp_path / "origin.git")
