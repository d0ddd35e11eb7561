"""A mistake in params.yaml is named: key, value, and what is allowed."""

from pathlib import Path

import pytest
import yaml

from csdn.errors import UserError
from csdn.params import load_params, parse_params

ROOT = Path(__file__).parents[1]


@pytest.fixture
def raw():
    return yaml.safe_load((ROOT / "params.yaml").read_text())


def test_the_committed_file_is_valid():
    assert load_params(ROOT / "params.yaml").embedding.people == 8


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("embedding.peple", 8, ["embedding.peple", "unknown key", "people"]),
        ("colour", 1, ["colour", "unknown key", "evaluation"]),
        ("embedding.people", "eight", ["embedding.people", "'eight'", "integer"]),
        ("embedding.people", 1, ["embedding.people", "1", "greater than or equal to 2"]),
        ("embedding.learning_rate", -1, ["embedding.learning_rate", "-1", "greater than 0"]),
        ("model.stem", "resnet", ["model.stem", "'resnet'", "'clip' or 'published'"]),
        ("model.image_size", [64], ["model.image_size", "at least 2 items"]),
        ("data.test_percent", 100, ["data.test_percent", "100", "less than or equal to 99"]),
        ("embedding.schedule.milestones", [70, 40], ["embedding.schedule", "must rise"]),
        ("prompts.prompts.warmup_epochs", 99, ["prompts.prompts", "warmup_epochs 99", "epochs 6"]),
        ("ingest.max_bad_fraction", 2, ["ingest.max_bad_fraction", "less than or equal to 1"]),
    ],
)
def test_a_mistake_is_named(raw, key, value, words):
    *path, last = key.split(".")
    section = raw
    for name in path:
        section = section[name]
    section[last] = value
    with pytest.raises(UserError) as error:
        parse_params(raw, source="params.yaml")
    for word in words:
        assert word in str(error.value)


def test_every_mistake_is_told_at_once(raw):
    raw["seed"] = -1
    del raw["report"]
    with pytest.raises(UserError) as error:
        parse_params(raw)
    assert "seed = -1" in str(error.value)
    assert "report: missing" in str(error.value)


@pytest.mark.parametrize("text", ["a: [", "", "just text"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(UserError, match=r"not usable|not valid YAML"):
        load_params(tmp_path / "params.yaml")


def test_a_missing_file_says_where_to_run(tmp_path):
    with pytest.raises(UserError, match="root folder"):
        load_params(tmp_path / "params.yaml")
