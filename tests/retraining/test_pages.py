"""What a run's page says: figures beside the champion's, the gate's decision, the curves as a picture."""

from __future__ import annotations

import base64
import datetime
import io
import re

from PIL import Image

from csdn.retraining.notify import cmc_pictures, data_page, gate_page, headline_page
from csdn.training.champion import Champion

FIGURES = {
    "ir_to_vis": {"rank1": 23.0, "mAP": 24.5},
    "vis_to_ir": {"rank1": None, "mAP": 27.25},
    "test_people": 80,
}


def champion(**figures):
    return Champion(
        version="v3",
        prompts="a" * 64,
        embedding="b" * 64,
        run="20261121-0a1b2c3d",
        people=90,
        images=720,
        date=datetime.date(2026, 11, 1),
        figures=figures,
    )


def test_figures_stand_beside_the_champion_s():
    page = headline_page(FIGURES, champion(ir_to_vis={"rank1": 20.5, "mAP": 25.0}))
    assert "| infrared → visible | 23.00 (+2.50) | 24.50 (-0.50) |" in page
    assert "| visible → infrared | - | 27.25 |" in page
    assert "80 test people" in page and "champion v3 had on 2026-11-01" in page


def test_without_a_champion_there_is_nothing_to_compare_with():
    page = headline_page(FIGURES, None)
    assert "| infrared → visible | 23.00 | 24.50 |" in page and "no champion to compare with" in page


GATE = {
    "decision": "reject",
    "champion": "v3",
    "reasons": ["worse: rank-1", "collapsed: cam5 to cam1"],
    "comparisons": [
        {
            "data": "today",
            "direction": "infrared_to_visible",
            "metric": "rank1",
            "champion": 20.0,
            "candidate": 14.0,
            "difference": -6.0,
            "low": -8.123,
            "high": -4.0,
            "queries": 600,
            "people": 150,
            "query_camera": None,
            "gallery_camera": None,
        }
    ],
}


def test_the_gate_s_page_has_its_reasons_and_the_comparisons_over_all_cameras():
    pair = GATE["comparisons"][0] | {"query_camera": "cam5", "gallery_camera": "cam1", "champion": 77.7}
    page = gate_page(GATE | {"comparisons": [*GATE["comparisons"], pair]})
    assert page.startswith("### Reject the candidate\n\n* worse: rank-1\n* collapsed: cam5 to cam1\n")
    row = "| today | infrared to visible | rank-1 | 20.00 | 14.00 | -6.00 | -8.12 to -4.00 |"
    assert row in page and "77.7" not in page


def test_the_page_of_an_undecided_run_says_what_becomes_of_the_drops():
    page = gate_page(GATE | {"decision": "undecided", "reasons": ["only 5 test people"]})
    assert page.startswith("### Undecided: the champion stays, and the drops stay accepted\n\n* only 5")


def test_the_first_champion_s_page_has_no_table():
    page = gate_page({"decision": "promote", "champion": None, "reasons": ["no champion"], "comparisons": []})
    assert page.startswith("### Promote") and "|" not in page


def test_a_camera_s_name_is_text_in_the_gate_s_page():
    name = "[x](http://evil) | `<img src=x>` \u202e"
    page = gate_page(GATE | {"reasons": [f"a pair of cameras collapsed: {name}, -20.0 points"]})
    line = next(line for line in page.splitlines() if "collapsed" in line)
    assert line.endswith(", -20.0 points") and "\u202e" not in line
    assert not re.search(r"(?<!\\)[\[\]|`<>]|://", line)


def test_a_name_from_a_drop_cannot_end_the_block_of_text():
    counts = {"visible": 1, "infrared": 2}
    ingest = {
        "people": {"train": 1, "test": 1, "waiting": 0},
        "images": {"train": counts, "test": counts},
        "drops": {"held": [], "left_out": []},
        "unlike_published": ["```<b>"],
        "few_grey_levels": [],
        "labels": [],
        "duplicates": 0,
        "ignored_files": 0,
        "quarantined": {},
    }
    page = data_page(ingest)
    assert page.startswith("```\n") and page.endswith("\n```") and page.count("```") == 2


def test_the_reports_curves_are_pictures_in_the_page(tmp_path):
    for direction in ("visible_to_infrared", "infrared_to_visible"):
        Image.new("RGB", (8, 4)).save(tmp_path / f"cmc_{direction}.png")
    Image.new("RGB", (2, 2)).save(tmp_path / "loss_total.png")
    addresses = re.findall(r"!\[CMC\]\(data:image/png;base64,([^)]+)\)", cmc_pictures(tmp_path))
    assert [Image.open(io.BytesIO(base64.b64decode(data))).width for data in addresses] == [8, 8]
