"""Names of people, cameras, files and drops are untrusted: in every output they are only text."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from command_line import csdn
from hostile import CAMERAS
from hypothesis import given
from hypothesis import strategies as st
from make_images import make_drop, people_named, stage_project, write
from workspace import run

import stages.ingest
from csdn.data.labels import canonical_label
from csdn.data.outputs import as_cell, from_cell, read_csv, write_csv
from csdn.ingest.ledger import Drop, Status, decide, find_drop, read_ledger, write_ledger
from csdn.retraining.steps import run as run_in_flow
from csdn.runtime import console
from csdn.runtime.errors import UserError
from csdn.runtime.files import as_json
from csdn.runtime.sanitize import as_markdown, escape_control_chars, escape_tags

EVIL = "\x1b[2J\x1b]0;title\x07in\rx\u202egpj [bold red]y[/] [link=evil]z[/link] %s {0}"
# Control characters, and characters that reverse or hide text, except the end of a line.
ACTS = re.compile(r"[^\n\x20-\x7e\u00a1-\u1fff\u2010-\u2027\u2030-\u205e\u2190-\uffff]")


def test_characters_that_do_not_print_are_escaped():
    assert escape_control_chars("a\x1b[31mb\n\u202e\u200b\x9b") == "a\\x1b[31mb\\n\\u202e\\u200b\\x9b"
    assert escape_control_chars("Ünal 日本 é [bold]") == "Ünal 日本 é [bold]"
    assert escape_control_chars("two\nlines", keep="\n") == "two\nlines"
    assert escape_tags("</script>\n") == "‹/script›\\n"


@pytest.mark.parametrize(
    "name",
    [
        *(
            "=cmd|'/c calc'!A1",
            "+1",
            "-1+1",
            "@SUM(1)",
            "\t=1",
            "\r=1",
            "\n=1",
            "  =1",
            "\u3000=1",
            "＝1",
            "－1",
        ),
        *(
            "'=1",
            "''",
            "a;=1",
            'a,"b"',
            "C:\\x41",
            "\\",
            "</script>",
            "\x1b[2J\x00\x9b",
            "\u202ea\u2069",
            "e\udc80",
        ),
        *("", " ", "Ünal 日本", "אב", "🎥"),
    ],
)
def test_a_text_in_a_csv_file_is_no_formula_and_is_read_back(tmp_path, name):
    cell = as_cell(name)
    assert from_cell(cell) == name
    assert cell.isprintable() and not set(";<>") & set(cell)
    assert not cell.strip().startswith(tuple("=+-@＝＋－＠"))
    write_csv(tmp_path / "t.csv", [{"name": name, "n": -1, "x": -0.5, "none": None}])
    assert (tmp_path / "t.csv").read_bytes().count(b"\n") == 2  # one line a row
    assert read_csv(tmp_path / "t.csv") == [{"name": name, "n": "-1", "x": "-0.5", "none": ""}]


def test_the_faults_table_shows_how_a_formula_is_written(fault):
    fault("report", "a camera called =cmd|'/c calc'!A1, in the CSV files", as_cell("=cmd|'/c calc'!A1"))


@given(st.text())
def test_every_text_is_read_back_from_a_csv_file(text):
    assert from_cell(as_cell(text)) == text
    assert as_cell(text).isprintable() and as_cell(text).lstrip()[:1] not in tuple("=+-@")


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_every_text_is_read_back_from_a_json_file_that_prints_safely(text):
    written = as_json({text: text})
    assert json.loads(written) == {text: text}
    assert all(line.isprintable() for line in written.decode().split("\n"))


def test_csv_files_are_written_in_one_place():
    root = Path(__file__).parents[2]
    files = [path for folder in ("csdn", "stages", "flows") for path in (root / folder).rglob("*.py")]
    calls = re.compile(r"csv\.(Dict)?[Ww]rite|\.to_csv")
    found = [path.name for path in files if calls.search(path.read_text(encoding="utf-8"))]
    # drop_removal.py writes a manifest of a user's again without some rows; the others stay as they were.
    assert sorted(found) == ["drop_removal.py", "outputs.py"]


def test_a_name_in_markdown_is_only_text():
    figures = "rank-1, -3.3 points (-4.0 to -2.0), cam5 to cam1"
    assert as_markdown(figures) == figures
    name = "a|b `c` [d](http://e) <img> ![f](g) **h** www.i.j k@l \u202e $m$ \\"
    found = as_markdown(name)
    assert re.sub(r"\\(\W)", r"\1", found) == escape_control_chars(name)  # as Markdown shows it
    assert not re.search(r"(?<!\\)[`\[\]<>|*@$]|://|www\.", found)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project in which a drop at a hostile address is in the ledger; it is the current folder."""
    project = stage_project(tmp_path / "project")
    monkeypatch.chdir(project.root)
    make_drop(project.root / EVIL, [*people_named(10), EVIL])
    project.add(EVIL)
    return project


