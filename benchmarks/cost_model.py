"""The cost of a step of stage 2 as pure functions of its sizes: bytes sent, images read, operations.

benchmarks/limits.py applies them to measured sizes; docs/scaling.md interprets the results.
"""

from __future__ import annotations

from dataclasses import dataclass

FLOAT = 4  # bytes of a float32
VIEWS = 3  # rows of a pair of images: two views of the visible one, one of the infrared one


@dataclass(frozen=True)
class Network:
    """Sizes of the network that stage 2 trains, with classifiers for `people` identities.

    parameters: trainable floats. features: c + d, the floats of f and g of a row; embed: d. norms and
    norm_channels: number of batch norms, and of their channels in total. operations: floating-point
    operations of a step of `rows` rows, forward and backward. kept_matrices: matrices of all pairs of rows
    that the losses keep for the backward pass.
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
        """Trainable floats if the two classifiers [people, c] and [people, d] have this many rows."""
        return self.parameters + (people - self.people) * self.features


def rows(people: int, images: int) -> int:
    """Rows of a global batch: P x K visible images in two views, and as many infrared ones."""
    return VIEWS * people * images


def reads(people: int, images: int) -> int:
    """Images read for a global batch; a visible image is read once for its two views."""
    return 2 * people * images


def gathered_bytes(batch_rows: int, features: int) -> int:
    """Bytes of f and g of all rows, which every worker holds after the all-gather."""
    return batch_rows * features * FLOAT


def gather_traffic(batch_rows: int, features: int, workers: int) -> float:
    """Bytes that a worker receives per step: ring all-gather forward, ring reduce-scatter backward."""
    return 2 * gathered_bytes(batch_rows, features) * (workers - 1) / workers


def gradient_traffic(parameters: int, workers: int) -> float:
    """Bytes that a worker receives per step to average dense gradients by a ring all-reduce."""
    return 2 * parameters * FLOAT * (workers - 1) / workers


def norm_traffic(channels: int, workers: int) -> float:
    """Bytes that a worker receives per step for synchronised batch norms.

    The forward pass gathers the mean and variance of every rank; the backward pass all-reduces two sums.
    """
    forward = 2 * channels * FLOAT * (workers - 1)
    return forward + 2 * (2 * channels * FLOAT) * (workers - 1) / workers


def pairs_bytes(own_rows: float, batch_rows: int, matrices: float) -> float:
    """Bytes of this many matrices of the pairs of a worker's rows with those of the global batch."""
    return own_rows * batch_rows * FLOAT * matrices


def distance_operations(own_rows: float, batch_rows: int, features: int) -> float:
    """Operations of the distances of a worker's rows to those of the global batch, on a GPU.

    Forward subtract, multiply and add for each feature; backward two products of matrices, multiply and add.
    """
    return (3 + 2 * 2) * float(own_rows) * batch_rows * features


def adam_bytes(floats: int) -> int:
    """Bytes of values, gradient and the two moments of Adam."""
    return 4 * floats * FLOAT


def adam_step_bytes(floats: int) -> int:
    """Bytes that a dense Adam step moves in memory: four arrays read, three written."""
    return 7 * floats * FLOAT


def table_operations(batch_rows: int, people: int, width: int, trained: bool) -> float:
    """Operations of rows [n, width] times a table [people, width], and backward (also to a trained table)."""
    return 2.0 * batch_rows * people * width * (3 if trained else 2)
