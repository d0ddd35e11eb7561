"""Outputs are whole or not there, on disk before they have their names."""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from csdn.runtime import console as times
from csdn.runtime import files
from csdn.runtime.errors import UserError
from csdn.runtime.files import atomic_folder, atomic_write, locked, write_json


@pytest.mark.skipif(sys.platform != "linux", reason="names of open files")
def test_a_folder_is_on_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    flushed = []

    def fsync(descriptor):
        flushed.append((str(Path(f"/proc/self/fd/{descriptor}").readlink()), (tmp_path / "out").exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "weights").write_bytes(b"1")
    temporary = f"{tmp_path}/.out.partial"
    assert (f"{temporary}/inner/weights", False) in flushed
    assert (f"{temporary}/inner", False) in flushed
    assert (temporary, False) in flushed
    assert flushed[-1] == (str(tmp_path), True)


@pytest.mark.parametrize("replace", [atomic_write, atomic_folder])
def test_an_output_that_fails_leaves_what_was_there(tmp_path, replace):
    out = tmp_path / "out"

    def write(place, text):
        (place / "file" if place.is_dir() else place).write_text(text)

    with replace(out) as place:
        write(place, "old")
    with pytest.raises(OSError, match="no room"), replace(out) as place:
        write(place, "new")
        raise OSError("no room")
    assert (out / "file" if out.is_dir() else out).read_text() == "old"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_json_does_not_have_replaces_no_file(tmp_path, value):
    out = tmp_path / "metrics.json"
    write_json(out, {"loss": 1.5})
    with pytest.raises(ValueError, match="JSON"):
        write_json(out, {"loss": [value]})
    assert out.read_text() == '{\n "loss": 1.5\n}\n'
    assert list(tmp_path.iterdir()) == [out]


def test_no_stage_s_time_is_lost_where_several_end_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = times.read_times

    def slowly():
        found = before()
        time.sleep(0.01)  # long enough for the others to have read what this one is about to replace
        return found

    monkeypatch.setattr(times, "read_times", slowly)
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda n: times.record_time(f"stage {n}", n), range(6)))
    assert before() == {f"stage {n}": n for n in range(6)}


def test_a_lock_that_is_not_let_go_is_an_error_that_names_the_file(tmp_path, monkeypatch, fault):
    monkeypatch.setattr(files, "LOCK_SECONDS", 0.1)
    path = tmp_path / "drops.json"
    held = r"drops\.json: another process has held"
    with locked(path), pytest.raises(UserError, match=held) as error, locked(path):
        pass
    with locked(path):  # it is free again
        pass
    fault("ledger", "another process does not let go of the ledger", error.value)
