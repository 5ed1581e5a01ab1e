"""ResNets (He et al., 2016) from timm, on RGB or on JPEG DCT coefficients."""

from __future__ import annotations

import math
from pathlib import Path

import timm
import torch
from timm.models.resnet import ResNet
from torch import Tensor, nn

from research import weights
from research.compression.blocks import Blocks
from research.compression.stems import StemSpec
from research.errors import UserError


class Stemmed(nn.Module):
    """A backbone behind a stem of ours: ``Blocks`` in, logits [B, num_classes] out.

    Args:
        stem: gives what ``backbone`` takes.
        backbone: the whole network, or the network without its own stem.
    """

    def __init__(self, stem: nn.Module, backbone: nn.Module) -> None:
        super().__init__()
        self.stem = stem
        self.backbone = backbone

    def forward(self, blocks: Blocks) -> Tensor:
        return self.backbone(self.stem(blocks))


def resnet(
    name: str,
    num_classes: int,
    pretrained: str | None,
    drop_rate: float,
    drop_path_rate: float,
    stem: StemSpec | None,
) -> nn.Module:
    """Any of timm's ResNets.

    On RGB it is timm's network as it is: [B, 3, H, W] floats to logits [B, num_classes]. With a
    ``stem`` it takes ``Blocks``; its own stem (convolution, norm, activation, max-pool) is
    replaced, unless the stem gives an image.

    Args:
        name: timm's name, such as ``resnet34``.
        num_classes: width of the classifier.
        pretrained: null, ``timm`` (downloads), or a local ``.safetensors`` / ``.pt`` state dict
            of this network; a classifier of another width is left out.
        drop_rate: dropout before the classifier, 0 <= x < 1.
        drop_path_rate: stochastic depth (Huang et al., 2016), 0 <= x < 1.
        stem: how coefficients come in; null for pixels.

    Raises:
        UserError: when timm has no such ResNet, or the weights do not fit.
    """
    if name not in timm.list_models(module="resnet"):
        raise UserError(
            f"model.name={name}: timm has no such ResNet; try resnet18, resnet34, resnet50"
        )
    sizes = {} if stem is None or stem.trunk_scale == 1 else _pruned(name, stem.trunk_scale)
    network: ResNet = timm.create_model(
        name,
        pretrained=pretrained == "timm",
        num_classes=num_classes,
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
        **sizes,
    )
    if pretrained not in (None, "timm"):
        _load(network, Path(pretrained))
    if stem is None:
        return network
    channels = network.bn1.num_features
    if not stem.takes_image:
        for part in ("conv1", "bn1", "act1", "maxpool"):
            setattr(network, part, nn.Identity())
    return Stemmed(stem.build(channels), network)


def _pruned(name: str, scale: float) -> dict[str, tuple[int, ...]]:
    """Widths and depths of a trunk scaled down in both.

    Stage widths are ``base · scale`` rounded to multiples of 8 (at least 8), stage depths
    ``base · scale`` rounded up (at least 1).
    """
    # Built without memory, only to be asked for its sizes: timm keeps them in closures.
    with torch.device("meta"):
        whole = timm.create_model(name, pretrained=False)
    stages = [getattr(whole, f"layer{number}") for number in range(1, 5)]
    # Not the width of the first convolution, which is larger in wide and in grouped blocks.
    widths = [
        info["num_chs"] // stage[0].expansion
        for info, stage in zip(whole.feature_info[1:], stages, strict=True)
    ]
    return {
        "channels": tuple(max(8, round(width * scale / 8) * 8) for width in widths),
        "layers": tuple(max(1, math.ceil(len(stage) * scale)) for stage in stages),
    }


def _load(network: nn.Module, path: Path) -> None:
    """Load a state dict; all of it must fit but a classifier of another width."""
    given = weights.read(path)
    own = network.state_dict()
    fitting = {k: v for k, v in given.items() if k in own and v.shape == own[k].shape}
    left = sorted(set(own) - set(fitting))
    if any(not key.startswith("fc.") for key in left):
        raise UserError(
            f"model.pretrained: {path} lacks {len(left)} of {len(own)} tensors of this network, "
            f"the first {left[0]}; give a state dict of the same architecture"
        )
    network.load_state_dict(fitting, strict=False)
