"""Learning rates equal the published ones at every epoch."""

import json
from pathlib import Path

import pytest
from golden_vectors import assert_close

from csdn.training.schedules import lr_multiplier, warmup_cosine

GOLDEN = json.loads(Path(__file__).with_name("golden").joinpath("learning_rates.json").read_text())
STAGE1 = {
    "epochs": 60,
    "learning_rate": 3e-4,
    "warmup_epochs": 5,
    "warmup_learning_rate": 1e-5,
    "final_learning_rate": 1e-6,
}
STAGE2 = {"kind": "steps", "epochs": 120, "warmup_epochs": 10, "warmup_factor": 0.01, "milestones": (40, 70)}


def test_stage_1_follows_the_published_rates():
    for epoch, wanted in enumerate(GOLDEN["stage1_and_2"]):
        assert_close(warmup_cosine(epoch, **STAGE1), wanted, 1e-12, "learning rates of stage 1, 60 epochs")


def test_stage_2_follows_the_published_rates():
    for epoch, wanted in enumerate(GOLDEN["stage3_base"]):
        rate = 3e-4 * lr_multiplier(epoch, **STAGE2)
        assert_close(rate, wanted, 1e-12, "learning rates of stage 2, 120 epochs")


def test_cosine_rises_to_one_at_the_end_of_warm_up_and_falls_to_zero():
    schedule = {"kind": "cosine", "epochs": 3, "warmup_epochs": 0.5, "warmup_factor": 0.01}
    assert lr_multiplier(0, **schedule) == 0.01
    assert lr_multiplier(0.25, **schedule) == pytest.approx(0.505)
    assert lr_multiplier(0.5, **schedule) == 1
    assert lr_multiplier(1.75, **schedule) == pytest.approx(0.5)
    assert lr_multiplier(3, **schedule) == pytest.approx(0, abs=1e-12)


def test_no_warm_up_starts_at_the_full_rate():
    assert lr_multiplier(0, kind="steps", epochs=2, warmup_epochs=0, warmup_factor=0.01) == 1
