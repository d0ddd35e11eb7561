"""The ablation: variants are parameters that exist, and the table holds what was measured."""

import shutil
import subprocess

import pytest
from make_images import write
from workspace import ROOT, set_params

from csdn.ablation import FIGURES, VARIANTS, command, experiment_name, lines, outside_git, table
from csdn.params import load_params


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_changes_parameters_that_exist(variant, tmp_path):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    set_params(tmp_path, VARIANTS[variant])
    load_params(tmp_path / "params.yaml")


def test_no_two_variants_are_the_same():
    assert len({str(sorted(changes.items())) for changes in VARIANTS.values()}) == len(VARIANTS)


def test_an_experiment_has_its_seed_and_its_parameters():
    arguments = command("no-msel", 4)
    assert arguments[3:] == [
        *("exp", "run", "--queue", "--force", "--name", "ablation-no-msel-seed-4"),
        *("-S", "seed=4", "-S", "embedding.losses.msel=0.0"),
    ]


def test_an_experiment_takes_along_the_weights_that_git_does_not_have(tmp_path, monkeypatch):
    """DVC runs what is queued in a copy of what Git has."""
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


def shown(variant, seed, *values):
    """A row of `dvc exp show --csv`."""
    return {
        "Experiment": experiment_name(variant, seed),
        **dict(zip(FIGURES, map(str, values), strict=False)),
    }


def test_the_table_has_mean_and_sample_deviation_over_the_seeds():
    rows = [
        {"Experiment": "", "ir_to_vis.rank1": "99"},  # the workspace
        {"Experiment": "ablation-unknown-seed-0", **dict.fromkeys(FIGURES, "1")},
        shown("sum", 0, 10, 20, 30, 40),
        shown("attention", 1, 24, 2, 3, 4),
        shown("attention", 0, 20, 2, 3, 4),
        shown("concat", 0),  # it failed
    ]
    assert table(lines(rows))[2:] == [
        "| sum | 1 | 10.0 | 20.0 | 30.0 | 40.0 |",
        "| attention | 2 | 22.0 ± 2.8 | 2.0 ± 0.0 | 3.0 ± 0.0 | 4.0 ± 0.0 |",
    ]


def test_a_protocol_of_one_direction_has_its_columns_alone():
    rows = [shown("sum", 0, 10, 20), shown("sum", 1, 30, 20), shown("shared", 0, 1, 2, 3, 4)]
    assert table(lines(rows)) == [
        "| variant | seeds | IR → VIS rank-1 | IR → VIS mAP |",
        "| --- | --- | --- | --- |",
        "| shared | 1 | 1.0 | 2.0 |",
        "| sum | 2 | 20.0 ± 14.1 | 20.0 ± 0.0 |",
    ]


def test_the_newest_experiment_of_a_name_counts():
    newest, old = shown("sum", 0, 10, 10, 10, 10), shown("sum", 0, 90, 90, 90, 90)
    assert table(lines([newest, old]))[2:] == ["| sum | 1 | 10.0 | 10.0 | 10.0 | 10.0 |"]
