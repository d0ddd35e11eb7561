"""A network starts from any open_clip ResNet and computes what open_clip does; other files are refused."""

import copy
import json
import shutil

import pytest
import torch
from golden_vectors import assert_near
from hub_server import hub
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from csdn.model import CSDN, convert, fetch_clip, load_clip
from csdn.model.clip import facts_in
from csdn.model.text import CONTEXT, TEMPLATE
from csdn.model.weights import shapes
from csdn.runtime.errors import UserError

VISION = {"image_size": 128, "layers": [2, 1, 1, 1], "width": 16, "patch_size": None}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
CONFIG = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, open_clip):
    """Weights of a small random CLIP, in a folder where open_clip finds its configuration "tiny-resnet"."""
    folder = tmp_path_factory.mktemp("clip")
    (folder / "tiny-resnet.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(folder / "tiny-resnet.json")
    torch.manual_seed(0)
    model = open_clip.CLIP(**copy.deepcopy(CONFIG))
    state = {
        name: torch.rand_like(v) + 0.5 if name.endswith(("running_var", "bn3.weight")) else v
        for name, v in model.state_dict().items()
    }
    save_file(state, folder / "tiny.safetensors")
    return folder


@pytest.fixture(scope="module")
def reference(folder, open_clip):
    """open_clip's own model of those weights, with the last stride removed as the method does."""
    model = open_clip.create_model("tiny-resnet", pretrained=str(folder / "tiny.safetensors")).eval()
    model.visual.layer4[0].avgpool = torch.nn.Identity()
    model.visual.layer4[0].downsample[0] = torch.nn.Identity()
    return model


@pytest.fixture(scope="module")
def clip(folder):
    return load_clip("tiny-resnet", folder / "tiny.safetensors")


@torch.no_grad()
def test_both_stems_give_open_clips_image_embeddings(clip, reference):
    model = CSDN.from_clip(clip, identities=3, image_size=(64, 64))  # 4x4 cells: no position is resized
    images = torch.randn(2, 3, 64, 64)
    for modality in ("visible", "infrared"):
        assert_near(model.image_embeddings(images, modality), reference.visual(images))


@torch.no_grad()
def test_tokens_of_the_template_give_open_clips_text_features(clip, reference, open_clip):
    model = CSDN.from_clip(clip, identities=2, image_size=(64, 32))
    ids = open_clip.get_tokenizer("tiny-resnet")([TEMPLATE])
    model.prompts.tokens["visible"].copy_(reference.token_embedding(ids)[0, CONTEXT])
    assert_near(model.text_features("visible")[:1], reference.encode_text(ids))


def test_parameters_that_clip_lacks_depend_on_the_seed_only(clip):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = CSDN.from_clip(clip, identities=3, image_size=(64, 32), seed=5).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again = CSDN.from_clip(clip, identities=3, image_size=(64, 32), seed=5).state_dict()
    other = CSDN.from_clip(clip, identities=3, image_size=(64, 32), seed=6).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    differing = {name.split(".")[0] for name in first if not torch.equal(first[name], other[name])}
    assert differing == {"prompts", "gem_neck", "pool_neck", "integration"}


def test_initial_values_are_those_of_the_method(clip):
    model = CSDN.from_clip(clip, identities=50, image_size=(64, 32))
    assert not model.training
    assert model.gem.p.tolist() == [3.0]
    assert model.gem_neck.classifier.weight.std().item() == pytest.approx(0.001, rel=0.1)
    assert model.prompts.tokens["infrared"].std().item() == pytest.approx(0.02, rel=0.1)
    assert model.gem_neck.classifier.bias is None
    assert model.feature_map({"visible": torch.zeros(1, 3, 64, 32)}).shape == (1, 512, 4, 2)
    assert model.embed(torch.zeros(2, 3, 64, 32), "infrared").shape == (2, 512 + 24)


def test_shared_variant_has_one_prompt_for_both_modalities(clip):
    model = CSDN.from_clip(clip, identities=3, image_size=(64, 32), integration="shared")
    assert list(model.prompts.tokens) == ["shared"]
    assert torch.equal(model.text_features("visible"), model.text_features("infrared"))
    assert torch.equal(model.fused_text_features(), model.text_features("visible"))


def test_heads_and_the_rest_are_what_stage_2_trains(clip):
    model = CSDN.from_clip(clip, identities=3, image_size=(64, 32))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    trained = [names[id(parameter)] for parameter in model.image_parameters()]
    heads = [names[id(parameter)] for parameter in model.head_parameters()]
    text = {name for name in names.values() if name.startswith(("prompts", "text_encoder", "integration"))}
    assert len(trained) == len(set(trained)) and set(trained) == set(names.values()) - text
    assert {name.split(".")[0] for name in heads} == {"gem", "gem_neck", "pool_neck"}


@pytest.mark.parametrize("name", ["RN50", "RN101", "RN50x4"])
def test_openai_resnets_use_quick_gelu_even_where_open_clips_configuration_does_not_tell(name, open_clip):
    from csdn.model.clip import _quick_gelu

    assert _quick_gelu(name, open_clip.get_model_config(name))
    assert not _quick_gelu("tiny-resnet", CONFIG)


def test_weights_of_another_architecture_are_named_with_their_shapes(folder, tmp_path, fault, open_clip):
    wider = {**CONFIG, "embed_dim": 20, "vision_cfg": {**VISION, "layers": [1, 1, 1, 1]}}
    save_file(open_clip.CLIP(**copy.deepcopy(wider)).state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(UserError) as error:
        load_clip("tiny-resnet", tmp_path / "other.safetensors")
    assert "text_projection: [32, 20] found, [32, 24] needed" in str(error.value)
    assert "visual.layer1.1.conv1.weight: missing, [16, 64, 1, 1] needed" in str(error.value)
    assert str(error.value).count("\n") < 15
    fault("weights and checkpoints", "CLIP's weights are of another architecture", error.value)


@pytest.mark.parametrize(
    ("name", "reason", "what"),
    [
        ("ViT-B-32", "only ResNet CLIPs have stems", "model.clip is no ResNet"),
        ("RN5", "not known", "model.clip is not known"),
    ],
)
def test_a_clip_that_is_not_a_resnet_is_refused(folder, name, reason, what, fault):
    with pytest.raises(UserError, match=reason) as error:
        load_clip(name, folder / "tiny.safetensors")
    fault("weights and checkpoints", what, error.value)


def test_the_error_for_a_missing_file_tells_how_to_get_it(folder, fault):
    with pytest.raises(UserError, match="csdn fetch-clip") as error:
        load_clip("tiny-resnet", folder / "none.safetensors")
    fault("weights and checkpoints", "CLIP's weights are not there", error.value)


@pytest.mark.parametrize("wrong", [{}, {"conv1.weight": torch.zeros(2)}])
def test_a_wrong_file_does_not_replace_working_weights(folder, tmp_path, fault, wrong):
    out = shutil.copy(folder / "tiny.safetensors", tmp_path)
    torch.save(wrong, tmp_path / "wrong.pt")
    with pytest.raises(UserError, match=r"wrong\.pt: not the weights of CLIP 'tiny-resnet'") as error:
        convert(tmp_path / "wrong.pt", "tiny-resnet", out)
    load_clip("tiny-resnet", out)
    if wrong:
        fault("weights and checkpoints", "csdn fetch-clip --from another network's weights", error.value)


def test_fetched_weights_load(folder, tmp_path, monkeypatch, open_clip):
    """The download may be a .pt of plain tensors with OpenAI's extra sizes; it becomes safetensors."""
    state = open_clip.factory.load_state_dict(str(folder / "tiny.safetensors"))
    torch.save({**state, "input_resolution": torch.tensor(128)}, tmp_path / "downloaded.pt")
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda name, tag: {"hf_hub": "somewhere"})
    monkeypatch.setattr(open_clip, "download_pretrained", lambda source: str(tmp_path / "downloaded.pt"))
    fetch_clip("tiny-resnet", "openai", tmp_path / "out" / "clip.safetensors")
    loaded = load_clip("tiny-resnet", tmp_path / "out" / "clip.safetensors")
    assert torch.equal(loaded.tensors["visual.conv1.weight"], state["visual.conv1.weight"])
    assert len(loaded.sha256) == 64


PATHS = "/{repo_id}/resolve/{revision}/{filename}"
HUB_FILE = "/someone/tiny/resolve/main/open_clip_model.safetensors"


@pytest.fixture
def from_hub(tmp_path, monkeypatch, open_clip):
    """Let open_clip download "tiny-resnet" from a server in place of huggingface.co, into an empty cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda name, tag: {"hf_hub": "someone/tiny/"})
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("TQDM_POSITION", "-1")  # huggingface_hub shows its bar without a terminal too

    def use(server):
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.address + PATHS)

    return use


def test_a_download_shows_its_size_and_continues_where_the_connection_broke(
    folder, tmp_path, from_hub, capfd
):
    content = (folder / "tiny.safetensors").read_bytes()
    with hub({HUB_FILE: content}, breaks=1) as server:
        from_hub(server)
        fetch_clip("tiny-resnet", "openai", tmp_path / "clip.safetensors")
        first, second = server.ranges
        assert first is None and int(second.removeprefix("bytes=").rstrip("-")) > len(content) // 2
    load_clip("tiny-resnet", tmp_path / "clip.safetensors")
    shown = capfd.readouterr()
    assert "3 million numbers from huggingface.co/someone/tiny, at most 0.01 GB" in shown.out
    assert "100%" in shown.err  # the bar of huggingface_hub


def test_a_file_of_the_cache_that_was_damaged_is_fetched_again(folder, tmp_path, from_hub):
    out = tmp_path / "clip.safetensors"
    with hub({HUB_FILE: (folder / "tiny.safetensors").read_bytes()}) as server:
        from_hub(server)
        fetch_clip("tiny-resnet", "openai", out)
        good = out.read_bytes()
        (blob,) = (tmp_path / "cache").glob("*/blobs/*")
        damaged = bytearray(blob.read_bytes())
        damaged[-1] ^= 1
        blob.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged"):
            fetch_clip("tiny-resnet", "openai", out)
        assert out.read_bytes() == good
        fetch_clip("tiny-resnet", "openai", out)
        assert len(server.ranges) == 2 and out.read_bytes() == good


def test_the_header_of_our_files_replaces_open_clip(folder, clip, tmp_path, monkeypatch):
    convert(folder / "tiny.safetensors", "tiny-resnet", tmp_path / "clip.safetensors")
    monkeypatch.setattr("csdn.model.clip.facts_of", pytest.fail)
    assert load_clip("tiny-resnet", tmp_path / "clip.safetensors").facts == clip.facts


@pytest.mark.parametrize("name", ["tiny-resnet", "RN50"])
def test_a_file_with_a_wrong_header_is_checked_against_open_clip(folder, tmp_path, name):
    """Other tensors under its header, and its header for a CLIP of another name."""
    convert(folder / "tiny.safetensors", "tiny-resnet", tmp_path / "clip.safetensors")
    with safe_open(tmp_path / "clip.safetensors", framework="pt") as file:
        said = file.metadata()
    others = {} if name == "RN50" else {"text_projection": torch.zeros(32, 20)}
    save_file(load_file(tmp_path / "clip.safetensors") | others, tmp_path / "wrong.safetensors", said)
    with pytest.raises(UserError, match=f"not the weights of CLIP '{name}'"):
        load_clip(name, tmp_path / "wrong.safetensors")


@pytest.mark.parametrize("said", ["", "[]", "{}", '{"shapes": 1}'])
def test_a_foreign_header_is_ignored(clip, said):
    assert facts_in({"csdn.clip": said}, "tiny-resnet", shapes(clip.tensors)) is None


def test_an_unknown_tag_or_a_failed_download_is_explained(tmp_path, monkeypatch, fault, open_clip):
    with pytest.raises(UserError, match=r"no weights tagged 'laion'; open_clip knows: openai"):
        fetch_clip("RN50", "laion", tmp_path / "clip.safetensors")

    def unreachable(source):
        raise OSError("no route to host")

    monkeypatch.setattr(open_clip, "download_pretrained", unreachable)
    with pytest.raises(UserError, match="the download failed: no route to host") as error:
        fetch_clip("RN50", "openai", tmp_path / "clip.safetensors")
    fault("weights and checkpoints", "the download of CLIP's weights fails", error.value)
