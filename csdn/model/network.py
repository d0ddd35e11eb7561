r"""CSDN, the network (arXiv 2401.05806): two stems, shared layers, two branches, a text for each identity.

    visible  -> stem \                     / GeM            -> f -> BNNeck -> logits    (branch A)
                      layer1..4 -> map ---<
    infrared -> stem /                     \ attention pool -> g -> BNNeck -> logits    (branch B)

    visible tokens  -> text encoder -> t_v \
                       (frozen)             SII -> the identity's fused text
    infrared tokens -> text encoder -> t_i /

Stems, layers, attention pool and text encoder are those of a ResNet CLIP (arXiv 2103.00020) and start from
its weights; GeM, BNNecks, tokens and SII are added. Stage 1 trains the tokens, then SII
(csdn/training/prompts.py); stage 2 trains the upper half (csdn/training/embedding.py). The feature of an
image for search is [l2(BN(f)), l2(g)].

Shapes: n images of H x W pixels, c = 32 x width channels of the map, d = embed_dim (RN50: 2048 and 1024).

The parts are in backbone.py (stems, layers), pooling.py (GeM, attention pool), text.py (tokens, text encoder)
and sii.py. Below the network: its configuration, the checks of its arguments, and the tensors with a row for
each identity.
"""

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
from csdn.model.text import TOKEN_STD, PromptLearner, TextEncoder
from csdn.model.weights import misfits, refuse, shapes
from csdn.runtime.documents import expected_in
from csdn.runtime.errors import UserError

if TYPE_CHECKING:
    from csdn.model.clip import Clip

MODALITIES = ("visible", "infrared")
CLASSIFIER_STD = 0.001  # of the weights before training
TEXT_BLOCK = 1024  # identities whose texts are encoded at once, which bounds memory: RN50 0.2 GB


class CSDN(nn.Module):
    """The network. `CSDN.from_clip`, `csdn.model.load` and `csdn.model.load_published` make one with weights.

    A modality is "visible" or "infrared"; images are normalised floats [n, 3, H, W] of `config.image_size`.
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
        """A network with the weights of a CLIP (`load_clip`), in evaluation mode; both stems copy its stem.

        image_size: (height, width) in pixels, multiples of 16. Tokens, SII and classifiers, which CLIP does
        not have, are drawn from `seed`; torch's global random state does not change.
        """
        source, advice = f"the weights of CLIP {clip.facts.name!r}", "`csdn fetch-clip` downloads them again"
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
        """[n, 3, H, W] of each modality -> [sum of n, c, H/16, W/16], visible images first.

        Each modality has its own stem. The shared layers then see one batch: in training mode their batch
        norms compute statistics over both modalities together. Raises ValueError for no images, an unknown
        modality, and images of another size, shape or type.
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
        """The feature for search, [n, c + d] = [l2(BN(f)), l2(g)], of images of one modality; no gradient.

        images: normalised floats [n, 3, H, W]; modality: "visible" or "infrared". The similarity of two
        images is the dot product of their features, -2 to 2; csdn.evaluation adds flip test-time
        augmentation. Raises ValueError in training mode, where a feature would depend on its batch, and as
        `feature_map` does.
        """
        if self.training:
            raise ValueError("the network is in training mode; call model.eval() before embed")
        f, g = self.features({modality: images})
        return torch.cat([F.normalize(self.gem_neck.norm(f)), F.normalize(g)], dim=1)

    @torch.no_grad()
    def image_embeddings(self, images: Tensor, modality: str) -> Tensor:
        """g [n, d], not normalised: the image embeddings of stage 1 (model in evaluation mode)."""
        return self.attention_pool(self.feature_map({modality: images}))

    # Text

    def text_features(self, modality: str, people: Tensor | None = None) -> Tensor:
        """Text features, floats [n, d], not normalised, of the identities `people` (integers [n]; None: all).

        modality: "visible" or "infrared". Raises ValueError for another modality, and (on the CPU, see
        `check_people`) for people that the network does not have.
        """
        check_modality(modality)
        if people is not None:
            check_people(people, self.config.identities)
        blocks = self.prompts(modality, people).split(TEXT_BLOCK)
        return torch.cat([self.text_encoder(block) for block in blocks])

    def fused_text_features(self) -> Tensor:
        """SII of the visible and infrared text of each identity, floats [identities, d], without dropout.

        Not normalised: HSE uses raw dot products.
        """
        return self.integration(*(self.text_features(modality) for modality in MODALITIES))

    # What stage 2 trains

    def channels_last(self) -> CSDN:
        """Change the memory layout of the convolutions' weights: same values, faster kernels."""
        for module in (self.stems, self.layers):
            module.to(memory_format=torch.channels_last)
        return self

    def image_parameters(self) -> Iterator[nn.Parameter]:
        """What stage 2 trains: stems, layers, attention pool, and the heads."""
        for module in (self.stems, self.layers, self.attention_pool):
            yield from module.parameters()
        yield from self.head_parameters()

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """GeM's power, BNNecks and classifiers, which have their own learning rate."""
        for module in (self.gem, self.gem_neck, self.pool_neck):
            yield from module.parameters()


