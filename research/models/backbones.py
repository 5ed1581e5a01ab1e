"""Feature extractors from timm: created without a classifier, loaded, and partly frozen."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Final

import timm
import torch
from timm.layers import DropPath
from torch import Tensor, nn

from research.utils.errors import UserError, one_line

FREEZES: Final = ("none", "partial", "full")
DROPOUTS: Final = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout)
ANCHOR: Final = re.compile(r"(?<![\[\\])\^")


def create(name: str, image_size: int) -> tuple[nn.Module, int]:
    """A timm network without classifier and dropout.

    Args:
        name: timm's name.
        image_size: S, in pixels.

    Returns:
        the network, images [N, 3, S, S] to features [N, D], and D.

    Raises:
        UserError: when timm has no such network, or it cannot take images of this size.
    """
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        near = get_close_matches(architecture, timm.list_models(), 3, 0.6)
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists them"
        raise UserError("model.backbone", f"model.backbone={name}: timm has no such network", hint)
    try:
        try:
            network: nn.Module = timm.create_model(name, num_classes=0, img_size=image_size)
        except TypeError:  # most networks take any size and have no such argument
            network = timm.create_model(name, num_classes=0)
        with torch.no_grad():
            features = network.eval()(torch.zeros(1, 3, image_size, image_size))
    except Exception as error:  # raised by timm, for arguments of any kind
        raise UserError(
            "model.backbone",
            f"model.backbone={name} cannot take dataset.image_size={image_size} "
            f"({one_line(error)})",
            "try another size",
        ) from None
    if not isinstance(features, Tensor) or features.ndim != 2:
        raise UserError(
            "model.backbone",
            f"model.backbone={name} does not output features [N, D]",
            "choose another network",
        )
    for module in network.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
        elif isinstance(module, DROPOUTS):
            module.p = 0.0
    return network, features.shape[1]


def frozen_modules(backbone: nn.Module, freeze: str) -> list[nn.Module]:
    """The modules whose own parameters are to be frozen.

    Args:
        backbone: a timm network, whose ``feature_info`` lists its stages in order.
        freeze: ``none``, ``partial`` (all before the last stage that has parameters) or ``full``.

    Raises:
        UserError: for another ``freeze``, or when the backbone does not list its stages.
    """
    if freeze not in FREEZES:
        raise UserError(
            "model.freeze", f"model.freeze={freeze}: expected one of {', '.join(FREEZES)}"
        )
    names, modules = zip(*backbone.named_modules(), strict=True)
    if freeze != "partial":
        return [*modules] if freeze == "full" else []
    info = getattr(backbone, "feature_info", None) or []
    stages = [*dict.fromkeys(stage["module"] for stage in info)]
    ends = [
        max((n for n, name in enumerate(names) if f"{name}.".startswith(f"{stage}.")), default=0)
        for stage in stages
    ]
    for below in reversed(ends[:-1]):
        # In VGG the last stage is a pooling layer, which has no parameters.
        last = modules[below + 1 : ends[-1] + 1]
        if below > 0 and any([*module.parameters(recurse=False)] for module in last):
            return [*modules[: below + 1]]
    raise UserError(
        "model.freeze",
        "model.freeze=partial: this backbone does not list its stages",
        "use none or full",
    )


def prefix_matcher(prefix: str, matcher: Mapping[str, Any]) -> dict[str, Any]:
    """A timm ``group_matcher`` for parameters whose names have ``prefix.`` before them."""

    def prefixed(pattern: str) -> str:
        # timm matches patterns at the start of a name, with or without an anchor.
        return rf"^{prefix}\.(?:{ANCHOR.sub('', pattern)})"

    result: dict[str, Any] = {}
    for name, spec in matcher.items():
        if isinstance(spec, str):
            result[name] = prefixed(spec)
        elif spec is not None:
            result[name] = [(prefixed(pattern), order) for pattern, order in spec]
    return result
