"""The ablation: variants are parameters that exist, and the table holds what was measured."""

import shutil

import pytest
from workspace import ROOT, set_params

from csdn.ablation import FIGURES, VARIANTS, command, experiment_name, lines, table
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
