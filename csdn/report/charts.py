"""The page's charts: line charts, training losses, naming by texts, and the grid of camera pairs.

A line chart is computed here as plain geometry, points and ticks in the units of an SVG's viewBox;
charts.html.j2 writes the SVG.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from csdn.data.catalog import MODALITIES
from csdn.report.wording import direction_name, percent

# Width and height. Text has the same size on the page, as narrow cards get a small chart.
WIDE, SMALL, LOW, NARROW = (420, 250), (310, 200), (310, 150), (236, 190)
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 40


@dataclass(frozen=True)
class Series:
    """One line; `style` is its CSS class, `filled` fills the area between line and horizontal axis."""

    name: str
    style: str
    xs: Sequence[float]
    ys: Sequence[float]
    filled: bool = False


@dataclass(frozen=True)
class Curves:
    """The data of a line chart; the first series is drawn on top.

    x covers `x_range`, or all values; y reaches from 0, or the lowest value below 0, to `y_high`, or the
    highest.
    """

    title: str
    series: Sequence[Series]
    x_label: str
    y_label: str
    x_range: tuple[float, float] | None = None
    y_high: float | None = None

    def ranges(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """(low, high) of both axes; low < high."""
        xs = np.concatenate([np.asarray(one.xs, float) for one in self.series] or [np.zeros(0)])
        ys = np.concatenate([np.asarray(one.ys, float) for one in self.series] or [np.zeros(0)])
        xs, ys = xs[np.isfinite(xs)], ys[np.isfinite(ys)]
        y_low = min(0.0, float(ys.min())) if len(ys) else 0.0
        y_range = (y_low, self.y_high) if self.y_high else _span(ys, y_low)
        return self.x_range or _span(xs, float(xs.min()) if len(xs) else 0.0), y_range


@dataclass(frozen=True)
class Line:
    """A series as the `points` of an SVG polyline or polygon; `last` is its last point (x, y)."""

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
    """A line chart as geometry; positions are in 0..width and 0..height, the horizontal axis at `bottom`."""

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
    """Lay out the lines on common axes. Points that are not finite are left out."""
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
    points = [(x_at(x), y_at(y)) for x, y in zip(series.xs, series.ys, strict=True)]
    last = points[-1]
    if series.filled:
        points = [(points[0][0], bottom), *points, (last[0], bottom)]
    text = " ".join(f"{x:g},{y:g}" for x, y in points)
    return Line(series.name, series.style, text, series.filled, last)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """About `about` round values within low..high, 1, 2 or 5 times a power of ten apart.

    >>> ticks(0, 87)
    [0.0, 20.0, 40.0, 60.0, 80.0]
    """
    rough = (high - low) / about
    power = 10 ** math.floor(math.log10(rough))
    step = min((factor * power for factor in (1, 2, 5, 10)), key=lambda step: abs(step - rough))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def tick_label(value: float) -> str:
    """12000 -> "12k"; smaller values in their shortest form."""
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:g}"


def density(values: np.ndarray, low: float, high: float, bins: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Histogram as (centres of the bins, percent of the values in each)."""
    counts, edges = np.histogram(values, bins=bins, range=(low, high))
    return (edges[:-1] + edges[1:]) / 2, 100 * counts / max(1, counts.sum())


def share(value: float, whole: float) -> float:
    """Percent of a whole, for lengths in CSS; 0 if the whole is 0."""
    return round(100 * value / whole, 2) if whole else 0.0


def _finite(series: Series) -> Series:
    pairs = [
        (x, y) for x, y in zip(series.xs, series.ys, strict=True) if math.isfinite(x) and math.isfinite(y)
    ]
    xs, ys = zip(*pairs, strict=True) if pairs else ((), ())
    return Series(series.name, series.style, xs, ys, series.filled)


