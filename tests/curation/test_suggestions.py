"""`csdn suggest` and `csdn accept --labels`: from images without a person to confirmed labels in the data."""

import csv
import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from make_images import ROOT, Project, encoded, make_drop, people_named, write
from memory_bucket import fill
from safetensors.numpy import save_file
from search_models import save_small_model
from typer.testing import CliRunner

from csdn.cli.main import app
from csdn.curation.grouping import Known
from csdn.curation.known_people import KnownPeople, _embedded_rows
from csdn.curation.suggestions import Suggested, Suggestions, write_manifest, write_page
from csdn.data.catalog import INDEX_SCHEMA, QUARANTINE_SCHEMA, load_dataset, read_table
from csdn.evaluation.open_set import write_thresholds
from csdn.ingest.ledger import read_ledger
from csdn.ingest.sources.cameras import read_manifest
from csdn.runtime.errors import UserError
from csdn.search.embedder import Embedder
from csdn.search.images import GalleryImage, list_images

PEOPLE = people_named(120)
CAMERAS = ("visible/north", "visible/south", "infrared/north")


def picture(person, shot):
    """A person's own coarse blocks, a little lighter or darker in each image."""
    seed = int.from_bytes(hashlib.sha256(person.encode()).digest()[:8])
    blocks = np.random.default_rng(seed).integers(20, 236, (8, 4, 3), dtype=np.uint8)
    noise = np.random.default_rng(seed + shot + 1).integers(0, 20, (8, 4, 3), dtype=np.uint8)
    return encoded(np.kron(blocks + noise, np.ones((8, 8, 1), np.uint8)))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Known people as ingested data, a model, the test people's features, and a drop without people."""
    monkeypatch.chdir(tmp_path)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["scaling"] |= {"device": "cpu", "threads": 1}
    write(tmp_path / "params.yaml", yaml.safe_dump(params).encode())
    made = Project(tmp_path)
    for person in PEOPLE:
        for number, camera in enumerate(CAMERAS):
            for shot in range(2):
                write(tmp_path / f"known/{camera}/{person}/{shot}.png", picture(person, 10 * number + shot))
    write(tmp_path / "known/_SUCCESS", b"")
    made.add(tmp_path / "known")
    made.ingest(test_percent=50)
    embedder = Embedder.open(save_small_model(tmp_path / "models/embedding"), device="cpu", threads=1)
    table = load_dataset().test_table()
    features = np.zeros((len(table), embedder.dimension), np.float16)
    for rows, found in _embedded_rows(table, tmp_path / "data/shards", embedder, lambda done, total: None):
        features[rows] = found
    (tmp_path / "evaluation").mkdir()
    save_file({"trained": features}, tmp_path / "evaluation/features.safetensors")
    write_thresholds(tmp_path / "evaluation/thresholds.json", embedder.model_hash, True, {})
    for number, person in enumerate([*PEOPLE[:3], "new 1", "new 2", "new 3"]):
        for place, camera in enumerate(CAMERAS):
            for shot in range(3):
                name = f"{100 * number + 10 * place + shot}.png"
                write(tmp_path / f"night/{camera}/{name}", picture(person, 50 + 10 * place + shot))
    write(tmp_path / "night/_SUCCESS", b"")
    return made


def person_of(path):
    number = int(path.rsplit("/")[-1].removesuffix(".png")) // 100
    return [*PEOPLE[:3], "new 1", "new 2", "new 3"][number]


