"""The report's figures: matplotlib draws each once, as an SVG inside the page and as a PNG file beside it.

Figures are drawn without pyplot, so they depend neither on a display nor on the user's backend. The files
have no date, version or random id: the same data gives the same bytes.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.typing import RcKeyType

from csdn.data.catalog import MODALITIES
from csdn.evaluation.headline import METHODS, RERANKED
from csdn.report.feature_space import Pairs, Plane
from csdn.report.tables import CameraGrid
from csdn.report.wording import METHOD_NAMES, TEXTS, direction_name, percent
from csdn.runtime.sanitize import escape_control_chars

FIGURES = "figures"  # the folder of PNG files beside the page
DPI = 160  # of the PNG files
WIDE, SMALL = (3.8, 2.6), (3.1, 2.3)  # inches; a card of the page scales a figure to its width

# Colours of the page's light scheme by their names in style.css.j2. In the page a figure refers to the names,
# and so follows its light and dark scheme.
COLOURS = {
    **{"ink": "#1c1d21", "muted": "#64656d", "line": "#e3e1db", "card": "#ffffff"},
    **{"trained": "#3547d1", "clip": "#0b8580", "hog": "#b86f00", "chance": "#8d8e97"},
    **{"wrong": "#c8402c", "right": "#14804a", "rose": "#a3476b", "violet": "#8a3ffc", "sky": "#007d9c"},
    **{"pink": "#c2185b", "olive": "#6b7a00", "brown": "#6d4c41", "slate": "#5b6270"},
}
PEOPLE = ("trained", "wrong", "right", "hog", "violet", "sky", "pink", "olive", "brown", "slate")
METHOD_DASHES = {"trained": "-", "clip": "-.", "hog": "--", "chance": ":", RERANKED: "-"}
METHOD_COLOURS = {method: method for method in METHODS} | {RERANKED: "violet"}
TEXT_COLOURS = {"visible": "hog", "infrared": "rose", "fused": "trained"}
RC: dict[RcKeyType, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 8.5,
    "text.parse_math": False,  # names come from outside: "$" in a name is a dollar sign
    "text.color": COLOURS["ink"],
    "axes.edgecolor": COLOURS["line"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.titlecolor": COLOURS["ink"],
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": COLOURS["line"],
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "legend.frameon": False,
    "legend.labelcolor": COLOURS["muted"],
    "legend.handlelength": 1.8,
    "svg.fonttype": "none",
}


@dataclass(frozen=True)
class Chart:
    """A figure; `label` is its text alternative. The PNG names `people` in a legend, the page in HTML."""

    name: str  # of its PNG file
    label: str
    figure: Figure
    people: Sequence[str] = ()


@dataclass(frozen=True)
class InlineChart:
    """A chart for the page: its SVG, and the path of its PNG."""

    svg: Markup
    png: str


@contextmanager
def style(salt: str = "") -> Iterator[None]:
    """The style of the figures; no warnings about characters that the font lacks (drawn as boxes).

    salt: ids within an SVG are hashes of it and of what they name, so those of two charts differ.
    """
    with matplotlib.rc_context(RC | {"svg.hashsalt": salt}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def write_charts(charts: Sequence[Chart], folder: Path) -> list[InlineChart]:
    """Write each chart's PNG into `folder`; returns what the page shows."""
    return [InlineChart(svg(chart), write_png(chart, folder)) for chart in charts]


def svg(chart: Chart) -> Markup:
    """The chart as an element of the page: transparent, in the page's colours and font."""
    file = io.StringIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with style(chart.name):
        chart.figure.savefig(file, format="svg", transparent=True, metadata=no_metadata)
    text = file.getvalue()
    view_box = re.findall(r'viewBox="[\d. ]+"', text)[0]
    body = text[text.index("</defs>") + len("</defs>") :]  # without matplotlib's rules for the whole document
    body = body.replace("'DejaVu Sans'", "system-ui, sans-serif")
    body = re.sub(r'<g id="[^"]*"', "<g", body)  # nothing refers to groups
    names = {value: f"var(--{name})" for name, value in COLOURS.items()}
    body = re.sub(r"(fill|stroke): (#\w{6})", lambda of: f"{of[1]}: {names.get(of[2], of[2])}", body)
    return Markup(f'<svg class="chart" {view_box} role="img" aria-label="{escape(chart.label)}">{body}')


