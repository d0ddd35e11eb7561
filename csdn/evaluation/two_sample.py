"""Two samples of images of one camera: their statistics, and the test whether they differ. Pure, seeded.

The samples are people, since images of one person are not independent: each person counts with the mean of
the person's images. A permutation test assigns people to the two sides at random: without a change, every
assignment is as likely as the one at hand.

* Image statistics: Welch's t of each; the largest of them is compared with the largest of each permutation
  (Westfall and Young 1993), so the rate of false alarms is that of all statistics together.
* Features: the distance between the mean features of the two sides (kernel two-sample test with a linear
  kernel, Gretton et al. 2012).

Both are divided by the standard errors of the two sides. That keeps the test valid where one side has fewer
images of a person, hence larger deviations (Janssen 1997).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from scipy.ndimage import gaussian_filter

# The level of a drop's tests together. At one site all drops are compared with the same people, whose
# difference from others does not average out: at 5 %, 11 of 100 unchanged drops alarmed (docs/drift.md).
ALPHA = 0.02
MIN_PEOPLE = 5  # on each side; with fewer there is no test
PERMUTATIONS = 1999
_TESTS = 2  # of each camera: statistics, features

# Name -> what it is. The statistics are those of the picture as the network sees it, but for the last two.
STATISTICS: Mapping[str, str] = {
    "brightness": "mean grey value, 0 to 255",
    "contrast": "standard deviation of the grey values",
    "sharpness": "logarithm of the Laplacian's variance, relative to the contrast's",
    "tilt": "how far upright and level edges lean, -1 to 1",
    "top": "upper half less lower half, relative to the brightness",
    "left": "left half less right half, relative to the brightness",
    "red": "share of red in the sum of the three channels",
    "blue": "share of blue in the sum of the three channels",
    "height": "of the file, pixels",
    "aspect": "width of the file by its height",
}


def image_statistics(pictures: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """STATISTICS float64 [n, S] of pictures uint8 [n, 3, H, W]; sizes [n, 2]: height, width of the files."""
    pixels = pictures.astype(np.float32)
    grey = np.tensordot(np.array([0.299, 0.587, 0.114], np.float32), pixels, axes=(0, 1))
    mean, deviation = grey.mean((1, 2)), grey.std((1, 2))
    inner = grey[:, 1:-1, 1:-1]
    neighbours = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    sharpness = np.log(((neighbours - 4 * inner).var((1, 2)) + 1) / (deviation**2 + 1))
    down, right = np.gradient(
        gaussian_filter(grey, (0, 1, 1)), axis=(1, 2)
    )  # smoothed: noise has no direction
    gradient = right + 1j * down
    energy = np.abs(gradient) ** 2
    # The fourth power has the same direction for upright and for level edges; these lean by a quarter of it.
    tilt = (gradient**4 / (energy + 1e-6)).imag.mean((1, 2)) / (energy.mean((1, 2)) + 1e-6)
    middle_y, middle_x = grey.shape[1] // 2, grey.shape[2] // 2
    top = grey[:, :middle_y].mean((1, 2)) - grey[:, middle_y:].mean((1, 2))
    left = grey[:, :, :middle_x].mean((1, 2)) - grey[:, :, middle_x:].mean((1, 2))
    channels = pixels.mean((2, 3)) + 1e-6
    red, _, blue = (channels / channels.sum(1, keepdims=True)).T
    height, width = np.asarray(sizes, np.float64).T
    columns = [mean, deviation, sharpness, tilt, top / (mean + 1), left / (mean + 1), red, blue]
    # Rounded, so that a statistic that is constant, such as the red of an infrared camera, is exactly so.
    return np.round(np.stack([*columns, height, width / height], axis=1).astype(np.float64), 5)


def means_of_people(people: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The mean [people, K] of the images [n, K] of each person, in the order of the sorted names."""
    _, person, counts = np.unique(people, return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), values.shape[1]))
    np.add.at(sums, person, values)
    return sums / counts[:, None]


def p_of_statistics(reference: np.ndarray, drop: np.ndarray, cameras: int) -> np.ndarray:
    """p [K] of each statistic of people [n, K] and [m, K], for all statistics of so many cameras together."""
    both = np.concatenate([reference, drop])
    both = (both - both.mean(0)) / np.maximum(both.std(0), 1e-9)
    scores = _permuted(lambda labels: _welch(labels, both), len(reference), len(drop), cameras)
    return _corrected((scores.max(1)[:, None] >= scores[0]).mean(0), cameras)


def p_of_features(reference: np.ndarray, drop: np.ndarray, cameras: int) -> float:
    """p of the distance between the mean features of people [n, D] and [m, D], for so many cameras."""
    both = np.concatenate([reference, drop])
    both = both - both.mean(0)
    products = both @ both.T
    scores = _permuted(lambda labels: _distance(labels, products), len(reference), len(drop), cameras)
    return float(_corrected((scores >= scores[0]).mean(0), cameras))


def _permuted(
    statistic: Callable[[np.ndarray], np.ndarray], reference: int, drop: int, cameras: int
) -> np.ndarray:
    """A statistic of the assignment at hand (row 0) and of random ones [1 + permutations, ...]."""
    count = max(PERMUTATIONS, int(2 * _TESTS * cameras / ALPHA))  # or no p could be small enough
    labels = np.tile(np.repeat([0.0, 1.0], [reference, drop]), (count + 1, 1))
    labels[1:] = np.random.default_rng(0).permuted(labels[1:], axis=1)
    return statistic(labels)


def _corrected(p: np.ndarray, cameras: int) -> np.ndarray:
    """By Bonferroni, for the two tests of each camera."""
    return np.minimum(1.0, p * _TESTS * cameras)


def _welch(labels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """|t| [b, K] of values [n, K]; labels [b, n]: 1 for the drop's people. 0 where nothing varies."""
    means, errors = [], []
    for side in (labels, 1 - labels):
        count = side.sum(1, keepdims=True)
        means.append(side @ values / count)
        variance = np.maximum(side @ values**2 / count - means[-1] ** 2, 0)
        errors.append(variance / (count - 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(np.abs(means[0] - means[1]) / np.sqrt(errors[0] + errors[1]), posinf=np.inf)


def _distance(labels: np.ndarray, products: np.ndarray) -> np.ndarray:
    """Squared distance [b] of the mean features of the two sides by that of their standard errors.

    products [n, n]: the dot products of people.
    """
    weights, errors = 0, 0
    for side, sign in ((labels, 1), (1 - labels, -1)):
        count = side.sum(1)
        weights = weights + sign * side / count[:, None]
        mean = ((side @ products) * side).sum(1) / count**2
        errors = errors + (side @ products.diagonal() / count - mean) / (count - 1)
    return ((weights @ products) * weights).sum(1) / np.maximum(errors, 1e-12)  # 0: nothing varies
