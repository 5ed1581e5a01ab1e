"""Mix transformers (MiT), the hierarchical encoders of SegFormer (Xie et al., 2021, §3.1).

Written here because timm has no plain MiT (its ``pvt_v2`` differs in the attention's reduction and
in the norms). Names of parameters are those of the authors' ``mit_b0.pth`` … ``mit_b5.pth``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

STAGES: Final = 4
STEM: Final = "patch_embed1.proj.weight"
"""The one tensor whose shape knows the number of input channels."""

PREFIX: Final = re.compile(r"^(?:backbone\.|segformer\.)?(?:encoder\.)?")
COUNTED: Final = {"patch_embeddings": "patch_embed", "block": "block", "layer_norm": "norm"}
"""Parts of a stage, which transformers counts from 0 and after a dot, the authors from 1."""
INSIDE: Final = {
    "attention.self.query": "attn.q",
    "attention.self.sr": "attn.sr",
    "attention.self.layer_norm": "attn.norm",
    "attention.output.dense": "attn.proj",
    "layer_norm_1": "norm1",
    "layer_norm_2": "norm2",
    "layer_norm": "norm",
    "mlp.dense1": "mlp.fc1",
    "mlp.dense2": "mlp.fc2",
}
"""What transformers and the authors call the same layer of a stage, tried in this order."""
KEY, VALUE, BOTH = "attention.self.key", "attention.self.value", "attn.kv"


@dataclass(frozen=True)
class Variant:
    """What tells b0 … b5 apart: channels and blocks of each stage."""

    dims: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]


WIDE: Final = (64, 128, 320, 512)
VARIANTS: Final = {
    "b0": Variant((32, 64, 160, 256), (2, 2, 2, 2)),
    "b1": Variant(WIDE, (2, 2, 2, 2)),
    "b2": Variant(WIDE, (3, 4, 6, 3)),
    "b3": Variant(WIDE, (3, 4, 18, 3)),
    "b4": Variant(WIDE, (3, 8, 27, 3)),
    "b5": Variant(WIDE, (3, 6, 40, 3)),
}
HEADS: Final = (1, 2, 5, 8)
REDUCTIONS: Final = (8, 4, 2, 1)
MLP_RATIO: Final = 4


class MixTransformer(nn.Module):
    """Images [B, C, H, W] to four maps at strides 4, 8, 16 and 32, each normalised.

    Sides may have any length of at least 32; maps round up, as 3×3 convolutions of stride 2 do.

    Args:
        in_channels: C.
        dims: channels of each stage.
        depths: blocks of each stage.
        heads: of each stage's attention; they divide its channels.
        reductions: keys and values of a stage come from squares of so many cells.
        mlp_ratio: channels inside a block's MLP, as a multiple of the stage's.
        drop_path_rate: stochastic depth of the last block, 0 <= x < 1; it grows linearly from 0.
    """

    def __init__(
        self,
        in_channels: int,
        dims: Sequence[int],
        depths: Sequence[int],
        heads: Sequence[int] = HEADS,
        reductions: Sequence[int] = REDUCTIONS,
        mlp_ratio: int = MLP_RATIO,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.dims = tuple(dims)
        last = max(sum(depths) - 1, 1)
        rates = iter([drop_path_rate * i / last for i in range(sum(depths))])
        for stage, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            inputs, kernel, stride = (dims[stage - 1], 3, 2) if stage else (in_channels, 7, 4)
            blocks = [
                Block(dim, heads[stage], reductions[stage], mlp_ratio, next(rates))
                for _ in range(depth)
            ]
            self.add_module(f"patch_embed{stage + 1}", PatchEmbed(inputs, dim, kernel, stride))
            self.add_module(f"block{stage + 1}", nn.ModuleList(blocks))
            self.add_module(f"norm{stage + 1}", nn.LayerNorm(dim, eps=1e-6))
        self.apply(initialise)

    def stage(self, index: int, features: Tensor) -> Tensor:
        """One stage alone, so that something may happen between two of them.

        Args:
            index: 0…3.
            features: [B, C, H, W], what the stage before gave, or images.
        """
        part = {name: self.get_submodule(f"{name}{index + 1}") for name in COUNTED.values()}
        tokens, size = part["patch_embed"](features)
        for block in part["block"].children():
            tokens = block(tokens, size)
        return as_map(part["norm"](tokens), size)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = [images]
        for index in range(STAGES):
            maps.append(self.stage(index, maps[-1]))
        return maps[1:]


class PatchEmbed(nn.Module):
    """Overlapping patches: [B, C, H, W] to tokens [B, H/s · W/s, D] and the size of their map."""

    def __init__(self, inputs: int, dim: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(inputs, dim, kernel, stride, kernel // 2)
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: Tensor) -> tuple[Tensor, torch.Size]:
        features = self.proj(images)
        return self.norm(as_tokens(features)), features.shape[-2:]


class Block(nn.Module):
    """Attention, then the MLP, each of normalised tokens and added to them."""

    def __init__(
        self, dim: int, heads: int, reduction: int, mlp_ratio: int, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads, reduction)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MixMLP(dim, dim * mlp_ratio)

    def forward(self, tokens: Tensor, size: torch.Size) -> Tensor:
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens), size))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens), size))


class Attention(nn.Module):
    """Self-attention whose keys and values are one for ``reduction``² cells of the map."""

    def __init__(self, dim: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.reduction = reduction
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        if reduction > 1:
            self.sr = nn.Conv2d(dim, dim, reduction, reduction)
            self.norm = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor, size: torch.Size) -> Tensor:
        seen = tokens
        if self.reduction > 1:
            seen = self.norm(as_tokens(self.sr(as_map(tokens, size))))
        query = split_heads(self.q(tokens), self.heads)
        key, value = (split_heads(part, self.heads) for part in self.kv(seen).chunk(2, -1))
        return self.proj(join_heads(F.scaled_dot_product_attention(query, key, value)))


class MixMLP(nn.Module):
    """Linear, depthwise 3×3 (which tells where a token is), GELU, linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = _Depthwise(hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor, size: torch.Size) -> Tensor:
        return self.fc2(F.gelu(self.dwconv(self.fc1(tokens), size)))


