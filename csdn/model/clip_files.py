"""Getting CLIP weights as safetensors: by download, or from a file of plain tensors."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save as serialize
from torch import Tensor

from csdn.errors import UserError
from csdn.files import replace_file
from csdn.model.clip_facts import header
from csdn.model.clip_models import check_shapes, facts_of, model_config
from csdn.model.fit import shapes
from csdn.model.tensor_files import check_weights, read_state_dict, tensors_in

# Sizes that OpenAI's own state dicts carry as tensors beside the weights.
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")


def fetch_clip(name: str, tag: str, out: str | Path) -> None:
    """Download the weights that open_clip knows as `tag` (such as "openai") and write them as safetensors."""
    import open_clip

    model_config(name)
    source = open_clip.get_pretrained_cfg(name, tag)
    if not source:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise UserError(f"CLIP {name!r} has no weights tagged {tag!r}; open_clip knows: {tags}")
    try:
        downloaded = open_clip.download_pretrained(source)
    except Exception as error:  # whatever the network, the hub or the disk can do
        raise UserError(f"CLIP {name!r}, {tag!r}: the download failed: {error}") from error
    convert(downloaded, name, out)


def convert(source: str | Path, name: str, out: str | Path) -> None:
    """Write a state dict of the CLIP `name` (.safetensors, or .pt/.bin holding tensors only) as safetensors.

    Raises UserError, and leaves `out` as it is, where the file holds anything else.
    """
    values = tensors_in(read_state_dict(source), str(source))
    plain = {
        key: value.detach()
        for key, value in values.items()
        if isinstance(value, Tensor) and key not in NOT_WEIGHTS
    }
    check_shapes(str(source), name, shapes(plain))
    check_weights(str(source), plain)
    plain = {key: value.contiguous() for key, value in plain.items()}
    with replace_file(Path(out)) as temporary:
        temporary.write_bytes(serialize(plain, metadata=header(facts_of(name), shapes(plain))))
