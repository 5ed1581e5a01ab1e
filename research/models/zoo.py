"""Any classification network of timm, and what networks were made to be fed with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import timm
import torch
from torch import nn

from research.compression.stems import IMAGENET_MEAN, IMAGENET_STD
from research.models.pretrained import load
from research.utils.errors import UserError, one_line

WEIGHTS = ("checkpoint_path", "cache_dir")
"""Arguments by which timm would read weights in its own way, pickled code included; with
``pretrained…``."""
NOT_THE_NETWORKS = (
    "scriptable", "exportable", "no_jit", "features_only", "feature_cls", "feature_cfg",
    "out_indices", "pruned", "kwargs_filter", "model_cfg", "device", "dtype",
)  # fmt: skip
"""Arguments that timm takes for itself: they change what is built around the network."""


@dataclass(frozen=True)
class InputSpec:
    """What a network was made to be fed with.

    Attributes:
        size: side of the square input in pixels.
        mean: RGB means on a 0…1 scale.
        std: RGB standard deviations on a 0…1 scale.
        crop_pct: side of the validation crop as a share of the short side.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_pct: float


def input_spec(name: str | None) -> InputSpec:
    """The input for which a network was made, by its ``model.name``.

    Out of timm's record where timm knows the name; 32 px for the paper's CIFAR networks
    (``densenet_bc_…``), 224 px for others, both with ImageNet's statistics.
    """
    size = 32 if (name or "").startswith("densenet_bc_") else 224
    usual = InputSpec(size, IMAGENET_MEAN, IMAGENET_STD, 0.875)
    if name is None:
        return usual
    try:
        record = timm.get_pretrained_cfg(name)
    except RuntimeError:
        return usual
    if record is None:
        return usual
    return InputSpec(
        record.input_size[-1], tuple(record.mean), tuple(record.std), float(record.crop_pct)
    )


def backbone(
    name: str,
    num_classes: int,
    image_size: int,
    pretrained: str | None,
    drop_rate: float,
    drop_path_rate: float,
    kwargs: Mapping[str, Any] | None,
) -> nn.Module:
    """A network of timm: [B, 3, S, S] floats to logits [B, num_classes].

    Args:
        name: timm's name, with its tag or without, such as ``vit_tiny_patch16_224``.
        num_classes: width of the classifier.
        image_size: S, in pixels; told to the networks that must know it (most transformers).
        pretrained: see ``load``.
        drop_rate: dropout before the classifier, 0 <= x < 1.
        drop_path_rate: stochastic depth (Huang et al., 2016), 0 <= x < 1.
        kwargs: more arguments of ``timm.create_model``, such as ``{global_pool: max}``; they win
            over those above.

    Raises:
        UserError: when timm has no such network, it lacks what is asked of it, or it cannot take
            images of this size.
    """
    _check_name(name)
    for key in kwargs or {}:
        if key in WEIGHTS or key.startswith("pretrained"):
            raise UserError(
                "model.kwargs", f"model.kwargs.{key}: weights are named by model.pretrained"
            )
        if key in NOT_THE_NETWORKS:
            raise UserError(
                "model.kwargs",
                f"model.kwargs.{key}: not an argument of the network",
                "leave it out",
            )
    given = {
        "num_classes": num_classes,
        "img_size": image_size,
        "drop_rate": drop_rate,
        "drop_path_rate": drop_path_rate,
        **(kwargs or {}),
    }
    # What a network may lack without harm, because nothing is asked of it.
    idle = {"img_size", *(key for key in ("drop_rate", "drop_path_rate") if not given[key])}
    while True:
        try:
            network: nn.Module = timm.create_model(name, **given)
            break
        except TypeError as error:
            unknown = set(_unexpected(error)) & set(given)
            if not unknown:
                raise UserError(
                    "model.kwargs", f"model.name={name}: {one_line(error)}", "see model.kwargs"
                ) from None
            wanted = sorted(unknown - (idle - set(kwargs or {})))
            if wanted:
                raise UserError("model.kwargs", _not_taken(name, wanted[0], kwargs or {})) from None
            given = {key: value for key, value in given.items() if key not in unknown}
        except Exception as error:  # of timm, for arguments of any kind
            raise UserError(
                "model.name",
                f"model.name={name}: timm cannot build it for dataset.image_size={image_size} "
                f"({one_line(error)})",
                f"its own size is {input_spec(name).size}",
            ) from None
    _try(network, name, num_classes, image_size)
    # timm fits position embeddings to the size while it loads.
    sized = {key: given[key] for key in ("img_size",) if key in given}
    load(network, name, pretrained, sized)
    return network


def _check_name(name: str) -> None:
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        known = timm.list_models()
        near = get_close_matches(architecture, known, 3, 0.6)
        near = near or [other for other in known if other.startswith(architecture[:5])][:3]
        hint = f"; did you mean {', '.join(near)}?" if near else "; timm.list_models() names them"
        raise UserError("model.name", f"model.name={name}: timm has no such network{hint}")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise UserError(
            "model.name",
            f"model.name={name}: timm knows no weights {tag!r} of {architecture}",
            f"it has {', '.join(tags) or 'none'}",
        )


def _unexpected(error: TypeError) -> list[str]:
    """The arguments that a constructor says it does not take."""
    found = re.search(r"unexpected keyword argument(.*)", str(error))
    return re.findall(r"'(\w+)'", found[1]) if found else []


def _not_taken(name: str, key: str, kwargs: Mapping[str, Any]) -> str:
    if key in kwargs:
        return f"model.kwargs.{key}: {name} takes no such argument; leave it out"
    return f"model.{key}: {name} has none; leave it at 0"


def _try(network: nn.Module, name: str, num_classes: int, image_size: int) -> None:
    """One black image through a network; many refuse sizes only then.

    Raises:
        UserError: when it does not give ``num_classes`` logits.
    """
    try:
        with torch.no_grad():
            logits = network.eval()(torch.zeros(1, 3, image_size, image_size))
    except Exception as error:  # of timm, for arguments of any kind
        raise UserError(
            "model.name",
            f"model.name={name} cannot take dataset.image_size={image_size} ({one_line(error)})",
            f"its own size is {input_spec(name).size}",
        ) from None
    finally:
        network.train()
    if not isinstance(logits, torch.Tensor) or logits.shape != (1, num_classes):
        raise UserError(
            "model.name",
            f"model.name={name} does not give {num_classes} logits an image",
            "choose a classification network",
        )
