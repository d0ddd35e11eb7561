"""The report's charts, tables and planes: geometry and figures worked by hand."""

import base64
import io

import numpy as np
import pytest
from make_images import encoded, pixels
from PIL import Image

from csdn.data.catalog import SampleTable
from csdn.report.charts import (
    CAMERAS,
    POINTS,
    Curves,
    Series,
    camera_grids,
    line_chart,
    loss_curves,
    pairs_by_rank1,
    share,
    tick_label,
    ticks,
)
from csdn.report.distances import Pairs, distance_panels, image_pairs
from csdn.report.images import data_uri
from csdn.report.projection import Plane, chosen_images, principal_plane, scatter, share_between
from csdn.report.text_overlays import STRONGEST, TEXT, heat, map_words


def table_of(labels, modality):
    """A table in which only labels and modalities matter."""
    labels, modality = np.array(labels), np.array(modality, np.int8)
    blank = np.zeros(len(labels), np.int64)
    keys = np.array([f"key {n}" for n in range(len(labels))])
    return SampleTable(blank, ["s"], blank, blank, blank, labels, labels, modality, blank, ["c"], keys, keys)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 87, [0, 20, 40, 60, 80]),
        (1, 20, [5, 10, 15, 20]),
        (-0.3, 0.3, [-0.3, -0.2, -0.1, 0, 0.1, 0.2, 0.3]),
    ],
)
def test_ticks_are_round_values_within_the_axis(low, high, expected):
    assert ticks(low, high) == expected


def test_tick_labels_are_short():
    assert [tick_label(value) for value in (0.0, 0.25, 500.0, 12000.0)] == ["0", "0.25", "500", "12k"]


def test_a_share_of_nothing_is_nothing():
    assert share(1, 3) == 33.33
    assert share(0, 0) == 0.0


def test_chart_keeps_to_its_axes_and_leaves_out_what_is_no_number():
    curves = Curves("t", [Series("a", "s", [0, 1, 2, 3], [4, float("nan"), float("inf"), 2])], "x", "y")
    chart = line_chart(curves)
    points = [tuple(map(float, point.split(","))) for point in chart.lines[0].points.split()]
    assert points == [(chart.left, 12.0), (chart.right, (12.0 + chart.bottom) / 2)]


def test_chart_of_one_point_or_of_none_has_axes():
    for xs, ys in (([1], [5]), ([], [])):
        chart = line_chart(Curves("t", [Series("a", "s", xs, ys)], "x", "y"))
        assert chart.x_ticks and chart.y_ticks
        assert len(chart.lines) == len(xs)


def test_charts_with_one_top_have_one_scale():
    low, high = (Curves("t", [Series("a", "s", [0, 1], [0, top])], "x", "y", y_high=8.0) for top in (4, 8))
    assert [tick.at for tick in line_chart(low).y_ticks] == [tick.at for tick in line_chart(high).y_ticks]
    assert line_chart(low).lines[0].last[1] > line_chart(high).lines[0].last[1]


def test_a_long_log_becomes_means_of_as_many_steps_each():
    rows = [{"phase": "prompts", "step": str(n + 1), "loss": str(n % 2)} for n in range(2 * POINTS)]
    terms = "total,id_gem,id_pool,triplet_gem,triplet_pool,msel_gem,msel_pool,hse_visible,hse_infrared"
    embedding = [{"step": "1", **dict.fromkeys(terms.split(","), "3")}]
    first, *others = loss_curves(rows, embedding)
    assert list(first.series[0].xs) == list(range(2, 2 * POINTS + 1, 2))
    assert set(first.series[0].ys) == {0.5}
    assert [curves.title[:7] for curves in others] == ["Stage 2"] * 5


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


def test_panels_leave_out_what_has_no_pair_of_both_kinds():
    features = dict.fromkeys(("trained", "clip"), np.eye(4))
    panels = distance_panels(features, table_of([0, 0, 1, 1], [0, 1, 0, 1]))
    assert [panel.kind for panel in panels] == ["Visible – infrared"]  # one image of each person and modality
    assert panels[0].areas == {"clip": 0.5, "trained": 0.5}
    assert distance_panels(features, table_of([0, 0, 0, 0], [0, 1, 0, 1])) == []


def test_panels_have_the_same_axes():
    draws = np.random.default_rng(0)
    features = {"clip": draws.random((12, 3)), "trained": draws.standard_normal((12, 3))}
    panels = distance_panels(features, table_of([0] * 6 + [1] * 6, [0, 1] * 6))
    assert len({curves.ranges() for panel in panels for curves in panel.curves}) == 1
    for curves in (curves for panel in panels for curves in panel.curves):
        assert all(sum(series.ys) == pytest.approx(100) for series in curves.series)


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


def test_scatter_has_one_scale_for_both_axes_and_keeps_inside():
    points = np.array([[-2.0, 0], [2, 0], [0, 1], [0, -1]])
    shown = scatter(Plane("t", points, np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]), (0.6, 0.3), 0, 0))
    left, right, up, down = shown.marks
    assert (right.x - left.x) == pytest.approx(2 * (down.y - up.y))
    assert all(0 < mark.x < shown.width and 0 < mark.y < shown.height for mark in shown.marks)
    assert [mark.infrared for mark in shown.marks] == [False, True, False, True]
    assert (shown.links[0].x1, shown.links[0].x2) == (left.x, right.x)
    assert shown.explained == ("60", "30")


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
