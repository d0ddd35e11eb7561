"""Every reader rejects a pickle without running it, and no code of the project can load one.

Processes of one run (of the loader, of ingest, of Ray) exchange objects as pickles over their own pipes, to
which no other user can write; that is out of scope here.
"""

from __future__ import annotations

import ast
import hashlib
import json
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile import Trap, pickles
from make_images import Project, make_drop, people_named, write
from typer.testing import CliRunner

from csdn.cli.main import app
from csdn.cli.presets import apply_preset
from csdn.data.catalog import QUARANTINE_SCHEMA, load_dataset, read_table
from csdn.data.checkpoint_store import open_state
from csdn.data.images import BadImage, decode
from csdn.ingest.identities import read_aliases
from csdn.ingest.ledger import read_ledger
from csdn.ingest.sync import open_drop
from csdn.model import load, load_clip, load_published
from csdn.model.weights import read_safetensors
from csdn.params import load_params
from csdn.report.page import read_inputs
from csdn.runtime.errors import UserError

# Torch's warning about files in older formats, before it rejects them.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
ROOT = Path(__file__).parents[2]
FOLDERS = ("csdn", "stages", "flows", "benchmarks", "research")
CODE = [path for name in FOLDERS for path in (ROOT / name).rglob("*.py")]
KINDS = ("a plain pickle", "a file of torch.save", "a file of torch.save of old", "a TorchScript archive")


@pytest.fixture(params=KINDS)
def hostile(request, tmp_path):
    """(kind, bytes) of a pickle that would make a file; afterwards the fixture checks that it made none."""
    marker = tmp_path / "run"
    yield request.param, pickles(marker)[request.param]
    assert not marker.exists()


def test_unpickling_the_file_would_run_code(tmp_path):
    pickle.loads(pickles(tmp_path / "run")["a plain pickle"])
    assert (tmp_path / "run").exists()


def load_model_folder(path):
    (path.parent / "config.json").write_text(MODEL_CONFIG)
    path.rename(path.with_name("model.safetensors"))
    return load(path.parent)


MODEL_CONFIG = json.dumps(
    {
        "format": 1,
        "model": {
            "identities": 2,
            "image_size": [64, 32],
            "depths": [1, 1, 1, 1],
            "width": 8,
            "pool_heads": 8,
            "embed_dim": 16,
            "text_width": 16,
            "text_heads": 2,
            "text_layers": 1,
        },
    }
)
WEIGHTS = {
    "CLIP's weights are a pickle": lambda path: load_clip("RN50", path),
    "a model's weights are a pickle": load_model_folder,
    "stage 1's prompts are a pickle": read_safetensors,
    "a published checkpoint is a pickle with code": load_published,
}


@pytest.mark.parametrize("place", WEIGHTS)
def test_a_pickle_as_weights(place, hostile, tmp_path, fault):
    kind, data = hostile
    path = write(tmp_path / "in" / "weights.pt", data)
    with pytest.raises(UserError, match=r"not a safetensors file|as safetensors|refused") as error:
        WEIGHTS[place](path)
    if kind == "a file of torch.save":
        fault("weights and checkpoints", place, error.value)


def test_a_pickle_as_weights_to_convert(hostile, tmp_path, monkeypatch, fault):
    kind, data = hostile
    write(tmp_path / "weights.pt", data)
    params = tmp_path / "params.yaml"
    text = (ROOT / "params.yaml").read_text()
    params.write_text(text.replace("csdn/model/assets/clip-small.safetensors", str(tmp_path / "out")))
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["fetch-clip", "--from", "weights.pt"])
    assert isinstance(result.exception, UserError)
    assert not (tmp_path / "out").exists()
    if kind == "a TorchScript archive":
        fault("weights and checkpoints", "csdn fetch-clip --from a TorchScript archive", result.exception)


def test_a_pickle_even_if_torch_is_set_to_trust_every_file(hostile, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(UserError):
        load_published(write(tmp_path / "in" / "weights.pt", hostile[1]))


def test_a_pickle_as_the_state_of_a_stage(hostile, tmp_path):
    """The hash may be correct: an attacker who can write the tensors can write the hash too."""
    data = hostile[1]
    with open_state("prompts", "0" * 64, tmp_path / "state") as state:
        about = {"tensors": "x.safetensors", "sha256": hashlib.sha256(data).hexdigest(), "position": {}}
        write(state.folder / "x.safetensors", data)
        write(state.folder / "state.json", json.dumps(about).encode())
        assert state.load() is None


@pytest.fixture(scope="module")
def ingested(tmp_path_factory):
    root = tmp_path_factory.mktemp("pickles")
    project = Project(root)
    project.add(make_drop(root / "drop", people_named(10)))
    project.ingest()
    return project


@pytest.mark.parametrize("name", ["people.parquet", "samples.parquet"])
def test_a_pickle_as_a_table(name, hostile, ingested):
    path = ingested.data / name
    intact = path.read_bytes()
    path.write_bytes(hostile[1])
    try:
        with pytest.raises(UserError, match=f"{name} is damaged"):
            load_dataset(ingested.data)
    finally:
        path.write_bytes(intact)


def test_a_pickle_as_a_type_inside_a_table(tmp_path):
    """Arrow once unpickled the types that a file declares (CVE-2023-47248)."""
    extension = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Trap(tmp_path / "run")),
    }
    columns = [pa.field(name, pa.string(), metadata=extension) for name in ("path", "person")]
    columns += [pa.field(name, pa.string()) for name in ("modality", "camera")]
    table = pa.table([["a.jpg"], ["Ana"], ["visible"], ["gate"]], schema=pa.schema(columns))
    (tmp_path / "drop").mkdir()
    pq.write_table(table, tmp_path / "drop" / "manifest.parquet")
    write(tmp_path / "drop" / "a.jpg", b"1")
    assert open_drop(str(tmp_path / "drop"), "cameras")[1] == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["manifest.csv", "manifest.parquet"])