def test_the_ledger_is_listed_with_one_line_for_each_drop(project, capsys):
    drop = read_ledger()[0]
    files = {"reasons": {"truncated": 3}, "examples": {"truncated": [f"north/{EVIL}"]}}
    held = {"drops": {"held": [{"id": drop.id, "bad": 3, "images": 6, **files}]}}
    write(project.metrics, json.dumps(held).encode())
    outputs = (csdn("drops"), csdn("reject", EVIL, "--reason", EVIL + "\nforged line"), csdn("drops"))
    for output, lines in zip(outputs, (2, 1, 1), strict=True):  # a held drop has a second line: its bad files
        assert ACTS.findall(output) == []
        assert output.count("\n") == lines
        assert "[bold red]y[/] [link=evil]z[/link] %s {0}" in output


def test_sync_and_add_show_an_address_with_escapes(project):
    write_ledger([])
    params = (project.root / "params.yaml").read_text().replace("watch: []", "watch: ['.']")
    (project.root / "params.yaml").write_text(params)
    for output in (csdn("sync"), csdn("sync")):
        assert ACTS.findall(output) == []
    write_ledger([])
    assert ACTS.findall(csdn("add", EVIL)) == []


def test_an_error_escapes_the_names_in_it():
    drop = Drop("a" * 64, EVIL, "cameras")
    with pytest.raises(UserError) as error:
        find_drop([drop], "zz")
    assert ACTS.findall(str(error.value)) == [] and "\\x1b[2J" in str(error.value)
    assert str(error.value).count("\n") == 1  # one line for each drop


def test_ingest_escapes_the_names_of_a_held_drop(project, capsys):
    for n in range(3):
        write(project.root / EVIL / f"visible/north/{EVIL}/broken{n}.jpg", b"x")
    make_drop(project.root / "good", people_named(20, "other"))
    write_ledger([])
    project.add(EVIL)
    project.add("good")
    stages.ingest.main()
    shown = capsys.readouterr()
    assert "HELD: drop" in shown.out and "\\x1b[2J" in shown.out
    assert ACTS.findall(shown.out + shown.err) == []
    write_ledger(decide(read_ledger(), EVIL, Status.REJECTED, EVIL))
    stages.ingest.main()
    shown = capsys.readouterr()
    assert "left out: drop" in shown.out and ACTS.findall(shown.out + shown.err) == []


def test_a_json_log_line_stays_one_object(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CSDN_LOG", "json")
    with console.progress(EVIL, f'"}}\n{EVIL}', "images") as report:
        report(1, 1, {f"\n{EVIL}": 1.0})
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert {line["phase"] for line in lines} == {f'"}}\n{EVIL}'}


def test_a_flow_logs_the_output_of_a_stage_verbatim():
    """Prefect's logger gets the text as a message without arguments, so a % in it is no format."""
    found = []
    run_in_flow([sys.executable, "-c", "print('100 %s %d {0} [bold]x[/bold]')"], ".", found.append)
    assert found == ["100 %s %d {0} [bold]x[/bold]"]


@pytest.mark.slow
def test_a_finished_run_stores_hostile_names_unchanged_and_shows_them_escaped(finished_repository):
    folder, output = finished_repository
    assert ACTS.findall(output.replace("\t", " ")) == []
    with (folder / "evaluation/camera_pairs.csv").open(newline="", encoding="utf-8") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell.startswith(tuple("=+-@")) or not cell.isprintable()]
    rows = read_csv(folder / "evaluation/camera_pairs.csv")
    visible, infrared = (
        {canonical_label(CAMERAS[f"cam{n}"]) for n in numbers} for numbers in ((1, 2, 3, 4), (5, 6))
    )
    pairs = {(row["direction"], row["query_camera"], row["gallery_camera"]) for row in rows}
    assert pairs == {("infrared_to_visible", i, v) for i in infrared for v in visible} | {
        ("visible_to_infrared", v, i) for i in infrared for v in visible
    }
    people = pq.read_table(folder / "evaluation/queries.parquet")["person"].unique().to_pylist()
    assert all(person.startswith("\x1b[31m=hyperlink(1) </script>\n") for person in people)


@pytest.mark.slow
def test_no_name_reaches_the_pages_and_tables_that_dvc_writes(finished_repository, tmp_path):
    folder, _ = finished_repository
    run(folder, "dvc", "plots", "show", "--out", str(tmp_path))
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "alert(1)" in page and "<script>alert" not in page
    table = run(folder, "dvc", "metrics", "show", "--md").stdout
    assert not [name for name in CAMERAS.values() if name in table]
