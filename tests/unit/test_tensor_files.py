"""Files that are not checkpoints are refused with the reason; a size in a file allocates no extra memory."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import re
import resource
import struct
import subprocess
import sys
import zipfile

import pytest
import torch
from golden_vectors import network, tensors
from hostile import pickles
from make_images import write
from safetensors.torch import load_file, save_file

from csdn.model import ModelConfig, convert, import_published, load, load_clip, save
from csdn.model.clip import WEIGHTS
from csdn.model.weights import check_weights, read_state_dict
from csdn.runtime.errors import UserError
from csdn.training.embedding import load_prompts

# What torch says of files that are older than it.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def saved(values, **options):
    buffer = io.BytesIO()
    torch.save(values, buffer, **options)
    return buffer.getvalue()


def archive(**entries):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in entries.items():
            file.writestr(name.replace("__", "/"), content)
    return buffer.getvalue()


def rewritten(data, change=lambda name, content: content, **options):
    """A file of torch.save with its entries changed, or stored in another way."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w", **options) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return buffer.getvalue()


def claims(shape, dtype="F32", size=0):
    """Safetensors whose header promises a tensor of this shape and `size` bytes."""
    header = json.dumps({"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header


def longer(name, content):
    """Of a storage of four floats, one of 2**40."""
    many = b"\x8a\x06" + (2**40).to_bytes(6, "little")
    return content.replace(b"cpuq\x06K\x04", b"cpuq\x06" + many).replace(
        b"K\x00K\x04\x85", b"K\x00" + many + b"\x85"
    )


def encrypted(data: bytes) -> bytes:
    """The archive with the mark of encrypted entries, in their headers and in the directory."""
    changed = bytearray(data)
    for header, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        for found in re.finditer(re.escape(header), data):
            changed[found.start() + flags] |= 1
    return bytes(changed)


ONE = saved({"a": torch.arange(4.0)})
NOT_WEIGHTS = {
    "a pointer of Git LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "git lfs pull",
    ),
    "a page": (b"\n<!DOCTYPE html><html>Not Found</html>", "web page"),
    "a page with a byte order mark": (b"\xef\xbb\xbf<html>", "web page"),
    "an error of a server": (b'{"error": "not found"}', "JSON"),
    "gzip": (gzip.compress(ONE), "gzip"),
    "xz": (lzma.compress(ONE), "xz"),
    "bzip2": (bz2.compress(ONE), "bzip2"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
    "a zip of a checkpoint": (archive(weights__RN50_pt=ONE), "weights/RN50_pt"),
    "an .npz": (archive(a_npy=b"\x93NUMPY"), "a_npy"),
    "torch.save, then compressed": (rewritten(ONE, compression=zipfile.ZIP_DEFLATED), "zip archive"),
    "torch.save, then encrypted": (encrypted(ONE), "zip archive"),
    "nothing": (b"", "empty"),
    "half a file": (ONE[: len(ONE) // 2], "cut short"),
    "half an old file": (saved({"a": torch.ones(9)}, _use_new_zipfile_serialization=False)[:-8], "cut short"),
    "one bit altered": (ONE.replace(struct.pack("<f", 3.0), struct.pack("<f", 3.5)), "checksum"),
    "a storage that claims terabytes": (rewritten(ONE, longer), "damaged"),
    "a list": (saved([torch.ones(2)]), "list"),
    "a tensor": (saved(torch.ones(2)), "Tensor"),
    "names that are numbers": (saved({1: torch.ones(2)}), "names"),
    "a text for a state dict": (saved({"state_dict": "none"}), "names"),
    "noise": (bytes(range(7, 256)) * 9, "not a state dict"),
    "safetensors that claim terabytes": (claims([10**12], size=4 * 10**12), "not readable as safetensors"),
    "safetensors without an end": (claims([4], size=16), "not readable as safetensors"),
    "safetensors with a size beyond 64 bits": (claims([2**40, 2**40]), "not readable as safetensors"),
}


@pytest.mark.parametrize("kind", NOT_WEIGHTS)
def test_a_file_that_is_not_a_checkpoint_is_refused_with_the_reason(kind, tmp_path):
    content, named = NOT_WEIGHTS[kind]
    path = write(tmp_path / "RN50.pt", content)
    with pytest.raises(UserError, match=r"RN50\.pt") as error:
        convert(path, "RN50", tmp_path / "out.safetensors")
    assert named in str(error.value)
    with pytest.raises(UserError, match=r"RN50\.pt"):
        import_published(path)
    with pytest.raises(UserError, match=r"RN50\.pt"):
        load_clip("RN50", path)
    assert [file.name for file in tmp_path.iterdir()] == ["RN50.pt"]


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("a pointer of Git LFS", "a checkpoint is a pointer of Git LFS"),
        ("a page", "a checkpoint is a web page"),
        ("one bit altered", "one bit of a checkpoint was altered"),
        ("gzip", "a checkpoint is compressed"),
    ],
)
def test_the_reason_is_in_the_table_of_faults(kind, what, tmp_path, fault):
    path = write(tmp_path / "in" / "RN50.pt", NOT_WEIGHTS[kind][0])
    with pytest.raises(UserError) as error:
        read_state_dict(path)
    fault("weights and checkpoints", what, error.value)


def test_the_error_for_a_torchscript_archive_has_a_command_that_extracts_its_tensors(tmp_path):
    """A user who trusts the file may run it; the file that it writes is then read."""
    path = write(tmp_path / "RN50 of OpenAI.pt", scripted(load_file(WEIGHTS)))
    with pytest.raises(UserError, match="TorchScript archive") as error:
        read_state_dict(path)
    command = str(error.value).partition(": python ")[2].removesuffix(". Nothing in it was run")
    subprocess.run(f"{sys.executable} {command}", shell=True, check=True, cwd=tmp_path, capture_output=True)
    found = read_state_dict(tmp_path / "RN50 of OpenAI-state.pt")
    assert found.pop("input_resolution") == 224
    assert all(torch.equal(found[name], tensor) for name, tensor in load_file(WEIGHTS).items())


def scripted(weights):
    """A TorchScript archive of a module with these tensors, and OpenAI's three numbers."""
    root = torch.nn.Identity()
    for name, value in {**weights, "input_resolution": torch.tensor(224)}.items():
        *path, last = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, torch.nn.Identity())
            module = module._modules[part]
        module.register_buffer(last, value)
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(root, torch.zeros(1)), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["weights.pt", "weights.bin", "weights"])
def test_safetensors_are_read_under_any_name(name, tmp_path):
    save_file({"a": torch.arange(3.0)}, tmp_path / name)
    assert read_state_dict(tmp_path / name)["a"].tolist() == [0, 1, 2]


