"""Outputs are written completely or not at all, and are on disk before they get their names."""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from csdn.runtime import console, files
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
def test_a_failed_write_leaves_the_old_output(tmp_path, replace):
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
def test_a_value_that_json_cannot_hold_replaces_no_file(tmp_path, value):
    out = tmp_path / "metrics.json"
    write_json(out, {"loss": 1.5})
    with pytest.raises(ValueError, match="JSON"):
        write_json(out, {"loss": [value]})
    assert out.read_text() == '{\n "loss": 1.5\n}\n'
    assert list(tmp_path.iterdir()) == [out]


def test_stages_that_end_at_the_same_time_all_record_their_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = console.read_times

    def slowly():
        found = before()
        time.sleep(0.01)  # long enough for the others to read what this one is about to replace
        return found

    monkeypatch.setattr(console, "read_times", slowly)
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda n: console.record_time(f"stage {n}", n), range(6)))
    assert before() == {f"stage {n}": n for n in range(6)}


def test_a_lock_that_is_never_released_is_an_error_that_names_the_file(tmp_path, monkeypatch, fault):
    monkeypatch.setattr(files, "LOCK_SECONDS", 0.1)
    path = tmp_path / "drops.json"
    held = r"drops\.json: another process has held"
    with locked(path), pytest.raises(UserError, match=held) as error, locked(path):
        pass
    with locked(path):  # released again
        pass
    fault("ledger", "another process does not let go of the ledger", error.value)