def write_png(chart: Chart, folder: Path) -> str:
    """Write the chart as a PNG into `folder`; returns its path from the page."""
    folder.mkdir(exist_ok=True)
    with style():
        if chart.people:
            handles, _ = chart.figure.axes[0].get_legend_handles_labels()
            names = [numbered(number, name) for number, name in enumerate(chart.people, 1)]
            bottom = 0.3 + 0.2 * -(-len(names) // 3)
            chart.figure.set_figheight(chart.figure.get_figheight() + bottom - 0.3)
            set_margins(chart.figure, left=0.3, bottom=bottom)
            chart.figure.legend(handles, names, loc="lower left", ncols=3)
        chart.figure.savefig(folder / f"{chart.name}.png", dpi=DPI, metadata={"Software": None})
    return f"{FIGURES}/{chart.name}.png"


def set_margins(
    figure: Figure, left: float = 0.52, right: float = 0.1, bottom: float = 0.42, top: float = 0.3
) -> None:
    """Margins around the plots in inches; a layout engine would draw everything four times."""
    width, height = figure.get_size_inches()
    figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height, hspace=0.32)


def numbered(number: int, name: str) -> str:
    """Number and name, in this order in every script: a left-to-right mark first, the name isolated."""
    return f"\u200e{number}  \u2068{_short(name)}\u2069"


def _short(name: str, length: int = 16) -> str:
    name = escape_control_chars(name)
    return name if len(name) <= length else f"{name[: length - 1]}…"


# Line charts: CMC curves and training losses.


@dataclass(frozen=True)
class Series:
    """One line of a chart. Points that are not finite are left out."""

    name: str
    colour: str
    dashes: str
    xs: Sequence[float]
    ys: Sequence[float]


def line_chart(
    name: str, title: str, series: Sequence[Series], x_label: str, y_label: str, size: tuple[float, float]
) -> Chart:
    """Lines over whole numbers; the first is on top. y begins at 0, or at the lowest value below 0."""
    with style():
        figure = Figure(size)
        plot = figure.subplots()
        for one in reversed(series):
            xs, ys = np.asarray(one.xs, float), np.asarray(one.ys, float)
            xs, ys = xs[np.isfinite(ys)], ys[np.isfinite(ys)]
            width = 2.2 if one is series[0] else 1.6
            plot.plot(xs, ys, one.dashes, color=COLOURS[one.colour], label=one.name, linewidth=width)
            plot.plot(xs[-1:], ys[-1:], "o", color=COLOURS[one.colour], markersize=3.5)
        plot.set(title=title, xlabel=x_label, ylabel=y_label)
        low, high = plot.dataLim.intervaly if np.isfinite(plot.dataLim.intervaly).all() else (0.0, 1.0)
        plot.set_ylim(min(0.0, low), 1.04 * high if high > 0 else 1.0)
        plot.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
        set_margins(figure)
        if len(series) > 1:
            _legend(figure, plot)
    lines = f"; lines: {', '.join(one.name for one in series)}" if len(series) > 1 else ""
    return Chart(name, f"{title}: {y_label} over {x_label}{lines}", figure)


def _legend(figure: Figure, plot: Axes) -> None:
    """The legend below the plots, in the order in which the series were given."""
    handles, labels = plot.get_legend_handles_labels()
    set_margins(figure, bottom=0.64)
    figure.legend(handles[::-1], labels[::-1], loc="lower left", ncols=4, columnspacing=0.8, borderpad=0.1)


