"""A retraining: when a scan begins a run, what the run begins with, and how its decision is applied."""

from __future__ import annotations

import datetime
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import registry_project
from make_images import Project, jpeg, people_named, write
from registry_project import ledger, make_champion, make_watching_project, upload, write_gate
from repository import git
from search_models import save_small_model
from webhook import Webhook
from workspace import environment, set_params

from csdn.ingest.ledger import Status, decide, write_ledger
from csdn.params import load_params
from csdn.retraining import run as retrain
from csdn.retraining import steps
from csdn.retraining.branches import history
from csdn.retraining.lock import scan_requested, workspace_lock
from csdn.retraining.run import apply_decision, nothing_usable, retrain_local
from csdn.retraining.scan import scan
from csdn.retraining.trigger import Arrivals
from csdn.runtime.errors import UserError
from flows import retrain as flow
from flows.tasks import Settings

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path):
    return make_watching_project(tmp_path)


@pytest.fixture
def with_champion(project, monkeypatch):
    return make_champion(project, monkeypatch)


def test_without_a_champion_the_first_drop_begins_a_run(project):
    assert scan(project).reason == "nothing is new"
    upload(project, "monday", people_named(2))
    found = scan(project)
    assert (found.new, found.title) == (Arrivals(12, 2), "retrain: 2 new people, 12 images")
    assert [drop.address for drop in ledger(found.run.folder)] == [str(project.parent / "in/monday")]
    assert found.notes[0].startswith("added drop ")
    assert ledger(project) == [] and git(project, "status", "--porcelain") == ""


def test_new_drops_are_counted_together_until_they_are_enough(with_champion):
    upload(with_champion, "tuesday", people_named(3, "new"))
    found = scan(with_champion)
    assert found.run is None and found.new == Arrivals(18, 3)
    assert found.reason.startswith("not enough yet: 18 new images (retrain.images: 100), 3 new people")
    upload(with_champion, "wednesday", [*people_named(10), *people_named(2, "newer")])
    found = scan(with_champion)
    assert found.new == Arrivals(90, 5) and found.reason == "5 new people (retrain.people: 5)"
    assert len(found.run.new_drops) == 2


def test_a_person_may_force_a_run(with_champion):
    upload(with_champion, "tuesday", people_named(1, "new"))
    assert scan(with_champion).run is None
    assert scan(with_champion, force=True).run is not None


def test_days_count_from_the_champion(with_champion, monkeypatch):
    class Later(datetime.datetime):
        @classmethod
        def now(cls, zone=None):
            return super().now(zone) + datetime.timedelta(days=30)

    upload(with_champion, "tuesday", people_named(1, "new"))
    monkeypatch.setattr("csdn.retraining.scan.datetime", Later)
    assert scan(with_champion).reason == "30 days since the champion was chosen (retrain.days: 30)"


@pytest.fixture
def champion_with_images(with_champion):
    """Its data is monday's drop, read and packed; the model has random weights. One new drop waits."""
    project = Project(with_champion.parent / "packed")
    project.add(with_champion.parent / "in/monday")
    project.ingest()
    shutil.copytree(project.data / "shards", with_champion / "data/shards", dirs_exist_ok=True)
    for name in ("samples", "people"):
        shutil.copy(project.data / f"{name}.parquet", with_champion / "champion/data")
    save_small_model(with_champion / "champion/embedding")
    upload(with_champion, "tuesday", people_named(6, "new"))
    set_params(with_champion, {"retrain.people": 9})
    git(with_champion, "commit", "--quiet", "--all", "--message", "more people")
    return with_champion


def watch_drift(project):
    set_params(project, {"retrain.drift": True})
    git(project, "commit", "--quiet", "--all", "--message", "a changed camera is enough")


def test_a_changed_camera_triggers_a_run_if_asked_to(champion_with_images):
    drop = champion_with_images.parent / "in/wednesday"
    for person in people_named(1, "newer"):
        write(drop / f"visible/attic/{person}/0.jpg", jpeg(person))
    write(drop / "_SUCCESS", b"")
    found = scan(champion_with_images)
    assert found.run is None and found.drift == ()
    watch_drift(champion_with_images)
    found = scan(champion_with_images)
    assert found.run is not None
    assert found.reason.startswith("drift (retrain.drift): visible camera attic of drop ")
    assert found.reason.endswith("new camera; people: 1, images: 1")
    assert any(line.startswith("! visible camera attic") for line in found.drift)


def test_a_drop_of_the_same_cameras_triggers_nothing(champion_with_images):
    watch_drift(champion_with_images)
    found = scan(champion_with_images)
    assert found.run is None and found.reason.startswith("not enough yet")
    assert "drift in 0 of 3 cameras" in found.drift[0]
    assert [line.rpartition(": ")[2] for line in found.drift[1:]] == 3 * ["no change found"]


