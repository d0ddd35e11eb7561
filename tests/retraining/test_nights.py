"""Nights of a site: drops that are harmless stay, drops that do harm are found and held, and none is lost.

The stages are a script of some lines, and what the gate says depends on the drops in the run's ledger.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import registry_project
from make_images import people_named
from registry_project import champion, ledger, make_champion, make_watching_project, upload, write_gate
from repository import git
from workspace import set_params

from csdn.ingest.ledger import Status, decide, write_ledger
from csdn.ingest.sync import sync_ledger
from csdn.params import load_params
from csdn.retraining import run as retraining
from csdn.retraining.blame import find_harmful
from csdn.retraining.branches import history
from csdn.retraining.registry import promote_ready, rollback
from csdn.retraining.scan import Scan, after_rollback, scan
from csdn.retraining.workspace import Run
from csdn.runtime.errors import ServiceUnavailable, UserError


class Killed(BaseException):
    pass


class Night(retraining.Steps):
    """A night's steps: the gate rejects a run with a harmful drop, and cannot decide with few drops.

    `trained`: the new drops of each run that was trained, by the last letters of their addresses.
    """

    def __init__(self, harmful: str = "", decides_with: int = 0, dies_after: int | None = None) -> None:
        self.harmful, self.decides_with, self.dies_after = harmful, decides_with, dies_after
        self.unreadable = ""  # drops that ingest holds
        self.fails: dict[str, UserError] = {}  # by the new drops of a run
        self.meanwhile: Callable[[], None] = lambda: None  # what happens while a run trains
        self.trained: list[str] = []
        self.sent: list[retraining.Notification] = []

    def ingest(self, folder: Path) -> None:
        registry_project.run(folder, "python", "stage.py")
        metrics = json.loads((folder / "metrics/ingest.json").read_text())
        bad = [drop for drop in ledger(folder) if drop.address[-1] in self.unreadable]
        why = {"images": 12, "bad": 12, "reasons": {"truncated": 12}, "examples": {"truncated": ["1.jpg"]}}
        metrics["drops"]["held"] = [{"id": drop.id} | why for drop in bad]
        (folder / "metrics/ingest.json").write_text(json.dumps(metrics))

    def train(self, folder: Path) -> None:
        if self.dies_after == len(self.trained):
            raise Killed
        self.trained.append(_names(folder, Status.ACCEPTED))
        self.meanwhile()
        if error := self.fails.get(self.trained[-1]):
            raise error

    def gate(self, folder: Path) -> None:
        names = set(_names(folder, Status.ACCEPTED))
        decision = "promote" if len(names) >= self.decides_with else "undecided"
        if bad := names & set(self.harmful):
            decision = "reject"
        reason = f"of the drops {''.join(sorted(names))}, {len(bad)} do harm"
        gate = {"decision": decision, "reasons": [reason], "champion": None, "comparisons": []}
        (folder / "metrics/gate.json").write_text(json.dumps(gate))

    def notify(self, notification: retraining.Notification) -> None:
        self.sent.append(notification)

    def pass_by(
        self, project: Path, force: bool = False, **overrides: Any
    ) -> tuple[Scan, retraining.Outcome | None]:
        return retraining.retrain(project, overrides, self, force)


def _names(folder: Path, status: Status) -> str:
    drops = [drop for drop in ledger(folder) if drop.status == status]
    return "".join(drop.address[-1] for drop in drops if not drop.address.endswith("monday"))


def held(project: Path) -> str:
    return _names(project, Status.HELD)


def accepted(project: Path) -> str:
    return _names(project, Status.ACCEPTED)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """It has a champion, and retrains when there is one new person."""
    project = make_champion(make_watching_project(tmp_path), monkeypatch)
    set_params(project, {"retrain.people": 1})
    git(project, "commit", "--quiet", "--all", "--message", "one person is enough")
    return project


def arrive(project: Path, names: str) -> None:
    for name in names:
        upload(project, name, people_named(1, name))


# Undecided.


def test_an_undecided_run_keeps_its_drops_for_the_next_one(project):
    night = Night(decides_with=3)
    arrive(project, "a")
    _, outcome = night.pass_by(project)
    assert (outcome.event, outcome.version) == ("undecided", None)
    assert registry_project.champion(project) == "v1" and accepted(project) == "a"
    arrive(project, "b")
    assert night.pass_by(project)[1].event == "undecided"
    arrive(project, "c")
    assert night.pass_by(project)[1].version == "v2"
    assert night.trained == ["a", "ab", "abc"] and accepted(project) == "abc" and held(project) == ""
    outcomes = [event.outcome for event in history(project)]
    assert outcomes == ["promoted", "undecided", "undecided", "promoted"]
    assert [sent.event for sent in night.sent] == ["undecided", "undecided", "promoted"]


def test_without_new_data_an_undecided_run_is_not_repeated(project):
    night = Night(decides_with=3)
    arrive(project, "a")
    night.pass_by(project)
    run = history(project)[-1].run
    assert night.pass_by(project)[0].reason == f"nothing is new since run {run} was left undecided"
    found, _ = night.pass_by(project, force=True)
    assert found.reason == f"run {run} had the same data and parameters, and the gate could not decide"
    assert night.trained == ["a"]


def test_after_an_undecided_run_only_what_is_newer_counts(project):
    set_params(project, {"retrain.people": 2})
    git(project, "commit", "--quiet", "--all", "--message", "two people")
    night = Night(decides_with=9)
    arrive(project, "ab")
    night.pass_by(project)
    upload(project, "another c", people_named(1, "a") + people_named(1, "c"))  # one of them is known by now
    found, _ = night.pass_by(project)
    assert found.run is None and "1 new person (retrain.people: 2)" in found.reason
    assert f"since run {history(project)[-1].run} was left undecided" in found.reason
    arrive(project, "d")
    assert night.pass_by(project)[0].reason == "2 new people (retrain.people: 2)"
    assert night.trained == ["ab", "abcd"]


def commit_arrived(project: Path, names: str) -> None:
    """The drops come, and a person commits them to main (`csdn sync`)."""
    arrive(project, names)
    drops, _ = sync_ledger(ledger(project), [str(project.parent / "in")])
    write_ledger(drops, project / "data/drops.json")
    git(project, "commit", "--quiet", "--all", "--message", f"drops {names}")


def test_what_reaches_main_while_an_undecided_run_trains_is_new_for_the_next_one(project):
    night = Night(decides_with=9)
    arrive(project, "a")
    night.meanwhile = lambda: commit_arrived(project, "b")
    assert night.pass_by(project)[1].event == "undecided" and accepted(project) == "ab"
    night.meanwhile = lambda: None
    assert night.pass_by(project)[0].reason == "1 new person (retrain.people: 1)"
    assert night.trained == ["a", "ab"]
    assert night.pass_by(project)[0].reason.startswith("nothing is new since run ")


def test_what_reaches_main_while_a_promoted_run_trains_is_new_for_the_next_one(project):
    night = Night()
    arrive(project, "a")
    night.meanwhile = lambda: commit_arrived(project, "b")
    found, outcome = night.pass_by(project)
    assert outcome.event == "ready"
    assert promote_ready(project, found.run.id).version == "v2" and accepted(project) == "ab"
    night.meanwhile = lambda: None
    assert night.pass_by(project)[1].version == "v3"
    assert night.trained == ["a", "ab"]


# Runs with other parameters than main's.


@pytest.mark.parametrize("said", ["rejected", "undecided"])
def test_a_run_with_other_parameters_decides_nothing_about_drops(project, said):
    night = Night(harmful="b") if said == "rejected" else Night(decides_with=9)
    arrive(project, "ab")
    before = ledger(project)
    found, outcome = night.pass_by(project, seed=5)
    assert outcome.event == said and outcome.reasons[-1].startswith("seed: not main's")
    assert (ledger(project), night.trained) == (before, ["ab"])
    assert history(project)[-1].run == found.run.id and history(project)[-1].outcome == said
    assert "had the same data and parameters" in night.pass_by(project, seed=5)[0].reason
    assert night.pass_by(project)[0].reason == "2 new people (retrain.people: 1)"
    assert night.trained[1] == "ab" and (held(project) == "b") == (said == "rejected")


def test_where_a_run_trains_does_not_matter(project):
    arrive(project, "ab")
    assert Night(harmful="b").pass_by(project, **{"scaling.threads": 1})[1].version == "v2"
    assert held(project) == "b" and load_params(project / "params.yaml").scaling.threads == 1


def test_a_run_with_other_parameters_may_be_promoted(project):
    arrive(project, "a")
    assert Night().pass_by(project, seed=5)[1].version == "v2"
    assert load_params(project / "params.yaml").seed == 5


# Blame.


@pytest.mark.parametrize(
    ("names", "harmful", "budget", "found", "trials"),
    [
        ("abcde", "a", 4, "a", ["abc", "ab", "a"]),
        ("abcde", "c", 4, "c", ["abc", "ab", "c"]),
        ("abcde", "e", 4, "e", ["abc", "d", "e"]),
        ("abcde", "ab", 4, "ab", ["abc", "ab", "a", "b"]),
        ("abcde", "ae", 4, "abcde", ["abc", "d", "e"]),  # in both halves: no trial passes
        ("abcde", "a", 1, "abc", ["abc"]),
        ("abcde", "a", 0, "abcde", []),
        ("a", "a", 4, "a", []),
        ("", "", 4, "", []),
    ],
)
def test_the_search_for_the_harmful_drops(names, harmful, budget, found, trials):
    tried = []

    def passes(left_out):
        tried.append("".join(left_out))
        return set(harmful) <= set(left_out)

    assert find_harmful(names, passes, budget) == tuple(found)
    assert tried == trials


@pytest.mark.parametrize("number", range(1, 17))
def test_one_harmful_drop_is_found_in_a_logarithm_of_trials(number):
    for harmful in range(number):
        tried = []

        def passes(left_out, harmful=harmful, tried=tried):
            tried.append(left_out)
            return harmful in left_out

        assert find_harmful(range(number), passes, 100) == (harmful,)
        assert len(tried) == len(set(tried)) <= (number - 1).bit_length() + 1


def test_one_harmful_drop_of_five_is_held_and_the_others_are_promoted(project):
    night = Night(harmful="d")
    arrive(project, "abcde")
    found, outcome = night.pass_by(project)
    assert outcome.version == "v2" and held(project) == "d" and accepted(project) == "abce"
    assert night.trained[0] == "abcde" and len(night.trained) <= 5
    (drop,) = [drop for drop in ledger(project) if drop.status == Status.HELD]
    reason = f"gate of run {found.run.id}: of the drops abcde, 1 do harm; promoted without it"
    assert drop.reason == reason
    (sent,) = night.sent
    assert sent.event == "promoted" and f"held: {drop}: {reason}" in sent.reasons
    assert night.pass_by(project)[0].reason == "nothing is new"
    promoted = [event.reason for event in history(project) if event.outcome == "promoted"]
    assert promoted[-1] == "of the drops abce, 0 do harm"  # why it was promoted
    outcomes = [event.outcome for event in history(project) if event.run == found.run.id]
    assert outcomes == ["rejected"]


def test_an_undecided_repetition_clears_no_drop(project):
    night = Night(harmful="b", decides_with=9)
    arrive(project, "abc")
    assert night.pass_by(project)[1].event == "rejected"
    assert held(project) == "abc" and accepted(project) == ""


def test_a_repetition_that_fails_clears_no_drop_and_stops_no_night(project):
    night = Night(harmful="c")
    night.fails = {"c": UserError("prompts: too few people")}
    arrive(project, "abc")
    outcome = night.pass_by(project)[1]
    assert outcome.version == "v2" and held(project) == "c"
    assert night.trained == ["abc", "c", "ab"]
    assert "is undecided: failed: prompts: too few people" in outcome.reasons[-1]
    assert "failed: prompts: too few people" in [event.reason for event in history(project)]


def test_if_all_repetitions_fail_the_suspects_are_held(project, capsys):
    night = Night(harmful="a")
    night.fails = {name: UserError("too few people") for name in "ab"}
    arrive(project, "ab")
    outcome = night.pass_by(project)[1]
    assert outcome.event == "rejected" and held(project) == "ab"
    assert capsys.readouterr().out.count("is undecided: failed: too few people") == 2
    assert sum("too few people" in reason for reason in outcome.reasons) == 2
    assert night.pass_by(project)[0].reason == "nothing is new"


def test_a_repetition_without_a_store_is_tried_again(project):
    night = Night(harmful="a")
    night.fails = {"b": ServiceUnavailable("the store does not respond")}
    arrive(project, "ab")
    with pytest.raises(ServiceUnavailable):
        night.pass_by(project)
    night.fails = {}
    assert night.pass_by(project)[1].version == "v2" and night.trained == ["ab", "b", "b"]


def test_a_drop_of_an_undecided_run_is_a_suspect_later(project):
    arrive(project, "a")
    Night(decides_with=9).pass_by(project)
    assert accepted(project) == "a"
    night = Night(harmful="a")
    arrive(project, "b")
    assert night.pass_by(project)[1].version == "v2"
    assert held(project) == "a" and accepted(project) == "b" and night.trained == ["ab", "b"]


def test_without_a_champion_too_a_drop_of_an_undecided_run_is_a_suspect(tmp_path):
    """Or it would be in every run, and each night's good drop would be held in its place."""
    project = make_watching_project(tmp_path)
    arrive(project, "a")
    Night(decides_with=2).pass_by(project)
    arrive(project, "b")
    outcome = Night(harmful="a").pass_by(project)[1]
    assert outcome.event == "promoted" and (accepted(project), held(project)) == ("b", "a")


