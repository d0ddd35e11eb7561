"""The report: one file, offline, nobody's name can write into it, and it says no more than the numbers do."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from make_images import Project, encoded, jpeg, pixels, write
from PIL import Image

from csdn.data.dataset import load_dataset
from csdn.errors import UserError
from csdn.evaluation.job import prepare
from csdn.evaluation.results import evaluate, write_results
from csdn.evaluation.scores import feature_distances
from csdn.params import load_params
from csdn.report import words
from csdn.report.figures import Series, line_chart, tick_label, ticks
from csdn.report.page import write_report
from csdn.report.pictures import data_uri
from csdn.report.ranked_lists import spread_out
from csdn.report.similarity import Pairs

PARAMS = Path(__file__).parents[1] / "params.yaml"
HOSTILE = "<script>alert(1)</script>"
TAGS = ("link", "script", "iframe", "object", "embed", "form", "base")


def make_project(root):
    """A project as the stages leave it, of people and cameras whose names are HTML; features are random."""
    project = Project(root)
    rows = ["path,person,modality,camera"]
    for person in range(10):
        for modality in ("visible", "infrared"):
            for number in range(2):
                path = f"{modality}-{person}-{number}.jpg"
                write(root / "drop" / path, jpeg(path))
                rows.append(f"{path},{HOSTILE} {person},{modality},<b>{modality}</b>")
    write(root / "drop" / "<img src=x onerror=alert(2)>.jpg", b"")
    rows.append(f'<img src=x onerror=alert(2)>.jpg,"{HOSTILE}",visible,<i>cam</i>')
    write(root / "drop" / "manifest.csv", "\n".join(rows).encode())
    project.add(root / "drop")
    project.ingest(test_percent=50, max_bad_fraction=0.5)
    experiment = prepare(load_dataset(project.data), "cameras", trials=2)
    draws = np.random.default_rng(0)
    features = {m: draws.random((len(experiment.table), 4), np.float32) for m in ("trained", "clip", "hog")}
    methods = {name: feature_distances(found) for name, found in features.items()}
    results = evaluate(experiment, methods, seed=0)
    write_results(results, features, root / "evaluation")
    modalities = ("visible", "infrared")
    texts = {f"{text}_names_{m}": 50.0 for text in (*modalities, "fused") for m in modalities}
    model = {"model": {"clip": "RN50", "clip_sha256": "ab"}}
    write(root / "metrics" / "evaluation.json", json.dumps(results.figures).encode())
    write(root / "metrics" / "prompts.json", json.dumps(texts).encode())
    terms = "total,id_gem,id_pool,triplet_gem,triplet_pool,msel_gem,msel_pool,hse_visible,hse_infrared"
    write(root / "models/embedding/log.csv", f"epoch,step,{terms}\n0,1{',2' * 9}\n0,2{',1' * 9}\n".encode())
    write(
        root / "models/embedding/config.json",
        json.dumps(model).encode(),
    )
    log = "phase,epoch,step,loss\nprompts,0,1,9\nprompts,0,2,8\nintegration,0,1,5\n"
    write(root / "models/prompts/log.csv", log.encode())
    return root


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def page(project):
    return write_report(load_params(PARAMS), project, project / "report").read_text(encoding="utf-8")


class Elements(HTMLParser):
    """Every start tag of a page with its attributes, and its text."""

    def __init__(self, page):
        super().__init__()
        self.found, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def test_names_from_files_are_text_and_never_elements(page):
    elements = Elements(page)
    assert HOSTILE in elements.text
    assert "<img src=x onerror=alert(2)>.jpg" in elements.text
    assert HOSTILE not in page
    assert not [tag for tag, _ in elements.found if tag in TAGS]
    assert not [name for _, attributes in elements.found for name in attributes if name.startswith("on")]


def test_page_asks_nobody_for_anything(page):
    for tag, attributes in Elements(page).found:
        for name in ("src", "href", "data", "poster", "srcset"):
            if name in attributes:
                assert attributes[name].startswith(("data:image/jpeg;base64,", "#")), (
                    tag,
                    attributes[name][:80],
                )
    assert "@import" not in page
    assert not re.search(r"url\s*\(", page)


def test_page_shows_every_part(page):
    text = Elements(page).text
    for part in ("Figures", "Ranked lists", "Camera by camera", "Training", "Quarantine", "Parameters"):
        assert part in text
    for method in words.METHOD_NAMES.values():
        assert method in text
    assert "empty file" in text  # why the image was refused
    assert page.count("✓</em>") + page.count("✗</em>") == page.count('class="shot is-')
    assert 'class="shot is-right"' in page


def test_the_same_files_give_the_same_page(project, page, tmp_path):
    assert write_report(load_params(PARAMS), project, tmp_path / "again").read_text("utf-8") == page


def test_missing_file_is_named_and_the_old_report_stays(tmp_path):
    root = make_project(tmp_path)
    write_report(load_params(PARAMS), root, root / "report")
    (root / "evaluation" / "cmc.csv").unlink()
    with pytest.raises(UserError, match=r"cmc\.csv: no such file; `dvc repro` makes it"):
        write_report(load_params(PARAMS), root, root / "report")
    assert (root / "report" / "index.html").exists()


def figures_of(trained, clip, hog=10.0, chance=2.0, std=1.0):
    def of(mean):
        return {"a_to_b": {"rank1": {"mean": mean, "std": std}}}

    counts = {"a_to_b": {"gallery": 40}}
    return {"trained": of(trained), "clip": of(clip), "hog": of(hog), "chance": of(chance), "counts": counts}


def plain(text):
    return text.replace(words.NBSP, " ")


def test_words_claim_the_order_only_where_it_was_measured():
    held = words.order(figures_of(trained=40.0, clip=30.0))
    assert held == "By rank-1, in every direction: chance < HOG-like < CLIP as it is < trained."
    broken = plain(words.order(figures_of(trained=25.0, clip=30.0)))
    assert "does not hold: a → b, trained 25.0 % and CLIP as it is 30.0 %." in broken
    assert "does not hold" in words.order(figures_of(trained=30.0, clip=30.0))


@pytest.mark.parametrize(
    ("trained", "said"),
    [
        (33.5, "3.5 points more than CLIP as it is."),
        (27.0, "3.0 points less than CLIP as it is."),
        (30.9, "CLIP as it is and the trained model differ by less than the spread over the galleries."),
    ],
)
def test_words_call_a_difference_within_the_spread_what_it_is(trained, said):
    assert words.comparison("a_to_b", figures_of(trained, clip=30.0)) == said


def test_words_state_figure_spread_and_chance():
    (sentence,) = words.opening(figures_of(trained=40.0, clip=30.0))
    assert plain(sentence) == (
        "An a image finds its person first in 40.0 ± 1.0 % of searches among 40 b images; "
        "chance finds 2.0 ± 1.0 %."
    )
    assert plain(words.with_spread({"mean": 40.0, "std": None})) == "40.0 %"


def test_words_without_a_figure_state_none():
    figures = figures_of(trained=None, clip=None)
    assert words.opening(figures) == ["No a image has a right b image to find, so there is no figure."]
    assert words.comparison("a_to_b", figures) == words.order(figures) == ""


def test_lists_run_evenly_from_the_best_query_to_the_worst():
    rows = [{"key": f"{n:03d}", "ap": float(n)} for n in range(101)] + [{"key": "none", "ap": None}]
    assert [row["ap"] for row in spread_out(rows, 5)] == [100.0, 75.0, 50.0, 25.0, 0.0]
    assert len(spread_out(rows[:3], 5)) == 3
    assert spread_out([], 5) == []


def test_area_is_the_share_of_right_orders():
    # One person: 0.9, 0.5. Two people: 0.1, 0.5. Of four comparisons three are right and one is a tie.
    assert Pairs(np.array([0.9, 0.5]), np.array([0.1, 0.5])).area() == pytest.approx(3.5 / 4)


def test_large_pictures_are_reduced_and_small_ones_are_not():
    for height, shown in ((320, (80, 160)), (64, (32, 64))):
        uri = data_uri(encoded(pixels("any", height, height // 2)), "png")
        image = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))))
        assert image.size == shown


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


def test_chart_keeps_to_its_axes_and_leaves_out_what_is_no_number():
    chart = line_chart("t", [Series("a", "s", [0, 1, 2, 3], [4, float("nan"), float("inf"), 2])], "x", "y")
    points = [tuple(map(float, point.split(","))) for point in chart.lines[0].points.split()]
    assert points == [(chart.left, 12.0), (chart.right, (12.0 + chart.bottom) / 2)]


def test_chart_of_one_point_or_of_none_has_axes():
    for xs, ys in (([1], [5]), ([], [])):
        chart = line_chart("t", [Series("a", "s", xs, ys)], "x", "y")
        assert chart.x_ticks and chart.y_ticks
        assert len(chart.lines) == len(xs)
