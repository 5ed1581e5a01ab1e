"""Two streams of features that correct each other and become one (CMX, Zhang et al., 2023).

Shapes, names and order of the operations are those of the paper's equations 1-8 and of its
authors' code. Every part takes two maps [B, C, H, W] of one size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from research.models.mit import as_map, as_tokens, initialise, join_heads, split_heads
from research.utils.errors import UserError

TWO_STREAMS: Final = ("cross_attention", "sum", "concat")
ONE_STREAM: Final = ("rgb_only", "x_only")
LAMBDA: Final = 0.5
"""Weights of the channels' and of the places' share in what a stream takes of the other."""
GROUP: Final = 16
"""Channels that a group norm joins; it divides every MiT's widths."""

Norm = Callable[[int], nn.Module]
NORMS: Final[dict[str, Norm]] = {
    "batch": nn.BatchNorm2d,
    "frozen": FrozenBatchNorm2d,
    "group": lambda channels: nn.GroupNorm(channels // GROUP, channels),
}


def norm_layer(name: str) -> Norm:
    """The norms of the fusion's maps.

    ``frozen`` is a batch norm of fixed numbers: nothing is normalised until a checkpoint brings
    statistics. Its names are those of ``batch``.

    Raises:
        UserError: for an unknown name.
    """
    if name not in NORMS:
        raise UserError("model.norm", f"model.norm={name}: expected one of {', '.join(NORMS)}")
    return NORMS[name]


class FeatureRectifyModule(nn.Module):
    """FRM: each stream plus what of the other its channels and its places ask for."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.channel_weights = ChannelWeights(dim)
        self.spatial_weights = SpatialWeights(dim)
        self.apply(initialise)

    def forward(self, rgb: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        channels_rgb, channels_x = self.channel_weights(rgb, x)
        places_rgb, places_x = self.spatial_weights(rgb, x)
        return (
            rgb + LAMBDA * channels_x * x + LAMBDA * places_x * x,
            x + LAMBDA * channels_rgb * rgb + LAMBDA * places_rgb * rgb,
        )


class ChannelWeights(nn.Module):
    """A weight in 0…1 for each channel of each stream, 2 × [B, C, 1, 1]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(4 * dim, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, 2 * dim), nn.Sigmoid()
        )

    def forward(self, rgb: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.cat([rgb, x], 1)
        # Not the pooling layers: the maximum's gradient would have no reproducible kernel.
        pooled = torch.cat([both.mean((2, 3)), both.amax((2, 3))], 1)
        of_rgb, of_x = self.mlp(pooled)[..., None, None].chunk(2, 1)
        return of_rgb, of_x


class SpatialWeights(nn.Module):
    """A weight in 0…1 for each place of each stream, 2 × [B, 1, H, W]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Conv2d(2 * dim, dim, 1), nn.ReLU(), nn.Conv2d(dim, 2, 1), nn.Sigmoid()
        )

    def forward(self, rgb: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        of_rgb, of_x = self.mlp(torch.cat([rgb, x], 1)).chunk(2, 1)
        return of_rgb, of_x


class FeatureFusionModule(nn.Module):
    """FFM: tokens of both streams look at each other, then one map [B, C, H, W] is made of both.

    Args:
        dim: C.
        heads: of the cross attention; they divide C.
        norm: of the fused map.
    """

    def __init__(self, dim: int, heads: int, norm: Norm) -> None:
        super().__init__()
        self.cross = CrossPath(dim, heads)
        self.channel_emb = ChannelEmbed(2 * dim, dim, norm)
        self.apply(initialise)

    def forward(self, rgb: Tensor, x: Tensor) -> Tensor:
        both = torch.cat(self.cross(as_tokens(rgb), as_tokens(x)), 2)
        return self.channel_emb(as_map(both, rgb.shape[-2:]))


class CrossPath(nn.Module):
    """Tokens [B, N, C] of both streams, each with what it found in the other's."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.channel_proj1 = nn.Linear(dim, 2 * dim)
        self.channel_proj2 = nn.Linear(dim, 2 * dim)
        self.cross_attn = CrossAttention(dim, heads)
        self.end_proj1 = nn.Linear(2 * dim, dim)
        self.end_proj2 = nn.Linear(2 * dim, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, rgb: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        kept_rgb, asked_rgb = self.channel_proj1(rgb).relu().chunk(2, -1)
        kept_x, asked_x = self.channel_proj2(x).relu().chunk(2, -1)
        found_rgb, found_x = self.cross_attn(asked_rgb, asked_x)
        rgb = self.norm1(rgb + self.end_proj1(torch.cat([kept_rgb, found_rgb], -1)))
        return rgb, self.norm2(x + self.end_proj2(torch.cat([kept_x, found_x], -1)))


class CrossAttention(nn.Module):
    """Attention through a d × d summary of the other stream, its cost linear in the tokens.

    Shen et al., 2021 ("Efficient attention"): softmax(kᵀv / √d) over the key's channels stands in
    for the N × N table, so torch's attention kernels have no part in it. The streams' features are
    the queries themselves.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.kv1 = nn.Linear(dim, 2 * dim, bias=False)
        self.kv2 = nn.Linear(dim, 2 * dim, bias=False)

    def forward(self, rgb: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        of_rgb, of_x = self._summary(self.kv1(rgb)), self._summary(self.kv2(x))
        found_rgb = split_heads(rgb, self.heads) @ of_x.to(rgb.dtype)
        found_x = split_heads(x, self.heads) @ of_rgb.to(x.dtype)
        return join_heads(found_rgb), join_heads(found_x)

    def _summary(self, keys_values: Tensor) -> Tensor:
        """[B, heads, d, d], at least float32."""
        # The sum over all tokens outgrows half precision.
        with torch.autocast(keys_values.device.type, enabled=False):
            keys_values = keys_values.to(torch.promote_types(keys_values.dtype, torch.float32))
            key, value = (split_heads(part, self.heads) for part in keys_values.chunk(2, -1))
            return (key.mT @ value * self.scale).softmax(-2)


class ChannelEmbed(nn.Module):
    """Both streams' maps [B, inputs, H, W] as one [B, outputs, H, W], with a look around."""

    def __init__(self, inputs: int, outputs: int, norm: Norm) -> None:
        super().__init__()
        self.residual = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.channel_embed = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1),
            nn.Conv2d(outputs, outputs, 3, padding=1, groups=outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 1),
            norm(outputs),
        )
        self.norm = norm(outputs)

    def forward(self, both: Tensor) -> Tensor:
        return self.norm(self.residual(both) + self.channel_embed(both))


class Unrectified(nn.Module):
    """Streams that do not hear of each other."""

    def forward(self, rgb: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return rgb, x


class Sum(nn.Module):
    def forward(self, rgb: Tensor, x: Tensor) -> Tensor:
        return rgb + x


class Concat(nn.Module):
    """Both maps side by side through a 1×1 convolution."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(2 * dim, dim, 1)
        self.apply(initialise)

    def forward(self, rgb: Tensor, x: Tensor) -> Tensor:
        return self.proj(torch.cat([rgb, x], 1))


def stage_fusion(fusion: str, dim: int, heads: int, norm: Norm) -> tuple[nn.Module, nn.Module]:
    """What rectifies the two streams of a stage, and what makes one map of them.

    Args:
        fusion: one of ``TWO_STREAMS``.
        dim: channels of each stream.
        heads: of the cross attention.
        norm: of the cross attention's fused map.
    """
    if fusion == "cross_attention":
        return FeatureRectifyModule(dim), FeatureFusionModule(dim, heads, norm)
    return Unrectified(), Sum() if fusion == "sum" else Concat(dim)
