"""Classification networks of timm."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import timm
import torch
from torch import nn

from research.models.inputs import input_spec
from research.models.pretrained import load_pretrained
from research.utils.errors import UserError, one_line

WEIGHT_ARGUMENTS = ("checkpoint_path", "cache_dir")
"""Arguments, besides ``pretrained…``, with which timm would load weights, pickled code included."""
BUILDER_ARGUMENTS = (
    "scriptable", "exportable", "no_jit", "features_only", "feature_cls", "feature_cfg",
    "out_indices", "pruned", "kwargs_filter", "model_cfg", "device", "dtype",
)  # fmt: skip
"""Arguments of ``timm.create_model`` that are not arguments of the network."""


def backbone(
    name: str,
    num_classes: int,
    image_size: int,
    pretrained: str | bool | None,
    drop_rate: float,
    drop_path_rate: float,
    kwargs: Mapping[str, Any] | None,
) -> nn.Module:
    """A timm network: [B, 3, S, S] floats to logits [B, num_classes].

    Args:
        name: timm's name, with or without a tag, such as ``vit_tiny_patch16_224``.
        num_classes: outputs of the classifier.
        image_size: S, in pixels; passed to networks that have this argument (most transformers).
        pretrained: see ``load_pretrained``.
        drop_rate: dropout before the classifier, 0 <= x < 1.
        drop_path_rate: stochastic depth (Huang et al., 2016), 0 <= x < 1.
        kwargs: more arguments of ``timm.create_model``, such as ``{global_pool: max}``; they
            override those above.

    Raises:
        UserError: when timm has no such network, the network lacks a requested argument, or it
            cannot take images of this size.
    """
    _check_name(name)
    for key in kwargs or {}:
        if key in WEIGHT_ARGUMENTS or key.startswith("pretrained"):
            raise UserError(
                f"model.kwargs.{key}",
                f"model.kwargs.{key}: not used to load weights",
                "set model.pretrained instead",
            )
        if key in BUILDER_ARGUMENTS:
            raise UserError(
                f"model.kwargs.{key}",
                f"model.kwargs.{key}: not an argument of the network",
                "remove it",
            )
    arguments = {
        "num_classes": num_classes,
        "img_size": image_size,
        "drop_rate": drop_rate,
        "drop_path_rate": drop_path_rate,
        **(kwargs or {}),
    }
    # Arguments that a network need not have, because they change nothing.
    optional = {"img_size", *(key for key in ("drop_rate", "drop_path_rate") if not arguments[key])}
    optional -= set(kwargs or {})
    while True:
        try:
            network: nn.Module = timm.create_model(name, **arguments)
            break
        except TypeError as error:
            unknown = set(_unexpected(error)) & set(arguments)
            if not unknown:
                raise UserError(
                    "model.kwargs", f"model.name={name}: {one_line(error)}", "check model.kwargs"
                ) from None
            if unknown - optional:
                key = min(unknown - optional)
                raise _unsupported(name, key, key in (kwargs or {})) from None
            arguments = {key: arguments[key] for key in arguments if key not in unknown}
        except Exception as error:  # raised by timm, for arguments of any kind
            raise UserError(
                "model.name",
                f"model.name={name}: timm cannot build it for dataset.image_size={image_size} "
                f"({one_line(error)})",
                f"its own size is {input_spec(name).size}",
            ) from None
    _check_output(network, name, num_classes, image_size)
    load_pretrained(network, name, pretrained)
    return network


def _check_name(name: str) -> None:
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        names = timm.list_models()
        near = get_close_matches(architecture, names, 3, 0.6)
        near = near or [other for other in names if other.startswith(architecture[:5])][:3]
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists them"
        raise UserError("model.name", f"model.name={name}: timm has no such network", hint)
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise UserError(
            "model.name",
            f"model.name={name}: timm has no weights {tag!r} of {architecture}",
            f"it has {', '.join(tags) or 'none'}",
        )


def _unexpected(error: TypeError) -> list[str]:
    """The arguments that the error of a constructor names as unexpected."""
    match = re.search(r"unexpected keyword argument(.*)", str(error))
    return re.findall(r"'(\w+)'", match[1]) if match else []


def _unsupported(name: str, key: str, in_kwargs: bool) -> UserError:
    """The error for an argument that a network does not have."""
    where = f"model.kwargs.{key}" if in_kwargs else f"model.{key}"
    hint = "remove it" if in_kwargs else f"set {where}=0"
    return UserError(where, f"{where}: {name} has no such argument", hint)


def _check_output(network: nn.Module, name: str, num_classes: int, image_size: int) -> None:
    """Run a network on a black image: many raise errors about the size only in ``forward``.

    Raises:
        UserError: when the output is not [1, num_classes].
    """
    try:
        with torch.no_grad():
            logits = network.eval()(torch.zeros(1, 3, image_size, image_size))
    except Exception as error:  # raised by timm, for arguments of any kind
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
            f"model.name={name} does not output {num_classes} logits per image",
            "choose a classification network",
        )
