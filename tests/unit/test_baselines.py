"""Baselines: chance is chance, and gradient histograms see shape, not brightness."""

import numpy as np
import pytest
import torch

from csdn.evaluation import rank_metrics
from csdn.evaluation.baselines import chance_draws, gradient_histograms


def test_chance_finds_one_right_image_among_forty_in_one_of_forty_searches():
    people = np.arange(40)
    distances = chance_draws(0).random((4000, 40))
    found = rank_metrics(distances, np.arange(4000) % 40, people, np.zeros(4000), people * 0 + 1, "cameras")
    # Standard error of a share of 0.025 over 4,000 draws: 0.0025.
    assert found.cmc[0] == pytest.approx(1 / 40, abs=0.0075)
    assert found.cmc[19] == pytest.approx(1 / 2, abs=0.024)


def test_chance_is_a_function_of_seed_and_counters_whatever_the_blocks():
    whole = chance_draws(7, 1, 2).random((5, 4))
    again = chance_draws(7, 1, 2)
    np.testing.assert_array_equal(whole, np.concatenate([again.random((rows, 4)) for rows in (3, 1, 1)]))
    for other in (chance_draws(8, 1, 2), chance_draws(7, 1, 3)):
        assert (whole != other.random((5, 4))).all()


def images(seed=0, count=3, size=(64, 32)):
    return torch.rand((count, 3, *size), generator=torch.Generator().manual_seed(seed))


def test_histograms_ignore_brightness_and_contrast():
    plain = gradient_histograms(images(), "visible")
    brighter = gradient_histograms(0.4 * images() + 0.3, "infrared")
    torch.testing.assert_close(plain, brighter, atol=1e-3, rtol=0)
    torch.testing.assert_close(plain.norm(dim=1), torch.ones(3))


def test_histograms_tell_stripes_apart_by_direction():
    across = torch.sin(torch.arange(32.0))[None, None, None, :].expand(1, 3, 64, 32)
    down = torch.sin(torch.arange(64.0))[None, None, :, None].expand(1, 3, 64, 32)
    first, second = (gradient_histograms(image, "visible") for image in (across, down))
    assert (first * first.roll(1, dims=0)).sum() == pytest.approx(1, abs=1e-5)
    assert (first * second).sum() < 0.05


def test_a_direction_and_its_opposite_are_one():
    ramp = torch.arange(32.0)[None, None, None, :].expand(1, 3, 64, 32)
    torch.testing.assert_close(gradient_histograms(ramp, "visible"), gradient_histograms(-ramp, "visible"))


@pytest.mark.parametrize("size", [(64, 32), (288, 144)])
def test_histograms_have_one_length_for_any_image_size(size):
    assert gradient_histograms(images(size=size), "visible").shape == (3, 15 * 7 * 4 * 9)
