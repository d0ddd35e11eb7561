"""`dvc plots`, `dvc metrics` and `dvc exp show` as they come: short tables, and curves of everything."""

import csv
import json
import shutil

import pytest
from repository import git
from workspace import STAGES, run

pytestmark = pytest.mark.slow

FIGURES = ["ir_to_vis.mAP", "ir_to_vis.rank1", "vis_to_ir.mAP", "vis_to_ir.rank1"]
# As the README has it: of what changed, figures and parameters alone.
EXPERIMENTS = ("--only-changed", "--hide-workspace", "--drop", "Created|.*/|.*yaml|evaluation$")


@pytest.fixture(scope="module")
def folder(finished_repository, tmp_path_factory):
    """A finished run, committed, and beside it an experiment "short" that changes the figures."""
    folder = tmp_path_factory.mktemp("views") / "project"
    shutil.copytree(finished_repository[0], folder, symlinks=True)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "baseline")
    output = run(folder, "dvc", "exp", "run", "--name", "short", "-S", "evaluation.trials=1").stdout
    assert [stage for stage in STAGES if f"Running stage '{stage}'" in output] == ["evaluate", "report"]
    return folder


@pytest.fixture(scope="module")
def plots(folder):
    """Title -> what `dvc plots diff` would draw of the baseline and the experiment, as Vega-Lite."""
    found = json.loads(run(folder, "dvc", "plots", "diff", "main", "short", "--json").stdout)
    assert "errors" not in found
    return {title: drawn["content"] for title, (drawn,) in found["data"].items()}


def test_metrics_are_the_few_that_decide(folder):
    rows = run(folder, "dvc", "metrics", "show", "--md").stdout.splitlines()
    assert rows[0].replace("|", " ").split() == ["Path", *FIGURES[:2], "test_people", *FIGURES[2:]]
    assert len(rows[0]) <= 120
    shown = json.loads((folder / "metrics/headline.json").read_text())
    assert str(shown["ir_to_vis"]["rank1"]) in rows[2]


def test_metrics_diff_fits_in_eighty_columns(folder):
    lines = run(folder, "dvc", "metrics", "diff", "main", "short").stdout.splitlines()
    assert 1 < len(lines) <= 5
    assert max(map(len, lines)) <= 80


def test_metrics_of_any_stage_can_be_asked_for(folder):
    command = ("dvc", "metrics", "diff", "main", "short", "--targets", "metrics/evaluation.json", "--json")
    changed = json.loads(run(folder, *command).stdout)["metrics/evaluation.json"]
    assert "chance.infrared_to_visible.mAP.mean" in changed


def test_experiments_are_compared_by_figures_and_by_what_was_changed(folder):
    table = run(folder, "dvc", "exp", "show", "--csv", "--no-pager", *EXPERIMENTS).stdout
    rows = list(csv.DictReader(table.splitlines()))
    columns = set(rows[0]) - {"Experiment", "rev", "typ", "parent"}
    assert columns <= {*FIGURES, "evaluation.trials"} and "evaluation.trials" in columns
    assert {row["Experiment"] or row["rev"]: row["evaluation.trials"] for row in rows} == {
        "main": "2",
        "short": "1",
    }


def test_plots_show_both_revisions_of_everything(plots):
    assert list(plots) == ["Stage 1, loss", "Stage 2, losses", "CMC", "Open set", "Camera pairs"]
    for title, drawn in plots.items():
        assert {row["rev"] for row in drawn["data"]["values"]} == {"main", "short"}, title


def test_every_field_that_a_plot_draws_is_in_its_rows(plots):
    for title, drawn in plots.items():
        made = {step["as"] for step in drawn.get("transform", ())}
        (names,) = {frozenset(row) for row in drawn["data"]["values"]}
        assert fields_of(drawn) <= names | made, title
        assert "<DVC" not in json.dumps(drawn), title


def fields_of(drawn):
    """Every field that a Vega-Lite drawing encodes."""
    if isinstance(drawn, list):
        return set().union(*map(fields_of, drawn))
    if not isinstance(drawn, dict):
        return set()
    here = {drawn["field"]} if isinstance(drawn.get("field"), str) else set()
    return here | fields_of([value for name, value in drawn.items() if name != "data"])


def test_losses_show_the_phases_and_the_parts(plots):
    assert {row["phase"] for row in plots["Stage 1, loss"]["data"]["values"]} == {"prompts", "integration"}
    parts = {row["field"] for row in plots["Stage 2, losses"]["data"]["values"]}
    assert {"total", "id_gem", "msel_gem", "hse_infrared"} <= parts


def test_camera_pairs_are_a_heat_map_by_direction(folder, plots):
    drawn = plots["Camera pairs"]
    assert [layer["mark"]["type"] for layer in drawn["spec"]["layer"]] == ["rect", "text"]
    assert drawn["facet"]["column"]["field"] == "direction"
    with (folder / "evaluation/camera_pairs.csv").open(encoding="utf-8") as file:
        written = [row["rank1"] for row in csv.DictReader(file)]
    assert [row["rank1"] for row in drawn["data"]["values"] if row["rev"] == "short"] == written


def test_plots_are_a_page(folder, tmp_path):
    run(folder, "dvc", "plots", "show", "--out", str(tmp_path))
    assert "Cumulative matching characteristic" in (tmp_path / "index.html").read_text()
