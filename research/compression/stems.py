"""Stems for JPEG DCT coefficients, which replace or precede a backbone's RGB stem.

A stem takes ``Blocks``: ``y`` [B, k_luma, H/8, W/8] and ``cbcr`` [B, 2, k_chroma, H/16, W/16].
``reconstruction`` returns an RGB image for the backbone's own stem, the other variants features
[B, C, H/4, W/4] for its first stage. A plane without selected frequencies has no branch, so that
every parameter is used.

The four variants are described in docs/compression.md; their projections are 3×3 convolutions.
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
REFINE_WIDTH: Final = 32


@dataclass(frozen=True)
class StemSpec:
    """Which stem a backbone gets.

    Args:
        variant: ``reconstruction``, ``block_stem``, ``luma_fusion`` or ``luma_fusion_pruned``.
        selection: the frequencies of the input.
        range_: range of the input, ``full`` or ``studio``.
    """

    variant: str
    selection: Selection
    range_: str

    @property
    def takes_image(self) -> bool:
        """Whether this stem returns an image, so that the backbone keeps its own RGB stem."""
        return self.variant == "reconstruction"

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
            return Reconstruction(self.selection, self.range_)
        luma, chroma = len(self.selection.luma), 2 * len(self.selection.chroma)
        return JoinedStem(luma, chroma, channels, stride=8 if self.variant == "block_stem" else 16)


class Stemmed(nn.Module):
    """A coefficient stem followed by a backbone: ``Blocks`` to logits [B, num_classes].

    Args:
        stem: from ``StemSpec.build``.
        backbone: the network, without its own stem unless ``stem`` returns an image.
    """

    def __init__(self, stem: nn.Module, backbone: nn.Module) -> None:
        super().__init__()
        self.stem = stem
        self.backbone = backbone

    def forward(self, blocks: Blocks) -> Tensor:
        return self.backbone(self.stem(blocks))


class Reconstruction(nn.Module):
    """Decode the RGB image, refine it and normalise it for the backbone's own stem.

    The refinement (3×3 conv to 32, batch norm, SiLU, 3×3 conv to 3) is a residual initialised to
    zero: before training the network is the RGB network on the decoded image, so that pretrained
    weights can be used.

    Takes unnormalised coefficients; returns [B, 3, H, W], normalised with ImageNet's mean and std.
    """

    def __init__(self, selection: Selection, range_: str) -> None:
        super().__init__()
        self.decoder = Decoder(selection, range_)
        self.refine = nn.Sequential(
            _conv_norm_act(3, REFINE_WIDTH),
            nn.Conv2d(REFINE_WIDTH, 3, 3, padding=1, bias=False),
        )
        nn.init.zeros_(self.refine[1].weight)  # type: ignore[arg-type]
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)

    mean: Tensor
    std: Tensor

    def forward(self, blocks: Blocks) -> Tensor:
        image = self.decoder(blocks.y, blocks.cbcr) / 255
        return (image + self.refine(image) - self.mean) / self.std


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


def _conv_norm_act(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.SiLU(inplace=True))
