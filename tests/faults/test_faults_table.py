"""docs/faults.md has exactly the rows that tests make, and says the same on every machine."""

from __future__ import annotations

import ast
from pathlib import Path

import faults
import pytest
from faults import AREAS, TESTS, Row, read_rows, rendered, same_everywhere, texts_of_tests


@pytest.fixture
def not_writing(pytestconfig):
    if pytestconfig.getoption("--write-faults"):
        pytest.skip("the file is written when all tests have run")


def test_every_row_is_made_by_a_test(not_writing):
    assert set(read_rows()) <= texts_of_tests()


def test_every_row_that_a_test_makes_is_there(not_writing):
    made = {
        call.args[1].value
        for file in TESTS.rglob("test_*.py")
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "fault"
        if isinstance(call.args[1], ast.Constant)
    }
    assert made <= set(read_rows())


def test_rows_come_back_as_they_were_written(tmp_path, monkeypatch):
    rows = {
        row.what: row
        for row in (Row(AREAS[0], "a <b> | c", "1 < 2\n  x*y* & `z`"), Row(AREAS[1], "d", "e |"))
    }
    monkeypatch.setattr(faults, "TABLE", tmp_path / "faults.md")
    faults.TABLE.write_text(rendered(rows))
    assert read_rows() == rows


def test_writing_some_rows_keeps_others_until_their_test_is_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(faults, "TABLE", tmp_path / "faults.md")
    monkeypatch.setattr(faults, "texts_of_tests", lambda: {"a", "b"})
    faults.TABLE.write_text(rendered({what: Row(AREAS[0], what, "old") for what in ("a", "b", "gone")}))
    faults.write_rows([Row(AREAS[1], "a", "new")])
    assert read_rows() == {"a": Row(AREAS[1], "a", "new"), "b": Row(AREAS[0], "b", "old")}
    with pytest.raises(ValueError, match="differently"):
        faults.write_rows([Row(AREAS[0], "a", "one"), Row(AREAS[0], "a", "two")])


def test_what_differs_from_run_to_run_is_left_out():
    temporary = Path("/tmp/pytest-of-x/pytest-7/popen-gw0")
    message = f"{temporary}/test_a0/data/{'0a' * 8}-000001-{'b1' * 8}.tar: drop {'c' * 12} (pid(s) 4711)"
    assert same_everywhere(message, temporary) == "data/HASH-000001-HASH.tar: drop HASH (pid(s) PID)"
    assert same_everywhere(f"{temporary}/test_a0: no such folder", temporary) == "FOLDER: no such folder"
