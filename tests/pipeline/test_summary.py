"""The summary after `dvc repro`, and of `csdn summary`: one table of figures, times, where the report is."""

from __future__ import annotations

import json

import pytest
from make_images import write
from typer.testing import CliRunner

from csdn.cli.main import app
from csdn.cli.summary import show, show_unless_deferred
from csdn.evaluation.headline import headline, one_line
from csdn.runtime.console import record_time
from csdn.runtime.errors import UserError

DIRECTIONS = ("infrared_to_visible", "visible_to_infrared")
COUNTS = {"queries": 52, "valid_queries": 50, "gallery": 26, "people": 13, "excluded_pairs": 0, "trials": 10}
OPEN_SET = {
    "people": 13,
    "mated_people": 13,
    "gallery_people": 12,
    "gallery_images": 48,
    "least_fpir": 23.076923,
}
DIR = {"value": 5.94, "low": 3.25, "high": 9.97}


def figures(mean=23.087, std=1.254):
    """metrics/evaluation.json in which every figure is the same."""
    names = ("rank1", "rank5", "rank10", "rank20", "mAP", "mINP")
    of_method = {direction: {name: {"mean": mean, "std": std} for name in names} for direction in DIRECTIONS}
    return {
        **dict.fromkeys(("trained", "clip", "hog", "chance"), of_method),
        "counts": dict.fromkeys(DIRECTIONS, COUNTS),
        "open_set": {
            "infrared_to_visible": OPEN_SET | {"fpir_10": {"dir": DIR, "fpir": DIR}},
            "visible_to_infrared": OPEN_SET,
        },
    }


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "metrics/evaluation.json", json.dumps(figures()).encode())
    write(tmp_path / "report/index.html", b"")
    return tmp_path


def test_it_shows_the_figures_of_model_clip_and_chance_the_times_and_the_report(project, capsys):
    record_time("embedding", 73.4)
    record_time("ingest", 1.23)
    show()
    text = capsys.readouterr().out
    assert text.count("23.09 ± 1.25") == 2 * 3 * 4
    assert [line.split()[0] for line in text.splitlines() if " ± 1.25" in line] == [
        "trained",
        "CLIP",
        "chance",
    ] * 2
    assert "2 of 52 queries have no match" in " ".join(text.split())
    assert "infrared to visible: DIR 5.9 % (3.2 to 10.0) at FPIR 10 %\n" in text
    assert "visible to infrared: no DIR at FPIR 10 %, which takes 30 test people\n" in text
    assert "Took: ingest 1.2 s, embedding 1:13" in text
    assert text.splitlines()[-2:] == [
        "The report: report/index.html",
        f"            {(project / 'report/index.html').as_uri()}",
    ]
    assert max(len(line) for line in text.splitlines()[:-1]) <= 80


def test_reranked_figures_have_a_row_of_their_own(project, capsys):
    found = figures() | {"re-ranked": figures(50.0, 2.0)["trained"]}
    write(project / "metrics/evaluation.json", json.dumps(found).encode())
    show()
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines() if " ± " in line]
    assert rows[:4] == ["trained", "re-ranked", "CLIP", "chance"]


def test_the_command_shows_the_same(project, capsys):
    show()
    assert CliRunner().invoke(app, ["summary"]).output == capsys.readouterr().out


def test_missing_figures_times_and_report_are_left_out(project, capsys):
    (project / "report/index.html").unlink()
    write(project / "metrics/evaluation.json", json.dumps(figures(None, None)).encode())
    show()
    text = capsys.readouterr().out
    assert "report" not in text and "Took" not in text
    assert text.count(" -") >= 2 * 3 * 4


def test_before_the_first_evaluation_the_error_says_what_to_run(project):
    (project / "metrics/evaluation.json").unlink()
    with pytest.raises(UserError, match=r"evaluation\.json: no such file; `dvc repro`"):
        show()


def test_the_last_stage_leaves_the_summary_to_make_if_make_defers_it(project, capsys, monkeypatch):
    monkeypatch.setenv("CSDN_SUMMARY", "later")
    show_unless_deferred()
    assert capsys.readouterr().out == ""
    monkeypatch.delenv("CSDN_SUMMARY")
    show_unless_deferred()
    assert "trained" in capsys.readouterr().out


def test_experiments_are_compared_by_five_numbers_with_short_names():
    assert headline(figures()) == {
        "ir_to_vis": {"rank1": 23.09, "mAP": 23.09},
        "vis_to_ir": {"rank1": 23.09, "mAP": 23.09},
        "test_people": 13,
    }
    assert headline(figures(None, None))["ir_to_vis"] == {"rank1": None, "mAP": None}


def test_a_stage_shows_its_result_in_one_line():
    assert one_line(figures()) == "rank-1 23.1 % infrared to visible, 23.1 % visible to infrared"
    assert one_line(figures(None, None)) == "rank-1 - infrared to visible, - visible to infrared"
