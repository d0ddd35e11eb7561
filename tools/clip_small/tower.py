"""The small CLIP in training: csdn.model's image tower (last stride 1, 4 x 2 cells), CLIP's text tower."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor, nn

from csdn.model.backbone import Stem, residual_layers
from csdn.model.clip import BUILT_IN, facts_of, header, register
from csdn.model.pooling import AttentionPool, GeM, resize_positions
from csdn.model.weights import shapes
from csdn.runtime.files import atomic_write
from csdn.synthetic.figure import HEIGHT, WIDTH

GRID = (HEIGHT // 16, WIDTH // 16)
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # params.yaml: model.normalize: imagenet

# Triplet loss and MSEL depend on the length of features: at 1 they are negligible, at 14 MSEL dominates.
LENGTH = 4.0


class SmallClip(nn.Module):
    """Image and text embeddings in a shared space, [n, 128], not normalised."""

    def __init__(self) -> None:
        import open_clip  # slow to import

        super().__init__()
        register()
        config = open_clip.get_model_config(BUILT_IN)
        vision = config["vision_cfg"]
        self.dimension = config["embed_dim"]
        channels = vision["width"] * 32
        self.text = open_clip.CLIP(**config)
        del self.text.visual  # replaced by the layers below
        self.stem = Stem(vision["width"], relu_after_each=True)
        self.layers = residual_layers(vision["layers"], vision["width"])
        self.attnpool = AttentionPool(channels, channels // 64, self.dimension, GRID)
        self.tokenizer = open_clip.get_tokenizer(BUILT_IN)

    def embed_images(self, images: Tensor) -> Tensor:
        """images: normalised float32 [n, 3, 64, 32]."""
        return self.attnpool(self.layers(self.stem(images)))

    def embed_texts(self, texts: list[str]) -> Tensor:
        """open_clip's encode_text, on the tokens up to the end of the longest text, as attention is
        causal.
        """
        tokens = self.tokenizer(texts)
        length = int((tokens.argmax(1) + 1).max())
        x = self.text.token_embedding(tokens[:, :length]) + self.text.positional_embedding[:length]
        x = self.text.transformer(x, attn_mask=self.text.attn_mask[:length, :length])
        ends = x[torch.arange(len(texts)), tokens.argmax(1)]
        return self.text.ln_final(ends) @ self.text.text_projection

    @torch.no_grad()
    def calibrate(self, images: Tensor, texts: list[str]) -> None:
        """Scale the features without changing their directions, because the losses of stage 2 depend on
        scale.

        On average the pooled map (f of branch A) and the image embedding (g) get length LENGTH. Text
        embeddings get the length that makes dot products the logits of training, for the temperature 1 of
        stage 1.
        """
        self._scale_map(LENGTH / GeM()(self.layers(self.stem(images))).norm(dim=1).mean())
        factor = LENGTH / self.embed_images(images).norm(dim=1).mean()
        self.attnpool.c_proj.weight.mul_(factor)
        self.attnpool.c_proj.bias.mul_(factor)
        length = self.text.logit_scale.exp() / LENGTH
        self.text.text_projection.mul_(length / self.embed_texts(texts).norm(dim=1).mean())

    def _scale_map(self, factor: Tensor) -> None:
        """Multiply the map by `factor` > 0, and divide by it where the attention pool reads the map."""
        last = self.layers.layer4[-1]
        for norm in (last.bn3, last.downsample[2]):
            norm.weight.mul_(factor)
            norm.bias.mul_(factor)
        pool = self.attnpool
        pool.positions.mul_(factor)
        for projection in (pool.q_proj, pool.k_proj, pool.v_proj):
            projection.weight.div_(factor)

    def save(self, path: str | Path) -> None:
        """Write float16 safetensors under open_clip's names, with the square map of positions that it
        expects.
        """
        tensors = {name: tensor for name, tensor in self.text.state_dict().items() if name != "attn_mask"}
        tensors |= {f"visual.{name}": tensor for name, tensor in self.stem.state_dict().items()}
        tensors |= {f"visual.{name}": tensor for name, tensor in self.layers.state_dict().items()}
        tensors |= {f"visual.attnpool.{name}": tensor for name, tensor in self.attnpool.state_dict().items()}
        positions = tensors.pop("visual.attnpool.positions")
        tensors["visual.attnpool.positional_embedding"] = _square(positions)
        tensors["visual.attnpool.k_proj.bias"] = torch.zeros_like(self.attnpool.q_proj.bias)  # has no effect
        halves = {name: t.half() if t.is_floating_point() else t for name, t in tensors.items()}
        with atomic_write(path) as temporary:
            # save_file makes files that only their owner may read.
            temporary.write_bytes(save(halves, metadata=header(facts_of(BUILT_IN), shapes(halves))))

    def load(self, path: str | Path) -> SmallClip:
        """Read what `save` wrote."""
        tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
        positions = resize_positions(tensors.pop("visual.attnpool.positional_embedding"), GRID)
        del tensors["visual.attnpool.k_proj.bias"]
        own = {_own_name(name): tensor for name, tensor in tensors.items()}
        own |= {"attnpool.positions": positions}
        self.load_state_dict(own)
        return self


def _square(positions: Tensor) -> Tensor:
    """[1 + h*w, c] -> [1 + h*h, c]: every column twice; resizing to h x w restores the numbers."""
    cells = positions[1:].unflatten(0, GRID).repeat_interleave(GRID[0] // GRID[1], dim=1)
    return torch.cat([positions[:1], cells.flatten(0, 1)])


def _own_name(name: str) -> str:
    if not name.startswith("visual."):
        return f"text.{name}"
    part = name.removeprefix("visual.")
    if part.startswith("attnpool."):
        return part
    return f"layers.{part}" if part.startswith("layer") else f"stem.{part}"


def to_input(images: np.ndarray) -> Tensor:
    """uint8 [n, 64, 32, 3] -> normalised float32 [n, 3, 64, 32]."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(DEVIATION).view(3, 1, 1)


def unit(features: Tensor) -> Tensor:
    return F.normalize(features, dim=1)
