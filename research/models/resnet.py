"""ResNets (He et al., 2016) from timm, on RGB or on JPEG DCT coefficients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import timm
import torch
from timm.models.resnet import ResNet
from torch import nn

from research.compression.stems import StemSpec
from research.models.pretrained import load_pretrained
from research.models.stemmed import STEM, LateConcat, Stemmed
from research.utils.errors import UserError, one_line


def resnet(
    name: str,
    num_classes: int,
    pretrained: str | bool | None,
    drop_rate: float,
    drop_path_rate: float,
    layers: Sequence[int] | None,
    widths: Sequence[int] | None,
    coefficients: StemSpec | None,
) -> nn.Module:
    """Any ResNet of timm: [B, 3, H, W] floats to logits [B, num_classes].

    With ``coefficients`` the network takes ``Blocks``, and its own stem (convolution, norm,
    activation, max-pool) is replaced unless the coefficient stem outputs an image;
    ``late_concat`` also replaces stage 1.

    Args:
        name: timm's name, such as ``resnet34``.
        num_classes: outputs of the classifier.
        pretrained: see ``load_pretrained``.
        drop_rate: dropout before the classifier, 0 <= x < 1.
        drop_path_rate: stochastic depth (Huang et al., 2016), 0 <= x < 1.
        layers: blocks of each of the four stages, the first may be 0; ``None``: the network's own.
        widths: channels of each stage, in wide networks before the blocks' own factor; ``None``:
            the network's own, 64, 128, 256, 512.
        coefficients: the stem for coefficients; ``None`` for pixels.

    Raises:
        UserError: when timm has no such ResNet or not with these sizes, or the weights do not fit.
    """
    if name not in timm.list_models(module="resnet"):
        raise UserError(
            "model.name",
            f"model.name={name}: timm has no such ResNet",
            "try resnet18, resnet34, resnet50",
        )
    if name.endswith("_pruned") and (layers is not None or widths is not None):
        raise UserError(
            "model.name",
            f"model.name={name}: its channels are pruned one by one, so its sizes are fixed",
            "choose another ResNet, such as resnet50, or model.layers=null model.widths=null",
        )
    sizes = _sizes(name, layers, widths, coefficients)
    network: ResNet = _create(
        name,
        num_classes=num_classes,
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
        **sizes,
    )
    if coefficients is not None and not coefficients.takes_image:
        for part in ("conv1", "bn1", "act1", "maxpool"):
            setattr(network, part, nn.Identity())
    whole = network if coefficients is None else _behind_stem(network, coefficients)
    inputs = [STEM]
    if not len(network.layer1):  # then stage 2 is the first; with bottlenecks it has other inputs
        first = [f"layer2.0.{part}" for part in ("conv1", "downsample")]
        inputs += [*first, *(f"backbone.{part}" for part in first)]
    load_pretrained(whole, name, pretrained, inputs=inputs)
    return whole


def _behind_stem(network: ResNet, coefficients: StemSpec) -> Stemmed:
    if coefficients.joins_late:
        channels = network.layer2[0].conv1.in_channels
        late_channels = network.feature_info[3]["num_chs"]
        return LateConcat(coefficients.build_late(channels, late_channels), network)
    return Stemmed(coefficients.build(network.feature_info[0]["num_chs"]), network)


def _sizes(
    name: str,
    layers: Sequence[int] | None,
    widths: Sequence[int] | None,
    coefficients: StemSpec | None,
) -> dict[str, tuple[int, ...]]:
    """timm's arguments ``layers`` and ``channels``, where they differ from the network's own.

    Unless ``layers`` says otherwise, ``late_concat`` has no stage 1 and half of stage 2, rounded
    up. A pruned trunk has stage widths of ``base · scale`` rounded to multiples of 8 (at least 8),
    and stage depths of ``base · scale`` rounded up.
    """
    given = {"layers": layers, "channels": widths}
    sizes = {key: tuple(value) for key, value in given.items() if value is not None}
    if coefficients is None or not (coefficients.joins_late or coefficients.trunk_scale < 1):
        return sizes
    if coefficients.joins_late and layers is not None:
        return {**sizes, "layers": (0, *layers[1:])}
    # Built on the meta device to read its sizes, which timm keeps in closures.
    with torch.device("meta"):
        whole = _create(name, **sizes)
    stages = [getattr(whole, f"layer{number}") for number in range(1, 5)]
    if coefficients.joins_late:
        second, *deeper = (len(stage) for stage in stages[1:])
        return {**sizes, "layers": (0, math.ceil(second / 2), *deeper)}
    scale, expansion = coefficients.trunk_scale, stages[-1][0].expansion
    # Not the width of the first convolution, which is larger in wide and in grouped blocks.
    bases = [info["num_chs"] // expansion for info in whole.feature_info[1:]]
    return {
        "channels": tuple(max(8, round(width * scale / 8) * 8) for width in bases),
        "layers": tuple(math.ceil(len(stage) * scale) for stage in stages),
    }


def _create(name: str, **settings: Any) -> ResNet:
    """``timm.create_model``.

    Raises:
        UserError: if the network cannot have the sizes, as those whose channels are pruned one by
            one and those with groups of channels.
    """
    try:
        network: ResNet = timm.create_model(name, **settings)
    except (RuntimeError, ValueError, AssertionError) as error:
        if not {"layers", "channels"} & set(settings):
            raise
        sizes = ", ".join(
            f"{key} {settings[key]}" for key in ("layers", "channels") if key in settings
        )
        raise UserError(
            "model.name",
            f"model.name={name}: timm cannot build it with {sizes} ({one_line(error)})",
            "choose another ResNet, such as resnet50",
        ) from None
    return network