def test_a_held_drop_that_a_person_accepts_is_new(project):
    night = Night(decides_with=5)
    arrive(project, "a")
    night.pass_by(project)
    (drop,) = [one for one in ledger(project) if one.address[-1] == "a"]
    write_ledger(decide(ledger(project), drop.id, Status.ACCEPTED, "looked"), project / "data/drops.json")
    git(project, "commit", "--quiet", "--all", "--message", "looked at")
    assert night.pass_by(project)[0].run and night.trained == ["a", "a"]


def test_a_folder_that_is_gone_stops_no_scan(project):
    night = Night(decides_with=5)
    arrive(project, "a")
    night.pass_by(project)
    (drop,) = [one for one in ledger(project) if one.address[-1] == "a"]
    shutil.rmtree(drop.address)
    arrive(project, "b")
    assert night.pass_by(project)[0].run and night.trained == ["a", "ab"]


def vouch_for(project: Path, name: str) -> None:
    """A drop of an undecided run is accepted by a person."""
    arrive(project, name)
    Night(decides_with=9).pass_by(project)
    judge(project, name, Status.ACCEPTED)


def judge(project: Path, name: str, status: Status) -> None:
    """A person accepts or rejects a drop."""
    drops = decide(ledger(project), str(project.parent / "in" / name), status, "looked at it")
    write_ledger(drops, project / "data/drops.json")
    git(project, "commit", "--quiet", "--all", "--message", f"{name}: {status}")