def test_a_pickle_is_refused_under_any_name(tmp_path):
    for kind, content in pickles(tmp_path / "run").items():
        with pytest.raises(UserError):
            read_state_dict(write(tmp_path / f"{kind}.safetensors", content))
    assert not (tmp_path / "run").exists()


# A tensor that cannot be a weight -> what the error says of it.
WRONG = {
    "integers": (torch.ones(3, 4, dtype=torch.int64), "int64"),
    "bytes": (torch.ones(3, 4, dtype=torch.uint8), "uint8"),
    "booleans": (torch.ones(3, 4, dtype=torch.bool), "bool"),
    "complex numbers": (torch.ones(3, 4, dtype=torch.complex64), "complex64"),
    "NaN": (torch.full((3, 4), torch.nan), "NaN"),
    "one infinity": (torch.tensor([[0.0, -torch.inf]]), "infinite"),
    "NaN in halves": (torch.full((3, 4), torch.nan).half(), "NaN"),
    "doubles beyond float32": (torch.full((3, 4), 1e300, dtype=torch.float64), "infinite"),
    "eight bits": (torch.ones(3, 4).to(torch.float8_e4m3fn), "float8"),
    "no value": (torch.ones(3, 0), "no value"),
    "terabytes": (torch.ones(1).expand(10**13), "claims more values"),
    "a sparse tensor": (torch.eye(3).to_sparse(), "plain tensor"),
    "no device": (torch.empty(10**13, device="meta"), "plain tensor"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_tensor_that_cannot_be_a_weight_is_refused_by_name(kind, tmp_path):
    tensor, named = WRONG[kind]
    with pytest.raises(UserError, match="stem") as error:
        check_weights("file", {"fine": torch.ones(2), "stem": tensor})
    assert named in str(error.value) and "fine" not in str(error.value)
    values = dict(tensors("state_dict")) | {"classifier.classifier.weight": tensor}
    torch.save(values, tmp_path / "published.pth")
    with pytest.raises(UserError, match=r"classifier\.classifier\.weight") as error:
        import_published(tmp_path / "published.pth", (64, 32))
    assert named in str(error.value)


@pytest.mark.parametrize("kind", ["integers", "complex numbers", "NaN", "booleans"])
def test_weights_of_clip_are_checked_when_converted_and_when_loaded(kind, tmp_path):
    name = "visual.layer1.0.conv1.weight"
    weights = load_file(WEIGHTS)
    weights[name] = WRONG[kind][0].flatten()[:1].expand(weights[name].shape).contiguous()
    save_file(weights, tmp_path / "in.safetensors")
    for read in (
        lambda path: load_clip("csdn-small", path),
        lambda path: convert(path, "csdn-small", tmp_path / "out"),
    ):
        with pytest.raises(UserError, match=rf"{name}: .*(needed|NaN)"):
            read(tmp_path / "in.safetensors")
    assert not (tmp_path / "out").exists()


def test_counters_of_batch_norms_are_the_only_integers_among_weights():
    check_weights("file", {"bn1.num_batches_tracked": torch.tensor(7)})
    for wrong in (torch.tensor(7.0), torch.tensor([7])):
        with pytest.raises(UserError, match=r"bn1\.num_batches_tracked"):
            check_weights("file", {"bn1.num_batches_tracked": wrong})


@pytest.mark.parametrize("shape", [(), (0,), (10**12, 0), (3,), (1, 1, 1, 1, 1)])
@pytest.mark.parametrize(
    "name",
    [
        "text_encoder.text_projection",
        "text_encoder.positional_embedding",
        "image_encoder1.4.weight",
        "classifier.classifier.weight",
        "prompt_learner2.token_suffix",
        "classifier.GEM.p",
    ],
)
def test_a_published_checkpoint_of_odd_shapes_is_refused(name, shape):
    with pytest.raises(UserError):
        import_published(dict(tensors("state_dict")) | {name: torch.ones(shape)}, (64, 32))


def test_a_wrapped_published_checkpoint_is_loaded_and_duplicate_names_are_refused():
    state = dict(tensors("state_dict"))
    model, _ = import_published(
        {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, (64, 32)
    )
    assert model.config == network().config
    with pytest.raises(UserError, match="twice"):
        import_published(state | {"module.classifier.BN.weight": torch.ones(1)}, (64, 32))


SIZES = {
    "identities": 10**8,
    "width": 4096,
    "embed_dim": 2**15,
    "text_width": 2**15,
    "text_layers": 40,
    "depths": [40, 1, 1, 1],
    "image_size": [2**14, 2**14],
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_in_a_configuration_allocate_nothing_before_they_are_checked(name, tmp_path):
    """They would need gigabytes; what this process may take is the little that it has now and a gigabyte."""
    save(network(), tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["model"][name] = SIZES[name]
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"needed|must divide"):
        load(tmp_path / "model")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # kB


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            (name, value)
            for name in ("identities", "width", "text_layers")
            for value in (0, -1, 10**12, True, "3")
        ),
        *(
            ("image_size", value)
            for value in ((64,), (64, 32, 3), (64.0, 32), (0, 0), ("64", "32"), (2**40, 32))
        ),
        *(("depths", value) for value in ((1, 1), (0, 1, 1, 1), (10**9, 1, 1, 1), (None, 1, 1, 1))),
        *(("text_heads", 3), ("pool_heads", 5), ("text_activation", "relu"), ("stem", ["clip"])),
    ],
)
def test_an_impossible_size_is_named(name, value):
    with pytest.raises(UserError, match=name):
        ModelConfig.from_json({**network().config.to_json(), name: value})


@pytest.mark.parametrize("values", [[], None, 3, "x", {"identities": 3}, {"a": 1}])
def test_a_configuration_of_something_else_is_refused(values):
    with pytest.raises(UserError, match="model configuration"):
        ModelConfig.from_json(values)


def test_prompts_of_another_network_are_refused_before_stage_2_begins(tmp_path):
    model = network()
    state = {k: v for k, v in model.state_dict().items() if k.startswith(("prompts.", "integration."))}
    state["fused_text"] = torch.ones(model.config.identities, model.config.embed_dim)
    save_file(state, tmp_path / "prompts.safetensors")
    assert torch.equal(load_prompts(model, tmp_path / "prompts.safetensors"), state["fused_text"])
    for wrong, named in (
        ({"fused_text": torch.ones(1, 2)}, r"fused_text: \[1, 2\] found"),
        ({"integration.value.bias": torch.full_like(state["integration.value.bias"], torch.nan)}, "NaN"),
        ({"prompts.more": torch.ones(1)}, r"prompts\.more"),
    ):
        save_file(state | wrong, tmp_path / "prompts.safetensors")
        with pytest.raises(UserError, match=named):
            load_prompts(model, tmp_path / "prompts.safetensors")
