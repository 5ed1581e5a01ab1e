"""DenseNets-BC (Huang et al., 2017) of torchvision, on RGB or on JPEG DCT coefficients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from torch import nn
from torchvision.models import DenseNet

from research.compression.stems import Stemmed, StemSpec
from research.models.pretrained import load
from research.utils.errors import UserError

CIFAR_LIMIT: Final = 64
"""Up to this side of the input in px, ``auto`` takes the CIFAR stem."""


def densenet(
    name: str,
    num_classes: int,
    image_size: int,
    block_layers: Sequence[int],
    growth_rate: int,
    initial_features: int,
    stem: str,
    dropout: float,
    memory_efficient: bool,
    pretrained: str | None,
    coefficients: StemSpec | None,
) -> nn.Module:
    """A DenseNet-BC of torchvision: [B, 3, S, S] floats to logits [B, num_classes].

    A layer is BN, ReLU, 1×1 convolution to four times the growth rate, BN, ReLU, 3×3 convolution
    to the growth rate; its output is joined to its input. Between blocks a 1×1 convolution halves
    the features and a 2×2 average pool the sides. State dicts are torchvision's: those of
    DenseNet-121, 169 and 201 load strictly where the stem is ImageNet's.

    With ``coefficients`` it takes ``Blocks``; its own stem is put aside, unless they give an
    image.

    Args:
        name: under which ``timm`` and ``torchvision`` keep pretrained weights.
        num_classes: width of the classifier.
        image_size: S, in pixels.
        block_layers: layers of each block.
        growth_rate: features that a layer adds.
        initial_features: features of the stem.
        stem: ``imagenet`` is a 7×7 convolution of stride 2, BN, ReLU and a max-pool of stride 2;
            ``cifar`` a 3×3 convolution alone, which keeps the resolution; ``auto`` is ``cifar``
            up to 64 px.
        dropout: after each 3×3 convolution, 0 <= x < 1.
        memory_efficient: keep no joined features for the backward pass but join them again
            (Pleiss et al., 2017): slower, in much less memory, to the same gradients.
        pretrained: see ``load``.
        coefficients: how coefficients come in; null for pixels.

    Raises:
        UserError: when the weights do not fit, or nothing of the image is left for the last block.
    """
    halvings = len(block_layers) - 1
    own_stem = coefficients is None or coefficients.takes_image
    small = own_stem and (stem == "cifar" or (stem == "auto" and image_size <= CIFAR_LIMIT))
    side = image_size if small else math.ceil(image_size / 4)
    if side < 2**halvings:
        raise UserError(
            "model.block_layers",
            f"model.block_layers: {len(block_layers)} blocks halve {side} px {halvings} times",
            "give fewer blocks or a larger dataset.image_size",
        )
    scale = 1.0 if coefficients is None else coefficients.trunk_scale
    if scale < 1:
        block_layers = [math.ceil(layers * scale) for layers in block_layers]
        growth_rate = max(4, round(growth_rate * scale))
        initial_features = max(8, round(initial_features * scale / 8) * 8)
    network = DenseNet(
        growth_rate,
        tuple(block_layers),
        initial_features,
        drop_rate=dropout,
        num_classes=num_classes,
        memory_efficient=memory_efficient,
    )
    features = network.features
    if coefficients is not None and not coefficients.takes_image:
        _drop(features, "conv0", "norm0", "relu0", "pool0")
    elif small:
        features.conv0 = nn.Conv2d(3, initial_features, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(features.conv0.weight)
        _drop(features, "norm0", "relu0", "pool0")
    if memory_efficient:
        _count_statistics_once(network)
    load(network, name, pretrained)
    if coefficients is None:
        return network
    return Stemmed(coefficients.build(initial_features), network)


def _drop(features: nn.Sequential, *names: str) -> None:
    for name in names:
        setattr(features, name, nn.Identity())


def _count_statistics_once(network: nn.Module) -> None:
    """Make up for the norms that see every batch twice, once more when they are recomputed.

    Two steps of 1 - √(1 - m) towards the same batch are one of m.
    """
    for name, norm in network.named_modules():
        if name.endswith(".norm1") and isinstance(norm, nn.BatchNorm2d):
            assert norm.momentum is not None
            norm.momentum = 1 - math.sqrt(1 - norm.momentum)
