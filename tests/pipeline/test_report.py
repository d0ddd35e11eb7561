"""The report as a whole: one page, offline, nobody's name can write into it, whatever the data's size."""

import base64
import io
import json
import re

import numpy as np
import pytest
from make_images import Project, encoded, pixels, write
from PIL import Image
from report_project import HOSTILE, PARAMS, Elements, make_project, write_evaluation, write_training

from csdn.evaluation.headline import METHODS
from csdn.evaluation.scores import PAIRS
from csdn.report import tables, wording
from csdn.report.images import data_uri
from csdn.report.page import write_report
from csdn.runtime.errors import UserError

TAGS = ("link", "script", "iframe", "object", "embed", "form", "base")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def page(project):
    return write_report(PARAMS, project, project / "report").read_text(encoding="utf-8")


def test_names_from_files_are_text_and_never_elements(page):
    elements = Elements(page)
    assert HOSTILE in elements.text
    assert "<img src=x onerror=alert(2)>.jpg" in elements.text
    assert HOSTILE not in page
    assert not [tag for tag, _ in elements.found if tag in TAGS]
    assert not [name for _, attributes in elements.found for name in attributes if name.startswith("on")]


HOSTILE_NAMES = (
    *("\u202edlonra", "\u2069\u202e19.3 %", "\u2066a\u2069", "<script>alert(3)</script>", "$x$ \\frac{"),
    *("L" * 300, "محمد ٣", "דוד 12", "👩\u200d👧", "two\nlines\x1b[31m\x9b", "zero\u200bwidth\u00ad"),
)
# What turns or hides text, and what a terminal acts on; FSI and PDI are the page's own.
STEERS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\xad\u200b-\u200f\u2028-\u202e\u2066\u2067\ufeff]")


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory):
    cameras = {"visible": ("\u202egate\u2069", "מצלמה 7"), "infrared": ("C" * 300, "\u2067ir\x07")}
    people = [f"{name}{n}" for n in range(2) for name in HOSTILE_NAMES]
    root = make_project(tmp_path_factory.mktemp("hostile"), people, cameras, shots=1)
    return write_report(PARAMS, root, root / "report").read_text(encoding="utf-8")


def test_no_name_turns_or_hides_what_stands_beside_it(hostile_page, fault):
    assert STEERS.findall(hostile_page) == []
    text = Elements(hostile_page).text
    shown = str(wording.bdi("gate\u202e"))
    fault("report", "a name with U+202E, which turns what follows around, in the page", shown)
    assert "\\u202egate\\u2069" in text and "\\x1b[31m" in text
    titles = [attributes.get("title", "") for _, attributes in Elements(hostile_page).found]
    assert any("\u2068\\u202egate\\u2069\u2069" in title for title in titles)
    # Isolates are only in attributes, which hold no elements, and each is ended.
    assert "\u2068" not in text
    assert all(title.count("\u2068") == title.count("\u2069") for title in titles)


def test_names_in_text_are_isolated_from_the_figures(hostile_page):
    """Every piece of text with a name written from right to left is in an element <bdi>."""
    assert "מצלמה 7" in hostile_page
    for name in ("מצלמה 7", "דוד 12", "محمد ٣"):
        outside = re.sub(r"<bdi>[^<]*</bdi>|(title|alt)=\"[^\"]*\"", "", hostile_page)
        assert name not in outside


def test_page_asks_nobody_for_anything_and_links_to_its_own_pictures_alone(project, page):
    for tag, attributes in Elements(page).found:
        for name in ("src", "data", "poster", "srcset"):
            if name in attributes:
                assert attributes[name].startswith(("data:image/jpeg;base64,", "data:image/png;base64,")), tag
                Image.open(io.BytesIO(base64.b64decode(attributes[name].partition(",")[2]))).load()
        link = attributes.get("href", "#")
        if not link.startswith("#"):
            assert re.fullmatch(r"figures/\w+\.png", link)
            assert (project / "report" / link).is_file()
    assert "@import" not in page
    assert not re.search(r"url\s*\((?!#)", page)  # a clip path of the same page
    links = [a["xlink:href"] for _, a in Elements(page).found if "xlink:href" in a]
    assert links and all(link.startswith("#") for link in links)


