"""What rebuilds a network: every size and variant, as plain values (config.json beside the weights)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csdn.model.backbone import Stem, residual_layers
from csdn.model.pooling import AttentionPool, GeM
from csdn.model.sii import build_integration
from csdn.model.text import DEVIATION, PromptLearner, TextEncoder
from csdn.model.weights import misfits, refuse, shapes
from csdn.runtime.documents import expected_in
from csdn.runtime.errors import UserError

if TYPE_CHECKING:
    from csdn.model.clip import Clip


MODALITIES = ("visible", "infrared")
STEMS = ("clip", "published")
INTEGRATIONS = ("sii", "sum", "concat", "visible", "infrared", "shared")
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
    integration: str = "sii"
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


# What the network refuses, before torch does in terms of its own, or computes something else.


def check_modality(modality: str) -> None:
    if modality not in MODALITIES:
        raise ValueError(f"modality {modality!r}; allowed: {', '.join(MODALITIES)}")


def check_images(images: Mapping[str, Tensor], config: ModelConfig, dtype: torch.dtype) -> None:
    """Raise ValueError unless the images of each modality are floats [n, 3, H, W] of the network's size."""
    if not images:
        raise ValueError("no images: give those of one modality or of both")
    height, width = config.image_size
    needed = f"normalised {_name(dtype)} [images, 3, {height}, {width}] is needed"
    for modality, batch in images.items():
        check_modality(modality)
        if not isinstance(batch, Tensor):
            raise ValueError(f"{modality} images are a {type(batch).__name__}; a tensor is needed: {needed}")
        if batch.ndim != 4 or batch.shape[1:] != (3, height, width) or not _fits(batch, dtype):
            raise ValueError(f"{modality} images are {_name(batch.dtype)} {list(batch.shape)}; {needed}")


def _fits(batch: Tensor, dtype: torch.dtype) -> bool:
    if torch.is_autocast_enabled(batch.device.type):  # it converts floats itself
        return batch.is_floating_point()
    return batch.dtype == dtype


