"""Stems for JPEG DCT coefficients, which replace or precede a backbone's RGB stem.

A stem takes ``Blocks``: ``y`` [B, k_luma, H/8, W/8] and ``cbcr`` [B, 2, k_chroma, H/16, W/16].
``reconstruction`` returns an RGB image for the backbone's own stem, ``late_concat`` projects each
plane for another place of the backbone, and the other variants return features [B, C, H/4, W/4] for
its first stage. A plane without selected frequencies has no branch: every parameter is used.

The variants are described in docs/compression.md; their projections are 3×3 convolutions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from research.compression.blocks import Blocks
from research.compression.decoder import Decoder
from research.compression.selection import Selection

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)
LUMA_WIDTH: Final = 64
CHROMA_WIDTH: Final = 32
LATE_CHROMA_WIDTH: Final = 64
REFINE_WIDTH: Final = 32


@dataclass(frozen=True)
class StemSpec:
    """Which stem a backbone gets.

    Args:
        variant: ``reconstruction``, ``block_stem``, ``luma_fusion``, ``luma_fusion_pruned`` or
            ``late_concat``.
        selection: the frequencies of the input.
        range_: range of the input, ``full`` or ``studio``.
        refinement: of ``reconstruction``, see there.
    """

    variant: str
    selection: Selection
    range_: str
    refinement: str | None = None

    @property
    def takes_image(self) -> bool:
        """Whether this stem returns an image, so that the backbone keeps its own RGB stem."""
        return self.variant == "reconstruction"

    @property
    def joins_late(self) -> bool:
        """Whether the planes enter the backbone at two places: ``build_late``, not ``build``."""
        return self.variant == "late_concat"

    @property
    def normalised(self) -> bool:
        """Whether the stem takes normalised coefficients; a decoder takes them unnormalised."""
        return not self.takes_image

    @property
    def trunk_scale(self) -> float:
        """Factor on the width and depth of the backbone's stages; 1 unless the trunk is pruned.

        For ``luma_fusion_pruned``, √(number of luma frequencies) / 8, which is window / 8.
        """
        if self.variant != "luma_fusion_pruned":
            return 1.0
        return max(1.0, len(self.selection.luma) ** 0.5) / 8

    def build(self, channels: int) -> nn.Module:
        """Build the stem, with ``channels`` output channels if it returns features."""
        if self.variant == "reconstruction":
            return Reconstruction(self.selection, self.range_, self.refinement)
        stride = 8 if self.variant == "block_stem" else 16
        return JoinedStem(*self._planes, channels, stride)

    def build_late(self, channels: int, late_channels: int) -> LateStem:
        """Build the stem of ``late_concat``.

        Args:
            channels: input of the stage that luma enters.
            late_channels: of the features that chroma joins.
        """
        return LateStem(*self._planes, channels, late_channels)

    @property
    def _planes(self) -> tuple[int, int]:
        """Input channels: luma, and both planes of chroma."""
        return len(self.selection.luma), 2 * len(self.selection.chroma)


class Reconstruction(nn.Module):
    """Decode the RGB image, refine it and normalise it for the backbone's own stem.

    The refinement (3×3 conv to 32, batch norm, SiLU, 3×3 conv back) is a residual initialised to
    zero: before training the network is the RGB network on the decoded image, so that pretrained
    weights can be used.

    Takes unnormalised coefficients; returns [B, 3, H, W], normalised with ImageNet's mean and std.

    Args:
        selection: the frequencies of the input.
        range_: range of the input, ``full`` or ``studio``.
        refinement: ``blocks``: convolutions over blocks of 8×8 pixels, whose 192 values are the
            channels; ``pixels``: over pixels, 64 times as many positions; ``None``: no refinement.
    """

    def __init__(self, selection: Selection, range_: str, refinement: str | None) -> None:
        super().__init__()
        self.decoder = Decoder(selection, range_)
        self.side = 8 if refinement == "blocks" else 1
        self.refine = None
        if refinement is not None:
            channels = 3 * self.side**2
            self.refine = nn.Sequential(
                _conv_norm_act(channels, REFINE_WIDTH),
                nn.Conv2d(REFINE_WIDTH, channels, 3, padding=1, bias=False),
            )
            nn.init.zeros_(self.refine[1].weight)  # type: ignore[arg-type]
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)

    mean: Tensor
    std: Tensor

    def forward(self, blocks: Blocks) -> Tensor:
        image = self.decoder(blocks.y, blocks.cbcr) / 255
        if self.refine is not None:
            residual = self.refine(F.pixel_unshuffle(image, self.side))
            image = image + F.pixel_shuffle(residual, self.side)
        return (image - self.mean) / self.std


class JoinedStem(nn.Module):
    """Project luma and chroma separately, join them on one grid, upsample to stride 4.

    Luma: 3×3 conv to 64, with stride 2 if ``stride`` is 16. Chroma: 3×3 conv of both planes to 32,
    upsampled ×2 (nearest) if ``stride`` is 8. The branches are concatenated, joined by a 1×1 conv
    and upsampled bilinearly. Every conv is followed by batch norm and SiLU.

    Args:
        luma: number of luma frequencies.
        chroma: number of chroma frequencies of both planes together.
        channels: output channels.
        stride: stride of the grid on which the branches are joined: 8, the luma grid
            (``block_stem``), or 16, the chroma grid (``luma_fusion``).
    """

    def __init__(self, luma: int, chroma: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.branches = nn.ModuleDict()
        width = 0
        if luma:
            self.branches["luma"] = _conv_norm_act(luma, LUMA_WIDTH, stride=stride // 8)
            width += LUMA_WIDTH
        if chroma:
            self.branches["chroma"] = _conv_norm_act(chroma, CHROMA_WIDTH)
            width += CHROMA_WIDTH
        self.join = _conv_norm_act(width, channels, kernel=1)

    def forward(self, blocks: Blocks) -> Tensor:
        features = []
        if "luma" in self.branches:
            features.append(self.branches["luma"](blocks.y))
        if "chroma" in self.branches:
            chroma = self.branches["chroma"](blocks.cbcr.flatten(1, 2))
            features.append(F.interpolate(chroma, scale_factor=16 // self.stride, mode="nearest"))
        joined = self.join(torch.cat(features, dim=1))
        return F.interpolate(joined, scale_factor=self.stride // 4, mode="bilinear")


class LateStem(nn.Module):
    """The projections of ``late_concat``, and the join of chroma with the features of luma.

    Luma: 3×3 conv to ``channels``. Chroma: 3×3 conv of both planes to 64, concatenated to the
    features of luma and joined by a 1×1 conv. Every conv is followed by batch norm and SiLU.

    Args:
        luma: number of luma frequencies.
        chroma: number of chroma frequencies of both planes together.
        channels: of projected luma.
        late_channels: of the features of luma at stride 16, and of the result.
    """

    def __init__(self, luma: int, chroma: int, channels: int, late_channels: int) -> None:
        super().__init__()
        self.luma = _conv_norm_act(luma, channels) if luma else None
        self.chroma = _conv_norm_act(chroma, LATE_CHROMA_WIDTH) if chroma else None
        if chroma:
            width = LATE_CHROMA_WIDTH + (late_channels if luma else 0)
            self.joined = _conv_norm_act(width, late_channels, kernel=1)

    def join(self, features: Tensor | None, cbcr: Tensor) -> Tensor:
        """Join features of luma [B, C, H/16, W/16] (None without luma) and chroma; same shape."""
        if self.chroma is None:
            assert features is not None  # A selection has frequencies of one plane at least.
            return features
        chroma = self.chroma(cbcr.flatten(1, 2))
        both = chroma if features is None else torch.cat([features, chroma], dim=1)
        joined: Tensor = self.joined(both)
        return joined


def _conv_norm_act(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.SiLU(inplace=True))