def test_links_within_the_page_lead_somewhere(page):
    elements = Elements(page).found
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    places = set(ids)
    assert len(ids) == len(places)  # also of all charts
    links = {a["href"][1:] for _, a in elements if a.get("href", "").startswith("#")}
    links |= {a["xlink:href"][1:] for _, a in elements if "xlink:href" in a}
    assert links <= places
    assert len(links) > 10


def test_page_shows_every_part(page):
    text = Elements(page).text
    for part in (
        "What to look at next",
        "Open set",
        "hardest failures",
        "Easiest confusions",
        "Camera by camera",
    ):
        assert part in text
    for part in (
        "Distances between",
        "two dimensions",
        "How well texts name",
        "Where the text acts",
        "Quarantine",
    ):
        assert part in text
    for method in METHODS:
        assert wording.METHOD_NAMES[method] in text
    assert "empty file" in text  # why the image was refused
    assert page.count("✓</em>") + page.count("✗</em>") == page.count('class="shot is-')
    assert 'class="shot is-right"' in page


def test_figures_are_in_the_page_with_a_text_alternative_and_pictures_too(project, page):
    folder = project / "report" / "figures"
    names = {path.stem for path in folder.iterdir()}
    kinds = {"cmc", "open_set", "loss", "distances", "camera_pairs", "naming", "embedding2d"}
    assert all(any(name.startswith(kind) for name in names) for kind in kinds)
    linked = set(re.findall(r'href="figures/(\w+)\.png"', page))
    assert linked == names
    charts = [attributes for tag, attributes in Elements(page).found if tag == "svg"]
    assert len(charts) == len(names) - 2  # camera pairs are tables in the page
    assert all(chart["role"] == "img" and chart["aria-label"] for chart in charts)
    for path in folder.iterdir():
        with Image.open(path) as image:
            assert min(image.size) > 200


def test_the_same_files_give_the_same_page_and_pictures(project, page, tmp_path):
    write_report(PARAMS, project, tmp_path / "again")
    first = [path for path in (project / "report").rglob("*") if path.is_file()]
    assert len(first) > 7
    for path in first:
        again = tmp_path / "again" / path.relative_to(project / "report")
        assert path.read_bytes() == again.read_bytes()


def test_twenty_cameras_with_long_names_keep_to_the_page(tmp_path):
    names = [f"Building {n}, second floor, the north entrance $x_{{{n}}}$" for n in range(20)]
    cameras = {modality: [f"{modality} {name}" for name in names] for modality in ("visible", "infrared")}
    people = (f"person {n}" for n in range(5))
    root = make_project(tmp_path, people, cameras, size=(144, 72), shots=1)
    page = write_report(PARAMS, root, root / "report").read_text("utf-8")
    assert 'class="heat tight"' in page
    assert page.count('<td style="--share:') == 2 * PAIRS
    assert len(page) < 3_000_000


def test_many_people_cameras_and_drops_make_the_page_no_longer_than_stated(tmp_path):
    """The bounds of docs/scaling.md."""
    cameras = {m: [f"{m} {n} {'x' * 300}" for n in range(34)] for m in ("visible", "infrared")}
    root = make_project(tmp_path, (f"{n} {'y' * 2000}" for n in range(10)), cameras, size=(16, 8), shots=1)
    path = root / "metrics" / "ingest.json"
    ingest = json.loads(path.read_text())
    drop = {"address": "s3://b/" + "d" * 3000, "status": "rejected", "reason": "z" * 3000}
    write(path, json.dumps(ingest | {"drops": ingest["drops"] | {"left_out": [drop] * 500}}).encode())
    params = PARAMS.model_copy(update={"report": PARAMS.report.model_copy(update={"queries": 1000})})
    page = write_report(params, root, root / "report").read_text("utf-8")
    pictures = re.findall(r'src="(data:[^"]*)"', page)
    assert 600 < len(pictures) <= 1224
    assert 300 < page.count('<td style="--share:') <= 2 * PAIRS
    assert page.count("Left out: ") < tables.REMARKS and "more remarks" in page
    assert len(page) - sum(map(len, pictures)) < 5_000_000


