"""Outputs are whole or not there, on disk before they have their names."""

import os
import sys
from pathlib import Path

import pytest

from csdn.files import replace_file, replace_folder


@pytest.mark.skipif(sys.platform != "linux", reason="names of open files")
def test_a_folder_is_on_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    flushed = []

    def fsync(descriptor):
        flushed.append((str(Path(f"/proc/self/fd/{descriptor}").readlink()), (tmp_path / "out").exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    with replace_folder(tmp_path / "out") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "weights").write_bytes(b"1")
    temporary = f"{tmp_path}/.out.partial"
    assert (f"{temporary}/inner/weights", False) in flushed
    assert (f"{temporary}/inner", False) in flushed
    assert (temporary, False) in flushed
    assert flushed[-1] == (str(tmp_path), True)


@pytest.mark.parametrize("replace", [replace_file, replace_folder])
def test_an_output_that_fails_leaves_what_was_there(tmp_path, replace):
    for text in ("old", "new"):
        try:
            with replace(tmp_path / "out") as place:
                (place / "file" if place.is_dir() else place).write_text(text)
                if text == "new":
                    raise OSError
        except OSError:
            pass
    left = tmp_path / "out"
    assert (left / "file" if left.is_dir() else left).read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