def test_images_that_are_gone_stop_no_scan(champion_with_images):
    watch_drift(champion_with_images)
    shutil.rmtree(champion_with_images / "data/shards")
    found = scan(champion_with_images)
    assert found.run is None and found.reason.startswith("not enough yet")
    assert "drift: not compared: " in found.drift[0] and "no such shard" in found.drift[0]


def test_a_repeated_scan_continues_its_run(with_champion):
    upload(with_champion, "tuesday", people_named(5, "new"))
    assert scan(with_champion).run.id == scan(with_champion).run.id


def test_overrides_are_the_run_s_alone(with_champion):
    upload(with_champion, "tuesday", people_named(5, "new"))
    run = scan(with_champion, {"embedding.epochs": 3}).run
    assert load_params(run.folder / "params.yaml").embedding.epochs == 3
    assert load_params(with_champion / "params.yaml").embedding.epochs != 3


def test_a_rejection_holds_the_drops_and_the_next_scan_finds_nothing_new(with_champion):
    before = git(with_champion, "rev-parse", "main").strip()
    upload(with_champion, "tuesday", people_named(5, "new"))
    run = scan(with_champion).run
    registry_project.work(run)
    write_gate(run, "reject", "rank-1 fell by 7 points")
    outcome = apply_decision(run)
    assert outcome.event == "rejected" and outcome.version is None
    assert outcome.reasons[0] == "rank-1 fell by 7 points" and "in/tuesday" in outcome.reasons[1]
    assert git(with_champion, "rev-parse", "main^").strip() == before
    assert apply_decision(run).event == "rejected"  # after a kill, say
    assert git(with_champion, "rev-parse", "main^").strip() == before
    assert scan(with_champion).reason == "nothing is new"


@pytest.fixture(params=["csdn retrain", "Prefect"])
def retrained(request, monkeypatch):
    """retrained(project): a retraining whose stage 2 diverges, by `csdn retrain` or the flow."""
    said = "embedding: training diverged: epoch 1, step 7"

    def repro(stage, folder, *_):
        if stage == "ingest":
            registry_project.run(folder, "python", "stage.py")
        if stage == "embedding":
            (folder / "metrics/embedding.json").unlink(missing_ok=True)  # DVC removes outs first
            raise steps.StepDiverged(said)

    monkeypatch.setattr(steps, "repro", repro)
    if request.param == "csdn retrain":
        return lambda project: retrain_local(project, {}, force=False)
    monkeypatch.setattr(flow, "run_ingest", lambda folder, *_: repro("ingest", folder))
    monkeypatch.setattr(flow, "run_remaining_stages", lambda folder, *_: repro("embedding", folder))
    for name, replacement in {"scan": scan, "apply_decision": apply_decision}.items():
        monkeypatch.setattr(flow, name, replacement)
    for name in ("rename", "show_gate", "send"):
        monkeypatch.setattr(flow, name, lambda *_: None)
    return lambda project: flow.retrain_once(project, {}, Settings({}, None))


def test_a_training_that_diverged_is_rejected_and_not_repeated(with_champion, retrained):
    upload(with_champion, "tuesday", people_named(5, "new"))
    retrained(with_champion)
    event = history(with_champion)[-1]
    assert event.outcome == "rejected" and "diverged: epoch 1, step 7" in event.reason
    assert event.figures == {}, "this run has no model; those that it began with are the champion's"
    (held,) = [drop for drop in ledger(with_champion) if drop.status is Status.HELD]
    assert held.address.endswith("in/tuesday") and "step 7" in held.reason
    assert scan(with_champion).reason == "nothing is new"
    retrained(with_champion)
    assert len(history(with_champion)) == 2, "the next night begins no run"


def test_the_tasks_of_a_repetition_have_its_id_in_their_names(with_champion, monkeypatch):
    names = []

    def task(name):
        return lambda *arguments: names.append(f"{name}{arguments[-1]}")

    for name in ("ingest", "remaining_stages"):
        monkeypatch.setattr(flow, f"run_{name}", task(name))
    monkeypatch.setattr(flow, "gate", task("gate"))
    for name in ("scan", "trial"):
        monkeypatch.setattr(flow, name, getattr(retrain, name))
    monkeypatch.setattr(flow, "rename", lambda title: None)
    for name in ("tuesday", "wednesday"):
        upload(with_champion, name, people_named(5, name))
    tasks = flow.Tasks({})
    run = tasks.scan(with_champion, {}, force=False).run
    registry_project.work(run)
    write_gate(run, "reject", "worse")
    tasks.ingest(run.folder)
    trial = tasks.trial(run, run.new_drops[:1])
    for step in (tasks.ingest, tasks.train, tasks.gate):
        step(trial.folder)
    steps = ("ingest", "remaining_stages", "gate")
    assert names == ["ingest", *(f"{step} of {trial.id}" for step in steps)]