def test_a_picture_of_noise_of_any_size_is_bounded():
    pixels = np.random.default_rng(0).integers(0, 256, (400, 3000, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    assert len(data_uri(file.getvalue(), "png")) < 130_000


def test_reranked_figures_have_rows_and_lines_of_their_own(tmp_path, page):
    assert "Re-ranked" not in page
    root = make_project(tmp_path, (f"person {n}" for n in range(8)))
    write_evaluation(root, rerank=True)
    reranked = write_report(PARAMS, root, root / "report").read_text("utf-8")
    rows = re.findall(r'<tr class="re-ranked"><td><i class="dot"></i>Re-ranked</td>', reranked)
    assert len(rows) == 2  # a table for each direction
    assert reranked.count("lines: Trained, CLIP as it is, HOG-like, Chance, Re-ranked") == 2
    assert "compare such figures with re-ranked ones alone" in reranked


def test_one_test_person_has_a_report_without_the_parts_that_compare_people(tmp_path):
    # The highest buckets of these names are 79 and 70.
    root = make_project(tmp_path, (f"person {n}" for n in range(8)), test_percent=25)
    page = write_report(PARAMS, root, root / "report").read_text("utf-8")
    assert "<li>test people <b>1</b></li>" in page
    assert 'id="distances"' not in page and 'id="embedding"' not in page
    assert "No query has another person at rank 1." in page
    assert not list((root / "report" / "figures").glob("embedding2d*"))


def test_missing_file_is_named_and_the_old_report_stays(tmp_path, fault):
    write(tmp_path / "report" / "index.html", b"the report before")
    root = make_project(tmp_path, (f"person {n}" for n in range(5)))
    (root / "evaluation" / "text_maps.csv").unlink()
    with pytest.raises(UserError, match=r"text_maps\.csv: no such file; `dvc repro` makes it") as error:
        write_report(PARAMS, root, root / "report")
    assert (root / "report" / "index.html").read_bytes() == b"the report before"
    fault("report", "a file of an earlier stage is missing", error.value)


# Drift: the newest drop.


def darker(name, height, width):
    return pixels(name, height, width) // 4


def add_drop(root, cameras):
    """A second drop of people of its own; cameras: (modality, name) -> what gives the pixels of a picture."""
    for number in range(12):
        for (modality, camera), picture in cameras.items():
            for shot in range(2):
                path = f"{modality}/{camera}/new {number}/{shot}.png"
                write(root / "second" / path, encoded(picture(path, 16, 8), "PNG"))
    write(root / "second/_SUCCESS", b"")
    project = Project(root)
    project.add(root / "second")
    project.ingest(test_percent=50, max_bad_fraction=0.5)
    write_evaluation(root)
    write_training(root)


def test_the_newest_drop_is_compared_with_the_earlier_ones(tmp_path):
    cameras = {"visible": ("gate", "<i>lamp</i>"), "infrared": ("yard",)}
    root = make_project(tmp_path, [f"old {n}" for n in range(12)], cameras)
    assert "#drift" not in write_report(PARAMS, root, root / "report").read_text("utf-8")
    changed = {("visible", "gate"): darker, ("infrared", "yard"): pixels, ("infrared", "new"): pixels}
    add_drop(root, changed)
    page = write_report(PARAMS, root, root / "report").read_text("utf-8")
    section = page[page.index('<section id="drift">') : page.index('<section id="data">')]
    assert "2 of 3 cameras changed" in section and "new camera; people: 12, images: 24" in section
    assert re.search(r"brightness 1\d\d\S* -&gt; 3\d", section) and "no change found" in section
    assert section.count("data:image/jpeg") == 6 + 6 + 6  # gate now and before, some of the new camera
