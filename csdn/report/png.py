"""The page's figures as PNG files, for slides and for other pages, from the same data, with matplotlib.

Figures are drawn without pyplot, so they depend neither on a display nor on the user's backend. The files
have no date or version: the same data gives the same bytes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from csdn.report.charts import Curves, Grid, NamingBars, tick_label, ticks
from csdn.report.distances import Panel
from csdn.report.projection import Plane
from csdn.runtime.sanitize import escape_control_chars

DPI = 120
MARGINS = (0.55, 0.15, 0.5, 0.35)  # left, right, bottom, top of a plot, inches
INK, MUTED, LINE = "#1c1d21", "#64656d", "#e3e1db"
# Colour and dashes by style, as in style.css.j2's light scheme.
STYLES = {
    "trained": ("#3547d1", "-"),
    "clip": ("#0b8580", "-."),
    "hog": ("#b86f00", "--"),
    "chance": ("#8d8e97", ":"),
    "first": ("#3547d1", "-"),
    "second": ("#b86f00", "--"),
    "same": ("#3547d1", "-"),
    "other": ("#8d8e97", "-"),
}
TEXT_COLOURS = {"visible": "#b86f00", "infrared": "#a3476b", "fused": "#3547d1"}
PEOPLE = (
    *("#3547d1", "#c8402c", "#14804a", "#b86f00", "#8a3ffc"),
    *("#007d9c", "#c2185b", "#6b7a00", "#6d4c41", "#5b6270"),
)
RC = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "text.parse_math": False,  # names come from outside: "$" in a name is a dollar sign
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Drawn:
    """The data of the figures that are on the page and in PNG files."""

    cmc: list[Curves]
    losses: list[Curves]
    distances: list[Panel]
    grids: list[Grid]
    naming: list[NamingBars]
    planes: list[Plane]
    people: list[str]  # of the planes


def write_pngs(drawn: Drawn, folder: Path) -> list[str]:
    """Write a PNG of each figure that has data; returns the file names without the extension."""
    panels = [curves for panel in drawn.distances for curves in panel.curves]
    kinds = [panel.kind for panel in drawn.distances for _ in panel.curves]
    figures: dict[str, tuple[Sequence[object], Callable[[], Figure]]] = {
        "cmc": (drawn.cmc, lambda: lines(drawn.cmc, columns=2)),
        "losses": (drawn.losses, lambda: lines(drawn.losses, columns=4)),
        "distances": (panels, lambda: lines(panels, columns=2, titles=kinds)),
        "camera_pairs": (drawn.grids, lambda: heat_maps(drawn.grids)),
        "naming": (drawn.naming, lambda: naming(drawn.naming)),
        "embedding2d": (drawn.planes, lambda: scatters(drawn.planes, drawn.people)),
    }
    folder.mkdir()
    with _settings():
        for name, (shown, draw) in figures.items():
            if shown:
                _save(draw(), folder / f"{name}.png")
    return [name for name, (shown, _) in figures.items() if shown]


def lines(charts: Sequence[Curves], columns: int, titles: Sequence[str] = ()) -> Figure:
    """Charts in rows of `columns`; each of `titles` precedes a chart's own title."""
    rows = -(-len(charts) // columns)
    figure, axes = _grid(rows, columns, (3.2 if columns == 2 else 2.2, 1.8))
    for number, (curves, plot) in enumerate(zip(charts, axes, strict=False)):
        (x_range, y_range) = curves.ranges()
        for series in reversed(curves.series):
            colour, dashes = STYLES[series.style]
            plot.plot(series.xs, series.ys, dashes, color=colour, label=series.name, linewidth=1.7)
            if series.filled:
                plot.fill_between(series.xs, series.ys, color=colour, alpha=0.25, linewidth=0)
        title = f"{titles[number]}: {curves.title}" if titles else curves.title
        plot.set(title=title, xlabel=curves.x_label, ylabel=curves.y_label, xlim=x_range)
        plot.set_ylim(y_range[0], y_range[1] * 1.04)
        marks = ticks(*x_range)  # as on the page
        plot.set_xticks(marks, map(tick_label, marks))
        if len(curves.series) > 1:
            handles, labels = plot.get_legend_handles_labels()
            plot.legend(handles[::-1], labels[::-1], fontsize=8)
    for plot in axes[len(charts) :]:
        plot.set_axis_off()
    return figure


def heat_maps(grids: Sequence[Grid]) -> Figure:
    """Rank-1 of each pair of cameras, percent."""
    largest = max(max(len(grid.across), len(grid.down)) for grid in grids)
    side = min(12.0, max(2.6, 0.4 * largest))
    figure, axes = _grid(1, len(grids), (side, side), (1.6, 0.3, 1.4, 0.35))
    for grid, plot in zip(grids, axes, strict=True):
        values = np.array([[cell.rank1 if cell else np.nan for cell in row] for row in grid.cells])
        plot.imshow(values, cmap="Blues", vmin=0, vmax=max(float(np.nanmax(values, initial=0)), 1) * 1.6)
        for (row, column), value in np.ndenumerate(values):
            text = "–" if np.isnan(value) else f"{value:.0f}"
            plot.text(column, row, text, ha="center", va="center", fontsize=9 if largest < 12 else 6)
        plot.set_xticks(range(len(grid.across)), map(_short, grid.across), rotation=45, ha="right")
        plot.set_yticks(range(len(grid.down)), map(_short, grid.down))
        plot.set(title=grid.name, xlabel="gallery camera, rank-1 in %", ylabel="query camera")
        plot.grid(False)
    return figure


def naming(bars: Sequence[NamingBars]) -> Figure:
    """Images named by each text, percent."""
    figure, axes = _grid(1, len(bars), (2.8, 1.3), (1.1, 0.15, 0.5, 0.35))
    for one, plot in zip(bars, axes, strict=True):
        for y, (text, name, value, label) in enumerate(reversed(one.rows)):
            plot.barh(y, value, color=TEXT_COLOURS[text], height=0.65)
            plot.text(value + 1, y, label, va="center")
            plot.text(-2, y, name, va="center", ha="right")
        plot.set(title=one.modality, xlim=(0, 112), xlabel="named right, %", yticks=[])
    return figure


def scatters(planes: Sequence[Plane], people: Sequence[str]) -> Figure:
    """Images in the plane of their first two principal components."""
    figure, axes = _grid(1, len(planes), (4.2, 3.8), (0.3, 0.8, 0.6, 0.35))
    for plane, plot in zip(planes, axes, strict=True):
        for person, name in enumerate(people):
            _person(plot, plane, person, numbered(person + 1, name))
        first, second = (f"{100 * value:.0f} % of the variance" for value in plane.explained)
        plot.set(title=plane.title, xlabel=first, ylabel=second)
        plot.set_aspect("equal", adjustable="datalim")
        plot.set_xticks([])
        plot.set_yticks([])
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=5, fontsize=8)
    axes[-1].set_title(
        "filled circle: visible, open triangle: infrared", loc="right", fontsize=8, weight="normal"
    )
    return figure


