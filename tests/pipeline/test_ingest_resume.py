"""Ingest that was stopped goes on behind its finished shards, and ends with the same, byte for byte."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from make_images import (
    Project,
    encoded,
    jpeg,
    make_drop,
    people_named,
    pixels,
    stage_command,
    stage_project,
    write,
)

from csdn.data.checkpoint_store import open_state
from csdn.ingest import pack as packing
from csdn.runtime.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
PEOPLE = people_named(10)  # 60 images: six shards of ten


@pytest.fixture
def drop(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "SHARD_IMAGES", 10)
    return make_drop(tmp_path / "drop", PEOPLE)


@pytest.fixture
def expected(tmp_path, drop):
    """The outputs of a run that nobody stopped."""
    return finished(Project(tmp_path / "undisturbed"), drop)


def finished(project: Project, drop: Path) -> dict[str, bytes]:
    project.add(drop)
    project.ingest()
    return project.outputs()


def stop_after(monkeypatch, shards: int, error: type[BaseException] = KeyboardInterrupt) -> None:
    """Make packing fail behind so many shards."""
    intact, calls = packing.pack, []

    def pack(task):
        if len(calls) == shards:
            raise error
        calls.append(task)
        return intact(task)

    monkeypatch.setattr(packing, "pack", pack)


def count_packed(monkeypatch) -> list:
    """The tasks that are packed from now on."""
    intact, calls = packing.pack, []
    monkeypatch.setattr(packing, "pack", lambda task: calls.append(task.stem[-6:]) or intact(task))
    return calls


def stopped(project: Project, drop: Path, shards: int) -> Project:
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, shards)
        project.add(drop)
        with pytest.raises(KeyboardInterrupt):
            project.ingest()
    assert not project.metrics.exists()
    return project


def test_finished_shards_are_not_made_again(tmp_path, drop, expected, monkeypatch, fault):
    project = stopped(Project(tmp_path / "project"), drop, 4)
    packed = count_packed(monkeypatch)
    project.ingest()
    assert packed == ["000004", "000005"]
    assert project.outputs() == expected
    assert not list((project.root / ".state").glob("*/"))
    fault(
        "processes",
        "ingest was stopped in the middle of a drop",
        "The next run makes the shards that were not finished; same bytes as without the stop.",
    )


def test_a_kept_shard_that_was_altered_is_made_again(tmp_path, drop, expected, monkeypatch):
    project = stopped(Project(tmp_path / "project"), drop, 4)
    kept = sorted((project.data / "shards").glob(".*-000001-*.partial"))
    kept[0].write_bytes(kept[0].read_bytes()[:-1] + b"x")
    packed = count_packed(monkeypatch)
    project.ingest()
    assert packed == ["000001", "000004", "000005"]
    assert project.outputs() == expected


def test_other_settings_begin_anew_and_leave_nothing_behind(tmp_path, drop, monkeypatch):
    project = stopped(Project(tmp_path / "project"), drop, 4)
    packed = count_packed(monkeypatch)
    project.ingest(max_pixels=10**5)
    assert len(packed) == 6
    undisturbed = Project(tmp_path / "undisturbed")
    undisturbed.add(drop)
    undisturbed.ingest(max_pixels=10**5)
    assert project.outputs() == undisturbed.outputs()


def test_a_drop_whose_labels_changed_in_between_is_not_mixed(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "SHARD_IMAGES", 10)
    root = tmp_path / "drop"
    rows = []
    for n in range(40):
        write(root / f"{n}.jpg", jpeg(str(n)))
        rows.append(f"{n}.jpg,person {n % 4},{('visible', 'infrared')[n % 2 ^ n // 4 % 2]},gate")
    manifest = write(root / "manifest.csv", "\n".join(["path,person,modality,camera", *rows]).encode())
    intact = manifest.read_bytes()
    project, undisturbed = Project(tmp_path / "project"), Project(tmp_path / "undisturbed")
    for one in (project, undisturbed):
        one.add(root)
    manifest.write_bytes(intact.replace(b"person 1", b"person 9"))
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            project.ingest()
    manifest.write_bytes(intact)
    project.ingest()
    undisturbed.ingest()
    assert project.outputs() == undisturbed.outputs()


def test_a_drop_that_was_wrong_is_read_anew_once_it_is_right_again(tmp_path, drop, expected):
    image = drop / "visible/north/person 000/0.jpg"
    intact = image.read_bytes()
    project = Project(tmp_path / "project")
    project.add(drop)
    image.write_bytes(jpeg("another"))
    with pytest.raises(UserError, match="changed since it was added"):
        project.ingest()
    image.write_bytes(intact)
    project.ingest()
    assert project.outputs() == expected


def test_a_kill_between_the_shards_names_and_the_index_loses_nothing(tmp_path, drop, expected, monkeypatch):
    project = Project(tmp_path / "project")
    project.add(drop)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("csdn.ingest.run.table_of", lambda *_: stop())
        project.ingest()
    assert len(list((project.data / "shards").glob("*.tar"))) == 6
    packed = count_packed(monkeypatch)
    project.ingest()
    assert packed == [] and project.outputs() == expected


def stop():
    raise KeyboardInterrupt


def test_two_at_once_do_not_write_together(tmp_path, drop, fault):
    project = Project(tmp_path / "project")
    project.add(drop)
    with (
        open_state("ingest", "ingest", project.root / ".state"),
        pytest.raises(UserError, match="another process is running this stage") as error,
    ):
        project.ingest()
    fault("processes", "a second ingest while one is at work", error.value)
    assert project.outputs() == {}


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_ended_stage_leaves_no_process_and_the_next_run_goes_on(tmp_path, how, fault):
    drop = make_drop(tmp_path / "drop", people_named(30))
    for n in range(160):  # a megabyte is 8 of them: 20 shards
        path = f"visible/north/person 000/{n}.bmp"
        write(drop / path, encoded(pixels(path, 288, 144), "BMP"))
    outputs = []
    for end in (None, how):
        project = stage_project(tmp_path / str(end))
        project.add(drop)
        if end:
            stage = subprocess.Popen(**stage_command(project), stderr=subprocess.PIPE, start_new_session=True)
            assert stage.stderr.readline().startswith(b"ingest: ")  # the first shard is done
            os.killpg(stage.pid, end) if end == signal.SIGINT else stage.kill()
            # Until no process, worker processes and Python's resource tracker too, has standard error open.
            _, said = stage.communicate(timeout=30)
            assert b"resource_tracker" not in said, "nothing leaks: the tracker removes the semaphores"
            assert stage.returncode == {signal.SIGINT: 130, signal.SIGKILL: -9}[end]
            assert not project.metrics.exists()
            saved = list((project.root / ".state/ingest").glob("*/*/state.json"))
            assert saved and json.loads(saved[0].read_text())["position"]["name"]
        subprocess.run(**stage_command(project), check=True)
        outputs.append(project.outputs())
    assert outputs[0] == outputs[1]
    fault(
        "processes",
        "the ingest stage was killed (SIGKILL) while its worker processes wrote",
        "They end with it. The next run goes on behind the finished shards; same bytes.",
    )