def cmc_charts(rows: Sequence[Mapping[str, str]]) -> list[Chart]:
    """Of evaluation/cmc.csv: a chart for each direction, a line for each method."""
    charts = []
    for direction in dict.fromkeys(row["direction"] for row in rows):
        of: dict[str, list[tuple[float, float]]] = {method: [] for method in (*METHODS, RERANKED)}
        for row in rows:
            if row["direction"] == direction:
                of[row["method"]].append((float(row["rank"]), float(row["score"] or "nan")))
        series = [
            Series(METHOD_NAMES[method], METHOD_COLOURS[method], METHOD_DASHES[method], *np.transpose(points))
            for method, points in of.items()
            if points
        ]
        y_label = "queries with a match, %"
        chart = line_chart(f"cmc_{direction}", direction_name(direction), series, "rank", y_label, WIDE)
        chart.figure.axes[0].set(xlim=(1, 20.3), ylim=(0, 101))
        charts.append(chart)
    return charts


def open_set_charts(rows: Sequence[Mapping[str, str]]) -> list[Chart]:
    """Of evaluation/open_set.csv: FNIR by FPIR with its interval, a chart for each direction."""
    charts = []
    for direction in dict.fromkeys(row["direction"] for row in rows):
        names = ("fpir", "fnir", "low", "high")
        of = [[float(row[name]) for name in names] for row in rows if row["direction"] == direction]
        fpir, fnir, low, high = np.transpose(of)
        line = Series("FNIR", "trained", "-", fpir, fnir)
        title = direction_name(direction)
        chart = line_chart(f"open_set_{direction}", title, [line], "FPIR, wanted, %", "FNIR, %", WIDE)
        (plot,) = chart.figure.axes
        plot.fill_between(fpir, low, high, color=COLOURS["trained"], alpha=0.18, linewidth=0)
        ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if tick >= fpir[0]]
        plot.set(xscale="log", xlim=(fpir[0], 110), ylim=(0, 101))
        plot.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        plot.minorticks_off()
        charts.append(chart)
    return charts


LogRows = Sequence[Mapping[str, str]]  # of a log.csv

POINTS = 400  # at most in a line: more would be narrower than a pixel
PHASE_TITLES = {"prompts": "Stage 1: prompts", "integration": "Stage 1: integration"}
LOSS_STYLES = (("trained", "-"), ("hog", "--"))
GEM_AND_POOL = (("gem", "GeM"), ("pool", "attention pool"))
# Columns of models/embedding/log.csv: prefix -> its title, and what its columns are of.
EMBEDDING_TERMS = {
    "id": ("Stage 2: identity", GEM_AND_POOL),
    "triplet": ("Stage 2: triplet", GEM_AND_POOL),
    "msel": ("Stage 2: MSEL", GEM_AND_POOL),
    "hse": ("Stage 2: HSE", (("visible", "visible"), ("infrared", "infrared"))),
}


def loss_charts(prompts_log: LogRows, embedding_log: LogRows) -> list[Chart]:
    """One chart for each trained phase of stage 1, then stage 2's sum and its terms, over the steps."""
    charts = []
    for phase, title in PHASE_TITLES.items():
        if rows := [row for row in prompts_log if row["phase"] == phase]:
            charts.append(_loss_chart(phase, title, rows, {"loss": "loss"}))
    charts.append(_loss_chart("total", "Stage 2: sum of all terms", embedding_log, {"total": "total"}))
    for prefix, (title, parts) in EMBEDDING_TERMS.items():
        names = {f"{prefix}_{part}": name for part, name in parts}
        charts.append(_loss_chart(prefix, title, embedding_log, names))
    return charts


def _loss_chart(name: str, title: str, rows: LogRows, names: Mapping[str, str]) -> Chart:
    steps = [group[-1] for group in _groups(rows, "step")]
    series = [
        Series(label, colour, dashes, steps, [group.mean() for group in _groups(rows, column)])
        for (column, label), (colour, dashes) in zip(names.items(), LOSS_STYLES, strict=False)
    ]
    return line_chart(f"loss_{name}", title, series, "step", "loss", SMALL)