def _span(values: np.ndarray, low: float) -> tuple[float, float]:
    """From `low` to the highest value, or to low + 1."""
    high = float(values.max()) if len(values) else low
    return (low, high) if high > low else (low, low + 1.0)


# Training losses: the two phases of stage 1, then stage 2 and its terms.


LogRows = Sequence[Mapping[str, str]]  # of a log.csv

POINTS = 400  # at most in a line: more would be narrower than a pixel
# Title -> columns of models/embedding/log.csv with their names in the chart.
EMBEDDING_CHARTS = {
    "Stage 2: sum of all terms": {"total": "total"},
    "Stage 2: identity": {"id_gem": "GeM", "id_pool": "attention pool"},
    "Stage 2: triplet": {"triplet_gem": "GeM", "triplet_pool": "attention pool"},
    "Stage 2: MSEL": {"msel_gem": "GeM", "msel_pool": "attention pool"},
    "Stage 2: HSE": {"hse_visible": "visible", "hse_infrared": "infrared"},
}
PHASE_TITLES = {"prompts": "Stage 1: prompts", "integration": "Stage 1: integration"}


def loss_curves(prompts_log: LogRows, embedding_log: LogRows) -> list[Curves]:
    """One chart for each trained phase of stage 1, then those of stage 2, over the steps."""
    charts = []
    for phase, title in PHASE_TITLES.items():
        if rows := [row for row in prompts_log if row["phase"] == phase]:
            charts.append(_curves(title, rows, {"loss": "loss"}))
    return charts + [_curves(title, embedding_log, names) for title, names in EMBEDDING_CHARTS.items()]


