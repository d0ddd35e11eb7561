"""The text side: learnable prompts "A photo of a X X X X person." and CLIP's frozen text encoder for them.

The four X are learnable tokens of each identity and modality (prompt learning as in CoOp, arXiv 2109.01134,
and CLIP-ReID, arXiv 2211.13977). The encoder gives the values of CLIP's, with less work: attention is causal,
so nothing after end-of-text (position 11 of 77) reaches the output, and the tokens before the X are the same
for all identities, so their keys and values are computed once. 7 of 77 tokens remain, and the last layer
computes end-of-text only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TEMPLATE = "A photo of a X X X X person."
# Token positions in the template: start-of-text and "a photo of a"; the X; "person . end-of-text".
PREFIX = slice(0, 5)
CONTEXT = slice(5, 9)
SUFFIX = slice(9, 12)
LENGTH = 12
TOKEN_STD = 0.02  # of the tokens before training


class PromptLearner(nn.Module):
    """Learnable tokens [identities, 4, text_width] for each modality, or one set for both if `shared`."""

    def __init__(self, identities: int, text_width: int, modalities: Sequence[str], shared: bool) -> None:
        super().__init__()
        self.set_of = {modality: "shared" if shared else modality for modality in modalities}
        shape = (identities, CONTEXT.stop - CONTEXT.start, text_width)
        self.tokens = nn.ParameterDict(
            {
                name: nn.Parameter(TOKEN_STD * torch.randn(shape))
                for name in dict.fromkeys(self.set_of.values())
            }
        )

    def forward(self, modality: str, people: Tensor | None = None) -> Tensor:
        """Tokens [n, 4, text_width] of the identities `people` [n] (None: all)."""
        tokens = self.tokens[self.set_of[modality]]
        return tokens if people is None else tokens[people]


def quick_gelu(x: Tensor) -> Tensor:
    """OpenAI's approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "quick_gelu": quick_gelu}


class TextLayer(nn.Module):
    """A pre-norm transformer layer with causal attention, also to earlier tokens given by key and value."""

    def __init__(self, width: int, heads: int, activation: str) -> None:
        super().__init__()
        self.heads = heads
        self.activation = ACTIVATIONS[activation]
        self.ln_1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.ln_2 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor, before: Tensor, outputs: int) -> tuple[Tensor, Tensor]:
        """tokens: [n, t, width]; before: [2, heads, p, width/heads], keys and values of p earlier tokens.

        Returns the last `outputs` of the t tokens, [n, outputs, width], and keys and values of all t tokens,
        [2, n, heads, t, width/heads].
        """
        normed = self.ln_1(tokens)
        key_value = self._project(normed, slice(1, 3))
        query = self._project(normed[:, -outputs:], slice(0, 1))[0]
        key, value = torch.cat([before[:, None].expand(-1, len(tokens), -1, -1, -1), key_value], dim=3)
        length = key.shape[2]
        causal = query.new_ones(outputs, length, dtype=torch.bool).tril(length - outputs)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=causal)
        tokens = tokens[:, -outputs:] + self.out(mixed.transpose(1, 2).flatten(2))
        return tokens + self.contract(self.activation(self.expand(self.ln_2(tokens)))), key_value

    def _project(self, normed: Tensor, parts: slice) -> Tensor:
        """The `parts` of (query, key, value): [parts, n, heads, t, width/heads]."""
        weight = self.qkv.weight.unflatten(0, (3, -1))[parts].flatten(0, 1)
        bias = self.qkv.bias.unflatten(0, (3, -1))[parts].flatten()
        projected = F.linear(normed, weight, bias).unflatten(2, (parts.stop - parts.start, self.heads, -1))
        return projected.permute(2, 0, 3, 1, 4)


class TextEncoder(nn.Module):
    """Four tokens of each identity, [n, 4, width] -> the text feature at end-of-text, [n, d], not normalised.

    All weights are frozen; gradients flow to the tokens only.
    """

    def __init__(self, width: int, heads: int, layers: int, embed_dim: int, activation: str) -> None:
        super().__init__()
        self.heads = heads
        self.prefix = nn.Parameter(0.02 * torch.randn(PREFIX.stop, width))
        self.suffix = nn.Parameter(0.02 * torch.randn(SUFFIX.stop - SUFFIX.start, width))
        self.positions = nn.Parameter(0.01 * torch.randn(LENGTH, width))
        self.layers = nn.ModuleList(TextLayer(width, heads, activation) for _ in range(layers))
        self.ln_final = nn.LayerNorm(width)
        self.projection = nn.Parameter(width**-0.5 * torch.randn(width, embed_dim))
        self.register_buffer("prefix_cache", torch.empty(0), persistent=False)
        self.requires_grad_(False)
        self.cache_prefix()
        self.register_load_state_dict_post_hook(_cache_prefix)

    def forward(self, context: Tensor) -> Tensor:
        """context: [n, 4, width], the learnable tokens; returns [n, d]."""
        suffix = self.suffix.expand(len(context), -1, -1)
        tokens = torch.cat([context, suffix], dim=1) + self.positions[PREFIX.stop :]
        for layer, before in zip(self.layers, self.prefix_cache, strict=True):
            outputs = 1 if layer is self.layers[-1] else tokens.shape[1]
            tokens, _ = layer(tokens, before, outputs)
        return self.ln_final(tokens[:, -1]) @ self.projection

    @torch.no_grad()
    def cache_prefix(self) -> None:
        """Compute keys and values of the constant prefix in every layer, [layers, 2, heads, 5, width/heads].

        Call it after the weights have changed; loading a state dict does.
        """
        tokens = (self.prefix + self.positions[PREFIX])[None]
        nothing = tokens.new_empty(2, self.heads, 0, tokens.shape[2] // self.heads)
        cache = []
        for layer in self.layers:
            tokens, key_value = layer(tokens, nothing, tokens.shape[1])
            cache.append(key_value[:, 0])
        self.prefix_cache = torch.stack(cache)


def _cache_prefix(encoder: TextEncoder, _incompatible: object) -> None:
    encoder.cache_prefix()