def _person(plot: Axes, plane: Plane, person: int, label: str) -> None:
    colour = PEOPLE[person]
    visible, infrared = plane.images_of(person)
    plot.scatter(*visible.T, s=22, marker="o", color=colour, label=label)
    plot.scatter(*infrared.T, s=22, marker="^", facecolors="none", edgecolors=colour)
    means = np.stack([visible.mean(axis=0), infrared.mean(axis=0)])
    plot.plot(*means.T, color=colour, linewidth=1)
    number = plot.text(*means[0], str(person + 1), color=colour, fontweight="bold", ha="center", va="center")
    number.set_path_effects([withStroke(linewidth=2.5, foreground="white")])


def _grid(
    rows: int,
    columns: int,
    size: tuple[float, float],
    margins: tuple[float, float, float, float] = MARGINS,
) -> tuple[Figure, list[Axes]]:
    """Plots of `size` inches with fixed margins: a layout engine would draw everything twice."""
    left, right, bottom, top = margins
    width, height = columns * (left + size[0] + right), rows * (bottom + size[1] + top)
    figure = Figure(figsize=(width, height), dpi=DPI)
    figure.subplots_adjust(
        left=left / width,
        right=1 - right / width,
        bottom=bottom / height,
        top=1 - top / height,
        wspace=(left + right) / size[0],
        hspace=(bottom + top) / size[1],
    )
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def numbered(number: int, name: str) -> str:
    """Number and name, in this order in every script: a left-to-right mark first, the name isolated."""
    return f"\u200e{number}  \u2068{_short(name)}\u2069"


def _short(name: str, length: int = 16) -> str:
    name = escape_control_chars(name)
    return name if len(name) <= length else f"{name[: length - 1]}…"


@contextmanager
def _settings() -> Iterator[None]:
    """The style of the figures; no warnings about characters that the font lacks (drawn as boxes)."""
    with matplotlib.rc_context(RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure).print_png(path, metadata={"Software": None})
