"""docs/tracking.md: its programs give a run's records to DVCLive and TensorBoard."""

from __future__ import annotations

import csv
import re
import shutil

import pytest
from tensorboardX.proto.event_pb2 import Event
from workspace import ROOT, run

PAGE = (ROOT / "docs/tracking.md").read_text(encoding="utf-8")
PROGRAMS = dict(re.findall(r'^```python title="(.*?)"\n(.*?)^```$', PAGE, re.M | re.S))
LIVE = re.search(r"^CSDN_LOG=json .*$", PAGE, re.M)[0]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(finished_repository, tmp_path_factory):
    """A project after `dvc repro`, with the page's programs."""
    folder = tmp_path_factory.mktemp("tracking") / "project"
    shutil.copytree(finished_repository[0], folder, symlinks=True)
    for name, text in PROGRAMS.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def log_of(project, stage):
    with (project / f"models/{stage}/log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_dvclive_follows_the_events_of_a_training(project):
    command = LIVE.replace("repro", "repro --force --single-item").replace("evaluate", "embedding")
    shown = run(project, "bash", "-o", "pipefail", "-c", command).stdout
    assert "Running stage 'embedding'" in shown
    with (project / "dvclive/plots/metrics/embedding/loss.tsv").open(newline="") as file:
        followed = {int(row["step"]): float(row["loss"]) for row in csv.DictReader(file, delimiter="\t")}
    logged = {int(row["step"]): float(row["total"]) for row in log_of(project, "embedding")}
    assert followed
    assert followed == pytest.approx({step: logged[step] for step in followed}, rel=1e-4)


def test_tensorboard_gets_every_row_of_both_logs(project):
    run(project, "python", "to_tensorboard.py")
    (file,) = (project / "tensorboard").iterdir()
    found = {(v.tag, event.step) for event in events(file.read_bytes()) for v in event.summary.value}
    for stage in ("prompts", "embedding"):
        for row in log_of(project, stage):
            phase, step = row.pop("phase", stage), int(row.pop("step"))
            assert {(f"{phase}/{name}", step) for name in row} <= found


def events(data: bytes):
    """The events of a TensorBoard file: each record is its length (8 bytes), a checksum (4), the event, and a
    checksum (4).
    """
    while data:
        size = int.from_bytes(data[:8], "little")
        yield Event.FromString(data[12 : 12 + size])
        data = data[16 + size :]
