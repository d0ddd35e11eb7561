"""Charts as plain geometry: points and ticks in the units of an SVG's viewBox (charts.html.j2 draws them)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from csdn.report.wording import direction_name, percent

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


# The training logs as small charts: the two phases of stage 1, then stage 2 and its terms.


LogRows = Sequence[Mapping[str, str]]  # of a log.csv

POINTS = 400  # of a line at most: more would be narrower than a pixel
# Title -> columns of models/embedding/log.csv with the names that they get.
EMBEDDING_CHARTS = {
    "Stage 2: sum of all terms": {"total": "total"},
    "Stage 2: identity": {"id_gem": "GeM", "id_pool": "attention pool"},
    "Stage 2: triplet": {"triplet_gem": "GeM", "triplet_pool": "attention pool"},
    "Stage 2: MSEL": {"msel_gem": "GeM", "msel_pool": "attention pool"},
    "Stage 2: HSE": {"hse_visible": "visible", "hse_infrared": "infrared"},
}
PHASE_TITLES = {"prompts": "Stage 1: prompts", "integration": "Stage 1: integration"}


def loss_curves(prompts_log: LogRows, embedding_log: LogRows) -> list[Curves]:
    """One chart for each phase of stage 1 that was trained, then those of stage 2, over the steps."""
    charts = []
    for phase, title in PHASE_TITLES.items():
        if rows := [row for row in prompts_log if row["phase"] == phase]:
            charts.append(_curves(title, rows, {"loss": "loss"}))
    return charts + [_curves(title, embedding_log, names) for title, names in EMBEDDING_CHARTS.items()]


def _curves(title: str, rows: LogRows, names: Mapping[str, str]) -> Curves:
    every = -(-len(rows) // POINTS)
    groups = [rows[start : start + every] for start in range(0, len(rows), every)]
    steps = [float(group[-1]["step"]) for group in groups]
    series = [
        Series(name, style, steps, [_mean(group, column) for group in groups])
        for (column, name), style in zip(names.items(), ("first", "second"), strict=False)
    ]
    return Curves(title, series, "step", "loss")


def _mean(rows: LogRows, column: str) -> float:
    return sum(float(row[column]) for row in rows) / len(rows)


# How well the texts name training images, and what fusing them (SII) changed, in bars and in words.


TEXTS = {"visible": "Visible only", "infrared": "Infrared only", "fused": "Fused by SII"}
MODALITIES = ("visible", "infrared")


@dataclass(frozen=True)
class NamingBars:
    """One modality's images: (text's key, its name, percent named, as text)."""

    modality: str
    rows: list[tuple[str, str, float, str]]


def naming_bars(naming: Mapping[str, float]) -> list[NamingBars]:
    """How often the text most like an image is its person's own, percent of each modality's images.

    No bars where stage 1 saw no image: nobody was new, and training goes on from a champion.
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
        for modality in MODALITIES
    ]


def naming_words(naming: Mapping[str, float], people: int) -> list[str]:
    """What the six figures say, a guess among `people` texts, and what SII changed."""
    new = naming.get("new_people")
    if new == 0:
        return ["Nobody was new: the texts are those of the champion that training started from."]
    cross = (
        f"A text learnt from visible images alone names {percent(naming['visible_names_infrared'])} of the "
        f"infrared images; one learnt from infrared images alone names "
        f"{percent(naming['infrared_names_visible'])} of the visible ones. "
        f"A guess among {people} texts would name {percent(100 / people)}."
    )
    changes = [_change(naming, modality) for modality in MODALITIES]
    said = [cross, f"Fusing the two (SII) {changes[0]}, and {changes[1]}."]
    if new is None:
        return said
    return [
        f"The images are those of the {new} people who were new; the texts of all others are the champion's.",
        *said,
    ]


def _change(naming: Mapping[str, float], modality: str) -> str:
    """The fused text against the better one of the two."""
    fused = naming[f"fused_names_{modality}"]
    better = max(("visible", "infrared"), key=lambda text: naming[f"{text}_names_{modality}"])
    gain = fused - naming[f"{better}_names_{modality}"]
    than = f"the better of the two alone, {TEXTS[better].lower()}"
    if round(abs(gain), 1) == 0:
        return f"names as many {modality} images as {than} ({percent(fused)})"
    more = "more" if gain > 0 else "fewer"
    return f"names {abs(gain):.1f} points {more} of the {modality} images than {than} ({percent(fused)})"


# The search between each two cameras alone, as a heat map.


Rows = Sequence[Mapping[str, str]]  # of evaluation/camera_pairs.csv

CAMERAS = 32  # of a side at most: a page stays a page; camera_pairs.csv has more
ROOMY = 8  # cameras across, up to which a cell has room for two figures


@dataclass(frozen=True)
class Cell:
    rank1: float
    mAP: float
    queries: int
    share: float  # of the best rank-1 of all cells, percent: the shade
    text: str
    title: str


@dataclass(frozen=True)
class Grid:
    """Query cameras down, gallery cameras across; a cell is None where there is no figure."""

    name: str
    across: list[str]
    down: list[str]
    cells: list[list[Cell | None]]
    left_out: int  # cameras of camera_pairs.csv that are not shown

    @property
    def roomy(self) -> bool:
        return len(self.across) <= ROOMY


def camera_grids(rows: Rows) -> list[Grid]:
    """One for each direction."""
    rows = [row for row in rows if row["queries"]]  # not the row of the other pairs
    best = max((float(row["rank1"]) for row in rows if row["rank1"]), default=0.0)
    return [
        _grid(direction, [row for row in rows if row["direction"] == direction], best)
        for direction in dict.fromkeys(row["direction"] for row in rows)
    ]


def _grid(direction: str, rows: Rows, best: float) -> Grid:
    sides = [{row[f"{side}_camera"] for row in rows} for side in ("query", "gallery")]
    down, across = (_busiest(rows, f"{side}_camera") for side in ("query", "gallery"))
    found = {(row["query_camera"], row["gallery_camera"]): row for row in rows}
    return Grid(
        direction_name(direction),
        across,
        down,
        [[_cell(found.get((query, gallery)), best) for gallery in across] for query in down],
        sum(len(cameras) - CAMERAS for cameras in sides if len(cameras) > CAMERAS),
    )


def _busiest(rows: Rows, side: str) -> list[str]:
    """The CAMERAS cameras of a side with the most queries, in the order of the rows."""
    queries: Counter[str] = Counter()
    for row in rows:
        queries[row[side]] += int(row["queries"])
    most = {camera for camera, _ in queries.most_common(CAMERAS)}
    return [camera for camera in queries if camera in most]


def _cell(row: Mapping[str, str] | None, best: float) -> Cell | None:
    if not (row and row["rank1"]):
        return None
    rank1, mean_ap, queries = float(row["rank1"]), float(row["mAP"]), int(row["queries"])
    title = f"rank-1 {percent(rank1)}, mAP {percent(mean_ap)}, {queries} quer{'y' if queries == 1 else 'ies'}"
    return Cell(rank1, mean_ap, queries, share(rank1, best), f"{rank1:.0f}", title)


def pairs_by_rank1(rows: Rows, least_queries: int) -> list[dict[str, Any]]:
    """Pairs with at least so many queries, the weakest first: direction, cameras, rank1, queries."""
    known = [
        {**row, "rank1": float(row["rank1"]), "queries": int(row["queries"])}
        for row in rows
        if row["rank1"] and int(row["queries"]) >= least_queries
    ]
    return sorted(known, key=lambda row: row["rank1"])
