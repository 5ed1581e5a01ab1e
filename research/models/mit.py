"""Mix transformers (MiT), the hierarchical encoders of SegFormer (Xie et al., 2021, §3.1).

timm has no plain MiT; its ``pvt_v2`` differs in the attention's reduction and in the norms. The
parameter names are those of the authors' ``mit_b0.pth`` … ``mit_b5.pth``.
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
"""The only tensor whose shape depends on the number of input channels."""

PREFIX: Final = re.compile(r"^(?:backbone\.|segformer\.)?(?:encoder\.)?")
STAGE_MODULES: Final = {"patch_embeddings": "patch_embed", "block": "block", "layer_norm": "norm"}
"""Modules of a stage in transformers (``block.0``) to those of the authors (``block1``)."""
LAYERS: Final = {
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
"""Layers within a stage in transformers to those of the authors, replaced in this order."""
KEY, VALUE, KEY_VALUE = "attention.self.key", "attention.self.value", "attn.kv"


@dataclass(frozen=True)
class Variant:
    """Channels and number of blocks of each stage."""

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
    """Images [B, C, H, W] to four normalised feature maps at strides 4, 8, 16 and 32.

    H and W are at least 32; the sizes of the maps are rounded up.

    Args:
        in_channels: C.
        dims: channels of each stage.
        depths: number of blocks of each stage.
        heads: attention heads of each stage, divisors of its channels.
        reductions: side of the squares of cells that share a key and a value, for each stage.
        mlp_ratio: hidden channels of a block's MLP, as a multiple of the stage's channels.
        drop_path_rate: stochastic depth of the last block, 0 <= x < 1; increases linearly from 0
            at the first.
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
        self.apply(init_weights)

    def stage(self, index: int, features: Tensor) -> Tensor:
        """Forward of one stage, so that a caller can process features between stages.

        Args:
            index: 0…3.
            features: [B, C, H, W], the output of the previous stage, or images.
        """
        modules = {
            name: self.get_submodule(f"{name}{index + 1}") for name in STAGE_MODULES.values()
        }
        tokens, size = modules["patch_embed"](features)
        for block in modules["block"].children():
            tokens = block(tokens, size)
        return as_map(modules["norm"](tokens), size)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = [images]
        for index in range(STAGES):
            maps.append(self.stage(index, maps[-1]))
        return maps[1:]


class PatchEmbed(nn.Module):
    """Overlapping patches: [B, C, H, W] to tokens [B, H/s · W/s, D] and (H/s, W/s)."""

    def __init__(self, inputs: int, dim: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(inputs, dim, kernel, stride, kernel // 2)
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: Tensor) -> tuple[Tensor, torch.Size]:
        features = self.proj(images)
        return self.norm(as_tokens(features)), features.shape[-2:]


class Block(nn.Module):
    """Pre-norm transformer block: attention and MLP, each with a residual."""

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
    """Self-attention with one key and value per square of ``reduction``² cells of the map."""

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
        reduced = tokens
        if self.reduction > 1:
            reduced = self.norm(as_tokens(self.sr(as_map(tokens, size))))
        query = split_heads(self.q(tokens), self.heads)
        key, value = (split_heads(part, self.heads) for part in self.kv(reduced).chunk(2, -1))
        return self.proj(join_heads(F.scaled_dot_product_attention(query, key, value)))


class MixMLP(nn.Module):
    """Linear, depthwise 3×3 convolution (which encodes positions), GELU, linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = _Depthwise(hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor, size: torch.Size) -> Tensor:
        return self.fc2(F.gelu(self.dwconv(self.fc1(tokens), size)))


class _Depthwise(nn.Module):
    """Wraps the convolution because its name in the authors' files is ``dwconv.dwconv``."""

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


def join_heads(heads: Tensor) -> Tensor:
    """[B, heads, N, d] to [B, N, heads · d]."""
    return heads.transpose(1, 2).flatten(2)


def init_weights(module: nn.Module) -> None:
    """The authors' initialisation, for ``Module.apply``.

    Linear weights are drawn from N(0, 0.02²), those of convolutions from N(0, 2 / fan out);
    biases are 0. Norms keep torch's defaults.
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


def convert_state_dict(state: Mapping[str, Tensor], channels: int | None) -> dict[str, Tensor]:
    """Convert weights of an RGB encoder to the authors' names and to other input channels.

    Args:
        state: with the authors' names, or those of transformers' Segformer models, in which keys
            and values are separate layers. Prefixes are removed.
        channels: input channels of a stream that is not RGB; ``None`` for RGB. The kernels of the
            first convolution become the mean over RGB times 3/channels, so that its output for
            grey images does not change.

    Returns:
        The state dict; entries without a counterpart (heads) are unchanged.
    """
    converted = {_authors_name(key): value for key, value in state.items()}
    for key in [key for key in converted if KEY in key and key.replace(KEY, VALUE) in converted]:
        key_value = [converted.pop(key), converted.pop(key.replace(KEY, VALUE))]
        converted[key.replace(KEY, KEY_VALUE)] = torch.cat(key_value)
    stem = converted.get(STEM)
    if channels is not None and stem is not None and stem.ndim == 4:
        grey = stem.mean(1, keepdim=True) * (stem.shape[1] / channels)
        converted[STEM] = grey.repeat(1, channels, 1, 1)
    return converted


def _authors_name(key: str) -> str:
    """``segformer.encoder.block.0.1.layer_norm_1.bias`` to ``block1.1.norm1.bias``."""
    key = PREFIX.sub("", key)
    module, _, rest = key.partition(".")
    stage, _, rest = rest.partition(".")
    if module not in STAGE_MODULES or not stage.isdecimal():
        return key
    for transformers_name, authors_name in LAYERS.items():
        rest = rest.replace(transformers_name, authors_name)
    return f"{STAGE_MODULES[module]}{int(stage) + 1}.{rest}"
