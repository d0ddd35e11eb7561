"""Counted randomness: a draw depends on what it is for, and on nothing else."""

import numpy as np
import pytest

from csdn.data.rng import Stream, generator


def test_the_same_counters_give_the_same_draws():
    first, second = (generator(3, Stream.PAIRS, 5, 7).random(4) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((0, 1, 0, 0), (1, 1, 0, 0)),
        ((0, 1, 0, 0), (0, 2, 0, 0)),
        ((0, 1, 0, 1), (0, 1, 1, 0)),
        ((0, 1), (0, 1, 0)),
        ((1, 0), (0, 1)),
    ],
)
def test_other_counters_give_other_draws(one, other):
    assert not np.array_equal(generator(*one).random(4), generator(*other).random(4))


def test_the_draws_are_those_of_every_earlier_run():
    """Philox is specified: were this to change, every trained model would."""
    raw = generator(0, Stream.DROPOUT, 1, 2).bit_generator.random_raw(2)
    assert raw.tolist() == [11640822291222200304, 9426595759625370458]
