"""State dicts of other projects, converted to the names and shapes of timm's networks."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any, Final, cast

from torch import Tensor, nn

from research.utils.errors import UserError

VGG_SIDE: Final = 7
"""Side of the feature map that VGG's first fully connected layer takes."""
EFFICIENTNET: Final = {
    "_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2",
    "_fc": "classifier",
}  # fmt: skip
"""Layers of EfficientNet-PyTorch (Melas-Kyriazi) to timm's."""
INVERTED_RESIDUAL: Final = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
    "_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand",
    "_project_conv": "conv_pwl", "_bn2": "bn3",
}  # fmt: skip
"""Of a block."""
SEPARABLE: Final = INVERTED_RESIDUAL | {"_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
"""Of a block that does not expand its input."""


def converted(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict for a network of timm; unchanged if no conversion is known.

    timm's own conversion is that of the network's module. It also resizes position embeddings to
    the image size of the network.

    Raises:
        UserError: for weights of a network that differs only in its padding.
        Exception: of any type, from timm, for weights of another network.
    """
    state = dict(state)
    if "_conv_stem.weight" in state and hasattr(network, "blocks"):
        state = _of_efficientnet_pytorch(network, state)
    if "classifier.0.weight" in state and hasattr(network, "pre_logits"):
        state = _of_torchvision_vgg(state)
    function = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    return dict(state if function is None else function(state, network))


def _of_efficientnet_pytorch(network: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    import timm
    from timm.layers import Conv2dSame

    timms = cast(Any, network)
    if not isinstance(timms.conv_stem, Conv2dSame):
        name = f"tf_{timms.pretrained_cfg['architecture']}"
        raise UserError(
            "model.pretrained",
            "model.pretrained: these weights are of a network that pads as TensorFlow does",
            f"use {name}" if timm.is_model(name) else "use a network of timm named tf_…",
        )
    blocks = [
        (f"blocks.{s}.{b}.", INVERTED_RESIDUAL if hasattr(block, "conv_pwl") else SEPARABLE)
        for s, stage in enumerate(timms.blocks)
        for b, block in enumerate(stage)
    ]
    result = {}
    for key, value in state.items():
        match = re.fullmatch(r"(?:_blocks\.(\d+)\.)?(\w+)\.(\w+)", key)
        number = int(match[1]) if match and match[1] else None
        if match is None or (number is not None and number >= len(blocks)):
            result[key] = value
            continue
        above, names = ("", EFFICIENTNET) if number is None else blocks[number]
        result[f"{above}{names.get(match[2], match[2])}.{match[3]}"] = value
    return result


def _of_torchvision_vgg(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm writes the fully connected layers as convolutions."""
    layers = (("0", "pre_logits.fc1", VGG_SIDE), ("3", "pre_logits.fc2", 1), ("6", "head.fc", None))
    for index, layer, side in layers:
        for kind in ("weight", "bias"):
            value = state.pop(f"classifier.{index}.{kind}", None)
            if value is not None and side is not None and kind == "weight":
                value = value.reshape(len(value), -1, side, side)
            if value is not None:
                state[f"{layer}.{kind}"] = value
    return state
