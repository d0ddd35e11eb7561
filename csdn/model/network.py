"""CSDN, the network: two stems, shared layers, two branches, and the text of each person.

    visible  -> stem \\                     / GeM            -> f -> BNNeck -> classifier    (branch A)
                      layer1..4 -> map ---<
    infrared -> stem /                     \\ attention pool -> g -> BNNeck -> classifier    (branch B)

    visible tokens  -> text encoder -> t_v \\
                       (frozen)             SII -> the person's fused text
    infrared tokens -> text encoder -> t_i /

Stage 1 trains the tokens, then SII; stage 2 trains everything in the upper half. Shapes in what follows:
n images of H x W pixels, c = 32 x width map channels, d = embed_dim (RN50: 2048 and 1024).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csdn.documents import expected_in
from csdn.model.checks import check_images, check_modality, check_people
from csdn.model.config import MODALITIES, ModelConfig
from csdn.model.fit import misfits, refuse, shapes
from csdn.model.integration import build_integration
from csdn.model.pooling import AttentionPool, GeM
from csdn.model.prompts import PromptLearner
from csdn.model.resnet import Stem, residual_layers
from csdn.model.text_encoder import TextEncoder

if TYPE_CHECKING:
    from csdn.model.clip import Clip


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
        integration: str = "attention",
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
