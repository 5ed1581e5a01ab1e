"""ResNets (He et al., 2016) from timm, on RGB or on JPEG DCT coefficients."""

from __future__ import annotations

import math

import timm
import torch
from timm.models.resnet import ResNet
from torch import nn

from research.compression.stems import Stemmed, StemSpec
from research.models.pretrained import load_pretrained
from research.utils.errors import UserError


def resnet(
    name: str,
    num_classes: int,
    pretrained: str | None,
    drop_rate: float,
    drop_path_rate: float,
    coefficients: StemSpec | None,
) -> nn.Module:
    """Any ResNet of timm: [B, 3, H, W] floats to logits [B, num_classes].

    With ``coefficients`` the network takes ``Blocks``, and its own stem (convolution, norm,
    activation, max-pool) is replaced unless the coefficient stem outputs an image.

    Args:
        name: timm's name, such as ``resnet34``.
        num_classes: outputs of the classifier.
        pretrained: see ``load_pretrained``.
        drop_rate: dropout before the classifier, 0 <= x < 1.
        drop_path_rate: stochastic depth (Huang et al., 2016), 0 <= x < 1.
        coefficients: the stem for coefficients; ``None`` for pixels.

    Raises:
        UserError: when timm has no such ResNet, or the weights do not fit.
    """
    if name not in timm.list_models(module="resnet"):
        raise UserError(
            "model.name",
            f"model.name={name}: timm has no such ResNet",
            "try resnet18, resnet34, resnet50",
        )
    scale = 1.0 if coefficients is None else coefficients.trunk_scale
    sizes = _pruned(name, scale) if scale < 1 else {}
    network: ResNet = timm.create_model(
        name,
        num_classes=num_classes,
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
        **sizes,
    )
    channels = network.bn1.num_features
    if coefficients is not None and not coefficients.takes_image:
        for part in ("conv1", "bn1", "act1", "maxpool"):
            setattr(network, part, nn.Identity())
    load_pretrained(network, name, pretrained)
    if coefficients is None:
        return network
    return Stemmed(coefficients.build(channels), network)


def _pruned(name: str, scale: float) -> dict[str, tuple[int, ...]]:
    """Arguments for a trunk scaled down in width and depth.

    Stage widths are ``base · scale`` rounded to multiples of 8 (at least 8), stage depths
    ``base · scale`` rounded up (at least 1).
    """
    # Built on the meta device to read its sizes, which timm keeps in closures.
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
