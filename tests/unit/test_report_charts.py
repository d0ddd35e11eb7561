"""The report's charts, tables and planes: figures worked by hand, and charts in which no name can do harm."""

import base64
import io
import re
import warnings
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from make_images import encoded, pixels
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from csdn.data.catalog import SampleTable
from csdn.report.charts import (
    POINTS,
    SMALL,
    Series,
    camera_pairs_chart,
    distance_charts,
    line_chart,
    loss_charts,
    naming_charts,
    numbered,
    plane_charts,
    svg,
    write_charts,
    write_png,
)
from csdn.report.feature_space import (
    Pairs,
    Plane,
    chosen_images,
    image_pairs,
    pairs_by_kind,
    principal_plane,
    share_between,
)
from csdn.report.images import STRONGEST, TEXT, data_uri, heat, map_words
from csdn.report.tables import CAMERAS, camera_grids, pairs_by_rank1, share

NAMING = {f"{t}_names_{m}": 50.0 for t in ("visible", "infrared", "fused") for m in ("visible", "infrared")}
STRANGE = '$\\frac{ 入口 <b>"&'  # mathematics without an end, a script that the font lacks, markup


def table_of(labels, modality):
    """A table in which only labels and modalities matter."""
    labels, modality = np.array(labels), np.array(modality, np.int8)
    blank = np.zeros(len(labels), np.int64)
    keys = np.zeros(len(labels), "V32")
    return SampleTable(blank, ["s"], blank, blank, blank, labels, labels, modality, blank, ["c"], keys)


def test_a_share_of_nothing_is_nothing():
    assert share(1, 3) == 33.33
    assert share(0, 0) == 0.0


def chart_of(*series, name="t", title="t"):
    lines = [Series(label, "trained", "-", xs, ys) for label, xs, ys in series]
    return line_chart(name, title, lines, "step", "loss", SMALL)


def test_a_chart_leaves_out_what_is_no_number():
    chart = chart_of(("a", [0, 1, 2, 3], [4, float("nan"), float("inf"), 2]))
    line, last = chart.figure.axes[0].lines
    assert line.get_xydata().tolist() == [[0, 4], [3, 2]] and last.get_xydata().tolist() == [[3, 2]]
    assert chart.figure.axes[0].get_ylim() == (0, pytest.approx(4.16))


def test_a_chart_of_one_point_or_of_none_is_drawn():
    for xs, ys in (([1], [5]), ([], []), ([1], [0])):
        assert "<path" in svg(chart_of(("a", xs, ys)))


def test_a_step_is_a_whole_number():
    (plot,) = chart_of(("a", range(1, 4), range(3))).figure.axes
    assert all(tick == int(tick) for tick in plot.get_xticks())


def test_a_long_log_becomes_means_of_as_many_steps_each():
    rows = [{"phase": "prompts", "step": str(n + 1), "loss": str(n % 2)} for n in range(2 * POINTS)]
    terms = "total,id_gem,id_pool,triplet_gem,triplet_pool,msel_gem,msel_pool,hse_visible,hse_infrared"
    embedding = [{"step": "1", **dict.fromkeys(terms.split(","), "3")}]
    first, *others = loss_charts(rows, embedding)
    line = first.figure.axes[0].lines[0]
    assert line.get_xdata().tolist() == list(range(2, 2 * POINTS + 1, 2))
    assert set(line.get_ydata()) == {0.5}
    assert [chart.label[:7] for chart in others] == ["Stage 2"] * 5


def test_a_chart_is_an_element_of_the_page_in_the_pages_colours():
    text = svg(chart_of((STRANGE, [1, 2], [1, 2]), ("b", [1], [1]), title=STRANGE))
    root = ET.fromstring(text.replace("xlink:", ""))  # markup that is well formed
    assert root.get("role") == "img" and STRANGE in root.get("aria-label")
    assert STRANGE in [element.text for element in root.iter("text")]
    assert "stroke: var(--trained)" in text and not re.search("(fill|stroke): #", text)
    assert not re.search("<metadata|<script|<style|<image|<!", text)


