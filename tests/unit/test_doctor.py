"""`csdn doctor` names what is missing, says how to fix it, and shows no secret."""

import shutil
from pathlib import Path

import pytest

from csdn.cli import doctor
from csdn.cli.presets import apply_preset

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path):
    """The project's files that doctor reads, without the outputs of stages."""
    for name in ("dvc.yaml", "params.yaml", "data/drops.json", ".dvc/config", "csdn/model/assets"):
        source, target = ROOT / name, tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    return tmp_path


def found(root, name):
    return next(check for check in doctor.report(root) if check.name == name)


def test_this_project_has_no_problem():
    assert [check for check in doctor.report(ROOT) if check.state == "problem"] == []


def test_missing_clip_weights_are_reported_with_the_command_that_fetches_them(project):
    assert found(project, "CLIP weights").state == "ok"
    apply_preset("cameras", project / "params.yaml")
    check = found(project, "CLIP weights")
    assert (check.state, check.advice) == ("problem", "csdn fetch-clip")
    assert "RN50" in check.found and "weights/RN50-openai.safetensors" in check.found


def test_a_mistake_in_params_is_one_line_and_other_checks_still_run(project):
    path = project / "params.yaml"
    path.write_text(path.read_text().replace("trials: 10", "trials: ten"))
    check = found(project, "params.yaml")
    assert check.state == "problem"
    assert "evaluation.trials = 'ten'" in check.found and "\n" not in check.found
    assert found(project, "ledger").state == "ok"


def test_outside_a_clone_only_what_the_use_of_a_model_needs_is_checked(tmp_path, monkeypatch):
    checks = doctor.report(tmp_path)
    assert {check.state for check in checks} <= {"ok", "note"} and "no clone" in checks[0].found
    needs = ['faiss-cpu>=999; extra == "search"', 'dvc>=999; extra == "pipeline"']
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: needs)
    packages = found(tmp_path, "packages")
    assert "faiss-cpu" in packages.found and "dvc" not in packages.found
    assert packages.advice.endswith("'csdn[search]'")


def test_a_project_without_its_git_and_parameters_has_problems(tmp_path):
    (tmp_path / "dvc.yaml").touch()
    problems = {check.name for check in doctor.report(tmp_path) if check.state == "problem"}
    assert problems == {"git", "dvc", "params.yaml", "ledger"}


def test_a_missing_and_an_old_package_are_named(monkeypatch):
    needs = ["torch>=999", "no-such-package", "numpy>=2", 'ruff; extra == "test"']
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: needs)
    torch, missing = doctor.report(ROOT)[1].found.split("; ")
    assert torch.endswith("is not >=999")
    assert missing == "no-such-package is missing"


def test_credentials_are_named_and_never_shown(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "open-sesame")
    doctor.show()
    shown = capsys.readouterr().out
    assert "AWS_SECRET_ACCESS_KEY" in shown
    assert "open-sesame" not in shown
