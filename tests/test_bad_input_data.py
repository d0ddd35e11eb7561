"""Bad data ends in one clear error and nothing half-written, or in the quarantine and the rest goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from make_images import Project, encoded, huge_png, jpeg, make_drop, people_named, pixels, write

from csdn.data import packing
from csdn.data.dataset import load_dataset
from csdn.data.drops import Drop, write_ledger
from csdn.data.tables import QUARANTINE_SCHEMA, read_table
from csdn.errors import UserError

PEOPLE = people_named(10)
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path / "project")


def half_written(project) -> list[str]:
    return [name for name in project.outputs() if ".partial" in name]


def results(project) -> dict[str, bytes]:
    """What later stages read."""
    return {n: d for n, d in project.outputs().items() if "/shards/" not in n and "/index/" not in n}


def test_each_kind_of_bad_image_is_quarantined_with_reason_and_hash(project, tmp_path):
    drop = make_drop(tmp_path / "drop", PEOPLE)
    folder = drop / "visible/north/person 000"
    write(folder / "a.jpg", b"")
    write(folder / "b.jpg", b"no image")
    write(folder / "c.jpg", jpeg("c", 64, 32)[:-100])
    write(folder / "d.png", huge_png(60_000))
    (folder / "e.jpg").symlink_to("/etc/hostname")
    write(drop / "thermal/north/person 000/f.jpg", jpeg("f"))
    project.add(drop)
    figures = project.ingest(max_bad_fraction=0.2)
    rows = read_table(project.data / "quarantine.parquet", QUARANTINE_SCHEMA).to_pylist()
    assert {(Path(row["path"]).name, row["reason"], row["sha256"] is None) for row in rows} == {
        ("a.jpg", "empty file", False),
        ("b.jpg", "not a jpg image", False),
        ("c.jpg", "truncated", False),
        ("d.png", "too large", False),
        ("e.jpg", "link out of the folder", True),
        ("f.jpg", "unknown modality", True),
    }
    assert figures["images"]["train"]["visible"] + figures["images"]["test"]["visible"] == 40


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_image_that_may_not_be_read_is_quarantined(project, tmp_path):
    drop = make_drop(tmp_path / "drop", PEOPLE)
    (drop / "visible/north/person 000/0.jpg").chmod(0)
    project.add(drop)
    assert project.ingest(max_bad_fraction=0.1)["quarantined"] == {"no permission to read": 1}


def test_a_drop_that_is_gone_stops_with_its_name_and_what_to_do(project, tmp_path):
    project.add(make_drop(tmp_path / "drop", PEOPLE))
    (tmp_path / "drop").rename(tmp_path / "away")
    with pytest.raises(UserError, match=r"drop [0-9a-f]{12} .*no such folder[^$]*csdn reject"):
        project.ingest()
    assert results(project) == {}


def test_a_drop_that_is_gone_after_it_was_read_does_no_harm(project, tmp_path):
    project.add(make_drop(tmp_path / "drop", PEOPLE))
    project.ingest()
    before = project.outputs()
    (tmp_path / "drop").rename(tmp_path / "away")
    project.ingest()
    assert project.outputs() == before


@pytest.mark.parametrize("change", ["altered", "added", "removed"])
def test_a_drop_that_changed_since_it_was_added_is_not_taken(project, tmp_path, change):
    drop = make_drop(tmp_path / "drop", PEOPLE)
    project.add(drop)
    image = drop / "visible/north/person 000/0.jpg"
    if change == "altered":
        image.write_bytes(jpeg("another"))
    elif change == "added":
        write(image.with_name("7.jpg"), jpeg("another"))
    else:
        image.unlink()
    with pytest.raises(UserError, match="changed since it was added"):
        project.ingest()
    assert project.outputs() == {}


@pytest.mark.parametrize("modality", ["visible", "infrared"])
def test_one_modality_missing_in_all_stops_before_anything_is_replaced(project, tmp_path, modality):
    project.add(make_drop(tmp_path / "drop", PEOPLE, modalities=[modality]))
    missing = {"visible": "infrared", "infrared": "visible"}[modality]
    with pytest.raises(UserError, match=f"nothing to train on: there is no usable {missing} image"):
        project.ingest()
    assert results(project) == {} and not half_written(project)


def test_fewer_people_than_a_batch_needs_stops_with_the_numbers(project, tmp_path):
    project.add(make_drop(tmp_path / "drop", PEOPLE))
    project.ingest()
    before = results(project)
    with pytest.raises(UserError, match=r"\d training people have .* a batch needs 11 \(embedding\.people\)"):
        project.ingest(minimum_people=11)
    assert results(project) == before


def test_nobody_to_test_with_stops_too(project, tmp_path):
    project.add(make_drop(tmp_path / "drop", ["person 000", "person 001", "person 002"]))
    with pytest.raises(UserError, match="nothing to test with"):
        project.ingest(test_percent=1)


def test_when_all_is_held_the_error_says_so(project, tmp_path):
    drop = make_drop(tmp_path / "drop", PEOPLE)
    write(drop / "visible/north/person 000/broken.jpg", b"x")
    project.add(drop)
    with pytest.raises(UserError, match=r"held, and so left out: drop .* 1 of 61 images bad.*csdn accept"):
        project.ingest()


def test_an_empty_ledger_stops(project):
    with pytest.raises(UserError, match="no drop of the ledger has a usable image"):
        project.ingest()


def test_names_with_html_quotes_and_newlines_are_only_data(project, tmp_path):
    wild = ["<script>alert(1)<", "a'b\"c", "line\nbreak", "-rf", "日本"]
    project.add(make_drop(tmp_path / "drop", [*PEOPLE, *wild]))
    figures = project.ingest()
    assert figures["people"]["train"] + figures["people"]["test"] == 15


@pytest.mark.parametrize("file", ["people.parquet", "samples.parquet"])
def test_a_table_of_another_version_or_damaged_is_an_error_that_names_it(project, tmp_path, file):
    project.add(make_drop(tmp_path / "drop", PEOPLE))
    project.ingest()
    path = project.data / file
    intact = path.read_bytes()
    pq.write_table(pq.read_table(path).replace_schema_metadata({"csdn_index_version": "99"}), path)
    with pytest.raises(UserError, match=f"{file}: has version 99 .* reads 2; delete it"):
        load_dataset(project.data)
    for damaged in (b"", b"PAR1", intact[:-30], intact[: len(intact) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=f"{file} is damaged"):
            load_dataset(project.data)
    path.unlink()
    with pytest.raises(UserError, match=f"{file}: no such file; .dvc repro ingest. makes it"):
        load_dataset(project.data)


def test_an_index_of_another_version_is_an_error_that_names_it(project, tmp_path):
    drop = project.add(make_drop(tmp_path / "drop", PEOPLE))
    write(project.data / f"index/{drop.id}.quarantine.parquet", b"")
    pq.write_table(pa.table({"a": [1]}), project.data / f"index/{drop.id}.parquet")
    with pytest.raises(UserError, match=f"{drop.id}.parquet: has version none"):
        project.ingest()


def test_a_read_error_names_the_drop_and_keeps_nothing_of_it(project, tmp_path, monkeypatch):
    project.add(make_drop(tmp_path / "drop", PEOPLE))

    class Failing:
        def read(self, record):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(packing, "_source", lambda address, layout: Failing())
    with pytest.raises(UserError, match=r"drop [0-9a-f]{12} .*0\.jpg: cannot be read: .*Input/output error"):
        project.ingest()
    assert project.outputs() == {}


KILLED = """
import os, signal, sys
from pathlib import Path
from csdn.data import packing
from csdn.errors import UserError

