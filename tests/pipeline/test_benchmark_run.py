"""`csdn benchmark` takes a benchmark from its folder to figures and report; here on miniatures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from benchmark_folders import make_regdb
from repository import make_repository
from workspace import ROOT, run, set_params

from csdn.cli.benchmarks import accept_only, average_command, rejection_lines, trial_key
from csdn.cli.benchmarks import benchmark as benchmark_command
from csdn.evaluation.headline import SHOWN, SHOWN_METHODS
from csdn.evaluation.scores import average
from csdn.ingest.ledger import Drop, Status, read_ledger
from csdn.params import load_params
from csdn.runtime.errors import UserError
from csdn.synthetic.miniatures import write_miniature

COMMAND = ("python", "-c", "from csdn.cli.main import main; main()")  # the workspace's own code


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A clone with one epoch each; the benchmarks run in it one after another."""
    folder = make_repository(tmp_path_factory.mktemp("benchmarks") / "project", **{"scaling.threads": 1})
    little = {"prompts.tokens.epochs": 1, "prompts.integration.epochs": 1, "embedding.epochs": 1}
    set_params(folder, little, "csdn/cli/presets/small.yaml")
    return folder


def benchmark(repository, tmp_path, name, *options):
    """Run the command on a new miniature; returns metrics/evaluation.json."""
    write_miniature(name, tmp_path / name)
    again(repository, tmp_path, name, *options)
    assert (repository / "report/index.html").is_file()
    accepted = [
        drop.layout for drop in read_ledger(repository / "data/drops.json") if drop.status == "accepted"
    ]
    assert accepted == [name]
    return figures_of(repository / "metrics/evaluation.json")


def again(repository, tmp_path, name, *options):
    """Run the command; returns its output."""
    return run(repository, *COMMAND, "benchmark", name, str(tmp_path / name), "--small", *options).stdout


def figures_of(path: Path):
    return json.loads(path.read_text())


@pytest.mark.slow
def test_sysu_from_folder_to_report(repository, tmp_path):
    count = benchmark(repository, tmp_path, "sysu")["counts"]["infrared_to_visible"]
    assert (count["people"], count["queries"], count["gallery"], count["trials"]) == (8, 60, 26, 10)


@pytest.mark.slow
def test_llcm_from_folder_to_report(repository, tmp_path):
    counts = benchmark(repository, tmp_path, "llcm")["counts"]
    for count in counts.values():
        assert (count["people"], count["queries"], count["gallery"]) == (8, 48, 24)
        assert count["excluded_pairs"] > 0


@pytest.mark.slow
def test_regdb_from_folder_to_the_mean_of_its_models(repository, tmp_path):
    benchmark(repository, tmp_path, "regdb", "--trials", "1,4")
    models = [figures_of(repository / f"metrics/regdb/trial-{trial:02d}.json") for trial in (1, 4)]
    means = [model["trained"]["visible_to_infrared"]["mAP"]["mean"] for model in models]
    assert means[0] != means[1]
    whole = figures_of(repository / "metrics/regdb/average.json")
    assert whole == average(models)
    assert whole["trained"]["visible_to_infrared"]["mAP"]["mean"] == pytest.approx(sum(means) / 2, abs=1e-6)
    printed = again(repository, tmp_path, "regdb", "--trials", "1,4")
    assert "Running stage" not in printed and "trial 1: metrics/regdb/trial-01.json is there" in printed
    assert load_params(repository / "params.yaml").data.trial == 4


def model(rank1, queries=10):
    count = {"queries": queries, "gallery": 5, "trials": 1}
    figure = {"mean": rank1, "std": None}
    return {"trained": {"a_to_b": {"rank1": figure}}, "counts": {"a_to_b": count}}


def test_the_mean_of_models_is_over_their_means_with_the_deviation_between_them():
    found = average([model(10.0), model(20.0), model(60.0)])
    assert found["trained"]["a_to_b"]["rank1"] == {"mean": 30.0, "std": pytest.approx(26.457513)}
    assert found["counts"]["a_to_b"]["models"] == 3
    assert average([model(10.0)])["trained"]["a_to_b"]["rank1"] == {"mean": 10.0, "std": None}
    assert average([model(10.0), model(None)])["trained"]["a_to_b"]["rank1"] == {"mean": None, "std": None}


def test_models_of_different_experiments_have_no_mean():
    with pytest.raises(ValueError, match="different protocols or sizes"):
        average([model(10.0), model(20.0, queries=11)])


def test_a_file_of_another_experiment_is_named(tmp_path):
    every_figure = {"a_to_b": {name: {"mean": 10.0, "std": None} for name in SHOWN}}
    whole = model(10.0) | dict.fromkeys(SHOWN_METHODS, every_figure)
    other_size = model(20.0, queries=11) | dict.fromkeys(SHOWN_METHODS, every_figure)
    no_figures = whole | {"trained": {"a_to_b": {}}}
    other_method = whole | {"mine": every_figure}
    for number, other in enumerate((other_size, no_figures, other_method)):
        paths = [tmp_path / f"{number}-{name}.json" for name in ("first", "second")]
        for path, figures in zip(paths, (whole, other), strict=True):
            path.write_text(json.dumps(figures))
        with pytest.raises(UserError, match=rf"{number}-second\.json"):
            average_command(paths)


def test_a_trial_is_trained_again_when_the_aliases_change(tmp_path, monkeypatch):
    """Aliases decide identities, and the name of their file stays the same."""
    for name in ("params.yaml", "data/aliases.json", load_params(ROOT / "params.yaml").model.weights):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    drop = Drop("a" * 64, "/data/a", "regdb", Status.ACCEPTED, "")
    before = trial_key(1, drop)
    assert trial_key(1, drop) == before
    (tmp_path / "data/aliases.json").write_text('{"7": "8"}')
    assert trial_key(1, drop) != before


def test_the_ledger_accepts_only_the_benchmark_and_keeps_earlier_decisions():
    def drop(letter, status, reason=""):
        return Drop(letter * 64, f"/data/{letter}", "sysu", Status(status), reason)

    ledger = [
        drop("a", "accepted"),
        drop("b", "rejected", "blurred"),
        drop("c", "held", "half of it is dark"),
    ]
    added = accept_only(ledger, drop("d", "accepted"))
    assert [(one.id[0], one.status, one.reason) for one in added] == [
        ("a", "rejected", "sysu is evaluated alone; it was accepted"),
        ("b", "rejected", "blurred"),
        ("c", "rejected", "sysu is evaluated alone; it was held: half of it is dark"),
        ("d", "accepted", ""),
    ]
    (line,) = rejection_lines(ledger, added)
    assert f"Rejected for it: {'a' * 12}, {'c' * 12}." in line and "csdn accept" in line
    assert rejection_lines(added, added) == []
    assert [one.status for one in accept_only(added, drop("a", "accepted"))] == [
        "accepted",
        *["rejected"] * 3,
    ]
    judged = [drop("a", "accepted", "bad ones are known")]
    assert accept_only(judged, drop("a", "accepted")) == judged


def test_without_clips_weights_the_error_names_the_command(tmp_path, monkeypatch):
    shutil.copy(Path(__file__).parents[2] / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"RN50-openai\.safetensors is missing: run `csdn fetch-clip`"):
        benchmark_command("regdb", str(make_regdb(tmp_path / "regdb")), small=False, trials="1-10")
