"""The model card: figures, data and hashes of the project, and no markup from names in the data."""

import json
import re
import shutil

import pyarrow.parquet as pq
import pytest
from report_project import HOSTILE, make_project
from search_models import save_small_model
from typer.testing import CliRunner
from workspace import ROOT

from csdn.cli.main import app
from csdn.evaluation.open_set import DirectionThresholds, write_thresholds
from csdn.ingest.ledger import read_ledger, write_ledger
from csdn.params import set_value
from csdn.runtime.errors import UserError
from csdn.runtime.files import file_sha256
from csdn.search.model_card import model_card

MODEL = "models/embedding"
CAMERAS = {"visible": ("north|gate", "<b>roof</b>"), "infrared": ("[a](https://example.org)", "yard")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A project as the stages leave it, with names from data that are Markdown and HTML."""
    root = make_project(tmp_path_factory.mktemp("card"), cameras=CAMERAS)
    shutil.copy(ROOT / "params.yaml", root)
    save_small_model(root / MODEL)
    write_thresholds_of(root, file_sha256(root / MODEL / "model.safetensors"))
    return root


@pytest.fixture
def project(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "project", symlinks=True)


def write_thresholds_of(root, model):
    """Of infrared queries: FPIR 10 % at 0.6 among 30 people; 30 people support no less."""
    found = {"people": 30, "gallery_people": 30, "gallery_images": 60}
    direction = DirectionThresholds(**found, thresholds=[0.1, 0.6], fpir=[0.5, 0.1])
    write_thresholds(root / "evaluation/thresholds.json", model, True, {"infrared_to_visible": direction})


def section(card, heading):
    return re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", card, re.DOTALL | re.MULTILINE)[1]


def rows(text):
    """The cells of each row of the tables."""
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in text.splitlines()
        if line.startswith("| ") and not line.startswith("| ---")
    ]


def test_the_figures_are_those_of_the_evaluation(finished):
    figures = json.loads((finished / "metrics/evaluation.json").read_text())
    card = rows(section(model_card(finished, finished / MODEL), "Figures"))
    for direction in figures["counts"]:
        for name, key in (("rank-1", "rank1"), ("mAP", "mAP"), ("mINP", "mINP")):
            mean, std = (figures["trained"][direction][key][what] for what in ("mean", "std"))
            assert any(row[0] == name and row[1] == f"{mean:.1f} ± {std:.1f}" for row in card)


def test_an_interval_lies_around_the_figure_of_the_first_gallery(finished):
    table = pq.read_table(finished / "evaluation/queries.parquet").to_pandas().dropna(subset="first_rank")
    cells = [row[2] for row in rows(section(model_card(finished, finished / MODEL), "Figures"))]
    first = [cell for cell in cells if " to " in cell][::2]  # rank-1 and mAP of each direction
    for cell, direction in zip(first, dict.fromkeys(table["direction"]), strict=True):
        value, low, high = map(float, re.fullmatch(r"([\d.]+) \(([\d.]+) to ([\d.]+)\)", cell).groups())
        ranks = table.loc[table["direction"] == direction, "first_rank"]
        assert value == pytest.approx(100 * (ranks == 1).mean(), abs=0.05)
        assert low <= value <= high and low < high


def test_every_pair_of_cameras_has_its_figures(finished):
    card = rows(section(model_card(finished, finished / MODEL), "Figures"))
    pairs = [row for row in card if len(row) == 5 and row[2].isdigit()]
    assert len(pairs) == 8  # two visible, two infrared cameras, in both directions
    assert all(re.fullmatch(r"\d+\.\d", cell) for row in pairs for cell in row[3:])


def test_data_and_hashes(finished):
    ingest = json.loads((finished / "metrics/ingest.json").read_text())
    card = model_card(finished, finished / MODEL)
    data = rows(section(card, "Data"))
    people, images = ingest["people"], ingest["images"]
    assert ["train", str(people["train"]), *(str(images["train"][of]) for of in CAMERAS)] in data
    assert ["test", str(people["test"]), *(str(images["test"][of]) for of in CAMERAS)] in data
    (drop,) = read_ledger(finished / "data/drops.json")
    assert any(row[0] == drop.id for row in data)
    assert file_sha256(finished / MODEL / "model.safetensors") in card
    assert ["embedding.epochs", "10"] in rows(section(card, "Method and parameters"))


def test_thresholds_are_those_for_the_galleries_of_the_evaluation(finished):
    found = rows(section(model_card(finished, finished / MODEL), "Thresholds"))
    assert ["infrared", "30", "0.6000", "– (too few test people)"] in found
    assert ["visible", "–", "–", "–"] in found


def test_names_from_data_are_no_markup(project):
    drops = [
        drop.__class__(drop.id, "s3://bucket/<img src=x>|[a](b)", drop.layout)
        for drop in read_ledger(project / "data/drops.json")
    ]
    write_ledger(drops, project / "data/drops.json")
    card = model_card(project, project / MODEL)
    assert not re.search(r"(?<!\\)<", card)
    assert not re.search(r"(?<!\\)\]\((?!https://arxiv)", card)
    assert HOSTILE not in card and "alert" not in card  # labels of people are not in the card
    assert r"north\|gate" in card
    widths = [len(row) for row in rows(section(card, "Data"))]
    assert widths == [4] * 3 + [3] * 5 + [4] * 2


def test_what_is_missing_is_said_to_be_missing(project):
    shutil.rmtree(project / "evaluation")
    shutil.rmtree(project / "metrics")
    card = model_card(project, project / MODEL)
    for heading in ("Data", "Figures", "Thresholds"):
        assert section(card, heading).strip().startswith("Missing: ")
    assert "| embedding.epochs | 10 |" in card


def test_a_model_of_another_project_gets_none_of_this_one_s_figures(finished, tmp_path):
    card = model_card(finished, save_small_model(tmp_path / "other", seed=1))
    for heading in ("Data", "Figures", "Thresholds", "Method and parameters"):
        assert "issing: the model that this project has trained is another one" in section(card, heading)


def test_figures_of_a_model_that_was_trained_again_are_not_shown(project):
    save_small_model(project / MODEL, seed=1)
    card = model_card(project, project / MODEL)
    assert "Missing: the evaluation is that of another model" in section(card, "Figures")
    assert "Missing" not in section(card, "Data")


def test_the_licence_is_that_of_the_weights_training_started_from(project):
    assert "is not known here" in section(model_card(project, project / MODEL), "Licence")
    set_value(project / "params.yaml", "model.pretrained", "openai")
    assert "MIT" in section(model_card(project, project / MODEL), "Licence")


def test_csdn_card_prints_or_writes(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(finished)
    printed = CliRunner().invoke(app, ["card"]).stdout
    assert printed == model_card(finished, finished / MODEL)
    assert CliRunner().invoke(app, ["card", "--out", str(tmp_path / "card.md")]).stdout == ""
    assert (tmp_path / "card.md").read_text() == printed


def test_a_folder_without_a_model_is_an_error(finished, tmp_path):
    with pytest.raises(UserError, match=r"model\.safetensors: no such file"):
        model_card(finished, tmp_path)
