"""The study of the text (research/text.py): the tables that replace the texts, and the statistics."""

import numpy as np
import pytest
import torch

from text import FIGURES, INSIDE, append, finished, report
from text_run import branches, cosines
from text_tables import derangement, gaussian, paired, prototypes, rotated, spread


@pytest.mark.parametrize("count", [2, 3, 120])
def test_no_person_keeps_its_own_text(count):
    for seed in range(5):
        places = derangement(count, seed)
        assert sorted(places) == list(range(count))
        assert all(place != row for row, place in enumerate(places))


def test_the_permutation_is_a_function_of_the_seed():
    assert derangement(120, 0) == derangement(120, 0) != derangement(120, 1)


def test_one_text_cannot_be_exchanged():
    with pytest.raises(ValueError, match="two or more"):
        derangement(1, 0)


def test_a_random_table_differs_as_much_as_the_texts_and_no_more():
    texts = 3 + 0.1 * torch.randn(120, 128, generator=torch.Generator().manual_seed(0))
    table = gaussian(texts, seed=0)
    assert table.shape == texts.shape
    assert table.dtype == texts.dtype
    assert spread(table) == pytest.approx(spread(texts), rel=1e-5)
    assert not torch.equal(table, gaussian(texts, seed=1))


def test_a_rotation_keeps_distances_and_moves_every_row():
    texts = torch.randn(20, 16, generator=torch.Generator().manual_seed(0))
    table = rotated(texts, seed=0)
    torch.testing.assert_close(table @ table.T, texts @ texts.T, rtol=0, atol=1e-4)
    assert torch.cosine_similarity(table, texts).abs().mean() < 0.5


def test_a_prototype_is_the_mean_of_the_persons_images():
    embeddings = torch.tensor([[5.0, 2.0], [1.0, 2.0], [7.0, 2.0], [3.0, 2.0]])
    labels = torch.tensor([1, 0, 1, 0])  # means 2 and 6: two on either side of 4
    texts = torch.tensor([[0.0, 1.0], [0.0, 7.0]])  # three on either side of their mean
    assert prototypes(embeddings, labels, texts).tolist() == [[-3.0, 0.0], [3.0, 0.0]]


def test_differences_are_taken_seed_by_seed():
    """The same difference with each seed has no error, however much the seeds differ."""
    assert paired([11.0, 21.0, 31.0], [10.0, 20.0, 30.0]) == (1.0, 0.0)
    mean, error = paired([1.0, 2.0, 3.0, 6.0], [0.0, 0.0, 0.0, 0.0])
    assert mean == 3.0
    assert error == pytest.approx((14 / 3) ** 0.5 / 2)


def test_similarities_are_those_of_visible_with_infrared_images():
    """Two people with a visible image each, then an infrared one each."""
    people, modality = np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])
    g = np.eye(3)[[0, 1, 0, 0]]  # similarity 1 and 0 of one person's images, 1 and 0 of two people's
    assert cosines(g, g, people, modality) == pytest.approx({"separation": 0.0, "kept": 1.0})
    told_apart = np.array([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1], [0.2, 0.8]])
    figures = cosines(told_apart, g, people, modality)
    assert figures["separation"] == pytest.approx((0.85 - 0.15) / 0.05)
    assert figures["kept"] == pytest.approx(1.0)  # 0.2 and 0.1 rise as 1 and 0 do


def test_a_feature_is_split_into_its_branches():
    features = np.array([[1, 2, 30, 1.5, 2.5, 35]])  # f f g of the image, then of its mirror image
    f, g = branches(features, channels=2)
    assert f.tolist() == [[1, 2, 1.5, 2.5]]
    assert g.tolist() == [[30, 35]]


SEEN = {"first": 1, "people": 8, "images": 4, "epochs": 2, "strength": 1.0}


def kept(folder, monkeypatch, setting, **figures):
    """A finished run for each table and seed: table -> IR -> VIS rank-1 with seeds 0 and 1."""
    monkeypatch.chdir(folder)
    for name, values in figures.items():
        for seed, value in enumerate(values):
            append(setting | {"seed": seed, "table": name} | dict.fromkeys((*FIGURES, *INSIDE), value))


def test_a_finished_run_is_found_under_its_own_setting_alone(tmp_path, monkeypatch):
    kept(tmp_path, monkeypatch, SEEN, text=[20.5])
    kept(tmp_path, monkeypatch, SEEN | {"epochs": 10}, text=[30.0, 31.0])
    assert finished(SEEN) == {("text", 0): dict.fromkeys((*FIGURES, *INSIDE), 20.5)}
    assert set(finished(SEEN | {"epochs": 10})) == {("text", 0), ("text", 1)}
    assert finished(SEEN | {"strength": 4.0}) == {}


def test_the_report_has_figures_and_differences_seed_by_seed(tmp_path, monkeypatch):
    kept(tmp_path, monkeypatch, SEEN, none=[10, 20], text=[13, 21])
    lines = list(report(SEEN, [0, 1], ["none", "text"]))
    assert "| none | 2 | 15.0 ± 7.1 | 15.0 ± 7.1 | 15.0 ± 7.1 | 15.0 ± 7.1 |" in lines
    assert "| text | 2 | 2.0 ± 1.0 | 2.0 ± 1.0 | 2.0 ± 1.0 | 2.0 ± 1.0 |" in lines
    assert "| none | 2 | -2.0 ± 1.0 | -2.0 ± 1.0 | -2.0 ± 1.0 | -2.0 ± 1.0 |" in lines