def _curves(title: str, rows: LogRows, names: Mapping[str, str]) -> Curves:
    size = -(-len(rows) // POINTS)
    groups = [rows[start : start + size] for start in range(0, len(rows), size)]
    steps = [float(group[-1]["step"]) for group in groups]
    series = [
        Series(name, style, steps, [_mean(group, column) for group in groups])
        for (column, name), style in zip(names.items(), ("first", "second"), strict=False)
    ]
    return Curves(title, series, "step", "loss")


def _mean(rows: LogRows, column: str) -> float:
    return sum(float(row[column]) for row in rows) / len(rows)


# How well the texts name training images, and the effect of SII, as bars and as sentences.


TEXTS = {"visible": "Visible only", "infrared": "Infrared only", "fused": "Fused by SII"}


@dataclass(frozen=True)
class NamingBars:
    """Of one modality's images: rows (text's key, its name, percent named, the same as text)."""

    modality: str
    rows: list[tuple[str, str, float, str]]


def naming_bars(naming: Mapping[str, float]) -> list[NamingBars]:
    """Percent of each modality's images whose most similar text is that of their person.

    No bars if stage 1 had no images: training started from a champion and there were no new identities.
    """
    if naming.get("new_people") == 0:
        return []
    return [
        NamingBars(
            f"{modality.capitalize()} images",
            [
                (text, name, naming[f"{text}_names_{modality}"], percent(naming[f"{text}_names_{modality}"]))
                for text, name in TEXTS.items()
            ],
        )
        for modality in map(str, MODALITIES)
    ]


def naming_words(naming: Mapping[str, float], people: int) -> list[str]:
    """Sentences on the six figures, chance with `people` texts, and the effect of SII."""
    new = naming.get("new_people")
    if new == 0:
        return ["No identity is new: the texts are those of the champion that training started from."]
    cross = (
        f"A text learnt from visible images alone names {percent(naming['visible_names_infrared'])} of the "
        f"infrared images; one learnt from infrared images alone names "
        f"{percent(naming['infrared_names_visible'])} of the visible ones. "
        f"With {people} texts, chance would name {percent(100 / people)}."
    )
    changes = [_change(naming, modality.value) for modality in MODALITIES]
    sentences = [cross, f"Fusing the two (SII) {changes[0]}, and {changes[1]}."]
    if new is None:
        return sentences
    return [
        f"The images are those of the {new} new identities; the texts of all others are the champion's.",
        *sentences,
    ]


def _change(naming: Mapping[str, float], modality: str) -> str:
    """The fused text compared with the better one of the two."""
    fused = naming[f"fused_names_{modality}"]
    better = max(("visible", "infrared"), key=lambda text: naming[f"{text}_names_{modality}"])
    gain = fused - naming[f"{better}_names_{modality}"]
    than = f"the better of the two alone, {TEXTS[better].lower()}"
    if round(abs(gain), 1) == 0:
        return f"names as many {modality} images as {than} ({percent(fused)})"
    more = "more" if gain > 0 else "fewer"
    return f"names {abs(gain):.1f} points {more} of the {modality} images than {than} ({percent(fused)})"


# The searches between two cameras alone, as a grid of camera pairs (a heat map).


Rows = Sequence[Mapping[str, str]]  # of evaluation/camera_pairs.csv

CAMERAS = 32  # query or gallery cameras at most, to bound the page; camera_pairs.csv has more
ROOMY = 8  # up to this many gallery cameras a cell has room for two figures


@dataclass(frozen=True)
class Cell:
    rank1: float
    mAP: float
    queries: int
    share: float  # percent of the best rank-1 of all cells: the shade
    text: str
    title: str


@dataclass(frozen=True)
class Grid:
    """Rows are query cameras, columns gallery cameras; a cell without a figure is None."""

    name: str
    across: list[str]
    down: list[str]
    cells: list[list[Cell | None]]
    left_out: int  # cameras of camera_pairs.csv that are not shown

    @property
    def roomy(self) -> bool:
        return len(self.across) <= ROOMY


def camera_grids(rows: Rows) -> list[Grid]:
    """One grid for each direction."""
    rows = [row for row in rows if row["queries"]]  # without the row for the pairs left out
    best = max((float(row["rank1"]) for row in rows if row["rank1"]), default=0.0)
    return [
        _grid(direction, [row for row in rows if row["direction"] == direction], best)
        for direction in dict.fromkeys(row["direction"] for row in rows)
    ]


def _grid(direction: str, rows: Rows, best: float) -> Grid:
    columns = ("query_camera", "gallery_camera")
    down, across = (_busiest(rows, column) for column in columns)
    found = {(row["query_camera"], row["gallery_camera"]): row for row in rows}
    return Grid(
        direction_name(direction),
        across,
        down,
        [[_cell(found.get((query, gallery)), best) for gallery in across] for query in down],
        sum(max(0, len({row[column] for row in rows}) - CAMERAS) for column in columns),
    )


def _busiest(rows: Rows, column: str) -> list[str]:
    """The CAMERAS cameras of a column with the most queries, in the order of the rows."""
    queries: Counter[str] = Counter()
    for row in rows:
        queries[row[column]] += int(row["queries"])
    most = {camera for camera, _ in queries.most_common(CAMERAS)}
    return [camera for camera in queries if camera in most]


def _cell(row: Mapping[str, str] | None, best: float) -> Cell | None:
    if not (row and row["rank1"]):
        return None
    rank1, mean_ap, queries = float(row["rank1"]), float(row["mAP"]), int(row["queries"])
    title = f"rank-1 {percent(rank1)}, mAP {percent(mean_ap)}, {queries} quer{'y' if queries == 1 else 'ies'}"
    return Cell(rank1, mean_ap, queries, share(rank1, best), f"{rank1:.0f}", title)


def pairs_by_rank1(rows: Rows, least_queries: int) -> list[dict[str, Any]]:
    """Rows with at least `least_queries` queries, the lowest rank1 first; rank1 and queries as numbers."""
    known = [
        {**row, "rank1": float(row["rank1"]), "queries": int(row["queries"])}
        for row in rows
        if row["rank1"] and int(row["queries"]) >= least_queries
    ]
    return sorted(known, key=lambda row: row["rank1"])
