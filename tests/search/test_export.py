"""`csdn export`: onnxruntime computes from the written files what the model computes."""

import ast
import json
import shutil
import subprocess
import sys
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from gate_project import ROOT, GateProject
from PIL import Image
from typer.testing import CliRunner

import csdn
from csdn.cli.main import app
from csdn.data.catalog import load_dataset
from csdn.data.views import normalised
from csdn.evaluation import embed_with_flip_tta
from csdn.evaluation import run as evaluation
from csdn.evaluation.distances import FeatureDistances
from csdn.evaluation.open_set import DirectionThresholds, write_thresholds
from csdn.evaluation.scores import trial_metrics
from csdn.params import load_params
from csdn.runtime.errors import UserError
from csdn.runtime.files import file_sha256
from csdn.search import export as module
from csdn.search.embedder import Embedder
from csdn.synthetic.people import person
from csdn.synthetic.rendering import render
from csdn.synthetic.sets import SETS, images_of

MODALITIES = ("visible", "infrared")
IMAGES = 200  # of each modality
MODEL = "models/embedding"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project with a small network and test images; exported/ is its export, also in float16."""
    root = GateProject(tmp_path_factory.mktemp("project")).make(people=12).root
    shutil.copy(ROOT / "params.yaml", root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        done = CliRunner().invoke(app, ["export", "--out", "exported", "--half"], catch_exceptions=False)
    assert done.exit_code == 0 and "float16" in done.output
    return root


@pytest.fixture(scope="module")
def values(project):
    return json.loads((project / "exported/preprocessing.json").read_text())


def export(project, out):
    return module.export(load_params(ROOT / "params.yaml"), project, project / MODEL, out, False, None)


def run(path, pictures):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["features"], {"images": pictures})[0]


@cache
def built_in(modality):
    """Pictures uint8 [IMAGES, 3, 64, 32] of as many built-in people."""
    chosen = (one for one in images_of(SETS["gate"]) if one.modality == modality)
    pictures = [render(person(one.person), one.camera, one.number) for one in islice(chosen, IMAGES)]
    small = [np.asarray(Image.fromarray(one).convert("RGB").resize((32, 64))) for one in pictures]
    return np.ascontiguousarray(np.stack(small).transpose(0, 3, 1, 2))


@pytest.mark.parametrize("modality", MODALITIES)
def test_features_under_onnxruntime_are_those_of_evaluation(project, modality):
    pictures = built_in(modality)
    images = normalised(torch.from_numpy(pictures), "imagenet")
    features = embed_with_flip_tta(csdn.load(project / MODEL), images, modality)
    expected = torch.nn.functional.normalize(features).numpy()
    found = run(project / f"exported/{modality}.onnx", pictures)
    assert found.dtype == np.float32 and found.shape == expected.shape and len(found) == IMAGES
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert (found * expected).sum(axis=1).min() >= 0.99999
    halves = run(project / f"exported/{modality}_fp16.onnx", pictures)
    assert halves.dtype == np.float32
    assert (halves * expected).sum(axis=1).min() >= 0.999


def test_a_batch_has_any_size(project):
    path, pictures = project / "exported/visible.onnx", built_in("visible")[:7]
    together = run(path, pictures)
    apart = np.concatenate([run(path, pictures[n : n + 1]) for n in range(7)])
    np.testing.assert_allclose(together, apart, atol=1e-5)


def test_without_flip_tta_a_feature_has_half_the_numbers(project, tmp_path):
    embedder = Embedder.open(project / MODEL, flip_tta=False, device="cpu", threads=1)
    module.write_onnx(embedder, "infrared", "float32", tmp_path / "infrared.onnx")
    pictures = built_in("infrared")[:3]
    found = run(tmp_path / "infrared.onnx", pictures)
    np.testing.assert_allclose(found, embedder.embed(pictures, "infrared"), atol=1e-5)


@pytest.fixture(scope="module")
def files(project):
    """Image files of other sizes than the model's: colour, grey, and one that EXIF turns."""
    draws, folder = np.random.default_rng(0), project / "images"
    folder.mkdir()
    coarse = draws.integers(0, 256, (12, 6, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((90, 200), Image.Resampling.BICUBIC)
    picture.save(folder / "a.png")
    picture.convert("L").save(folder / "b.jpg", quality=90)
    turned = Image.Exif()
    turned[0x0112] = 6
    picture.save(folder / "c.jpg", quality=90, exif=turned)
    return sorted(map(str, folder.iterdir()))


def test_the_example_computes_the_features_of_csdn(project, files, tmp_path):
    """In another process, which has the folder alone."""
    folder = shutil.copytree(project / "exported", tmp_path / "moved")
    code = "import sys, numpy, example; numpy.save('out.npy', example.embed(sys.argv[1:], 'infrared'))"
    subprocess.run([sys.executable, "-c", code, *files], cwd=folder, check=True)
    expected = csdn.load(project / MODEL).embed_files(files, "infrared")
    # JPEGs are decoded by another build of libjpeg-turbo.
    np.testing.assert_allclose(np.load(folder / "out.npy"), expected, atol=1e-3)
    np.testing.assert_allclose(np.load(folder / "out.npy")[0], expected[0], atol=1e-4)

    pair = ["visible", files[0], "infrared", files[1]]
    printed = subprocess.run(
        [sys.executable, "example.py", *pair], cwd=folder, check=True, capture_output=True, text=True
    ).stdout
    visible = csdn.load(project / MODEL).embed_files(files[:1], "visible")
    assert float(printed) == pytest.approx(float(visible[0] @ expected[1]), abs=1e-3)


def test_the_example_needs_three_packages_and_is_short(project):
    source = (project / "exported/example.py").read_text()
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    assert found - sys.stdlib_module_names == {"numpy", "onnxruntime", "PIL"}
    assert len([line for line in source.splitlines() if line.strip()]) <= 35


def test_the_map_of_both_precisions_is_that_of_the_protocol(project, values):
    params = load_params(project / "params.yaml")
    experiment = evaluation.prepare_from(params, load_dataset(project / "data"))
    batches = evaluation.test_batches(experiment.table, params, project / "data")
    read, embedder = batches.rows(), Embedder.open(project / MODEL, device="cpu", threads=1)
    features = np.empty((len(experiment.table), embedder.dimension), np.float32)
    for rows, modality in batches.steps():
        features[rows] = embedder.embed(read(rows), modality)
    for search in experiment.searches:
        trials = trial_metrics(search, experiment.labels, FeatureDistances(features))
        expected = 100 * np.mean([trial.mean_ap for trial in trials])
        stated = values["float16"]["mAP"][search.name]
        assert stated["float32"] == pytest.approx(expected, abs=0.01)
        assert stated["float16"] == pytest.approx(expected, abs=1.0)
    assert 0.999 <= values["float16"]["smallest_cosine"] <= 1


def test_the_files_name_their_model_and_no_place_on_this_machine(project, values):
    model_hash = file_sha256(project / MODEL / "model.safetensors")
    assert values["model"] == model_hash and model_hash in (project / "exported/MODEL_CARD.md").read_text()
    for modality in MODALITIES:
        path = project / f"exported/{modality}.onnx"
        found = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
        assert found == {"model": model_hash, "modality": modality}
        assert b".py" not in path.read_bytes() and str(ROOT).encode() not in path.read_bytes()


def test_the_same_model_gives_the_same_bytes(project, tmp_path):
    embedder = Embedder.open(project / MODEL, device="cpu")
    before = torch.backends.cudnn.conv.fp32_precision
    module.write_onnx(embedder, "visible", "float32", tmp_path / "visible.onnx")
    assert torch.backends.cudnn.conv.fp32_precision == before
    assert (tmp_path / "visible.onnx").read_bytes() == (project / "exported/visible.onnx").read_bytes()


def test_thresholds_go_along_if_they_are_of_this_model_and_its_scores(project, values, tmp_path):
    assert values["thresholds"] is None
    direction = DirectionThresholds(
        people=30, gallery_people=30, gallery_images=60, thresholds=[0.1, 0.6], fpir=[0.5, 0.1]
    )
    path, embedder = tmp_path / "evaluation/thresholds.json", Embedder.open(project / MODEL, device="cpu")
    for model, flip_tta, given in (
        (embedder.model_hash, True, True),
        (embedder.model_hash, False, False),
        ("0" * 64, True, False),
    ):
        write_thresholds(path, model, flip_tta, {"infrared_to_visible": direction})
        found = module.preprocessing(embedder, tmp_path, {})["thresholds"]
        assert (found == json.loads(path.read_text())) if given else found is None


def test_a_file_that_does_not_compute_the_features_leaves_no_folder(project, tmp_path, monkeypatch):
    class Wrong(module.ImageEncoder):
        def forward(self, pixels):
            return super().forward(pixels.flip(-2))

    monkeypatch.setattr(module, "ImageEncoder", Wrong)
    with pytest.raises(UserError, match=r"visible\.onnx.*differs"):
        export(project, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_other_files_is_not_replaced(project, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="no export"):
        export(project, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_missing_packages_are_named_with_the_command_that_installs_them(project, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"onnxscript.*pip install 'csdn\[export\]'"):
        export(project, tmp_path / "out")
    assert not Path(tmp_path / "out").exists()
