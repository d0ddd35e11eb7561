"""A network as a folder: model.safetensors, and a config.json with all that is needed to rebuild it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar, overload

import torch
from safetensors.torch import save as serialize

from csdn.model.network import CSDN, ModelConfig
from csdn.model.weights import check_weights, misfits, read_safetensors, refuse, shapes
from csdn.runtime.documents import read_json
from csdn.runtime.errors import UserError
from csdn.runtime.files import atomic_folder, write_json

FORMAT = 1

Network = TypeVar("Network", bound=CSDN)


def save(model: CSDN, folder: str | Path, **extra_config: Any) -> None:
    """Write the folder atomically; the same network gives the same bytes.

    extra_config: further JSON values for users of the network, such as normalize="imagenet".
    """
    with atomic_folder(Path(folder)) as temporary:
        tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        (temporary / "model.safetensors").write_bytes(serialize(tensors, metadata={"format": "pt"}))
        config = {"format": FORMAT, "model": model.config.to_json(), **extra_config}
        write_json(temporary / "config.json", config)


def read_config(folder: str | Path) -> dict[str, Any]:
    """config.json of a saved network: `format`, `model` (ModelConfig) and the `extra_config` of `save`."""
    path = Path(folder) / "config.json"
    if not path.exists():
        raise UserError(f"{folder}: no saved network (config.json is missing)")
    config = read_json(path)
    if not isinstance(config, dict) or config.get("format") != FORMAT or "model" not in config:
        raise UserError(f"{path}: not a network of format {FORMAT}; save it again with this version of csdn")
    return config


@overload
def load(folder: str | Path) -> CSDN: ...
@overload
def load(folder: str | Path, network: type[Network]) -> Network: ...
def load(folder: str | Path, network: type[CSDN] = CSDN) -> CSDN:
    """The network saved in `folder`, on the CPU, in evaluation mode; raises UserError if it does not fit.

    network: CSDN, or a subclass that is made of it.
    """
    config = ModelConfig.from_json(read_config(folder)["model"])
    with torch.device("meta"):  # allocates nothing until the sizes are known to be those of the file
        needed = shapes(CSDN(config).state_dict())
    path = Path(folder) / "model.safetensors"
    tensors = read_safetensors(path)
    refuse(str(path), misfits(needed, shapes(tensors)), "does not fit the config.json beside it:")
    check_weights(str(path), tensors)
    model = network(config)
    model.load_state_dict(tensors)
    return model.eval()
