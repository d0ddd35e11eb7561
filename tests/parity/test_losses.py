"""The losses equal values worked by hand, and are finite for every batch."""

import math

import pytest
import torch
import torch.nn.functional as F

from csdn.losses import hse_loss, instances_per_identity, msel_loss, supcon_loss, wrt_loss

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])


def approx(value, dtype):
    """The bounds of WRT and MSEL, 1e-6 each, are left out of what is worked by hand."""
    return pytest.approx(value, rel=3e-2 if dtype == torch.bfloat16 else 1e-5)


@DTYPES
def test_supcon_by_hand(dtype):
    """Scores of a against b are [[1, 0, 0], [0, 2, 0]]; a_0 has partners b_0 and b_2, a_1 has b_1."""
    a = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=dtype)
    b = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], dtype=dtype)
    first = ((1 - math.log(math.e + 2)) + (0 - math.log(math.e + 2))) / 2
    second = 2 - math.log(math.e**2 + 2)
    loss = supcon_loss(a, b, torch.tensor([0, 1]), torch.tensor([0, 1, 0]))
    assert loss.item() == approx(-(first + second) / 2, dtype)


@DTYPES
def test_wrt_by_hand(dtype):
    """Points 0, 1 (one person) and 3 on a line.

    i = 0: positives 0 (itself), 1 with weights e^-1 and 1 over their sum; the one negative at 3 has
    exp(-3) / (exp(-3) + 1e-6). i = 1: likewise with the negative at 2. i = 2: its only positive is itself.
    """
    features, labels = torch.tensor([[0.0], [1.0], [3.0]], dtype=dtype), torch.tensor([7, 7, 9])

    def near(*distances):
        weights = [math.exp(-d) for d in distances]
        return sum(w * d for w, d in zip(weights, distances, strict=True)) / (sum(weights) + 1e-6)

    positive = 1 / (1 + math.exp(-1) + 1e-6)
    gaps = [positive - near(3), positive - near(2), 0 - near(3, 2)]
    wanted = sum(math.log1p(math.exp(gap)) for gap in gaps) / 3
    assert wrt_loss(features, labels).item() == approx(wanted, dtype)


@DTYPES
def test_msel_by_hand(dtype):
    """Two people of two images on a line; visible 0, 2 | 10, 10, infrared 1, 1 | 10, 13.

    Person 0: visible intra 2, 2, cross 1, 1; infrared intra 0, 0, cross 1, 1. Person 1: visible intra 0, 0,
    cross 1.5, 1.5; infrared intra 3, 3, cross 0, 3. Half of the two means of squared gaps:
    visible (1 + 1 + 2.25 + 2.25) / 4, infrared (1 + 1 + 9 + 0) / 4.
    """
    visible = torch.tensor([[0.0], [2.0], [10.0], [10.0]], dtype=dtype)
    infrared = torch.tensor([[1.0], [1.0], [10.0], [13.0]], dtype=dtype)
    loss = msel_loss(visible, infrared, torch.tensor([4, 4, 8, 8]), 2)
    assert loss.item() == approx((6.5 / 4 + 11 / 4) / 2, dtype)


@DTYPES
def test_hse_by_hand(dtype):
    """Scores [[1, 0], [0, 3]], both images of person 1: the first is wrong by 1, the second right by 3."""
    features = torch.tensor([[1.0, 0.0], [0.0, 3.0]], dtype=dtype)
    wanted = (math.log(1 + math.e) + math.log(1 + math.exp(-3))) / 2
    assert hse_loss(features, torch.eye(2, dtype=dtype), torch.tensor([1, 1])).item() == approx(wanted, dtype)


def random_batch(seed, people=4, instances=3, d=5):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(people).repeat_interleave(instances)
    return torch.randn(3, len(labels), d, generator=generator, dtype=torch.float64), labels


