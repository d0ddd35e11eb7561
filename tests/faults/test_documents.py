"""Hostile and damaged JSON and YAML is an error at every reader; YAML is read as DVC reads it."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csdn.cli import main as cli
from csdn.cli import summary
from csdn.cli.benchmarks import average_command
from csdn.cli.data import drops as list_drops
from csdn.cli.retraining import retrain
from csdn.data.catalog import PEOPLE_SCHEMA, read_facts, table_of, write_table
from csdn.data.checkpoint_store import CheckpointStore
from csdn.data.shards import VerifiedShards
from csdn.ingest.identities import read_aliases
from csdn.ingest.ledger import read_ledger
from csdn.model import read_config
from csdn.model.clip import facts_in
from csdn.params import load_params, set_value
from csdn.report import tables
from csdn.report.page import _json as read_for_report
from csdn.retraining.run import _metrics
from csdn.retraining.steps import missing_outs
from csdn.retraining.workspace import Run, overridden
from csdn.runtime import console
from csdn.runtime.documents import check_values, parse_json, parse_yaml, read_json
from csdn.runtime.errors import UserError
from csdn.training.champion import Start, parse_champion, read_champion
from csdn.training.warm_start import WarmStart
from csdn.training.warm_start import _read_json as read_for_warm_start

ROOT = Path(__file__).parents[2]

# Kind -> (the text, what its error must name).
HOSTILE_JSON = {
    "lists a hundred thousand deep": (b"[" * 100_000, "nested"),
    "mappings a hundred thousand deep": (b'{"a":' * 100_000, "nested"),
    "whole mappings sixty deep": (b'{"a":' * 60 + b"1" + b"}" * 60, "nested more than 50"),
    "a key twice": (b'{"version": 1, "version": 1}', "version"),
    "a key twice, further in": (b'{"drops": [{"id": 1, "id": 2}]}', "id"),
    "no UTF-8": (b'{"caf\xe9": 1}', "byte 0xe9"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "utf-8"),
    "NaN": (b'{"mean": NaN}', "NaN"),
    "an infinity": (b'{"mean": -Infinity}', "Infinity"),
    "an infinity in digits": (b'{"mean": 1e999}', "mean: inf"),
    "an integer of 5000 digits": (b'{"people": ' + b"9" * 5000 + b"}", "5000 digits"),
    "an integer of 80 bits": (b'{"people": 1208925819614629174706176}', "digits"),
    "an integer of 65 bits": (b'{"people": 36893488147419103232}', "64 bits"),
    "half of a pair": (b'{"a": "\\ud800"}', "ud800"),
    "half of a pair in a key": (b'{"\\udfff": "a"}', "udfff"),
    "NUL": (b'{"a": "x\\u0000y"}', "x00"),
    "nothing": (b"", "line 1"),
    "half a file": (b'{"version": 1, "drops": [', "line 1"),
    "a page": (b"<!DOCTYPE html>", "line 1"),
    "a merge": (b"<<<<<<< HEAD\n{}\n=======\n", "line 1"),
}
# Valid JSON that no file of the project has.
OTHER_JSON = (
    b"[]",
    b"null",
    b"3",
    b'"x"',
    b"true",
    b'{"a": 1}',
    b'[{"a": [1]}]',
    b'{"drops": 3, "counts": 4}',
)
WARM = WarmStart(Start(version="v1", prompts="0" * 64, embedding="0" * 64))


def facts_door(path):
    table = table_of([], PEOPLE_SCHEMA)
    parquet = path.with_suffix(".parquet")
    write_table(parquet, table)
    metadata = pq.read_schema(parquet).metadata | {b"csdn_facts": path.read_bytes()}
    pq.write_table(table.replace_schema_metadata(metadata), parquet)
    return read_facts(parquet)


def in_place(name, call):
    """A reader that looks for its file by name in the current folder."""

    def door(path):
        place = path.parent / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(path.read_bytes())
        return call(path.parent)

    return door


DOORS = {
    "the ledger": read_ledger,
    "aliases": read_aliases,
    "champion.json": in_place("champion.json", read_champion),
    "champion.json of a commit": lambda path: parse_champion(path.read_bytes(), "champion.json in commit 1"),
    "a saved network": in_place("config.json", read_config),
    "a champion's configuration": lambda path: read_for_warm_start(path, WARM),
    "the ablation's table": tables.read_ablation,
    "what the report reads": read_for_report,
    "the facts of a table": facts_door,
    "csdn average": lambda path: average_command([path]),
    "csdn summary": in_place("metrics/evaluation.json", lambda folder: summary.show()),
    "csdn drops": in_place("metrics/ingest.json", lambda folder: list_drops()),
    "what the gate decided": in_place(
        "metrics/gate.json",
        lambda folder: _metrics(Run("1", folder.parent, ""), "gate", "csdn gate", "decision"),
    ),
}


@pytest.fixture
def text(tmp_path, monkeypatch):
    """The path for a text; commands run in its folder."""
    monkeypatch.setattr(Run, "folder", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "text"


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", HOSTILE_JSON)
def test_a_hostile_json_text_is_an_error_that_names_it(door, kind, text):
    content, named = HOSTILE_JSON[kind]
    text.write_bytes(content)
    with pytest.raises(UserError) as error:
        DOORS[door](text)
    assert named in str(error.value)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("door", DOORS)
def test_other_valid_json_gives_a_user_error_or_a_value(door, text):
    for content in OTHER_JSON:
        text.write_bytes(content)
        with suppress(UserError):
            DOORS[door](text)


@pytest.mark.parametrize("kind", HOSTILE_JSON)
def test_damaged_caches_of_the_program_are_ignored(kind, text, monkeypatch):
    content = HOSTILE_JSON[kind][0]
    text.write_bytes(content)
    monkeypatch.setattr(console, "TIMES", text)
    assert console.read_times() == {}
    assert VerifiedShards(text, 1).known == {}
    (text.parent / "state.json").write_bytes(content)
    assert CheckpointStore(text.parent).load() is None
    assert facts_in({"csdn.clip": content.decode(errors="replace")}, "RN50", {}) is None


def test_a_byte_order_mark_is_accepted():
    assert parse_json(b'\xef\xbb\xbf{"a": 1}', "x") == parse_yaml(b"\xef\xbb\xbfa: 1", "x") == {"a": 1}


@given(st.binary(max_size=60))
def test_any_bytes_are_json_or_a_user_error(content):
    try:
        parse_json(content, "x")
    except UserError as error:
        assert str(error).startswith("x")


@pytest.mark.parametrize("name", ["none", "folder", "a" * 5000])
def test_a_file_that_cannot_be_read_is_named(name, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=name):
        read_json(tmp_path / name)


HOSTILE_YAML = {
    "lists a hundred thousand deep": (b"- " * 100_000, "nested"),
    "mappings a hundred thousand deep": (b"{a: " * 100_000, "nested"),
    "blocks sixty deep": ("".join(f"{' ' * n}a:\n" for n in range(60)).encode(), "nested"),
    "a key twice": (b"seed: 1\nseed: 2\n", "seed"),
    "a key twice, further in": (b"data:\n  split_salt: a\n  split_salt: b\n", "split_salt"),
    "no UTF-8": (b"seed: \xe9", "byte 0xe9"),
    "UTF-16": ("seed: 1".encode("utf-16"), "utf-8"),
    "a bomb of aliases": (
        b"a: &a [1, 1]\n" + b"".join(b"b%d: &b%d [*a, *a]\n" % (n, n) for n in range(30)),
        "aliases",
    ),
    "a bomb of merges": (b"a: &a {x: 1}\nb: &b {<<: [*a, *a]}\nc: {<<: [*b, *b]}\n", "aliases"),
    "a list in itself": (b"a: &a [*a]\n", "aliases"),
    "a tag that would run": (b"a: !!python/object/apply:os.system [ls]\n", "python/object"),
    "a tag of one's own": (b"a: !mine 1\n", "!mine"),
    "a set": (b"a: !!set {x, y}\n", "set"),
    "a tag that does not fit": (b"a: !!bool x\n", "YAML"),
    "two documents": (b"seed: 1\n---\nseed: 2\n", "document"),
    "YAML 1.1": (b"%YAML 1.1\n---\nseed: 1\n", "directive"),
    "a control character": (b"seed: \x07", "0007"),
    "NUL": (b'a: "x\\0y"', "x00"),
    "half of a pair": (b'a: "\\ud800"', "ud800"),
    "not a number": (b"learning_rate: .nan\n", "learning_rate: nan"),
    "an infinity": (b"learning_rate: -.inf\n", "learning_rate: -inf"),
    "an infinity in digits": (b"learning_rate: 1e999\n", "learning_rate: inf"),
    "an integer of 5000 digits": (b"epochs: " + b"9" * 5000, "digits"),
    "an integer of 65 bits": (b"epochs: 36893488147419103232\n", "epochs: an integer beyond 64 bits"),
    "a day that there is not": (b"salt: 2024-02-31\n", "day"),
    "a key that is a number": (b"1: 2\n", "key 1"),
    "a key that is a list": (b"? [a, b]\n: 1\n", "key"),
    "a tab": (b"data:\n\tsalt: x\n", "line 2"),
    "half a file": (b"seed: [1,", "line 1"),
    "two megabytes": (b"# " + b"x" * 2_000_000, "characters"),
}
YAML_DOORS = {
    "params.yaml": load_params,
    "params.yaml of a commit": lambda path: overridden({}, path.read_bytes()),
    "dvc.lock": in_place("dvc.lock", missing_outs),
}


@pytest.mark.parametrize("door", YAML_DOORS)
@pytest.mark.parametrize("kind", HOSTILE_YAML)
def test_a_hostile_yaml_text_is_an_error_that_names_it(door, kind, text):
    content, named = HOSTILE_YAML[kind]
    text.write_bytes(content)
    with pytest.raises(UserError) as error:
        YAML_DOORS[door](text)
    assert named in str(error.value)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("door", YAML_DOORS)
@pytest.mark.parametrize("content", ["", "[]", "3", "just text", "a: 1", "stages: 3", "stages: {a: 1}"])
def test_other_valid_yaml_is_an_error(door, content, text):
    text.write_text(content)
    with pytest.raises(UserError):
        YAML_DOORS[door](text)


PIECES = st.sampled_from(
    [*"{}[]:,-?&*!|>'\"%@#~= \n0aé", "a: ", "<<: ", "!!", "---\n", "1e5", "0x", "2024-01-"]
)


@settings(deadline=None)
@given(st.lists(PIECES, max_size=12).map("".join))
def test_any_text_is_yaml_or_a_user_error(content):
    try:
        parse_yaml(content, "x")
    except UserError as error:
        assert str(error).startswith("x")


@pytest.mark.parametrize(
    ("command", "file", "content"),
    [
        (["drops"], "data/drops.json", HOSTILE_JSON["lists a hundred thousand deep"][0]),
        (["sync"], "params.yaml", HOSTILE_YAML["no UTF-8"][0]),
        (["preset", "demo"], "params.yaml", HOSTILE_YAML["a key twice"][0]),
        (["summary"], "metrics/evaluation.json", HOSTILE_JSON["mappings a hundred thousand deep"][0]),
        (["average", "--out", "x", "params.yaml"], "params.yaml", HOSTILE_YAML["a bomb of aliases"][0]),
        (["fetch-champion"], "champion.json", HOSTILE_JSON["an integer of 5000 digits"][0]),
        (["fetch-clip"], "params.yaml", HOSTILE_YAML["mappings a hundred thousand deep"][0]),
        (["gate"], "params.yaml", HOSTILE_YAML["two documents"][0]),
        (["retrain", "--set", "embedding.epochs=" + "{a: " * 5000], "params.yaml", b""),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_command_ends_with_one_error_and_no_traceback(
    command, file, content, tmp_path, monkeypatch, capsys
):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["csdn", *command])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    said = capsys.readouterr().err
    assert said.count("error: ") == 1 and said.startswith("error: ") and "Traceback" not in said


# Scalar -> its value in YAML 1.2, with underscores in numbers, as ruamel.yaml and DVC accept them.
SCALARS = {
    **{"1e-5": 1e-5, "3e-4": 3e-4, "1.0e-05": 1e-5, "0.00001": 1e-5, "1E5": 1e5, "-1e-06": -1e-6},
    **{"no": "no", "on": "on", "yes": "yes", "Off": "Off", "y": "y", "true": True, "True": True},
    **{"0o17": 15, "017": 17, "0x1F": 31, "1_000": 1000, "+1": 1, "1.": 1.0, ".5": 0.5},
    **{"1:30": "1:30", "~": None, "null": None, "'1e-5'": "1e-5", "v1": "v1", "1.2.3": "1.2.3"},
}


@pytest.mark.parametrize("scalar", SCALARS)
def test_a_scalar_follows_yaml_1_2_and_dvc_reads_the_same(scalar):
    from dvc.utils.serialize import parse_yaml as dvc_reads

    value = parse_yaml(f"a: {scalar}", "x")["a"]
    assert (type(value), value) == (type(SCALARS[scalar]), SCALARS[scalar])
    of_dvc = dvc_reads(f"a: {scalar}", "x")["a"]
    assert (type(of_dvc), of_dvc) == (type(value), value)


@pytest.fixture
def params(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_bytes((ROOT / "params.yaml").read_bytes())
    return path


@pytest.mark.parametrize("value", ["1e-5", "3e-4", "0.00001", "2.5e-07"])
def test_dvc_exp_run_csdn_and_an_editor_set_the_same_number(params, value):
    from dvc.utils.hydra import apply_overrides
    from dvc.utils.serialize import load_yaml

    def read():
        found = load_params(params).embedding.learning_rate
        assert found == load_yaml(str(params))["embedding"]["learning_rate"]
        return found

    apply_overrides(str(params), [f"embedding.learning_rate={value}"])
    assert read() == float(value)
    set_value(params, "embedding.learning_rate", float(value))
    assert read() == float(value)
    line = "  learning_rate: 0.0007 "
    params.write_text((ROOT / "params.yaml").read_text().replace(line, f"  learning_rate: {value} ", 1))
    assert read() == float(value)


@pytest.mark.parametrize("name", ["no", "on", "1e5x", "null ", "007", "a: b", "# x", "é"])
def test_a_text_is_read_back_as_it_was_set(params, name):
    set_value(params, "data.split_salt", name)
    assert load_params(params).data.split_salt == name


def test_a_value_of_set_is_parsed_as_in_the_file(monkeypatch):
    given_to = []
    monkeypatch.setattr(
        "csdn.retraining.run.retrain_local", lambda root, values, now: given_to.append(values)
    )
    monkeypatch.setattr("csdn.retraining.lock.scan_on_request", lambda root, what, scan: scan())
    retrain(["embedding.learning_rate=1e-5", "data.split_salt=no", "report.store="])
    assert given_to == [{"embedding.learning_rate": 1e-5, "data.split_salt": "no", "report.store": None}]


DEEP: dict = {}
for _ in range(2000):
    DEEP = {"a": DEEP}


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"embedding.learning_rate": float("nan")}, "embedding.learning_rate: nan"),
        ({"embedding": {"learning_rate": float("inf")}}, "embedding.learning_rate: inf"),
        ({"embedding.epochs": 10**5000}, "embedding.epochs: an integer beyond"),
        ({"embedding": DEEP}, "nested"),
        ({"model.clip": "a\0b"}, "model.clip"),
        ({"model.clip": {1, 2}}, "set"),
        ({"embedding.identities_per_bach": 8}, "the nearest is identities_per_batch;"),
        ({"embedding.epochs": "x" * 10_000}, "embedding.epochs = 'xxx"),
    ],
)
def test_overrides_from_prefect_are_checked_like_a_file(overrides, named):
    with pytest.raises(UserError) as error:
        overridden(overrides, (ROOT / "params.yaml").read_bytes())
    assert named in str(error.value) and len(str(error.value)) < 1000


def test_nan_cannot_be_written_as_json(tmp_path):
    from csdn.runtime.files import write_json

    with pytest.raises(ValueError, match="float"):
        write_json(tmp_path / "a.json", {"mean": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_large_values_can_be_checked():
    check_values([{"id": "a" * 64, "n": [n, 0.5, None, True]} for n in range(1000)], "x")
    assert parse_json(json.dumps({"inode": 2**64 - 1}), "x") == {"inode": 2**64 - 1}