def test_a_drop_that_a_person_has_accepted_is_no_suspect(project):
    vouch_for(project, "a")
    night = Night(harmful="b")
    arrive(project, "b")
    assert night.pass_by(project)[1].version == "v2"
    assert held(project) == "b" and accepted(project) == "a" and night.trained == ["ab", "a"]


@pytest.mark.parametrize(("names", "trained"), [("b", ["ab", "a"]), ("bc", ["abc", "ac", "ab", "a"])])
def test_no_drop_is_held_for_the_harm_of_one_that_a_person_has_accepted(project, names, trained):
    vouch_for(project, "a")
    night = Night(harmful="a")
    arrive(project, names)
    outcome = night.pass_by(project)[1]
    assert outcome.event == "rejected" and night.trained == trained
    assert held(project) == "" and accepted(project) == f"a{names}"
    (drop,) = [one for one in ledger(project) if one.address[-1] == "a"]
    assert f"look at {drop}" in outcome.reasons[-1]
    assert "had the same data and parameters" in night.pass_by(project)[0].reason


def test_an_undecided_repetition_without_any_suspect_clears_none(project):
    vouch_for(project, "a")
    night = Night(harmful="b", decides_with=2)
    arrive(project, "b")
    assert night.pass_by(project)[1].event == "rejected"
    assert held(project) == "b" and night.trained == ["ab", "a"]


