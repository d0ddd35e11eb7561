"""benchmarks/cost_model.py: formulas worked by hand, and held against the network and plan they are of."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import cost_model as cost

from csdn.data.batch import VIEWS
from csdn.data.sampler import epoch_plan
from csdn.model import CSDN, ModelConfig

SIZES = {"depths": (1, 1, 1, 1), "width": 8, "pool_heads": 2, "embed_dim": 16, "image_size": (32, 16)}
TEXT = {"text_width": 8, "text_heads": 2, "text_layers": 1}


def network(people):
    with torch.device("meta"):
        return CSDN(ModelConfig(identities=people, **SIZES, **TEXT)).train()


def parameters(model):
    return sum(parameter.numel() for parameter in model.image_parameters())


def test_rows_and_reads_are_those_of_a_batch_of_the_plan():
    labels = np.repeat(np.arange(8), 8)
    row = epoch_plan(labels, np.tile([0, 1], 32).astype(np.int8), 8, 4, seed=0, epoch=0)[0]
    assert cost.reads(8, 4) == row.visible.size + row.infrared.size == 64
    assert cost.rows(8, 4) == len(VIEWS) * row.visible.size == 96


def test_more_people_cost_the_classifiers_rows_and_no_more():
    few, many = network(5), network(12)
    features = few.config.map_channels + few.config.embed_dim
    unused = {"norms": 0, "norm_channels": 0, "operations": 0, "rows": 0, "kept_matrices": 0}
    sizes = cost.Network(parameters(few), features, embed=16, people=5, **unused)
    assert sizes.parameters_for(12) == parameters(many)


def test_what_is_gathered_is_f_and_g():
    model = network(5).to_empty(device="cpu")
    outputs = model({"visible": torch.zeros(4, 3, 32, 16), "infrared": torch.zeros(2, 3, 32, 16)})
    both = torch.cat([outputs.gem, outputs.pool], dim=1)
    assert cost.gathered_bytes(6, both.shape[1]) == both.nbytes


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (cost.gathered_bytes(96, 3072), 1_179_648),  # 96 x 3072 x 4
        (cost.gather_traffic(96, 3072, 1), 0),
        (cost.gather_traffic(96, 3072, 4), 1_769_472),  # twice three quarters of it
        (cost.gradient_traffic(10**6, 4), 6 * 10**6),  # twice three quarters of 4 MB
        (cost.norm_traffic(10, 2), 160),  # 80 bytes of the other's, then 2 x 80 / 2
        (cost.pairs_bytes(12, 96, 2), 9_216),
        (cost.distance_operations(5, 10, 3), 1050),  # 50 pairs x 3 x (subtract, multiply, add; two products)
        (cost.adam_bytes(10), 160),
        (cost.adam_step_bytes(10), 280),
        (cost.table_operations(2, 3, 5, trained=False), 120),  # 2 x 30 forward, as much to the rows
        (cost.table_operations(2, 3, 5, trained=True), 180),
    ],
)
def test_formulas(value, expected):
    assert value == expected
