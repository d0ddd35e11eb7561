"""The ablation: variants change existing parameters, and the table has the measured figures."""

import json
import shutil
import subprocess

import pytest
from make_images import write
from workspace import ROOT, set_params

from csdn.cli.ablation import command, outside_git, read
from csdn.params import leaves, load_params
from csdn.report.ablation import (
    FIGURES,
    VARIANTS,
    Experiment,
    experiment_name,
    lines,
    measured_table,
    read_table,
    table,
    variant_and_seed,
    write_table,
)
from csdn.runtime.errors import UserError

PARAMS = load_params(ROOT / "params.yaml")


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_changes_parameters_that_exist(variant, tmp_path):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    set_params(tmp_path, VARIANTS[variant])
    load_params(tmp_path / "params.yaml")


def test_no_two_variants_are_the_same():
    assert len({str(sorted(changes.items())) for changes in VARIANTS.values()}) == len(VARIANTS)


def test_an_experiment_has_its_seed_and_its_parameters():
    arguments = command("no-msel", 4)
    assert arguments == [
        *("exp", "run", "--queue", "--force", "--name", "ablation-no-msel-seed-4"),
        *("-S", "seed=4", "-S", "embedding.losses.msel=0.0"),
    ]


def test_an_experiment_copies_weights_that_are_not_in_git(tmp_path, monkeypatch):
    """DVC runs queued experiments in a copy of the files in Git."""
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "--quiet"], check=True)
    for name in ("weights/clip.safetensors", "models/known", "models/ignored"):
        write(tmp_path / name, b"")
    subprocess.run(["git", "add", "models/known"], check=True)
    assert outside_git("models/known") == []
    assert outside_git("models/ignored") == ["models/ignored"]
    assert outside_git("weights/clip.safetensors") == ["weights"]
    arguments = command("no-msel", 4, ["weights"])
    assert arguments[arguments.index("--copy-paths") + 1] == "weights"


def test_a_name_says_variant_and_seed():
    assert variant_and_seed(experiment_name("no-msel", 12)) == ("no-msel", 12)
    assert variant_and_seed("ablation-unknown-seed-0") is None
    assert variant_and_seed("teal-moth") is None


def ran(variant, seed, *values, data="0a1b", **changes):
    """A finished experiment with these figures; changes: parameters beside its variant's and its seed."""
    parameters = dict(leaves(PARAMS.model_dump())) | dict(VARIANTS[variant]) | {"seed": seed} | changes
    figures = dict(zip(FIGURES, map(float, values), strict=False))
    return Experiment(variant, seed, figures, 80, parameters, data)


def test_the_table_has_mean_and_sample_deviation_over_the_seeds():
    experiments = [ran("sum", 0, 10, 20, 30, 40), ran("sii", 1, 24, 2, 3, 4)]
    assert table(lines([*experiments, ran("sii", 0, 20, 2, 3, 4)]))[2:] == [
        "| sum | 1 | 10.0 | 20.0 | 30.0 | 40.0 |",
        "| sii | 2 | 22.0 ± 2.8 | 2.0 ± 0.0 | 3.0 ± 0.0 | 4.0 ± 0.0 |",
    ]


def test_a_protocol_of_one_direction_has_its_columns_alone():
    assert table(lines([ran("sum", 0, 10, 20), ran("sum", 1, 30, 20), ran("shared", 0, 1, 2, 3, 4)])) == [
        "| variant | seeds | IR → VIS rank-1 | IR → VIS mAP |",
        "| --- | --- | --- | --- |",
        "| shared | 1 | 1.0 | 2.0 |",
        "| sum | 2 | 20.0 ± 14.1 | 20.0 ± 0.0 |",
    ]


