"""`csdn check-labels`: who judges whom, what is compared, and what a person gets."""

from __future__ import annotations

import csv
import json
import re
import shutil

import pytest
from command_line import csdn
from make_images import encoded, pixels, write
from search_models import save_small_model
from workspace import ROOT

from csdn.curation import label_check
from csdn.curation.label_check import check_labels, trained_people
from csdn.data.outputs import read_csv
from csdn.ingest.ledger import Status, change_ledger, decide, read_ledger, write_ledger
from csdn.ingest.sync import open_drop
from csdn.model import read_config
from csdn.params import load_params
from csdn.runtime.errors import UserError
from csdn.runtime.files import write_json
from csdn.search.embedder import Embedder

CAMERAS = ("visible/north", "visible/south", "infrared/night")
HOSTILE = "<script>alert(1)</script> =1+1"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with a random model that was trained on p0 and p1, and a drop of 6 people."""
    monkeypatch.chdir(tmp_path)
    for name in ("params.yaml", "data/aliases.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "csdn").symlink_to(ROOT / "csdn")  # CLIP's weights
    model = save_small_model(tmp_path / "models/embedding")
    config = read_config(model) | {"people": ["p0", "p1"]}
    write_json(model / "config.json", config)
    write_ledger([])
    add_drop(tmp_path / "monday", [f"p{n}" for n in range(6)])
    return tmp_path


def add_drop(folder, people, images=2):
    rows = []
    for person in people:
        for camera in CAMERAS:
            for n in range(images):
                path = f"{len(rows)}.png"
                write(folder / path, encoded(pixels(f"{person} {camera} {n}", 64, 32)))
                rows.append([path, person, *camera.split("/"), f"2026-11-01T08:0{n}"])
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "person", "modality", "camera", "captured_at"], *rows])
    change_ledger(lambda drops: [*drops, open_drop(str(folder), "cameras")[0]])
    return read_ledger()[-1]


def check(*others, drop=None, **more):
    params, embedder = load_params(), Embedder.open("models/embedding")
    chosen = drop or read_ledger()[0]
    return check_labels(
        chosen, others, embedder, trained_people(label_check.Path("models/embedding")), params, {}, **more
    )


def test_people_that_the_model_was_trained_on_are_judged_by_clip(project):
    found = check()
    judges = {one.person: one.judge for one in found.images}
    assert judges == {"p0": "CLIP", "p1": "CLIP"} | {f"p{n}": "model" for n in range(2, 6)}
    assert len(found.images) == 36 and found.learned == {"p0", "p1"}


def test_without_such_people_clip_is_not_asked(project, monkeypatch):
    monkeypatch.delattr(label_check.ClipEmbedder, "of")
    drop = add_drop(project / "tuesday", ["p7", "p8"])
    assert {one.judge for one in check(drop=drop).images} == {"model"}


def test_an_alias_is_the_person_that_is_meant(project):
    write(project / "data/aliases.json", b'{"p9": "p1"}')
    drop = add_drop(project / "tuesday", ["p9", "p8"])
    params, embedder = load_params(), Embedder.open("models/embedding")
    found = check_labels(drop, [], embedder, ["p1"], params, {"p9": "p1"})
    assert {one.person: one.judge for one in found.images} == {"p1": "CLIP", "p8": "model"}


def test_images_are_compared_with_two_of_each_known_person_and_camera(project):
    later = add_drop(project / "tuesday", ["p7", "p8"])
    found = check(read_ledger()[0], drop=later)
    known = [one.person for one in found.rows[found.size :]]
    assert sorted({*known}) == [f"p{n}" for n in range(6)] and len(known) == 6 * 3 * label_check.KNOWN
    assert {one.person for one in found.images} == {"p7", "p8"}
    assert {one.other for one in found.images} - {"p7", "p8"}
    assert any(pair.other.startswith("p") and pair.other not in ("p7", "p8") for pair in found.pairs)


def test_a_second_check_embeds_nothing_again(project, monkeypatch):
    first = check()
    monkeypatch.setattr(Embedder, "prepare", None)  # cannot be called
    assert check().images == first.images


def test_bad_and_unlabelled_images_are_named_and_the_others_judged(project):
    folder = project / "monday"
    write(folder / "0.png", b"no image")
    text = (folder / "manifest.csv").read_text().replace("1.png,p0", "1.png,")
    (folder / "manifest.csv").write_text(text)
    drop = open_drop(str(folder), "cameras")[0]
    found = check(drop=drop)
    assert dict(found.refused) == {"0.png": "not a png image", "1.png": "no label"}
    assert len(found.images) == 34


def test_the_command_writes_a_table_that_relabel_takes_and_a_page(project):
    drop = add_drop(project / "tuesday", ["p7", HOSTILE, "p8"])
    change_ledger(lambda drops: decide(drops, str(project / "monday"), Status.REJECTED, "a test"))
    said = csdn("check-labels", drop.id[:8], "--csv", "t.csv", "--html", "t.html", "--top", "4")
    assert "18 images of 3 people judged" in said
    rows = read_csv(project / "t.csv")
    assert {row["person"] for row in rows} == {"p7", "p8", HOSTILE}
    scores = [float(row["score"]) for row in rows]
    assert len(rows) == 18 and scores == sorted(scores, reverse=True)
    assert {row["captured_at"] for row in rows} == {"2026-11-01T08:00", "2026-11-01T08:01"}
    text = (project / "t.csv").read_text()
    assert "<script>" not in text and "\n=" not in text and ",=" not in text

    page = (project / "t.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert page.count("<section>") <= 12 and "data:image/jpeg;base64," in page

    edited = text.replace(f"{rows[0]['path']},{text.splitlines()[1].split(',')[1]}", f"{rows[0]['path']},p9")
    (project / "t.csv").write_text(edited)
    csdn("relabel", "t.csv")
    assert read_ledger()[-1].labels == {rows[0]["path"]: "p9"}


def test_a_model_that_does_not_say_who_it_was_trained_on_judges_nobody(project):
    config = json.loads((project / "models/embedding/config.json").read_text())
    del config["people"]
    write_json(project / "models/embedding/config.json", config)
    with pytest.raises(UserError, match="does not name the people"):
        csdn("check-labels", "monday")


def test_a_drop_of_one_person_alone_has_nobody_to_compare_with(project):
    drop = add_drop(project / "tuesday", ["p7"])
    with pytest.raises(UserError, match="two people"):
        check(drop=drop)
