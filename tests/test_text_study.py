"""The study of the text (benchmarks/text.py): its tables in place of texts, and its statistics."""

import sys

import pytest
import torch
from workspace import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
from text_run import cosines
from text_tables import derangement, gaussian, paired, prototypes, spread


@pytest.mark.parametrize("count", [2, 3, 120])
def test_nobody_keeps_the_own_text(count):
    for seed in range(5):
        places = derangement(count, seed)
        assert sorted(places) == list(range(count))
        assert all(place != row for row, place in enumerate(places))


def test_who_gets_whose_text_is_the_seeds():
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


def test_cosines_are_of_visible_and_infrared_images():
    g = torch.eye(3)[[0, 1, 0, 0]].numpy()  # a visible image of two people each, then an infrared one
    people, modality = torch.tensor([0, 1, 0, 1]).numpy(), torch.tensor([0, 0, 1, 1]).numpy()
    assert cosines(g, people, modality) == {"same": 0.5, "separation": 0.0}  # others: 1 and 0 too