def test_ids_of_two_charts_differ_and_the_same_data_gives_the_same_bytes():
    one, again, other = (svg(chart_of(("a", [1, 2], [1, 2]), name=name)) for name in ("one", "one", "other"))
    assert one == again
    ids = [re.findall(r' id="([^"]+)"', text) for text in (one, other)]
    assert ids[0] and not set(ids[0]) & set(ids[1])
    assert set(re.findall(r'(?:#)([\w]+)[)"]', one)) <= set(ids[0])


def test_strange_names_are_drawn_as_they_are_without_a_warning(tmp_path):
    row = {"direction": "a_to_b", "query_camera": STRANGE, "gallery_camera": STRANGE, "queries": "3"}
    (grid,) = camera_grids([row | {"rank1": "", "mAP": ""}])
    points = np.array([[-2.0, 0], [2, 0], [0, 1], [0, -1]])
    plane = Plane("clip", points, np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]), (0.5, 0.2), 0.1, 0.1)
    charts = [*plane_charts([plane], [STRANGE, "b" * 100]), *naming_charts(NAMING)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shown = write_charts(charts, tmp_path)
        write_png(camera_pairs_chart(grid), tmp_path)
    assert STRANGE[:5] not in shown[0].svg  # the page names people in HTML
    assert len(list(tmp_path.iterdir())) == 4
    for path in tmp_path.iterdir():
        with Image.open(path) as image:
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


def test_area_is_the_share_of_right_orders():
    # One person: 0.1, 0.5. Two people: 0.9, 0.5. Of four comparisons three are right and one is a tie.
    assert Pairs(np.array([0.1, 0.5]), np.array([0.9, 0.5])).area() == pytest.approx(3.5 / 4)


def test_pairs_within_a_modality_count_once_and_never_an_image_with_itself():
    # Three visible images of two people at right angles or the same direction, one infrared image.
    features = np.array([[1.0, 0], [2, 0], [0, 1], [-1, 0]])
    table = table_of([0, 0, 1, 0], [0, 0, 0, 1])
    within = image_pairs(features, table, "visible", "visible")
    assert within.same.tolist() == [0.0]
    assert within.other.tolist() == [1.0, 1.0]
    across = image_pairs(features, table, "visible", "infrared")
    assert across.same.tolist() == [2.0, 2.0]
    assert across.other.tolist() == [1.0]


def test_kinds_without_a_pair_of_one_person_and_of_two_are_left_out():
    features = dict.fromkeys(("trained", "clip"), np.eye(4))
    found = pairs_by_kind(features, table_of([0, 0, 1, 1], [0, 1, 0, 1]))
    assert list(found) == ["Visible – infrared"]  # one image of each person and modality
    assert {method: pairs.area() for method, pairs in found["Visible – infrared"].items()} == {
        "clip": 0.5,
        "trained": 0.5,
    }
    assert pairs_by_kind(features, table_of([0, 0, 0, 0], [0, 1, 0, 1])) == {}


def test_histograms_have_the_same_axes_and_hold_all_pairs():
    draws = np.random.default_rng(0)
    features = {"clip": draws.random((12, 3)), "trained": draws.standard_normal((12, 3))}
    charts = distance_charts(pairs_by_kind(features, table_of([0] * 6 + [1] * 6, [0, 1] * 6)))
    plots = [plot for chart in charts for plot in chart.figure.axes]
    assert len(plots) == 6
    assert len({(plot.get_xlim(), plot.get_ylim()) for plot in plots}) == 1
    for histogram in (histogram for plot in plots for histogram in plot.patches):
        assert histogram.get_data().values.sum() == pytest.approx(100)


def pair(query, gallery, rank1, queries="30"):
    return {
        "direction": "infrared_to_visible",
        "query_camera": query,
        "gallery_camera": gallery,
        "queries": queries,
        "rank1": rank1,
        "mAP": rank1,
    }


def test_camera_grid_shades_by_the_best_and_leaves_open_what_was_not_searched():
    (grid,) = camera_grids(
        [pair("a", "x", "20.0"), pair("a", "y", ""), pair("b", "x", "40.0", "1"), pair("b", "y", "0.0")]
    )
    assert (grid.down, grid.across) == (["a", "b"], ["x", "y"])
    assert [cell.share if cell else None for row in grid.cells for cell in row] == [50.0, None, 100.0, 0.0]
    assert "1 query" in grid.cells[1][0].title
    assert grid.roomy and not grid.left_out


def test_camera_grid_of_hundreds_shows_some_and_says_so():
    cameras = [f"c{n:03d}" for n in range(CAMERAS + 5)]
    (grid,) = camera_grids([pair(query, gallery, "1.0") for query in cameras for gallery in cameras])
    assert len(grid.cells) == len(grid.cells[0]) == CAMERAS
    assert grid.left_out == 10
    assert not grid.roomy


def test_pairs_are_ordered_by_rank1_and_small_ones_left_out():
    rows = [pair("a", "x", "20.0"), pair("b", "x", "5.0"), pair("c", "x", "1.0", "3"), pair("d", "x", "")]
    assert [row["query_camera"] for row in pairs_by_rank1(rows, 20)] == ["b", "a"]


def test_principal_plane_of_a_line_is_its_length_and_nothing():
    points, explained = principal_plane(np.array([[0.0, 0, 0], [3, 4, 0], [6, 8, 0]]))
    np.testing.assert_allclose(np.abs(points), [[5, 0], [0, 0], [5, 0]], atol=1e-9)
    assert explained == pytest.approx((1.0, 0.0))
    assert points[np.abs(points[:, 0]).argmax(), 0] > 0  # the sign is fixed


def test_principal_plane_keeps_the_distances_of_what_is_flat():
    flat = np.random.default_rng(0).standard_normal((6, 2)) @ np.array([[1.0, 2, 0], [0, 1, -1]])
    points, explained = principal_plane(flat)
    before, after = (np.linalg.norm(x[:, None] - x, axis=2) for x in (flat, points))
    np.testing.assert_allclose(before, after, atol=1e-9)
    assert sum(explained) == pytest.approx(1.0)


def test_share_between_groups():
    values = np.array([[0.0], [2], [4], [6]])  # means 1 and 5 around 3: 16 of 20
    assert share_between(values, np.array([0, 0, 1, 1])) == pytest.approx(16 / 20)
    assert share_between(values, np.arange(4)) == 1.0
    assert share_between(np.ones((3, 2)), np.array([0, 1, 1])) == 0.0


def test_plane_shows_evenly_chosen_people_who_have_both_modalities():
    labels = [0, 0, 1, *np.repeat(range(2, 25), 2)]
    rows = chosen_images(table_of(labels, [0, 1, 0, *[0, 1] * 23]))
    shown = np.unique(np.array(labels)[rows])
    assert len(shown) == 10
    assert 1 not in shown and {0, 24} <= set(shown)
    assert len(chosen_images(table_of([0, 1], [0, 1]))) == 0


def decoded(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_heat_is_clear_up_to_zero_and_strongest_at_one():
    image = np.asarray(decoded(heat(np.array([[-1.0, 0.0], [0.5, 1.0]]), TEXT)))
    assert image.shape == (2, 2, 4)
    assert image[..., 3].tolist() == [[0, 0], [round(255 * STRONGEST / 2), round(255 * STRONGEST)]]
    assert tuple(image[1, 1, :3]) == TEXT


def test_words_on_maps_state_shares_and_correlation():
    # Two images of two cells: by place 1 and -1, nothing else.
    margin = np.array([[[1.0, -1.0]], [[1.0, -1.0]]])
    said = " ".join(map_words(margin, margin + 3)).replace("\N{NO-BREAK SPACE}", " ")
    assert said.startswith("50 % of the cells shown agree more")
    assert "100 % of the variance" in said
    assert said.endswith("is 1.00.")
    assert len(map_words(margin[:1, :, :1], margin[:1, :, :1])) == 1  # one cell of one image


def test_large_pictures_are_reduced_and_small_ones_are_not():
    for height, shown in ((320, (72, 144)), (64, (32, 64))):
        assert decoded(data_uri(encoded(pixels("any", height, height // 2)), "png")).size == shown
