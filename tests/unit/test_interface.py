"""The Python interface (docs/python.md): documented calls work, and errors explain wrong arguments."""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_vectors import IMAGE_SIZE, tensors
from small_network import SMALL

import csdn
from csdn import losses
from csdn.evaluation import RankMetrics, Search, embed_with_flip_tta, protocol, rank_metrics, rule_cameras
from csdn.model import CSDN, load_published
from csdn.runtime.errors import UserError

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
D = SMALL.map_channels + SMALL.embed_dim
KEYS = [
    *("id_gem", "id_pool", "triplet_gem", "triplet_pool", "msel_gem", "msel_pool"),
    *("hse_visible", "hse_infrared", "total"),
]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return CSDN(SMALL).eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, *SMALL.image_size)


def batch(model, people=2, each=2):
    """The arguments of embedding_losses after the model: two views, infrared, labels, text table."""
    views = [torch.randn(people * each, 3, *SMALL.image_size) for _ in range(3)]
    labels = torch.arange(people).repeat_interleave(each)
    return [*views, labels, model.fused_text_features().detach()]


SIGNATURES = {
    load_published: "state_dict_or_path, image_size",
    CSDN.embed: "self, images, modality",
    embed_with_flip_tta: "model, images, modality",
    CSDN.text_features: "self, modality",
    CSDN.fused_text_features: "self",
    losses.supcon_loss: "a, b, labels_a, labels_b",
    losses.wrt_loss: "features, labels",
    losses.msel_loss: "visible, infrared, labels, instances",
    losses.embedding_losses: "model, visible_view1, visible_view2, infrared, labels, text_table",
    rank_metrics: "distances, query_ids, gallery_ids, query_cameras, gallery_cameras, rule",
    protocol: "name, index",
    csdn.load: "folder",
}


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__qualname__)
def test_a_function_has_the_documented_parameters(function):
    names = SIGNATURES[function].split(", ")
    parameters = list(inspect.signature(function).parameters.values())
    assert [one.name for one in parameters[: len(names)]] == names
    more = parameters[len(names) :]
    assert all(one.default is not one.empty or one.kind is one.VAR_KEYWORD for one in more)
    assert function.__doc__