def run(*arguments):
    done = CliRunner().invoke(app, list(map(str, arguments)))
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def rows_of(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def confirm(path, rows):
    with Path(path).open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def unconfirmed(project):
    table = read_table(project.data / "quarantine.parquet", QUARANTINE_SCHEMA)
    return sorted(row["path"] for row in table.to_pylist() if "unconfirmed" in row["reason"])


def test_from_a_drop_without_people_to_confirmed_labels(project):
    run("add", "night")
    assert "page: who.html" in run("suggest", "night", "--html", "who.html", "--precision", 0.9)
    rows = rows_of("labels.csv")
    assert len(rows) == 6 * 9
    assert {row["confirmed"] for row in rows} == {"no"}
    proposed = [row for row in rows if row["person"]]
    names = {row["person"] for row in proposed}
    assert any(re.fullmatch("new-[0-9a-f]{6}-0001", name) for name in names)
    html = (project.root / "who.html").read_text()
    assert html.count("<section") == len(names)
    assert not re.search(r'(?:src|href)="(?!data:)', html)

    confirmed = [row | {"person": person_of(row["path"]), "confirmed": "Yes"} for row in rows[:20]]
    confirm("labels.csv", confirmed + rows[20:])
    said = run("accept", "night", "--labels", "labels.csv", "--reason", "looked at")
    assert "34 suggestions are unconfirmed" in said
    _, old, new = read_ledger()
    assert (old.status, new.status, new.reason) == ("rejected", "accepted", "looked at")
    project.ingest(test_percent=50)
    taken = read_table(project.data / "index" / f"{new.id}.parquet", INDEX_SCHEMA, ["path", "person"])
    assert taken.to_pylist() == sorted(
        ({"path": row["path"], "person": row["person"]} for row in confirmed), key=lambda row: row["path"]
    )
    assert project.figures()["drops"]["held"] == []


def test_the_same_drop_gives_the_same_manifest(project):
    run("suggest", "night", "--precision", 0.9)
    first = (project.root / "labels.csv").read_bytes()
    run("suggest", "night", "--precision", 0.9, "--out", "again.csv")
    assert (project.root / "again.csv").read_bytes() == first


def test_people_of_a_gallery_are_the_known_ones_if_it_is_named(project):
    run("gallery", "build", "--images", "known", "--out", "g")
    run("suggest", "night", "--gallery", "g", "--precision", 0.9)
    with_gallery = rows_of("labels.csv")
    run("suggest", "night", "--precision", 0.9, "--out", "other.csv")
    assert {row["person"] for row in with_gallery} == {row["person"] for row in rows_of("other.csv")}


def test_a_manifest_that_may_have_corrections_is_not_replaced(project):
    write(project.root / "labels.csv", b"corrected")
    with pytest.raises(UserError, match="exists"):
        run("suggest", "night")
    assert (project.root / "labels.csv").read_bytes() == b"corrected"


def test_features_of_another_model_are_refused(project):
    write_thresholds(project.root / "evaluation/thresholds.json", "0" * 64, True, {})
    with pytest.raises(UserError, match="dvc repro evaluate"):
        run("suggest", "night")


def test_a_drop_whose_images_all_have_people_is_refused(project):
    with pytest.raises(UserError, match="every image has a person"):
        run("suggest", "known")


# What ingest does with a manifest of suggestions.


def suggested_drop(root, confirmed):
    """A drop of 8 people whose manifest says of every image `confirmed`."""
    make_drop(root, people_named(8))
    lines = ["path,person,modality,camera,captured_at,confirmed"]
    for path in sorted(root.rglob("*.jpg")):
        modality, camera, person, _ = path.relative_to(root).parts
        lines.append(f"{path.relative_to(root)},{person},{modality},{camera},,{confirmed}")
    write(root / "labels.csv", "\n".join(lines).encode())
    return root / "labels.csv"


def test_a_drop_of_suggestions_is_held_and_trained_on_only_if_they_are_trusted(tmp_path):
    project = Project(tmp_path / "project")
    project.add(make_drop(tmp_path / "own", people_named(8, "other")))
    project.add(suggested_drop(tmp_path / "drop", "no"))
    project.ingest()
    (held,) = project.figures()["drops"]["held"]
    assert held["reasons"] == {"unconfirmed suggestion": 48}
    assert len(unconfirmed(project)) == 48
    own = project.data / "index" / f"{read_ledger(project.ledger)[0].id}.parquet"
    written = own.stat().st_mtime_ns
    project.ingest(trust_suggestions=True)
    assert unconfirmed(project) == []
    assert project.figures()["drops"]["held"] == []
    assert own.stat().st_mtime_ns == written  # other drops are not read again
    project.ingest()
    assert len(unconfirmed(project)) == 48


def test_confirming_rows_makes_another_drop(tmp_path):
    drops = {
        Project(tmp_path / word).add(suggested_drop(tmp_path / "drop", word)).id
        for word in ("no", "yes", "x")
    }
    assert len(drops) == 2


def test_unconfirmed_labels_are_none_in_a_gallery(tmp_path):
    listing = list_images(str(suggested_drop(tmp_path / "drop", "no")), "visible")
    assert {image.person for image in listing.images} == {""}


def test_labels_are_put_into_a_bucket(project):
    objects = {str(path): path.read_bytes() for path in Path("night").rglob("*.png")}
    fill("suggested", objects | {"night/_SUCCESS": b""})
    run("suggest", "memory://suggested/night", "--precision", 0.9)
    rows = [row | {"person": "a", "confirmed": "yes"} for row in rows_of("labels.csv")]
    confirm("labels.csv", rows)
    said = run("accept", "memory://suggested/night", "--labels", "labels.csv", "--reason", "looked at")
    assert "54 images" in said
    assert re.fullmatch(r"memory://suggested/night/labels-[0-9a-f]{12}\.csv", read_ledger()[-1].address)


def test_a_second_correction_replaces_the_first(project):
    run("suggest", "night", "--precision", 0.9)
    for person in "ab":
        confirm("labels.csv", [row | {"person": person, "confirmed": "yes"} for row in rows_of("labels.csv")])
        run("accept", "night", "--labels", "labels.csv", "--reason", "looked at")
    assert [drop.status for drop in read_ledger()] == ["accepted", "rejected", "accepted"]


# Names from the data.

HOSTILE = ['=HYPERLINK("http://x")', "a;b", "back\\slash\\x41", "<script>alert(1)</script>", "-2", "né"]


def test_hostile_names_come_back_from_the_manifest_as_they_were_and_are_escaped_on_the_page(tmp_path):
    images = [GalleryImage(f"/drop/{n}/{name}.jpg", "", name, "visible", 90, 1, lambda: b"")
              for n, name in enumerate(HOSTILE)]  # fmt: skip
    known = KnownPeople(Known(np.zeros((0, 1)), np.zeros(0), np.zeros(0)), [], lambda person, code: None)
    found = Suggestions([Suggested(image, image.camera, -1, 0.5) for image in images], {}, known, 0.95)
    write_manifest(tmp_path / "m.csv", "/drop", found, [])
    text = (tmp_path / "m.csv").read_text()
    assert not re.search(r'(?:^|,)"?[=+@-]', text, re.M)
    read = sorted(read_manifest((tmp_path / "m.csv").read_bytes(), "m.csv"), key=lambda row: row.path)
    assert [(row.path, row.person, row.camera) for row in read] == [
        (f"{n}/{name.replace('//', '/')}.jpg", name, name) for n, name in enumerate(HOSTILE)
    ]
    assert {row.captured_at for row in read} == {"1970-01-01T00:01:30+00:00"}
    write_page(tmp_path / "p.html", found, "<b>drop", "m.csv")
    page = (tmp_path / "p.html").read_text()
    assert "<script" not in page
    assert "<b>drop" not in page


def test_a_manifest_without_the_column_is_somebody_s_and_is_read_as_it_is():
    (row,) = read_manifest(b"path,person,modality,camera\n'a\\x41.jpg,p,visible,c\n", "m.csv")
    assert row.confirmed
    assert row.path == "'a\\x41.jpg"
