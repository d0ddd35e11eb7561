"""A drop with wrong labels, from its arrival to the corrected one, judged without any training."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from command_line import csdn
from make_images import write
from test_label_check import project  # noqa: F401 (a fixture)

from csdn.data.outputs import read_csv
from csdn.ingest.ledger import read_ledger
from csdn.model import read_config
from csdn.runtime.files import write_json
from csdn.synthetic.sets import PeopleSet, images_of, png


def write_drop(folder, people, wrong):
    """Built-in people; `wrong` images have another's label. Returns the right labels by path."""
    draws, images = np.random.default_rng(0), list(images_of(people))
    shuffled = set(draws.choice(len(images), wrong, replace=False).tolist())
    rows, right = [], {}
    for n, image in enumerate(images):
        write(folder / f"{n:04d}.png", png(image))
        others = [other.label for other in images if other.label != image.label]
        label = draws.choice(others) if n in shuffled else image.label
        rows.append([f"{n:04d}.png", label, image.modality, image.camera.name])
        right[f"{n:04d}.png"] = image.label
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "person", "modality", "camera"], *rows])
    return right


def wrong_among(rows, right):
    return {row["path"] for row in rows if row["person"] != right[row["path"]]}


@pytest.mark.slow
def test_wrong_labels_are_found_corrected_and_found_no_more(project):  # noqa: F811
    right = write_drop(project / "night", PeopleSet(2_001, 20, visible=1, infrared=2), wrong=6)
    model = project / "models/embedding"
    write_json(model / "config.json", read_config(model) | {"people": sorted({*right.values()})})  # so: CLIP
    csdn("reject", "monday", "--reason", "a test")
    csdn("add", "night")
    csdn("check-labels", "night", "--csv", "labels.csv", "--html", "labels.html")
    rows = read_csv(project / "labels.csv")
    wrong = wrong_among(rows, right)
    found = wrong_among(rows[:12], right)
    assert len(wrong) == 6 and len(found) >= 4
    assert sum(row["suggestion"] == right[row["path"]] for row in rows if row["path"] in found) >= 3

    # A person looks at the first twelve, and corrects those that are wrong.
    for row in rows[:12]:
        row["person"] = right[row["path"]]
    with (project / "edited.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter=";")  # as a spreadsheet in Europe saves it
        writer.writeheader()
        writer.writerows(rows[:12])
    csdn("relabel", "edited.csv")
    new = read_ledger()[-1]
    assert set(new.labels) == found

    csdn("check-labels", new.id, "--csv", "again.csv")
    assert wrong_among(read_csv(project / "again.csv"), right) == wrong - found
