"""Charts as plain geometry: points and ticks in the units of an SVG's viewBox (charts.html.j2 draws them)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

# Width and height: text keeps its size on the page when narrow cards get the small one.
WIDE, SMALL, LOW, NARROW = (420, 250), (310, 200), (310, 150), (236, 190)
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 40


@dataclass(frozen=True)
class Series:
    """One line: `style` is its CSS class, `filled` makes it an area above the horizontal axis."""

    name: str
    style: str
    xs: Sequence[float]
    ys: Sequence[float]
    filled: bool = False


@dataclass(frozen=True)
class Curves:
    """What a chart of lines shows; the first series is drawn on top.

    x goes over `x_range` or its values, y from 0 (or lower values) to `y_high` or the highest value.
    """

    title: str
    series: Sequence[Series]
    x_label: str
    y_label: str
    x_range: tuple[float, float] | None = None
    y_high: float | None = None

    def ranges(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """(low, high) of both axes; never empty."""
        xs = np.concatenate([np.asarray(one.xs, float) for one in self.series] or [np.zeros(0)])
        ys = np.concatenate([np.asarray(one.ys, float) for one in self.series] or [np.zeros(0)])
        xs, ys = xs[np.isfinite(xs)], ys[np.isfinite(ys)]
        y_low = min(0.0, float(ys.min())) if len(ys) else 0.0
        y_range = (y_low, self.y_high) if self.y_high else _span(ys, y_low)
        return self.x_range or _span(xs, float(xs.min()) if len(xs) else 0.0), y_range


@dataclass(frozen=True)
class Line:
    """A series as the `points` of an SVG polyline or polygon; `last` is its end (x, y)."""

    name: str
    style: str
    points: str
    filled: bool
    last: tuple[float, float]


@dataclass(frozen=True)
class Tick:
    at: float
    label: str


@dataclass(frozen=True)
class Chart:
    """Everything that is drawn; positions are in 0..width and 0..height, the horizontal axis at `bottom`."""

    title: str
    x_label: str
    y_label: str
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    width: int
    height: int
    left: int
    right: int
    bottom: int


def line_chart(curves: Curves, size: tuple[int, int] = WIDE) -> Chart:
    """Lay out lines over common axes. Points that are not finite are left out."""
    width, height = size
    right, bottom = width - RIGHT, height - BOTTOM
    (x_low, x_high), (y_low, y_high) = curves.ranges()

    def x_at(x: float) -> float:
        return round(LEFT + (right - LEFT) * (x - x_low) / (x_high - x_low), 2)

    def y_at(y: float) -> float:
        return round(bottom - (bottom - TOP) * (y - y_low) / (y_high - y_low), 2)

    series = [_finite(one) for one in curves.series]
    return Chart(
        curves.title,
        curves.x_label,
        curves.y_label,
        [_line(one, x_at, y_at, bottom) for one in series if len(one.xs)],
        [Tick(x_at(x), tick_label(x)) for x in ticks(x_low, x_high)],
        [Tick(y_at(y), tick_label(y)) for y in ticks(y_low, y_high, about=(bottom - TOP) // 38)],
        width,
        height,
        LEFT,
        right,
        bottom,
    )


def _line(
    series: Series, x_at: Callable[[float], float], y_at: Callable[[float], float], bottom: float
) -> Line:
    places = [(x_at(x), y_at(y)) for x, y in zip(series.xs, series.ys, strict=True)]
    last = places[-1]
    if series.filled:
        places = [(places[0][0], bottom), *places, (last[0], bottom)]
    points = " ".join(f"{x:g},{y:g}" for x, y in places)
    return Line(series.name, series.style, points, series.filled, last)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten apart) within low..high, some `about` of them.

    >>> ticks(0, 87)
    [0.0, 20.0, 40.0, 60.0, 80.0]
    """
    rough = (high - low) / about
    power = 10 ** math.floor(math.log10(rough))
    step = min((factor * power for factor in (1, 2, 5, 10)), key=lambda step: abs(step - rough))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def tick_label(value: float) -> str:
    """12000 -> "12k"; the rest as short as it is exact."""
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:g}"


def density(values: np.ndarray, low: float, high: float, bins: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Histogram as (middles of the bins, share of the values in each, percent)."""
    counts, edges = np.histogram(values, bins=bins, range=(low, high))
    return (edges[:-1] + edges[1:]) / 2, 100 * counts / max(1, counts.sum())


def share(value: float, whole: float) -> float:
    """Percent of a whole, as lengths in CSS have it; 0 of nothing."""
    return round(100 * value / whole, 2) if whole else 0.0


def _finite(series: Series) -> Series:
    pairs = [
        (x, y) for x, y in zip(series.xs, series.ys, strict=True) if math.isfinite(x) and math.isfinite(y)
    ]
    xs, ys = zip(*pairs, strict=True) if pairs else ((), ())
    return Series(series.name, series.style, xs, ys, series.filled)


def _span(values: np.ndarray, low: float) -> tuple[float, float]:
    """From `low` to the highest value; never empty."""
    high = float(values.max()) if len(values) else low
    return (low, high) if high > low else (low, low + 1.0)
