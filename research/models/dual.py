"""The encoder of RGB + X: two mix transformers that exchange features after every stage.

CMX (Zhang et al., 2023), with one stream alone as the measure of what fusion is worth.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final, cast

from torch import Tensor, nn

from research.models.fusion import ONE_STREAM, norm_layer, stage_fusion
from research.models.mit import (
    HEADS,
    STAGES,
    STEM,
    VARIANTS,
    MixTransformer,
    from_file,
)
from research.models.pretrained import TIMM, TORCHVISION, fill, of_file
from research.utils.errors import UserError

log = logging.getLogger(__name__)

COLOURS: Final = 3


class DualEncoder(nn.Module):
    """Frames [B, 3 + X, H, W] to four maps at strides 4, 8, 16 and 32.

    After each stage the streams rectify each other; the rectified maps go on in each stream, and
    one map is made of them for the detector. With ``rgb_only`` or ``x_only`` there is one stream.

    Args:
        variant: ``b0`` … ``b5``.
        x_channels: X.
        fusion: see ``rgbx_detector``.
        norm: see ``rgbx_detector``.
        drop_path_rate: of each stream.
    """

    def __init__(
        self, variant: str, x_channels: int, fusion: str, norm: str, drop_path_rate: float
    ) -> None:
        super().__init__()
        dims, depths = VARIANTS[variant].dims, VARIANTS[variant].depths
        self.dims = dims
        channels = {"rgb": COLOURS, "x": x_channels}
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
        parts = {"rgb": images[:, :COLOURS], "x": images[:, COLOURS:]}
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

    def load(self, source: str) -> None:
        """Weights of an RGB MiT from a file into every stream, with a line each in the log.

        Raises:
            UserError: when the file holds none that fit.
        """
        if source in (TIMM, TORCHVISION):
            raise UserError(
                "model.pretrained",
                f"model.pretrained={source}: it has no MiT",
                "give a file of mit_b0 … b5",
            )
        state = of_file(Path(source))
        for name in self.streams:
            network = self.stream(name)
            channels = None if name == "rgb" else network.get_parameter(STEM).shape[1]
            loaded = fill(network, from_file(state, channels))
            found, of = loaded.parameters
            level = logging.INFO if 2 * found >= of else logging.WARNING
            log.log(level, "model.pretrained=%s: stream %s: %s", source, name, loaded)