def test_the_examples_of_the_page_run(tmp_path, monkeypatch):
    """In order; each block sees the names that earlier blocks defined."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    assert len(blocks) >= 7
    names = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__qualname__)
def test_the_page_has_every_function(function):
    assert function.__name__ in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("source", "size", "said"),
    [
        ({}, IMAGE_SIZE, "not a checkpoint of this method"),
        ({"a": 1}, IMAGE_SIZE, "no tensors are a"),
        ("none.pth", IMAGE_SIZE, r"none\.pth: no such checkpoint"),
        (tensors("state_dict"), (64, 33), "64x33: height and width must be multiples of 16"),
        (tensors("state_dict"), (128, 64), r"not a checkpoint of this method at 128x64 pixels"),
    ],
)
def test_a_checkpoint_of_another_size_is_refused(source, size, said):
    with pytest.raises(UserError, match=said):
        load_published(source, size)


@pytest.mark.parametrize("modality", ["visible", "infrared"])
def test_features_have_the_promised_shapes(model, images, modality):
    feature = model.embed(images, modality)
    assert feature.shape == (2, D) and feature.dtype == torch.float32 and not feature.requires_grad
    assert embed_with_flip_tta(model, images, modality).shape == (2, 2 * D)
    assert model.embed(images[:0], modality).shape == (0, D)
    assert model.text_features(modality).shape == (SMALL.identities, SMALL.embed_dim)
    assert model.fused_text_features().shape == (SMALL.identities, SMALL.embed_dim)
    assert model.double().embed(images.double(), modality).dtype == torch.float64


@pytest.mark.parametrize(
    ("wrong", "modality", "said"),
    [
        (lambda x: x, "thermal", "modality 'thermal'; allowed: visible, infrared"),
        (lambda x: x, 0, "modality 0; allowed"),
        (lambda x: x[0], "visible", r"float32 \[\d, 64, 32\]; normalised float32 \[images, 3, 64, 32\]"),
        (lambda x: x.permute(0, 2, 3, 1), "visible", r"float32 \[\d, 64, 32, 3\]"),
        (lambda x: x[:, :1], "visible", r"\[\d, 1, 64, 32\]"),
        (lambda x: x[..., :16], "visible", r"\[\d, 3, 64, 16\]"),
        (lambda x: (255 * x).to(torch.uint8), "visible", r"are uint8 \["),
        (lambda x: x.double(), "visible", r"are float64 \["),
        (lambda x: x.numpy(), "visible", "are a ndarray; a tensor is needed"),
    ],
)
@pytest.mark.parametrize("embed", [CSDN.embed, embed_with_flip_tta])
def test_images_that_do_not_fit_are_refused(model, images, embed, wrong, modality, said):
    with pytest.raises(ValueError, match=said):
        embed(model, wrong(images), modality)


def test_embed_refuses_a_network_in_training_mode(model, images):
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with pytest.raises(ValueError, match=r"training mode; call model\.eval\(\)"):
        model.train().embed(images, "visible")
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("thermal",), "modality 'thermal'; allowed"),
        (("visible", torch.tensor([0, 3])), "person 3: this network has the people 0 to 2"),
        (("visible", torch.tensor([0, -1])), "person -1"),
        (("visible", torch.tensor([0.0])), "people: integers"),
        (("visible", torch.tensor([[0]])), "people: integers"),
        (("visible", [0]), "people: integers"),
    ],
)
def test_people_and_modalities_without_a_text_are_refused(model, arguments, said):
    with pytest.raises(ValueError, match=said):
        model.text_features(*arguments)


ROWS, LABELS = torch.randn(4, 8), torch.tensor([0, 0, 1, 1])


def test_losses_are_scalars_with_a_gradient():
    rows = ROWS.clone().requires_grad_()
    found = (
        losses.supcon_loss(rows, ROWS, LABELS, LABELS),
        losses.wrt_loss(rows, LABELS),
        losses.msel_loss(rows, ROWS, LABELS, 2),
        losses.hse_loss(rows, torch.randn(2, 8), LABELS),
    )
    for loss in found:
        assert loss.shape == () and torch.autograd.grad(loss, rows)[0].shape == rows.shape


@pytest.mark.parametrize(
    ("function", "arguments", "said"),
    [
        (
            losses.supcon_loss,
            (ROWS, ROWS, LABELS[:1], LABELS),
            r"labels_a is int64 \[1\]; one integer for each",
        ),
        (losses.supcon_loss, (ROWS, ROWS, LABELS, LABELS[:3]), r"labels_b is int64 \[3\]"),
        (losses.supcon_loss, (ROWS, ROWS[:, :5], LABELS, LABELS), "rows of the same length"),
        (losses.supcon_loss, (ROWS[0], ROWS, LABELS, LABELS), r"a is float32 \[8\]; floats \[n, d\]"),
        (losses.supcon_loss, (ROWS.numpy(), ROWS, LABELS, LABELS), "a is a ndarray; a tensor is needed"),
        (losses.wrt_loss, (ROWS, LABELS[:1]), r"labels is int64 \[1\]"),
        (losses.wrt_loss, (ROWS, LABELS[:, None]), r"labels is int64 \[4, 1\]"),
        (losses.wrt_loss, (ROWS, LABELS.double()), "labels is float64"),
        (losses.wrt_loss, (ROWS[None], LABELS), "features is float32"),
        (losses.wrt_loss, (ROWS.long(), LABELS), "features is int64"),
        (losses.wrt_loss, (ROWS, [0, 0, 1, 1]), "labels is a list"),
        (losses.msel_loss, (ROWS, ROWS[:2], LABELS, 2), r"each of the 2 rows of infrared"),
        (losses.msel_loss, (ROWS, ROWS[:, :5], LABELS, 2), "rows of the same length"),
        (losses.msel_loss, (ROWS, ROWS, LABELS[:1], 2), r"each of the 4 rows of visible"),
        (losses.msel_loss, (ROWS, ROWS, LABELS, 0), "instances = 0"),
        (losses.hse_loss, (ROWS, torch.randn(2, 5), LABELS), "rows of the same length"),
        (losses.hse_loss, (ROWS, ROWS[0], LABELS), "rows of the same length"),
        (
            losses.hse_loss,
            (ROWS, torch.randn(1, 8), LABELS),
            r"label 1 is not a row of the text table \(0 to 0\)",
        ),
        (losses.hse_loss, (ROWS, ROWS, LABELS - 100), "label -100 is not a row"),
    ],
)
def test_losses_refuse_what_does_not_fit(function, arguments, said):
    with pytest.raises(ValueError, match=said):
        function(*arguments)


def test_embedding_losses_are_eight_and_their_sum(model):
    arguments = batch(model)
    found = losses.embedding_losses(model.train(), *arguments)
    assert list(found) == KEYS
    assert all(value.shape == () and value.isfinite() for value in found.values())
    found["total"].backward()


@pytest.mark.parametrize(
    ("place", "wrong", "said"),
    [
        (0, lambda x: x[:3], r"\[3, 3, 64, 32\], \[4, 3, 64, 32\], \[4, 3, 64, 32\], labels \[4\]"),
        (2, lambda x: x[..., :16], r"\[4, 3, 64, 16\], labels \[4\]: they do not fit"),
        (2, lambda x: x.numpy(), "must be tensors"),
        (3, lambda x: x[:1], r"labels \[1\]: they do not fit"),
        (3, lambda x: x + 2, r"label 3 is not a row of the text table \(0 to 2\)"),
        (3, lambda x: x - 100, "label -100 is not a row"),
        (3, lambda x: torch.tensor([0, 0, 0, 1]), r"identities with \[3, 1\] images in one batch"),
        (4, lambda x: torch.cat([x, x]), "text_table has 6 rows, the network 3 identities"),
        (4, lambda x: x[:, :5], "rows of the same length"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(model, place, wrong, said):
    arguments = batch(model)
    arguments[place] = wrong(arguments[place])
    with pytest.raises(ValueError, match=said):
        losses.embedding_losses(model.train(), *arguments)


def test_embedding_losses_need_training_mode_and_all_weights(model):
    with pytest.raises(ValueError, match=r"evaluation mode; call model\.train\(\)"):
        losses.embedding_losses(model, *batch(model))
    with pytest.raises(ValueError, match="weights identity; needed are identity, msel, triplet, hse_visible"):
        losses.embedding_losses(model.train(), *batch(model), weights={"identity": 1.0})
    with pytest.raises(ValueError, match="precision 'bfloat16'; allowed: float32, tf32, bf16"):
        losses.embedding_losses(model.train(), *batch(model), precision="bfloat16")
    with pytest.raises(ValueError, match="instances = 0"):
        losses.embedding_losses(model.train(), *batch(model), instances=0)


RANKING = (np.array([[0.1, 0.3, 0.2]]), [7], [5, 7, 7], [3], [1, 1, 2])
KINDS = {
    "arrays": lambda column: np.array(column),
    "tensors": lambda column: torch.tensor(column),
    "lists": lambda column: np.array(column).tolist(),
}


@pytest.mark.parametrize("rule", ["sysu", "regdb", "llcm", "cameras"])
@pytest.mark.parametrize("kind", KINDS)
def test_metrics_are_fractions_for_arrays_tensors_and_lists(rule, kind):
    found = rank_metrics(*map(KINDS[kind], RANKING), rule)
    assert isinstance(found, RankMetrics)
    cmc, mean_ap, mean_inp, valid_queries = found
    first = 1 if rule == "sysu" else 2  # camera 3 does not see camera 2: the match at 0.3 is left
    assert cmc.shape == (20,) and cmc.dtype == np.float64 and cmc[:3].tolist() == [0, 1, 1]
    assert 0 < mean_ap < 1 and 0 < mean_inp < 1 and valid_queries == 1
    assert mean_inp == pytest.approx(first / (first + 1))


def test_distances_may_be_half_precision():
    for dtype in (torch.bfloat16, torch.float16):
        assert rank_metrics(torch.tensor(RANKING[0], dtype=dtype), *RANKING[1:], "regdb").cmc[1] == 1


@pytest.mark.parametrize(
    ("place", "wrong", "said"),
    [
        (0, np.array([0.1, 0.3, 0.2]), r"distances are \(3,\); 1 queries, 3 gallery images"),
        (0, np.array([[0.1], [0.3], [0.2]]), r"distances are \(3, 1\)"),
        (0, np.array([[0.1, np.nan, 0.2]]), "must be finite"),
        (0, torch.tensor([[0.1, np.inf, 0.2]]), "must be finite"),
        (1, [7, 8], "2 queries, 3 gallery images"),
        (1, [[7]], "one dimension each is needed"),
        (1, ["7"], "ids of the queries are <U1, of the gallery int64"),
        (2, [], "the gallery has no images"),
        (3, [3, 3], "needs one camera"),
        (3, ["cam3"], "cameras of the queries are <U4, of the gallery int64"),
        (4, 1, "one dimension each is needed"),
        (5, "market", "unknown rule 'market'; allowed: sysu, regdb, llcm, cameras"),
    ],
)
def test_arguments_without_metrics_are_refused(place, wrong, said):
    arguments = [*RANKING, "regdb"]
    arguments[place] = wrong
    with pytest.raises(ValueError, match=said):
        rank_metrics(*arguments)


def test_the_sysu_rule_needs_camera_numbers():
    with pytest.raises(ValueError, match="rule sysu needs the cameras' numbers"):
        rank_metrics(*RANKING[:3], ["cam3"], ["cam1", "cam1", "cam2"], "sysu")


INDEX = {
    "person": [1, 1, 2, 2],
    "modality": ["infrared", "visible", "infrared", "visible"],
    "camera": [3, 1, 6, 2],
    "path": ["a", "b", "c", "d"],
    "key": ["a", "b", "c", "d"],
}


@pytest.mark.parametrize("name", ["cameras", "sysu", "regdb", "llcm", "llcm_swapped"])
def test_a_protocol_gives_rows_of_the_index(name):
    for search in protocol(name, INDEX):
        assert isinstance(search, Search)
        assert {rows.dtype for rows in (search.queries, *search.galleries)} == {np.dtype(np.int64)}
        queries, gallery = search.name.split("_to_")
        assert {INDEX["modality"][row] for row in search.queries} == {queries}
        assert {INDEX["modality"][row] for rows in search.galleries for row in rows} == {gallery}
        cameras = rule_cameras(name, INDEX)[np.stack([search.queries, search.galleries[0]])]
        assert rank_metrics(np.zeros((2, 2)), [1, 2], [1, 2], *cameras, search.rule).valid_queries == 2


@pytest.mark.parametrize("name", ["cameras", "sysu", "llcm"])
def test_the_columns_of_an_index_may_be_arrays_tensors_or_series(name):
    pandas = pytest.importorskip("pandas")
    arrays = {column: np.array(values) for column, values in INDEX.items()}
    arrays["person"] = torch.tensor(INDEX["person"])
    # Rows selected from a larger table keep its index, which does not number them.
    series = pandas.DataFrame(INDEX, index=[30, 10, 20, 0])
    wanted = protocol(name, INDEX)
    for index in (arrays, series):
        for one, other in zip(protocol(name, index), wanted, strict=True):
            assert one.queries.tolist() == other.queries.tolist()
            assert [rows.tolist() for rows in one.galleries] == [rows.tolist() for rows in other.galleries]


@pytest.mark.parametrize(
    ("name", "index", "options", "said"),
    [
        ("market", INDEX, {}, "unknown protocol 'market'"),
        ("sysu", INDEX, {"shot": 1}, "protocol sysu has no option shot; it has: mode, shots, trials"),
        ("sysu", INDEX, {"shots": 2}, "shots = 2; allowed: 1, 10"),
        ("sysu", INDEX, {"trials": "3"}, "trials = '3': a whole number, at least 1"),
        ("cameras", INDEX, {"trials": 1.5}, "trials = 1.5: a whole number"),
        ("cameras", INDEX | {"camera": [3]}, {}, "different lengths"),
        ("cameras", INDEX | {"modality": ["thermal"] * 4}, {}, "modality 'thermal'; allowed"),
        ("llcm", {"person": [1]}, {}, "the index has no column modality, camera, path"),
    ],
)
def test_an_unknown_experiment_is_refused(name, index, options, said):
    with pytest.raises(ValueError, match=said):
        protocol(name, index, **options)
