"""Fusion of two feature streams (CMX, Zhang et al., 2023).

Shapes, names and the order of operations follow equations 1-8 of the paper and its authors' code.
Every module takes two feature maps [B, C, H, W] of the same shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from research.models.mit import as_map, as_tokens, init_weights, join_heads, split_heads
from research.utils.errors import UserError

TWO_STREAMS: Final = ("cross_attention", "sum", "concat")
ONE_STREAM: Final = ("rgb_only", "x_only")
LAMBDA: Final = 0.5
"""Weights of the channel-wise and of the spatial rectification."""
GROUP: Final = 16
"""Channels per group of a group norm; a divisor of the widths of every MiT."""

Norm = Callable[[int], nn.Module]
NORMS: Final[dict[str, Norm]] = {
    "batch": nn.BatchNorm2d,
    "frozen": FrozenBatchNorm2d,
    "group": lambda channels: nn.GroupNorm(channels // GROUP, channels),
}


def norm_layer(name: str) -> Norm:
    """The normalisation of fused feature maps.

    ``frozen`` is a batch norm with constant statistics, the identity until they are loaded from a
    checkpoint. Its parameters have the names of ``batch``.

    Raises:
        UserError: for an unknown name.
    """
    if name not in NORMS:
        raise UserError("model.norm", f"model.norm={name}: expected one of {', '.join(NORMS)}")
    return NORMS[name]


class FeatureRectifyModule(nn.Module):
    """FRM: add the other stream to each stream, weighted per channel and per position."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.channel_weights = ChannelWeights(dim)
        self.spatial_weights = SpatialWeights(dim)
        self.apply(init_weights)

    def forward(self, rgb: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        channels_rgb, channels_x = self.channel_weights(rgb, x)
        spatial_rgb, spatial_x = self.spatial_weights(rgb, x)
        return (
            rgb + LAMBDA * channels_x * x + LAMBDA * spatial_x * x,
            x + LAMBDA * channels_rgb * rgb + LAMBDA * spatial_rgb * rgb,
        )


class ChannelWeights(nn.Module):
    """A weight in 0…1 per channel of each stream, 2 × [B, C, 1, 1]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(4 * dim, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, 2 * dim), nn.Sigmoid()
        )

    def forward(self, rgb: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.cat([rgb, x], 1)
        # Not adaptive max-pooling, whose backward kernel is not deterministic on GPUs.
        pooled = torch.cat([both.mean((2, 3)), both.amax((2, 3))], 1)
        weights_rgb, weights_x = self.mlp(pooled)[..., None, None].chunk(2, 1)
        return weights_rgb, weights_x


class SpatialWeights(nn.Module):
    """A weight in 0…1 per position of each stream, 2 × [B, 1, H, W]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Conv2d(2 * dim, dim, 1), nn.ReLU(), nn.Conv2d(dim, 2, 1), nn.Sigmoid()
        )

    def forward(self, rgb: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        weights_rgb, weights_x = self.mlp(torch.cat([rgb, x], 1)).chunk(2, 1)
        return weights_rgb, weights_x


class FeatureFusionModule(nn.Module):
    """FFM: cross attention between the streams, then projection of both to one [B, C, H, W].

    Args:
        dim: C.
        heads: heads of the cross attention, a divisor of C.
        norm: normalisation of the fused map.
    """

    def __init__(self, dim: int, heads: int, norm: Norm) -> None:
        super().__init__()
        self.cross = CrossPath(dim, heads)
        self.channel_emb = ChannelEmbed(2 * dim, dim, norm)
        self.apply(init_weights)

    def forward(self, rgb: Tensor, x: Tensor) -> Tensor:
        both = torch.cat(self.cross(as_tokens(rgb), as_tokens(x)), 2)
        return self.channel_emb(as_map(both, rgb.shape[-2:]))


class CrossPath(nn.Module):
    """Cross attention between the tokens [B, N, C] of both streams, with residuals."""

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
        skip_rgb, query_rgb = self.channel_proj1(rgb).relu().chunk(2, -1)
        skip_x, query_x = self.channel_proj2(x).relu().chunk(2, -1)
        attended_rgb, attended_x = self.cross_attn(query_rgb, query_x)
        rgb = self.norm1(rgb + self.end_proj1(torch.cat([skip_rgb, attended_rgb], -1)))
        return rgb, self.norm2(x + self.end_proj2(torch.cat([skip_x, attended_x], -1)))


class CrossAttention(nn.Module):
    """Attention through a d × d context of the other stream, linear in the number of tokens.

    Shen et al., 2021 ("Efficient attention"): softmax(kᵀv / √d) over the key's channels replaces
    the N × N attention matrix, so torch's attention kernels cannot be used. The streams' features
    are the queries, without a projection.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.kv1 = nn.Linear(dim, 2 * dim, bias=False)
        self.kv2 = nn.Linear(dim, 2 * dim, bias=False)

    def forward(self, rgb: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        context_rgb, context_x = self._context(self.kv1(rgb)), self._context(self.kv2(x))
        attended_rgb = split_heads(rgb, self.heads) @ context_x.to(rgb.dtype)
        attended_x = split_heads(x, self.heads) @ context_rgb.to(x.dtype)
        return join_heads(attended_rgb), join_heads(attended_x)

    def _context(self, keys_values: Tensor) -> Tensor:
        """softmax(kᵀv / √d), [B, heads, d, d], at least float32."""
        # The sum over all tokens overflows in half precision.
        with torch.autocast(keys_values.device.type, enabled=False):
            keys_values = keys_values.to(torch.promote_types(keys_values.dtype, torch.float32))
            key, value = (split_heads(part, self.heads) for part in keys_values.chunk(2, -1))
            return (key.mT @ value * self.scale).softmax(-2)


class ChannelEmbed(nn.Module):
    """Project both streams' maps [B, inputs, H, W] to [B, outputs, H, W], with a 3×3 branch."""

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


class NoRectification(nn.Module):
    """Return both streams unchanged."""

    def forward(self, rgb: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return rgb, x


class Sum(nn.Module):
    def forward(self, rgb: Tensor, x: Tensor) -> Tensor:
        return rgb + x


class Concat(nn.Module):
    """Concatenate both maps and apply a 1×1 convolution."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(2 * dim, dim, 1)
        self.apply(init_weights)

    def forward(self, rgb: Tensor, x: Tensor) -> Tensor:
        return self.proj(torch.cat([rgb, x], 1))


def stage_fusion(fusion: str, dim: int, heads: int, norm: Norm) -> tuple[nn.Module, nn.Module]:
    """The rectification and the fusion module of a stage.

    Args:
        fusion: one of ``TWO_STREAMS``.
        dim: channels of each stream.
        heads: heads of the cross attention.
        norm: normalisation of the fused map in cross attention.
    """
    if fusion == "cross_attention":
        return FeatureRectifyModule(dim), FeatureFusionModule(dim, heads, norm)
    return NoRectification(), Sum() if fusion == "sum" else Concat(dim)