@pytest.mark.parametrize("seed", range(5))
def test_losses_do_not_depend_on_the_order_of_the_batch(seed):
    (visible, infrared, _), labels = random_batch(seed)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    losses = [
        (supcon_loss(v, i, y, y), wrt_loss(torch.cat([v, i]), torch.cat([y, y])), msel_loss(v, i, y, 3))
        for v, i, y in ((visible, infrared, labels), (visible[order], infrared[order], labels[order]))
    ]
    assert torch.tensor(losses[0]).allclose(torch.tensor(losses[1]), rtol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_gradients_equal_finite_differences(seed):
    (visible, infrared, texts), labels = random_batch(seed, people=3, instances=2, d=3)
    inputs = [x.clone().requires_grad_() for x in (visible, infrared)]
    assert torch.autograd.gradcheck(lambda v, i: msel_loss(v, i, labels, 2), inputs)
    assert torch.autograd.gradcheck(lambda v, i: wrt_loss(torch.cat([v, i]), labels.repeat(2)), inputs)
    assert torch.autograd.gradcheck(lambda v, i: supcon_loss(v, i, labels, labels), inputs)
    assert torch.autograd.gradcheck(lambda v: hse_loss(v, texts, labels), inputs[:1])


DEGENERATE = {
    "no rows": (torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)),
    "one row": (torch.ones(1, 4), torch.tensor([3])),
    "one person": (torch.randn(6, 4), torch.zeros(6, dtype=torch.long)),
    "no positives but oneself": (torch.randn(6, 4), torch.arange(6)),
    "all rows equal": (torch.ones(6, 4), torch.tensor([0, 0, 0, 1, 1, 1])),
    "far apart": (1e4 * torch.randn(6, 4), torch.tensor([0, 0, 0, 1, 1, 1])),
    "very far apart": (1e15 * torch.randn(6, 4), torch.tensor([0, 0, 0, 1, 1, 1])),
}


@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_batches_give_finite_losses_and_gradients(case):
    features, labels = DEGENERATE[case]
    features = features.clone().requires_grad_()
    table = torch.randn(7, 4)
    losses = (
        supcon_loss(features, features, labels, labels),
        wrt_loss(features, labels),
        msel_loss(features, features.flip(0), labels, 3),
        hse_loss(features, table, labels),
    )
    for loss in losses:
        (gradient,) = torch.autograd.grad(loss, features)
        assert loss.isfinite() and gradient.isfinite().all()


def test_supcon_without_positives_is_zero():
    a, b = torch.randn(3, 4), torch.randn(2, 4)
    assert supcon_loss(a, b, torch.tensor([0, 1, 2]), torch.tensor([8, 9])) == 0
    assert supcon_loss(a, b[:0], torch.tensor([0, 1, 2]), torch.zeros(0, dtype=torch.long)) == 0


def test_wrt_is_finite_where_the_published_form_overflows():
    """log(1 + exp(x)) overflows in float32 at x = 89; there the loss is x itself."""
    features = torch.tensor([[0.0], [200.0], [1e4]])
    labels = torch.tensor([0, 0, 1])
    gap = 200.0  # of rows 0 and 1: weights of the far negatives vanish beside 1e-6; row 2: log 2
    wanted = (2 * gap + math.log(2)) / 3
    assert wrt_loss(features, labels).item() == pytest.approx(wanted, rel=1e-5)


def test_msel_is_zero_for_equal_modalities():
    """With two images a person, the cross mean of d and 0 is half of the intra distance d: scale it so."""
    points = torch.tensor([[0.0], [0.0], [5.0], [5.0]])
    assert msel_loss(points, points, torch.tensor([0, 0, 1, 1]), 2).item() == pytest.approx(0, abs=1e-10)


def test_hse_is_plain_cross_entropy():
    (features, table, _), labels = random_batch(0)
    assert torch.equal(hse_loss(features, table, labels), F.cross_entropy(features @ table.T, labels))


def test_instances_per_identity_are_counted_from_the_labels():
    assert instances_per_identity(torch.tensor([5, 5, 2, 2])) == 2
    with pytest.raises(ValueError, match="same number"):
        instances_per_identity(torch.tensor([5, 5, 2]))
