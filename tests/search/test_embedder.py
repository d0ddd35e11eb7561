"""`csdn.load(DIR).embed_files`: image files become the features that evaluation computes."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from search_models import save_small_model

import csdn
from csdn.data.augment import resize
from csdn.data.images import decode
from csdn.data.views import normalised
from csdn.evaluation import embed_with_flip_tta
from csdn.runtime.errors import UserError
from csdn.search.embedder import Embedder, read_batches


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_small_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    place, draws = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(5):
        pixels = draws.integers(0, 256, (80 + number, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.{'png' if number % 2 else 'jpg'}")
    return sorted(place.iterdir())


def test_features_of_files_are_those_of_evaluation_at_unit_length(folder, files):
    model = csdn.load(folder)
    pictures = [resize(decode(path.read_bytes(), path.suffix[1:]), (64, 32)) for path in files]
    images = normalised(torch.from_numpy(np.stack(pictures).transpose(0, 3, 1, 2)), "imagenet")
    expected = torch.nn.functional.normalize(embed_with_flip_tta(model, images, "infrared"))
    found = model.embed_files(files, modality="infrared")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_the_fused_network_gives_the_same_features_and_names_its_size(folder, files):
    embedder = Embedder.open(folder, device="cpu", threads=1)
    found = embedder.embed_files(files, "visible")
    assert found.shape == (5, embedder.dimension)
    np.testing.assert_allclose(found, csdn.load(folder).embed_files(files, "visible"), atol=1e-5)


def test_no_files_have_no_features(folder):
    model = csdn.load(folder)
    assert model.embed_files([], modality="visible").shape == (0, Embedder(model, "imagenet", "").dimension)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"text", "not an image"),
        ("a.jpg", b"", "empty file"),
        ("a.png", b"\x89PNG\r\n\x1a\n1234", "png|decoded|truncated"),
    ],
)
def test_a_bad_file_is_named_with_its_reason(folder, tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}.*({says})"):
        csdn.load(folder).embed_files([tmp_path / name], modality="visible")


def test_a_missing_file_and_a_wrong_modality_are_errors(folder, files, tmp_path):
    model = csdn.load(folder)
    with pytest.raises(UserError, match="no such file"):
        model.embed_files([tmp_path / "gone.jpg"], modality="visible")
    with pytest.raises(ValueError, match="thermal"):
        model.embed_files(files, modality="thermal")


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(folder):
    buffer = io.BytesIO()
    Image.new("L", (60_000, 1_000)).save(buffer, "PNG")
    with pytest.raises(Exception, match="too large"):
        Embedder.open(folder, device="cpu", threads=1).prepare(buffer.getvalue(), "png")


def test_batches_come_in_order_and_a_reader_that_fails_ends_them():
    found = [
        pair for batch in read_batches(range(10), lambda n: -n, size=4) for pair in zip(*batch, strict=True)
    ]
    assert found == [(n, -n) for n in range(10)]
    with pytest.raises(ZeroDivisionError):
        list(read_batches(range(10), lambda n: 1 / (n - 7), size=2))
