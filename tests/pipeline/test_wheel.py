"""The wheel is complete: without the clone it gives csdn.load, galleries, search, export and the service."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from search_models import save_small_model
from service_process import Client, serving

ROOT = Path(__file__).parents[2]
LOAD = """
import csdn, sys
print(csdn.__file__, csdn.load("model").embed_files(sys.argv[1:], modality="infrared").shape)
"""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy named as a clone is, so that the clone gets no build folder."""
    folder = tmp_path_factory.mktemp("above") / "csdn"
    folder.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "csdn", folder / "csdn", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def wheel(project):
    build = [sys.executable, "-m", "build", "--no-isolation", "--wheel", project]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    (found,) = project.glob("dist/csdn-*.whl")
    return found


def test_an_editable_installation_works_above_a_clone_named_csdn(project, tmp_path):
    """There Python finds the clone itself as a namespace package; the .pth file names the real one."""
    build = "from setuptools.build_meta import build_editable; import sys; print(build_editable(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", build, tmp_path], check=True, cwd=project, capture_output=True)
    zipfile.ZipFile(next(tmp_path.glob("*.whl"))).extractall(tmp_path / "site")
    program = "import site, sys; site.addsitedir(sys.argv[1]); import csdn; print(csdn.__file__)"
    command = [sys.executable, "-S", "-c", program, tmp_path / "site"]
    done = subprocess.run(command, cwd=project.parent, env={}, capture_output=True, text=True, check=True)
    assert done.stdout == f"{project}/csdn/__init__.py\n"


def test_every_file_of_the_package_is_in_the_wheel(wheel):
    package = [path for path in (ROOT / "csdn").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("csdn/")}
    assert packed == {path.relative_to(ROOT).as_posix() for path in package}


def test_a_model_is_loaded_searched_exported_and_served_without_the_clone(wheel, tmp_path, monkeypatch):
    """The wheel is before this environment's packages on the path, as --no-deps would install it."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.chdir(tmp_path)
    save_small_model(Path("model"))

    def python(*arguments):
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    csdn = ("-m", "csdn")
    python(*csdn, "demo-images", "--name", "tiny", "--out", "people")
    query = min(Path("people/infrared").rglob("*.png"))
    assert python("-c", LOAD, query) == f"{tmp_path}/site/csdn/__init__.py (1, 160)\n"
    python(*csdn, "gallery", "build", "--images", "people", "--out", "gallery", "--model", "model")
    search = ("search", "--gallery", "gallery", "--model", "model", "--query", query)
    assert query.parent.name in python(*csdn, *search, "--html", "matches.html")
    python(*csdn, "export", "--model", "model", "--out", "onnx")
    assert Path("onnx/infrared.onnx").is_file() and "data:image" in Path("matches.html").read_text()
    with serving(Path("log"), "gallery", "model") as (url, _):
        status, answer = Client(url).search(query.read_bytes())
        assert status == 200 and answer["people"]
        assert Client(url).send("GET", "/")[0] == 200