class _Depthwise(nn.Module):
    """The authors' module: without it the name in their files would not be ``dwconv.dwconv``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, tokens: Tensor, size: torch.Size) -> Tensor:
        return as_tokens(self.dwconv(as_map(tokens, size)))


def as_tokens(features: Tensor) -> Tensor:
    """[B, C, H, W] to [B, H · W, C]."""
    return features.flatten(2).mT


def as_map(tokens: Tensor, size: torch.Size) -> Tensor:
    """[B, H · W, C] to [B, C, H, W]."""
    return tokens.mT.unflatten(2, size)


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """[B, N, heads · d] to [B, heads, N, d]."""
    return tokens.unflatten(2, (heads, -1)).transpose(1, 2)


def join_heads(parts: Tensor) -> Tensor:
    """[B, heads, N, d] to [B, N, heads · d]."""
    return parts.transpose(1, 2).flatten(2)


def initialise(module: nn.Module) -> None:
    """The authors' start, for ``Module.apply``: linears N(0, 0.02²), convolutions N(0, 2/fan out).

    Biases are 0; norms keep torch's 1 and 0.
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def from_file(state: Mapping[str, Tensor], channels: int | None) -> dict[str, Tensor]:
    """Weights of an RGB encoder under the authors' names, for a stream of other channels.

    Args:
        state: with the authors' names, or those of transformers' Segformer models, whose keys and
            values are layers of their own; prefixes are removed.
        channels: of a stream that is not of colours. The first convolution's kernels for them
            are those of the three colours, averaged, times 3/channels: so a grey picture excites
            it as before. Null: colours, whose kernels stay.

    Returns:
        What has no name here (heads) as it was.
    """
    named = {_authors_name(key): value for key, value in state.items()}
    for key in [key for key in named if KEY in key and key.replace(KEY, VALUE) in named]:
        pair = [named.pop(key), named.pop(key.replace(KEY, VALUE))]
        named[key.replace(KEY, BOTH)] = torch.cat(pair)
    stem = named.get(STEM)
    if channels is not None and stem is not None and stem.ndim == 4:
        grey = stem.mean(1, keepdim=True) * (stem.shape[1] / channels)
        named[STEM] = grey.repeat(1, channels, 1, 1)
    return named


def _authors_name(key: str) -> str:
    """``segformer.encoder.block.0.1.layer_norm_1.bias`` is ``block1.1.norm1.bias``."""
    key = PREFIX.sub("", key)
    part, _, rest = key.partition(".")
    number, _, rest = rest.partition(".")
    if part not in COUNTED or not number.isdecimal():
        return key
    for theirs, authors in INSIDE.items():
        rest = rest.replace(theirs, authors)
    return f"{COUNTED[part]}{int(number) + 1}.{rest}"