def check_people(people: Tensor, identities: int) -> None:
    """Raise ValueError unless people are rows of the network's people.

    Their values are looked at on the CPU alone: a GPU would have to be waited for.
    """
    if not isinstance(people, Tensor) or people.ndim != 1 or people.is_floating_point():
        raise ValueError("people: integers [n] in a tensor are needed, rows of the network's people")
    if people.device.type == "cpu" and len(people):
        lowest, highest = int(people.min()), int(people.max())
        if lowest < 0 or highest >= identities:
            wrong = lowest if lowest < 0 else highest
            raise ValueError(f"person {wrong}: this network has the people 0 to {identities - 1}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# CSDN, the network: two stems, shared layers, two branches, and the text of each person.
#
#     visible  -> stem \                     / GeM            -> f -> BNNeck -> classifier    (branch A)
#                       layer1..4 -> map ---<
#     infrared -> stem /                     \ attention pool -> g -> BNNeck -> classifier    (branch B)
#
#     visible tokens  -> text encoder -> t_v \
#                        (frozen)             SII -> the person's fused text
#     infrared tokens -> text encoder -> t_i /
#
# Stage 1 trains the tokens, then SII; stage 2 trains everything in the upper half. Shapes in what follows:
# n images of H x W pixels, c = 32 x width map channels, d = embed_dim (RN50: 2048 and 1024).


CLASSIFIER_DEVIATION = 0.001  # before training


class TrainingOutputs(NamedTuple):
    """What stage 2's losses need of a batch: visible images first, then infrared ones."""

    gem: Tensor  # [n, c], f
    pool: Tensor  # [n, d], g
    gem_logits: Tensor  # [n, identities]
    pool_logits: Tensor  # [n, identities]


class BNNeck(nn.Module):
    """Batch norm between features [n, k] and their bias-free classifier: logits [n, identities]."""

    def __init__(self, channels: int, identities: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(channels)
        self.classifier = nn.Linear(channels, identities, bias=False)
        nn.init.normal_(self.classifier.weight, std=CLASSIFIER_DEVIATION)

    def forward(self, features: Tensor) -> Tensor:
        return self.classifier(self.norm(features))


class CSDN(nn.Module):
    """The network; `CSDN.from_clip`, `csdn.model.load` and `csdn.model.load_published` make one with weights.

    A modality is "visible" or "infrared". Images are normalised floats [n, 3, H, W] of `config.image_size`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        c, d = config.map_channels, config.embed_dim
        after_each = config.stem == "clip"
        self.stems = nn.ModuleDict({modality: Stem(config.width, after_each) for modality in MODALITIES})
        self.layers = residual_layers(config.depths, config.width)
        self.gem = GeM()
        self.gem_neck = BNNeck(c, config.identities)
        self.attention_pool = AttentionPool(c, config.pool_heads, d, config.grid)
        self.pool_neck = BNNeck(d, config.identities)
        shared = config.integration == "shared"
        self.prompts = PromptLearner(config.identities, config.text_width, MODALITIES, shared)
        self.text_encoder = TextEncoder(
            config.text_width, config.text_heads, config.text_layers, d, config.text_activation
        )
        self.integration = build_integration(config.integration, d)

    @classmethod
    def from_clip(
        cls,
        clip: Clip,
        identities: int,
        image_size: tuple[int, int],
        stem: str = "clip",
        integration: str = "sii",
        seed: int = 0,
    ) -> CSDN:
        """A network that starts from a CLIP (`load_clip`), in evaluation mode; both stems are CLIP's.

        image_size: (height, width) in pixels, multiples of 16. What CLIP does not have (tokens, SII,
        classifiers) is a function of `seed`; the global generator is left as it was.
        """
        source, advice = f"the weights of CLIP {clip.facts.name!r}", "`csdn fetch-clip` writes them anew"
        with expected_in(source, advice):
            config = clip.config(
                identities=identities, image_size=tuple(image_size), stem=stem, integration=integration
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = cls(config)
        state = model.state_dict()
        with expected_in(source, advice):
            weights = clip.weights_for(model)
        refuse(source, misfits({name: state[name].shape for name in weights}, shapes(weights)), advice)
        model.load_state_dict(state | weights)
        return model.eval()

    # Images

    def feature_map(self, images: Mapping[str, Tensor]) -> Tensor:
        """[n, 3, H, W] of each modality -> [sum of n, c, H/16, W/16], visible ones first.

        Each modality passes its own stem; then all are one batch, so that in training mode the batch norms of
        the shared layers take their statistics over both modalities together. Raises ValueError for no
        images, an unknown modality, and images of another size, shape or type.
        """
        check_images(images, self.config, self.gem.p.dtype)
        stems = [self.stems[modality](images[modality]) for modality in MODALITIES if modality in images]
        return self.layers(torch.cat(stems))

    def features(self, images: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(f [n, c], g [n, d]) of both branches, not normalised; images as for `feature_map`."""
        features = self.feature_map(images)
        return self.gem(features), self.attention_pool(features)

    def forward(self, images: Mapping[str, Tensor]) -> TrainingOutputs:
        """Features and logits of a training batch; images as for `feature_map`."""
        f, g = self.features(images)
        return TrainingOutputs(f, g, self.gem_neck(f), self.pool_neck(g))

    @torch.no_grad()
    def embed(self, images: Tensor, modality: str) -> Tensor:
        """Test feature [n, c + d] = [l2(BN(f)), l2(g)] of images of one modality, without gradient.

        images: normalised floats [n, 3, H, W]; modality: "visible" or "infrared". Two features are compared
        by their dot product, -2 to 2; see csdn.evaluation for the mirrored image. Raises ValueError in
        training mode, where a feature would depend on its batch, and as `feature_map` does.
        """
        if self.training:
            raise ValueError("the network is in training mode; call model.eval() before embed")
        f, g = self.features({modality: images})
        return torch.cat([F.normalize(self.gem_neck.norm(f)), F.normalize(g)], dim=1)

    @torch.no_grad()
    def image_embeddings(self, images: Tensor, modality: str) -> Tensor:
        """g [n, d], not normalised: the image side of stage 1 (model in evaluation mode)."""
        return self.attention_pool(self.feature_map({modality: images}))

    # Text

    def text_features(self, modality: str, people: Tensor | None = None) -> Tensor:
        """Text features, floats [n, d], of `people` (integers [n], rows; everybody if None), not normalised.

        modality: "visible" or "infrared". Raises ValueError for another one, and for people that are not rows
        (on the CPU, where it costs nothing to look).
        """
        check_modality(modality)
        if people is not None:
            check_people(people, self.config.identities)
        return self.text_encoder(self.prompts(modality, people))

    def fused_text_features(self) -> Tensor:
        """SII of everybody's visible and infrared text, floats [identities, d], without dropout.

        Not normalised: stage 2 compares them with images by their dot product.
        """
        return self.integration(*(self.text_features(modality) for modality in MODALITIES))

    # What stage 2 trains

    def channels_last(self) -> CSDN:
        """Lay the convolutions' weights out as processors read them: the same network, a faster one."""
        for module in (self.stems, self.layers):
            module.to(memory_format=torch.channels_last)
        return self

    def image_parameters(self) -> Iterator[nn.Parameter]:
        """All that stage 2 trains: stems, layers, attention pool, and the heads."""
        for module in (self.stems, self.layers, self.attention_pool):
            yield from module.parameters()
        yield from self.head_parameters()

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """GeM's power, BNNecks and classifiers: they learn at a rate of their own."""
        for module in (self.gem, self.gem_neck, self.pool_neck):
            yield from module.parameters()


# A network's rows of people: its tokens and classifiers have one for each, all other tensors know nobody.


def row_deviation(name: str) -> float | None:
    """Of the rows of the tensor `name` before training; None where its rows are not people's."""
    if name.startswith("prompts.tokens."):
        return DEVIATION
    return CLASSIFIER_DEVIATION if name.endswith("_neck.classifier.weight") else None


def with_people(model: CSDN, rows: Sequence[int]) -> CSDN:
    """A copy of `model` (on the CPU, in evaluation mode) that knows the people of these rows alone."""
    kept = torch.tensor(rows, dtype=torch.int64)
    state = {
        name: tensor if row_deviation(name) is None else tensor[kept]
        for name, tensor in model.state_dict().items()
    }
    with torch.random.fork_rng(devices=[]):
        copy = CSDN(replace(model.config, identities=len(rows)))
    copy.load_state_dict(state)
    return copy.eval()