def test_a_drop_that_a_person_accepts_after_all_is_new(with_champion):
    upload(with_champion, "tuesday", people_named(5, "new"))
    run = scan(with_champion).run
    registry_project.work(run)
    write_gate(run, "reject", "worse")
    apply_decision(run)
    drops = decide(
        ledger(with_champion), str(with_champion.parent / "in/tuesday"), Status.ACCEPTED, "looked at it"
    )
    write_ledger(drops, with_champion / "data/drops.json")
    git(with_champion, "commit", "--quiet", "--all", "--message", "take it")
    assert scan(with_champion).new == Arrivals(30, 5)


def test_a_place_that_is_relative_is_an_error(project):
    set_params(project, {"ingest.watch": ["in"]})
    git(project, "commit", "--quiet", "--all", "--message", "relative")
    with pytest.raises(UserError, match=r"ingest\.watch = 'in': a run works in a folder of its own"):
        scan(project)


def test_a_run_without_the_gate_s_decision_is_an_error(project):
    upload(project, "monday", people_named(2))
    run = scan(project).run
    registry_project.work(run)
    with pytest.raises(UserError, match=r"metrics/gate.json.*`csdn gate`"):
        apply_decision(run)
    assert ledger(project) == []


@pytest.mark.parametrize("bad", [1, 2])
def test_if_ingest_holds_all_new_drops_nothing_is_trained(with_champion, bad):
    """A run on the champion's data alone would promote what nothing new has taught."""
    for name in ("tuesday", "wednesday"):
        upload(with_champion, name, people_named(5, name))
    run = scan(with_champion).run
    registry_project.work(run)
    metrics = json.loads((run.folder / "metrics/ingest.json").read_text())
    why = {"reasons": {"truncated": 9}, "examples": {"truncated": ["north/1.jpg"]}}
    held = [{"id": drop.id, "images": 60, "bad": 9, **why} for drop in run.new_drops[:bad]]
    metrics["drops"] = {"held": held}
    (run.folder / "metrics/ingest.json").write_text(json.dumps(metrics))
    reasons = [f"{drop}: 9 of 60 images are bad: 9 x truncated (north/1.jpg, ...)" for drop in run.new_drops]
    assert nothing_usable(run) == (reasons if bad == 2 else [])
    if bad == 2:
        retrain.write_decision(run, "reject", reasons)
        assert apply_decision(run).reasons[:2] == tuple(reasons)


def test_only_the_newest_working_trees_stay(project, monkeypatch):
    monkeypatch.setattr(retrain, "KEPT", 1)
    upload(project, "monday", people_named(2))
    runs = [scan(project, {"seed": seed}).run for seed in (1, 2)]
    retrain.prune_worktrees(project)
    assert [run.folder.exists() for run in runs] == [False, True]
    assert scan(project, {"seed": 1}).run.id == runs[0].id and runs[0].folder.exists()


def test_a_failure_is_sent_to_the_webhook(project, monkeypatch):
    webhook = Webhook()
    monkeypatch.setenv("CSDN_WEBHOOK", webhook.address)
    try:
        set_params(project, {"ingest.watch": ["/no/such/folder"]})
        git(project, "commit", "--quiet", "--all", "--message", "wrong")
        with pytest.raises(UserError, match="no such folder"):
            retrain_local(project, {}, force=False)
    finally:
        webhook.close()
    ((_, sent),) = webhook.got
    assert sent["event"] == "failed" and "/no/such/folder: no such folder" in sent["text"]


def test_a_second_call_requests_another_scan_and_succeeds(project):
    with workspace_lock(project, "a test"):
        done = subprocess.run(
            ["csdn", "retrain"], cwd=project, env=environment(), capture_output=True, text=True, check=False
        )
    assert done.returncode == 0 and "busy: a test" in done.stdout and scan_requested(project)


def test_a_setting_needs_a_value(project):
    done = subprocess.run(
        ["csdn", "retrain", "--set", "seed"],
        cwd=project,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "--set seed: expected KEY=VALUE" in done.stderr


def test_the_flows_import_neither_torch_nor_ray():
    """Workers that wait for hours, and start a process for each run, need not load torch or Ray."""
    code = (
        "import flows.pipeline, flows.retrain, sys; print({'torch', 'ray', 'open_clip'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