def _groups(rows: LogRows, column: str) -> list[np.ndarray]:
    """A column's values in at most POINTS groups of as many steps each."""
    size = max(1, -(-len(rows) // POINTS))
    values = np.array([float(row[column]) for row in rows])
    return [values[start : start + size] for start in range(0, len(values), size)]


# The feature space before and after training: distances, and some people in a plane.


def distance_charts(found: Mapping[str, Mapping[str, Pairs]]) -> list[Chart]:
    """A chart for each kind of pair (feature_space.pairs_by_kind); all charts have the same axes."""
    parts = [part for pairs in found.values() for p in pairs.values() for part in (p.same, p.other)]
    high = max((float(part.max()) for part in parts), default=1.0)
    tallest = max((float(_density(part, high).max()) for part in parts), default=1.0)
    return [
        _distance_chart(f"distances_{number}", kind, pairs, (high, tallest))
        for number, (kind, pairs) in enumerate(found.items(), 1)
    ]


BINS = 60


def _density(values: np.ndarray, high: float) -> np.ndarray:
    """Percent of the values in each of BINS bins from 0 to `high`."""
    return 100 * np.histogram(values, BINS, (0.0, high))[0] / max(1, len(values))


def _distance_chart(name: str, kind: str, pairs: Mapping[str, Pairs], ends: tuple[float, float]) -> Chart:
    """Histograms of one person's pairs and of two people's: before training, and below it after training."""
    high, tallest = ends
    edges = np.linspace(0, high, BINS + 1)
    parts = {"two people": ("chance", lambda of: of.other), "one person": ("trained", lambda of: of.same)}
    with style():
        figure = Figure((SMALL[0], 3.5))
        plots = figure.subplots(len(pairs), sharex=True, sharey=True)
        for plot, (method, of) in zip(plots, pairs.items(), strict=True):
            for label, (colour, values) in parts.items():
                heights, fill = _density(values(of), high), COLOURS[colour]
                plot.stairs(heights, edges, fill=True, color=fill, alpha=0.45, label=label)
            title = f"{METHOD_NAMES[method]}: separation {percent(100 * of.area())}"
            plot.set_title(title, fontweight="normal")
        plots[0].set(xlim=(0, high), ylim=(0, 1.04 * tallest), ylabel="pairs, %")
        plots[-1].set(xlabel="cosine distance", ylabel="pairs, %")
        figure.suptitle(kind, x=0.02, ha="left", fontsize=9.5, fontweight="bold")
        _legend(figure, plots[0])
        set_margins(figure, bottom=0.64, top=0.52)
    areas = ", ".join(f"{METHOD_NAMES[method]} {percent(100 * of.area())}" for method, of in pairs.items())
    return Chart(name, f"{kind}: histograms of cosine distances; separation: {areas}", figure)


def plane_charts(planes: Sequence[Plane], people: Sequence[str]) -> list[Chart]:
    """Images in the plane of their first two principal components, with the same scale on both axes."""
    return [_plane_chart(plane, people) for plane in planes]


def _plane_chart(plane: Plane, people: Sequence[str]) -> Chart:
    with style():
        figure = Figure((WIDE[0], 3.5))
        plot = figure.subplots()
        for person in range(len(people)):
            _draw_person(plot, plane, person)
        first, second = (f"{100 * value:.0f} % of the variance" for value in plane.explained)
        title = f"{plane.title}  (● visible, △ infrared)"
        plot.set(title=title, xlabel=first, ylabel=second, xticks=[], yticks=[])
        plot.set_aspect("equal", adjustable="datalim")
        set_margins(figure, left=0.3, bottom=0.3)
    label = f"{plane.title}: images of {len(people)} people in the plane of two principal components"
    return Chart(f"embedding2d_{plane.method}", label, figure, people)


def _draw_person(plot: Axes, plane: Plane, person: int) -> None:
    """Dots, triangles, and from the mean of the dots, with the person's number, a line to the triangles'."""
    colour = COLOURS[PEOPLE[person]]
    visible, infrared = plane.images_of(person)
    x, y = visible.T
    plot.scatter(x, y, s=20, marker="o", color=colour, linewidths=0, label=str(person + 1))
    x, y = infrared.T
    plot.scatter(x, y, s=20, marker="^", facecolors="none", edgecolors=colour, linewidths=1)
    means = np.stack([visible.mean(axis=0), infrared.mean(axis=0)])
    plot.plot(*means.T, color=colour, linewidth=1.3)
    box = {"boxstyle": "circle,pad=0.2", "facecolor": colour, "edgecolor": COLOURS["card"]}
    plot.text(
        means[0, 0],
        means[0, 1],
        str(person + 1),
        bbox=box,
        color=COLOURS["card"],
        fontweight="bold",
        fontsize=8,
        ha="center",
        va="center",
    )


# Bars and heat maps.


def naming_charts(naming: Mapping[str, float]) -> list[Chart]:
    """For each modality: percent of its training images whose most similar text is that of their person.

    No chart if stage 1 had no images: training started from a champion and there were no new identities.
    """
    if naming.get("new_people") == 0:
        return []
    return [_naming_chart(str(modality), naming) for modality in MODALITIES]


def _naming_chart(modality: str, naming: Mapping[str, float]) -> Chart:
    values = {text: naming[f"{text}_names_{modality}"] for text in reversed(TEXTS)}
    title = f"{modality.capitalize()} images"
    with style():
        figure = Figure((WIDE[0], 1.55))
        plot = figure.subplots()
        colours = [COLOURS[TEXT_COLOURS[text]] for text in values]
        bars = plot.barh([TEXTS[text] for text in values], list(values.values()), color=colours, height=0.65)
        plot.bar_label(bars, [percent(value) for value in values.values()], padding=3)
        plot.set(title=title, xlim=(0, 116), xticks=range(0, 101, 20), xlabel="named right, %")
        plot.tick_params("y", labelcolor=COLOURS["ink"], length=0)
        plot.grid(False, axis="y")
        set_margins(figure, left=1.0)
    said = ", ".join(f"{TEXTS[text]} {percent(value)}" for text, value in reversed(values.items()))
    return Chart(f"naming_{modality}", f"{title} named right: {said}", figure)


def camera_pairs_chart(grid: CameraGrid) -> Chart:
    """The heat map of a grid of camera pairs, for a PNG; the page has the grid as a table."""
    largest = max(len(grid.across), len(grid.down))
    cell = min(0.6, 12 / largest)  # inches
    values = np.array([[cell.rank1 if cell else np.nan for cell in row] for row in grid.cells])
    with style():
        figure = Figure((max(1.5, cell * len(grid.across)) + 1.9, cell * len(grid.down) + 1.8))
        plot = figure.subplots()
        plot.imshow(values, cmap="Blues", vmin=0, vmax=max(float(np.nanmax(values, initial=0)), 1) * 1.6)
        for (row, column), value in np.ndenumerate(values):
            text = "–" if np.isnan(value) else f"{value:.0f}"
            plot.text(column, row, text, ha="center", va="center", fontsize=8.5 if largest < 12 else 6)
        plot.set_xticks(range(len(grid.across)), map(_short, grid.across), rotation=45, ha="right")
        plot.set_yticks(range(len(grid.down)), map(_short, grid.down))
        plot.set(title=grid.name, xlabel="gallery camera, rank-1 in %", ylabel="query camera")
        plot.grid(False)
        set_margins(figure, left=1.6, right=0.3, bottom=1.5)
    return Chart(f"camera_pairs_{grid.direction}", grid.name, figure)