def pack(task):
    os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    packing.pack = pack
    try:
        list(packing.packed_shards([None, None], processes=2))
    except UserError as error:
        print(error)
"""


def test_a_killed_worker_process_is_a_clear_error(tmp_path):
    script = write(tmp_path / "killed.py", KILLED.encode())
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert "a worker process was killed" in run.stdout, run.stderr


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_ended_stage_leaves_no_process_and_the_next_run_is_as_if_nothing_was(tmp_path, how):
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
            stage.communicate(timeout=30)  # until no process, worker processes too, has standard error open
            assert stage.returncode == {signal.SIGINT: 130, signal.SIGKILL: -9}[end]
            assert not project.metrics.exists()
        subprocess.run(**stage_command(project), check=True)
        outputs.append(project.outputs())
    assert outputs[0] == outputs[1]


def stage_project(root: Path) -> Project:
    """A project in which the stage itself runs, with small shards."""
    project = Project(root)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["ingest"]["shard_megabytes"] = 1
    params["data"]["aliases"] = str(project.aliases)
    write(root / "params.yaml", yaml.safe_dump(params).encode())
    return project


def stage_command(project: Project) -> dict:
    """The stage as DVC starts it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return {"args": [sys.executable, "-m", "stages.ingest"], "cwd": project.root, "env": environment}


def test_an_id_typed_by_hand_is_found_out(project, tmp_path):
    make_drop(tmp_path / "drop", PEOPLE)
    write_ledger([Drop("0" * 64, str(tmp_path / "drop"), "cameras")], project.ledger)
    with pytest.raises(UserError, match="changed since it was added"):
        project.ingest()
