"""What a step of stage 2 costs as a function of its sizes: bytes sent, reads, operations. Pure.

docs/scaling.md says what the figures mean; benchmarks/limits.py puts measured sizes in.
"""

from __future__ import annotations

from dataclasses import dataclass

FLOAT = 4  # bytes of a float32
VIEWS = 3  # rows of a pair: two views of the visible image, one of the infrared


@dataclass(frozen=True)
class Network:
    """Sizes of what stage 2 trains, with classifiers for `people` people.

    parameters: floats that train; features: c + d, floats of f and g of a row; embed: d; norms and
    norm_channels: batch norms and all their channels; operations: floating-point operations of a step of
    `rows` rows, forward and backward; kept_matrices: matrices of pairs of rows that the losses keep between.
    """

    parameters: int
    features: int
    embed: int
    norms: int
    norm_channels: int
    operations: float
    people: int
    rows: int
    kept_matrices: float

    def parameters_for(self, people: int) -> int:
        """Floats that train where the two classifiers [people, c] and [people, d] have as many rows."""
        return self.parameters + (people - self.people) * self.features


def rows(people: int, images: int) -> int:
    """Rows of a global batch: P x K visible images in two views, and as many infrared ones."""
    return VIEWS * people * images


def reads(people: int, images: int) -> int:
    """Images read for a global batch: a visible one once for its two views."""
    return 2 * people * images


def gathered_bytes(batch_rows: int, features: int) -> int:
    """Bytes of f and g of all rows, which every worker holds after the gather."""
    return batch_rows * features * FLOAT


def gather_traffic(batch_rows: int, features: int, workers: int) -> float:
    """Bytes that a worker receives a step: all-gather forward, reduce-scatter backward, each by a ring."""
    return 2 * gathered_bytes(batch_rows, features) * (workers - 1) / workers


def gradient_traffic(parameters: int, workers: int) -> float:
    """Bytes that a worker receives a step for averaging dense gradients by a ring all-reduce."""
    return 2 * parameters * FLOAT * (workers - 1) / workers


def norm_traffic(channels: int, workers: int) -> float:
    """Bytes that a worker receives a step for batch norms.

    Forward every rank's mean and variance are gathered, backward two sums are all-reduced.
    """
    forward = 2 * channels * FLOAT * (workers - 1)
    return forward + 2 * (2 * channels * FLOAT) * (workers - 1) / workers


def pairs_bytes(batch_rows: int, matrices: float) -> float:
    """Bytes of so many matrices of all pairs of the global batch."""
    return batch_rows**2 * FLOAT * matrices


def distance_operations(batch_rows: int, features: int) -> float:
    """Operations of the distances of all pairs from differences (subtract, multiply, add), and twice back."""
    return 3 * 3 * float(batch_rows) ** 2 * features


def adam_bytes(floats: int) -> int:
    """Bytes of what Adam trains: values, gradient, two moments."""
    return 4 * floats * FLOAT


def adam_step_bytes(floats: int) -> int:
    """Bytes of memory that a dense Adam step moves: four arrays read, three written."""
    return 7 * floats * FLOAT


def table_operations(batch_rows: int, people: int, width: int, trained: bool) -> float:
    """Operations of rows [n, width] times a table [people, width], and back (to the table too if trained)."""
    return 2.0 * batch_rows * people * width * (3 if trained else 2)