def listed(variant, seed, rank1, state="success"):
    """An experiment as `dvc exp show --json` lists it."""
    data = {
        "params": {"params.yaml": {"data": {**PARAMS.model_dump(), "seed": seed}}},
        "metrics": {"metrics/headline.json": {"data": {"ir_to_vis": {"rank1": rank1}, "test_people": 80}}},
        "deps": {"data/samples.parquet": {"hash": "0a1b", "size": 1}},
    }
    return {
        "name": experiment_name(variant, seed),
        "executor": state and {"state": state},
        "revs": [{"data": data}],
    }


def test_only_experiments_that_finished_with_figures_are_read_the_newest_of_a_name():
    failed = {"name": experiment_name("sum", 5), "executor": {"state": "failed"}, "revs": [{"data": None}]}
    shown = [
        listed("sum", 0, 10.0),
        listed("sum", 0, 90.0),
        listed("sum", 1, 20.0, state=None),  # it ran in the workspace
        listed("sum", 2, None),
        listed("sum", 3, 99.0, state="running"),  # the commit's figures
        listed("sum", 4, 99.0, state="queued"),
        failed,
        {**listed("sum", 6, 99.0), "name": "teal-moth"},
    ]
    found = read({"experiments": shown})
    assert [(one.seed, one.figures) for one in found] == [
        (0, {"ir_to_vis.rank1": 10.0}),
        (1, {"ir_to_vis.rank1": 20.0}),
    ]
    assert found[0].parameters["embedding.epochs"] == PARAMS.embedding.epochs
    assert read({"experiments": None}) == []


def test_a_written_table_is_read_back(tmp_path):
    path = tmp_path / "metrics" / "ablation.json"
    experiments = [ran("sum", 0, 10, 20), ran("sum", 1, 10.3, 20), ran("baseline", 0, 1, 2)]
    written = measured_table("c0ffee", experiments)
    write_table(path, written)
    assert read_table(path) == written
    assert written.parameters["model.integration"] == "sii"  # the baseline's
    assert "scaling.threads" not in written.parameters


def test_the_shipped_file_is_no_table(tmp_path):
    assert read_table(ROOT / "metrics/ablation.json") is None
    assert read_table(tmp_path / "metrics/ablation.json") is None


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (ran("sum", 1, 1, **{"embedding.epochs": 99}), "ablation-sum-seed-1 with 99"),
        (ran("sum", 1, 1, data="ffff"), "ran with data = 0a1b"),
        (ran("baseline", 0, 1, **{"embedding.losses.msel": 0.5}), "embedding.losses.msel = 1.0"),
    ],
)
def test_experiments_on_other_data_or_parameters_have_no_common_table(other, said):
    with pytest.raises(UserError, match=said):
        measured_table("c0ffee", [ran("sum", 0, 1), other])


def test_the_seed_and_parameters_that_decide_no_result_may_differ():
    changed = {"scaling.threads": 7, "report.queries": 3, "ingest.watch": ["/elsewhere"]}
    table = measured_table("c0ffee", [ran("sum", 0, 1), ran("sum", 1, 3, **changed)])
    assert table.lines[0].figures["ir_to_vis.rank1"][0] == 2.0


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:40],
        lambda text: "[]",
        lambda text: text.replace('"format": 1', '"format": 2'),
        lambda text: text.replace('"mean": 10.0', '"mean": 101.0'),
        lambda text: text.replace('"mean": 10.0', '"mean": NaN'),
        lambda text: text.replace('"mean": 10.0', '"mean": "10"'),
        lambda text: text.replace("ir_to_vis.mAP", "ir_to_vis.mINP"),
        lambda text: json.dumps({"format": 1}),
    ],
)
def test_a_damaged_file_is_named_with_what_to_do(tmp_path, damage):
    path = tmp_path / "ablation.json"
    write_table(path, measured_table("c0ffee", [ran("sum", 0, 10, 20)]))
    path.write_text(damage(path.read_text()))
    with pytest.raises(UserError, match=r"ablation\.json: not a table of the ablation .*csdn table --out"):
        read_table(path)
