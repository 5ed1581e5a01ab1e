"""Encoder of RGB + X: two mix transformers that exchange features after every stage.

CMX (Zhang et al., 2023), and single streams as baselines.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, cast

from torch import Tensor, nn

from research.models.fusion import ONE_STREAM, norm_layer, stage_fusion
from research.models.mit import (
    HEADS,
    STAGES,
    STEM,
    VARIANTS,
    MixTransformer,
    convert_state_dict,
)
from research.models.pretrained import load_matching, report
from research.models.weight_files import WeightsFile
from research.utils.errors import UserError

RGB: Final = 3


class DualEncoder(nn.Module):
    """Frames [B, 3 + X, H, W] to four feature maps at strides 4, 8, 16 and 32.

    After each stage the two streams rectify each other. The rectified maps are the input of the
    next stage of each stream, and are fused into one output map. With ``rgb_only`` or ``x_only``
    there is one stream.

    Args:
        variant: ``b0`` … ``b5``.
        x_channels: X.
        fusion: see ``rgbx_detector``.
        norm: see ``rgbx_detector``.
        drop_path_rate: stochastic depth of each stream, 0 <= x < 1.
    """

    def __init__(
        self, variant: str, x_channels: int, fusion: str, norm: str, drop_path_rate: float
    ) -> None:
        super().__init__()
        dims, depths = VARIANTS[variant].dims, VARIANTS[variant].depths
        self.dims = dims
        channels = {"rgb": RGB, "x": x_channels}
        self.channels = sum(channels.values())
        self.streams = [fusion.removesuffix("_only")] if fusion in ONE_STREAM else list(channels)
        for name in self.streams:
            stream = MixTransformer(channels[name], dims, depths, drop_path_rate=drop_path_rate)
            self.add_module(name, stream)
        layer = norm_layer(norm)
        if len(self.streams) == 2:
            pairs = [
                stage_fusion(fusion, dim, heads, layer)
                for dim, heads in zip(dims, HEADS, strict=True)
            ]
            self.FRMs = nn.ModuleList(rectify for rectify, _ in pairs)
            self.FFMs = nn.ModuleList(fuse for _, fuse in pairs)

    def forward(self, images: Tensor) -> list[Tensor]:
        if images.shape[1] != self.channels:
            raise UserError(
                "model.x_channels",
                f"the detector takes frames of {self.channels} channels (RGB, then X), not of "
                f"{images.shape[1]}",
            )
        parts = {"rgb": images[:, :RGB], "x": images[:, RGB:]}
        maps = [parts[name] for name in self.streams]
        fused = []
        for index in range(STAGES):
            maps = [
                self.stream(name).stage(index, features)
                for name, features in zip(self.streams, maps, strict=True)
            ]
            if len(maps) == 2:
                maps = self.FRMs[index](*maps)
                fused.append(self.FFMs[index](*maps))
            else:
                fused.append(maps[0])
        return fused

    def stream(self, name: str) -> MixTransformer:
        return cast(MixTransformer, self.get_submodule(name))

    def load(self, state: Mapping[str, Tensor], where: str, file: WeightsFile) -> None:
        """Load weights of an RGB MiT into every stream, and log a line for each.

        Args:
            state: see ``mit.convert_state_dict``.
            where: as for ``pretrained.report``, like ``file``.
            file: that ``state`` is from.

        Raises:
            UserError: if they do not fit.
        """
        for name in self.streams:
            network = self.stream(name)
            channels = None if name == "rgb" else network.get_parameter(STEM).shape[1]
            result = load_matching(network, convert_state_dict(state, channels), where)
            report(result, where, file, f"stream {name}")