def test_a_repetition_trains_though_ingest_holds_what_else_is_new(project):
    arrive(project, "a")
    Night(decides_with=9).pass_by(project)
    night = Night(harmful="b")
    night.unreadable = "c"
    arrive(project, "bc")
    assert night.pass_by(project)[1].version == "v2"
    assert held(project) == "b" and night.trained == ["abc", "bc", "ac"]


def test_a_run_that_has_not_trained_accuses_no_drop_of_an_undecided_run(project):
    arrive(project, "ab")
    Night(decides_with=9).pass_by(project)
    arrive(project, "c")
    night = Night()
    night.unreadable = "c"
    assert night.pass_by(project)[1].event == "rejected"
    assert held(project) == "c" and accepted(project) == "ab" and night.trained == []


def test_if_no_repetition_is_promoted_all_new_drops_are_held(project):
    night = Night(harmful="ad")
    arrive(project, "abcd")
    outcome = night.pass_by(project)[1]
    assert outcome.event == "rejected" and held(project) == "abcd"
    assert outcome.reasons[-1].startswith("3 repetitions without some of the drops")
    assert night.pass_by(project)[0].reason == "nothing is new"


@pytest.mark.parametrize(("budget", "kept_back"), [(0, "abcd"), (1, "ab")])
def test_repetitions_have_a_budget(project, budget, kept_back):
    set_params(project, {"retrain.blame_runs": budget})
    git(project, "commit", "--quiet", "--all", "--message", "fewer")
    night = Night(harmful="a")
    arrive(project, "abcd")
    night.pass_by(project)
    assert held(project) == kept_back and len(night.trained) == budget + 1