class TrainingOutputs(NamedTuple):
    """What stage 2's losses are computed from; the visible images of the batch come first."""

    gem: Tensor  # [n, c], f
    pool: Tensor  # [n, d], g
    gem_logits: Tensor  # [n, identities]
    pool_logits: Tensor  # [n, identities]


class BNNeck(nn.Module):
    """Features [n, k] -> batch norm -> bias-free classifier -> logits [n, identities] (arXiv 1903.07071)."""

    def __init__(self, channels: int, identities: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(channels)
        self.classifier = nn.Linear(channels, identities, bias=False)
        nn.init.normal_(self.classifier.weight, std=CLASSIFIER_STD)

    def forward(self, features: Tensor) -> Tensor:
        return self.classifier(self.norm(features))


# The configuration: with the weights, all that is needed to rebuild a network (config.json beside them).


STEMS = ("clip", "published")
INTEGRATIONS = ("sii", "sum", "concat", "visible", "infrared", "shared")
ALLOWED = {"stem": STEMS, "integration": INTEGRATIONS, "text_activation": ("quick_gelu", "gelu")}
# Upper bounds far beyond any real network: a larger size comes from a damaged file.
LIMITS = {
    "identities": 10**9,
    "width": 2**12,
    "pool_heads": 2**12,
    "embed_dim": 2**15,
    "text_width": 2**15,
    "text_heads": 2**12,
    "text_layers": 100,
}

# Pixels per cell of the feature map: the stem divides by 4, layer2 and layer3 by 2, layer4 by 1.
CELL = 16


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and variants of a CSDN; raises UserError for values of which no network can be made."""

    identities: int
    image_size: tuple[int, int]  # height, width in pixels
    depths: tuple[int, ...]  # residual blocks of layer1..layer4
    width: int  # channels after the stem; the feature map has 32 times as many
    pool_heads: int  # heads of the attention pool
    embed_dim: int  # d, of image embeddings and text features
    text_width: int
    text_heads: int
    text_layers: int
    text_activation: str = "quick_gelu"  # quick_gelu | gelu
    stem: str = "clip"  # clip: ReLU after each BN of the stem | published: after the third only
    integration: str = "sii"  # sii | the variants of the ablation (sii.py)
    clip: str = ""  # name and SHA-256 of the CLIP whose weights it started from
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
        """The inverse of `to_json`; raises UserError for unknown and missing keys."""
        if not isinstance(values, Mapping):
            raise UserError(f"model configuration: {str(values)[:50]!r} is not a mapping of sizes")
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise UserError(f"model configuration: unknown keys {', '.join(unknown)}")
        try:
            lists = {name: tuple(values[name]) for name in ("image_size", "depths")}
            return cls(**{**values, **lists})
        except (KeyError, TypeError) as error:
            raise UserError(f"model configuration is incomplete: {error}") from None


# Checks of arguments: PyTorch would raise an obscure error, or compute something else.


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
    if batch.dtype == dtype:
        return True
    # Autocast converts floats itself.
    return batch.is_floating_point() and torch.is_autocast_enabled(batch.device.type)


def check_people(people: Tensor, identities: int) -> None:
    """Raise ValueError unless people are identities of the network, 0 to identities - 1.

    Values are checked on the CPU only: reading them from a GPU would make each step wait for it.
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


# Tensors with a row for each identity: tokens and classifiers. No other tensor depends on the identities.


def row_std(name: str) -> float | None:
    """Standard deviation of a new identity's row in the tensor `name`; None for tensors without such rows."""
    if name.startswith("prompts.tokens."):
        return TOKEN_STD
    return CLASSIFIER_STD if name.endswith("_neck.classifier.weight") else None


def with_identities(model: CSDN, rows: Sequence[int]) -> CSDN:
    """A copy of `model` (on the CPU, in evaluation mode) with the identities of these rows only."""
    kept = torch.tensor(rows, dtype=torch.int64)
    state = {
        name: tensor if row_std(name) is None else tensor[kept] for name, tensor in model.state_dict().items()
    }
    with torch.random.fork_rng(devices=[]):
        copy = CSDN(replace(model.config, identities=len(rows)))
    copy.load_state_dict(state)
    return copy.eval()
