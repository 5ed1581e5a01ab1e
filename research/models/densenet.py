"""DenseNet-BC (Huang et al., 2017) from torchvision, on RGB or on JPEG DCT coefficients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from torch import nn
from torchvision import models

from research.compression.stems import StemSpec
from research.models.pretrained import load_pretrained
from research.models.stemmed import STEM, Stemmed
from research.models.weight_files import TORCHVISION
from research.utils.errors import UserError

CIFAR_LIMIT: Final = 64
"""Largest input side in pixels for which ``stem=auto`` means ``cifar``."""


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
    pretrained: str | bool | None,
    coefficients: StemSpec | None,
) -> nn.Module:
    """torchvision's DenseNet-BC: [B, 3, S, S] floats to logits [B, num_classes].

    A layer is BN, ReLU, 1×1 convolution to four times the growth rate, BN, ReLU, 3×3 convolution
    to the growth rate; its output is concatenated to its input. Between blocks a 1×1 convolution
    halves the channels and a 2×2 average pool halves the sides. The state dict is torchvision's:
    weights of DenseNet-121, 169 and 201 load strictly when the stem is ``imagenet``.

    With ``coefficients`` the network takes ``Blocks``, and its own stem is removed unless the
    coefficient stem outputs an image.

    Args:
        name: timm's and torchvision's name of the network, for pretrained weights.
        num_classes: outputs of the classifier.
        image_size: S, in pixels.
        block_layers: layers of each block.
        growth_rate: channels that a layer adds.
        initial_features: channels of the stem.
        stem: ``imagenet`` is a 7×7 convolution of stride 2, BN, ReLU and a max-pool of stride 2;
            ``cifar`` is one 3×3 convolution, which keeps the resolution; ``auto`` is ``cifar``
            up to 64 px.
        dropout: after each 3×3 convolution, 0 <= x < 1.
        memory_efficient: recompute the concatenated features in the backward pass (Pleiss et al.,
            2017): slower, in much less memory, with the same gradients.
        pretrained: see ``load_pretrained``.
        coefficients: the stem for coefficients; ``None`` for pixels.

    Raises:
        UserError: when the weights do not fit, or the image is too small for the last block.
    """
    halvings = len(block_layers) - 1
    own_stem = coefficients is None or coefficients.takes_image
    small = own_stem and (stem == "cifar" or (stem == "auto" and image_size <= CIFAR_LIMIT))
    side = image_size if small else math.ceil(image_size / 4)
    if side < 2**halvings:
        raise UserError(
            "model.block_layers",
            f"model.block_layers: {len(block_layers)} blocks halve {side} px {halvings} times",
            "use fewer blocks or a larger dataset.image_size",
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
        _remove(features, "conv0", "norm0", "relu0", "pool0")
    elif small:
        features.conv0 = nn.Conv2d(3, initial_features, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(features.conv0.weight)
        _remove(features, "norm0", "relu0", "pool0")
    if memory_efficient:
        _correct_momentum(network)
    whole: nn.Module = network
    if coefficients is not None:
        whole = Stemmed(coefficients.build(initial_features), network)
    inputs = (STEM, "features.conv0", "features.norm0")
    load_pretrained(whole, name, pretrained, TORCHVISION, inputs)
    return whole


class DenseNet(models.DenseNet):
    """torchvision's, which says what its classifier is and in which memory format it is fast."""

    channels_last_on_cpu: Final = True  # a training step takes 0.87 of the time

    def get_classifier(self) -> nn.Module:
        """As timm's networks: what depends on the number of classes."""
        return self.classifier


def _remove(features: nn.Sequential, *names: str) -> None:
    for name in names:
        setattr(features, name, nn.Identity())


def _correct_momentum(network: nn.Module) -> None:
    """Correct the norms that are recomputed and so update their statistics twice a batch.

    Two updates with momentum 1 - √(1 - m) towards the same batch equal one with momentum m.
    """
    for name, norm in network.named_modules():
        if name.endswith(".norm1") and isinstance(norm, nn.BatchNorm2d):
            assert norm.momentum is not None
            norm.momentum = 1 - math.sqrt(1 - norm.momentum)