def test_repetitions_that_are_killed_are_not_trained_again(project):
    arrive(project, "abcde")
    trained = []
    for number in range(3):
        night = Night(harmful="e", dies_after=1)
        with pytest.raises(Killed):
            night.pass_by(project)
        trained += night.trained
        assert held(project) == "" and len(trained) == number + 1
    night = Night(harmful="e")
    assert night.pass_by(project)[1].version == "v2"
    assert trained + night.trained == ["abcde", "de", "abce", "abcd"]
    assert held(project) == "e"


def worked(project: Path, names: str) -> Run:
    """A run on new drops after its stages, with a dvc.lock of its own."""
    arrive(project, names)
    run = scan(project).run
    registry_project.work(run)
    (run.folder / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    return run


def test_the_run_after_an_undecided_one_begins_with_its_shards(project):
    run = worked(project, "a")
    write_gate(run, "undecided", "only 5 test people")
    retraining.apply_decision(run)
    arrive(project, "b")
    following = scan(project).run
    assert (following.folder / "dvc.lock").read_text() == (run.folder / "dvc.lock").read_text()
    for one in (run, following):
        one.remove_worktree()
        git(project, "branch", "--quiet", "-D", one.branch)
    assert not (scan(project).run.folder / "dvc.lock").exists()


def test_a_repetition_begins_with_the_shards_of_the_rejected_run(project):
    run = worked(project, "ab")
    write_gate(run, "reject", "worse")
    run.commit("results")
    trial = retraining.trial(run, run.new_drops[:1])
    assert (trial.folder / "dvc.lock").read_text() == (run.folder / "dvc.lock").read_text()
    assert trial.base == run.base and [drop.address[-1] for drop in trial.held] == ["a"]
    with pytest.raises(UserError, match=r"metrics/gate\.json"):
        retraining.read_gate(trial)


def test_the_decision_is_an_event_on_standard_error(project, capsys, monkeypatch):
    monkeypatch.setenv("CSDN_LOG", "json")
    arrive(project, "ab")
    found, _ = Night(harmful="a", decides_with=2).pass_by(project)
    (event,) = map(json.loads, capsys.readouterr().err.splitlines())
    assert (event["event"], event["run"]) == ("decision", found.run.id)
    assert (event["outcome"], event["version"]) == ("rejected", None)
    assert event["reasons"][0] == "of the drops ab, 1 do harm" and "held: " in event["reasons"][1]
    assert event["figures"] == {"vis_to_ir": {"rank1": 53}, "test_people": 2}
    arrive(project, "c")
    Night().pass_by(project)
    event = json.loads(capsys.readouterr().err)
    assert (event["outcome"], event["version"]) == ("promoted", "v2") and event["reasons"]


# After a rollback.


@pytest.fixture
def rolled_back(project, monkeypatch):
    """v2 was trained on the drops a and b, and a person went back to v1."""
    arrive(project, "ab")
    assert Night().pass_by(project)[1].version == "v2"

    def fetch(root: Path, version: str, folder: Path) -> None:  # the project's files are not in DVC's cache
        shutil.copytree(root / "champion", folder)

    monkeypatch.setattr("csdn.retraining.versions.fetch_champion", fetch)
    assert rollback(project, reason="camera 3 was moved")[0] == "v1"
    return project


def test_the_drops_of_a_version_that_was_left_start_no_run(rolled_back):
    night = Night()
    found, outcome = night.pass_by(rolled_back)
    assert found.reason == "nothing is new since the rollback to v1"
    assert outcome is None and night.trained == [] and accepted(rolled_back) == "ab"


def test_the_next_new_data_starts_a_run_that_has_them_and_the_gate_decides(rolled_back):
    arrive(rolled_back, "c")
    night = Night(harmful="a")
    found, outcome = night.pass_by(rolled_back)
    assert found.reason == "1 new person (retrain.people: 1)" and night.trained[0] == "abc"
    assert outcome.version == "v3" and held(rolled_back) == "a" and accepted(rolled_back) == "bc"
    assert Night().pass_by(rolled_back)[0].reason == "nothing is new"


def test_after_an_undecided_run_they_still_start_none(rolled_back):
    arrive(rolled_back, "c")
    assert Night(decides_with=9).pass_by(rolled_back)[1].event == "undecided"
    found, outcome = Night().pass_by(rolled_back)
    assert found.reason.startswith("nothing is new since run ") and outcome is None


def test_a_drop_of_a_version_that_was_left_is_new_again_if_a_person_accepts_it(rolled_back):
    judge(rolled_back, "a", Status.ACCEPTED)
    assert scan(rolled_back).reason == "1 new person (retrain.people: 1)"


def test_a_version_that_a_person_made_champion_again_is_not_left(rolled_back):
    rollback(rolled_back, "v2", "it was not the camera")
    assert Night().pass_by(rolled_back)[0].reason == "nothing is new since the rollback to v2"
    assert after_rollback(rolled_back, "v2") == []


def test_a_rollback_says_which_drops_start_no_run(rolled_back):
    said = "\n".join(after_rollback(rolled_back, "v1"))
    first, *_, last = ledger(rolled_back)
    assert "v2: the same weights" in said and str(last) in said and str(first) not in said
    assert "csdn reject DROP" in said


def test_without_the_drop_that_was_to_blame_the_others_are_trained_on_at_once(rolled_back):
    judge(rolled_back, "a", Status.REJECTED)
    night = Night()
    assert night.pass_by(rolled_back)[1] is None
    assert night.pass_by(rolled_back, force=True)[1].version == "v3" and night.trained == ["b"]


def test_the_weights_of_a_version_that_was_left_are_never_promoted(rolled_back):
    """`--now` on the same data: the small project's stage makes the same weights."""
    with pytest.raises(UserError, match="has the weights of v2, which a rollback has left"):
        Night().pass_by(rolled_back, force=True)
    assert champion(rolled_back) == "v1"