def test_a_pickle_as_a_manifest(name, hostile, tmp_path):
    write(tmp_path / "drop" / name, hostile[1])
    with pytest.raises(UserError, match=r"not readable as a table|is missing|not UTF-8 text"):
        open_drop(str(tmp_path / "drop"), "cameras")


def test_a_pickle_as_an_image(hostile, tmp_path):
    """In a drop it is quarantined; in a shard it is an invalid image."""
    data = hostile[1]
    project = Project(tmp_path / "project")
    drop = make_drop(tmp_path / "drop", people_named(10))
    for extension in ("jpg", "png", "bmp"):
        write(drop / f"visible/north/person 000/pickle.{extension}", data)
        with pytest.raises(BadImage, match=f"not a {extension} image"):
            decode(data, extension)
    project.add(drop)
    project.ingest(max_bad_fraction=0.2)
    rows = read_table(project.data / "quarantine.parquet", QUARANTINE_SCHEMA).to_pylist()
    assert {row["reason"] for row in rows} == {f"not a {kind} image" for kind in ("jpg", "png", "bmp")}


@pytest.mark.parametrize("read", [read_ledger, read_aliases])
def test_a_pickle_as_json(read, hostile, tmp_path):
    with pytest.raises(UserError, match="is not valid JSON"):
        read(write(tmp_path / "in.json", hostile[1]))


PYTHON_IN_YAML = (
    "!!python/object/apply:builtins.open [{0}, w]",
    "!!python/object/new:io.FileIO [{0}, w]",
    "!!python/name:os.system",
    "!!python/module:antigravity",
)


@pytest.mark.parametrize("tag", PYTHON_IN_YAML)
def test_yaml_makes_no_python_object(tag, tmp_path, fault):
    path = tmp_path / "params.yaml"
    path.write_text(f"seed: {tag.format(tmp_path / 'run')}\n")
    with pytest.raises(UserError, match="not valid YAML") as error:
        load_params(path)
    with pytest.raises(UserError):
        apply_preset("demo", path)
    assert not (tmp_path / "run").exists()
    if "apply" in tag:
        first = str(error.value).splitlines()[0]
        fault("parameters", "params.yaml holds a YAML tag that would run Python", first)


def test_a_pickle_as_an_input_of_the_report(hostile, ingested):
    for name in ("metrics/prompts.json", "metrics/evaluation.json"):
        write(ingested.root / name, b"{}")
    for name in ("cmc.csv", "camera_pairs.csv", "open_set.csv"):
        write(ingested.root / "evaluation" / name, b"")
    write(ingested.root / "evaluation" / "queries.parquet", hostile[1])
    with pytest.raises(UserError, match="is damaged"):
        read_inputs(ingested.root, ingested.data / "shards")
    pq.write_table(pa.table({"a": [1]}), ingested.root / "evaluation" / "queries.parquet")
    write(ingested.root / "evaluation" / "features.safetensors", hostile[1])
    with pytest.raises(UserError, match="is damaged"):
        read_inputs(ingested.root, ingested.data / "shards")


# Functions that load a pickle, run a text as code, or unpack an archive.
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FORBIDDEN_CALLS = {
    *("eval", "exec", "compile", "os.system", "os.popen"),
    *("jit.load", "torch.jit.load", "torch.hub.load", "pd.read_pickle", "yaml.full_load", "yaml.unsafe_load"),
    *("tarfile.TarFile", "shutil.unpack_archive"),
}


def complaints(source: str) -> list[str]:
    """Calls in a source file that may load a pickle, run a text as code, or unpack an archive."""
    found, tree = [], ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name in FORBIDDEN_MODULES]
        if isinstance(node, ast.ImportFrom) and node.module in FORBIDDEN_MODULES:
            found.append(node.module)
        if isinstance(node, ast.Call) and _runs_code(node):
            found.append(ast.unparse(node))
    return found


def _runs_code(call: ast.Call) -> bool:
    name, options = ast.unparse(call.func), {word.arg: ast.unparse(word.value) for word in call.keywords}
    return (
        name in FORBIDDEN_CALLS
        or (name == "torch.load" and options.get("weights_only") != "True")
        or (name == "YAML" and "unsafe" in ast.unparse(call))
        or (
            name == "tarfile.open" and "'r:'" not in ast.unparse(call)
        )  # that only reads, and decompresses nothing
        or (name == "yaml.load" and len(call.args) + len(options) > 1)  # PyYAML's names its loader
        or name.endswith((".extract", ".extractall"))
        or any(options.get(word, "False") != "False" for word in ("shell", "allow_pickle"))
    )


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_code_can_load_a_pickle_or_run_a_text(path):
    assert complaints(path.read_text(encoding="utf-8")) == []


def test_the_search_finds_such_calls():
    bad = [
        *("import pickle", "from pickle import loads", "torch.load(f)", "torch.load(f, weights_only=False)"),
        *("eval('1')", "os.system('x')", "np.load(f, allow_pickle=True)", "subprocess.run('x', shell=True)"),
        *(
            "yaml.load(f, Loader=yaml.Loader)",
            "YAML(typ='unsafe')",
            "tarfile.open(f)",
            "archive.extractall(p)",
        ),
    ]
    assert [line for line in bad if not complaints(line)] == []
    good = ["torch.load(f, weights_only=True)", "model.eval()", "yaml.safe_load(f)", "YAML().load(f)"]
    good.append("tarfile.open(f, 'r:')")
    assert [line for line in good if complaints(line)] == []
