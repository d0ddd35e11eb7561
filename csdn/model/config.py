"""What rebuilds a network: every size and variant, as plain values (config.json beside the weights)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from csdn.errors import UserError

MODALITIES = ("visible", "infrared")
STEMS = ("clip", "published")
INTEGRATIONS = ("attention", "sum", "concat", "visible", "infrared", "shared")
ALLOWED = {"stem": STEMS, "integration": INTEGRATIONS, "text_activation": ("quick_gelu", "gelu")}
# Sizes beyond these are a damaged file's: no network of today comes near them.
LIMITS = {
    "identities": 10**9,
    "width": 2**12,
    "pool_heads": 2**12,
    "embed_dim": 2**15,
    "text_width": 2**15,
    "text_heads": 2**12,
    "text_layers": 100,
}

# Pixels a cell of the feature map spans: the stem divides by 4, layer2 and layer3 by 2, layer4 by 1.
CELL = 16


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and variants of a CSDN; raises UserError where they cannot make one."""

    identities: int
    image_size: tuple[int, int]  # height, width in pixels
    depths: tuple[int, ...]  # residual blocks of layer1..layer4
    width: int  # channels behind the stem; the feature map has 32 times as many
    pool_heads: int  # heads of the attention pool
    embed_dim: int  # d, the dimension that images and texts share
    text_width: int
    text_heads: int
    text_layers: int
    text_activation: str = "quick_gelu"  # quick_gelu | gelu
    stem: str = "clip"  # clip: ReLU after each BN of the stem | published: after the third only
    integration: str = "attention"
    clip: str = ""  # name and SHA-256 of the CLIP it started from
    clip_sha256: str = ""

    def __post_init__(self) -> None:
        for name, most in LIMITS.items():
            self._check_size(name, getattr(self, name), most)
        for name, length, most in (("image_size", 2, 2**14), ("depths", 4, 100)):
            values = getattr(self, name)
            if len(values) != length:
                raise UserError(f"{name} {list(values)[:8]}: {length} integers are needed")
            for value in values:
                self._check_size(name, value, most)
        if any(side % CELL for side in self.image_size):
            height, width = self.image_size
            raise UserError(f"image size {height}x{width}: height and width must be multiples of {CELL}")
        for name, allowed in ALLOWED.items():
            if getattr(self, name) not in allowed:
                raise UserError(f"{name} {getattr(self, name)!r}: allowed are {', '.join(allowed)}")
        if self.text_width % self.text_heads or self.map_channels % self.pool_heads:
            raise UserError(
                f"text_heads {self.text_heads} must divide text_width {self.text_width}, "
                f"and pool_heads {self.pool_heads} the {self.map_channels} channels of the map"
            )

    @staticmethod
    def _check_size(name: str, value: Any, most: int) -> None:
        if type(value) is not int or not 1 <= value <= most:
            raise UserError(f"{name} {str(value)[:50]}: an integer from 1 to {most} is needed")

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the feature map in cells."""
        height, width = self.image_size
        return height // CELL, width // CELL

    @property
    def map_channels(self) -> int:
        return self.width * 32

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ModelConfig:
        """The inverse of `to_json`; raises UserError for keys it does not know or misses."""
        if not isinstance(values, Mapping):
            raise UserError(f"model configuration: {str(values)[:50]!r} is no mapping of its sizes")
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise UserError(f"model configuration: unknown keys {', '.join(unknown)}")
        try:
            lists = {name: tuple(values[name]) for name in ("image_size", "depths")}
            return cls(**{**values, **lists})
        except (KeyError, TypeError) as error:
            raise UserError(f"model configuration is incomplete: {error}") from None
