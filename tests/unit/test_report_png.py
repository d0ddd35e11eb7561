"""The figures as PNG files, where names are anybody's and data is scarce."""

import warnings

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from csdn.report.charts import Curves, Series, camera_grids, naming_bars
from csdn.report.png import Drawn, lines, numbered, write_pngs
from csdn.report.projection import Plane

NAMING = {f"{t}_names_{m}": 50.0 for t in ("visible", "infrared", "fused") for m in ("visible", "infrared")}
STRANGE = "$\\frac{ 入口 <b>"  # mathematics without an end, a script that the font lacks


def drawn(**changes):
    curves = Curves("t", [Series("a", "trained", [1, 2], [3, float("nan")])], "x", "y")
    row = {"direction": "a_to_b", "query_camera": STRANGE, "gallery_camera": STRANGE, "queries": "3"}
    plane = Plane("t", np.zeros((4, 2)), np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]), (0.5, 0.2), 0.1, 0.1)
    values = {
        "cmc": [curves],
        "losses": [curves],
        "distances": [],
        "grids": camera_grids([row | {"rank1": "", "mAP": ""}]),
        "naming": naming_bars(NAMING),
        "planes": [plane],
        "people": [STRANGE, "b" * 100],
    }
    return Drawn(**values | changes)


def test_strange_names_are_drawn_as_they_are_without_a_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        names = write_pngs(drawn(), tmp_path / "figures")
    assert names == ["cmc", "losses", "camera_pairs", "naming", "embedding2d"]
    for name in names:
        with Image.open(tmp_path / "figures" / f"{name}.png") as image:
            assert image.text == {}  # no date, no version
            assert len(image.getcolors(1 << 24)) > 2


def test_a_person_s_number_stands_before_a_name_of_any_script():
    latin, hebrew, turned = (drawn_text(numbered(7, name)) for name in ("ab", "אב", "\u202eab\u2069"))
    assert latin[:, :9].any()  # the number
    assert np.array_equal(latin[:, :9], hebrew[:, :9]) and np.array_equal(latin[:, :9], turned[:, :9])
    assert not np.array_equal(latin, hebrew)


def drawn_text(text):
    """Which pixels of a picture a text covers that begins at its left edge."""
    figure = Figure(figsize=(2, 0.3), dpi=100)
    figure.text(0, 0.3, text)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, 0] < 200


def test_what_has_nothing_to_show_has_no_file(tmp_path):
    names = write_pngs(drawn(planes=[], people=[], grids=[]), tmp_path / "figures")
    assert (
        sorted(path.stem for path in (tmp_path / "figures").iterdir())
        == sorted(names)
        == ["cmc", "losses", "naming"]
    )


def test_a_rank_is_a_whole_number():
    cmc = Curves("t", [Series("a", "trained", range(1, 11), range(10))], "rank", "y")
    (plot,) = lines([cmc], columns=1).axes
    assert [label.get_text() for label in plot.get_xticklabels()] == ["2", "4", "6", "8", "10"]
