"""Optimizers: which parameters decay, any optimizer of timm or torch by name, scaled rates."""

from __future__ import annotations

import difflib
import inspect
import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

import torch
from timm.models import group_parameters
from torch import nn
from torch.optim import Optimizer

from research.utils.errors import UserError

log = logging.getLogger(__name__)

OURS: Final = ("params", "lr", "weight_decay")
"""Arguments of every optimizer that have keys of their own."""
NOT_OURS: Final = ("LBFGS", "SparseAdam")
"""Of torch: the one wants the loss several times a step, the other sparse gradients."""


def parameter_groups(
    network: nn.Module,
    decay_norms: bool,
    layer_decay: float | None,
    lr_backbone: float | None,
    lr: float,
) -> list[dict[str, Any]]:
    """The trainable parameters as an optimizer takes them, the head's first.

    Args:
        network: its names tell biases; timm's ``no_weight_decay`` is asked, of every part of it.
        decay_norms: every parameter decays. Otherwise groups with a weight decay of 0 hold norms
            and biases (everything of at most one dimension, and every ``bias``) and what timm
            names, such as position embeddings.
        layer_decay: each layer learns at this share of the rate of the one above it (Clark et
            al., 2020, §A; Bao et al., 2021); null: all at ``lr``. The network's ``group_matcher``,
            as timm's, says what a layer is.
        lr_backbone: what the network calls ``backbone`` learns at this share of its rate; null:
            as all others.
        lr: learning rate of the head.

    Raises:
        UserError: when layers or a backbone are asked for that the network does not tell.
    """
    if lr_backbone is not None and not hasattr(network, "backbone"):
        raise UserError(
            "lr_backbone",
            "lr_backbone: this model has no part of that name",
            "leave it out, or choose a siamese model",
        )
    layers = _layers(network) if layer_decay is not None else {}
    top = max(layers.values(), default=0)
    spared = set() if decay_norms else _spared(network)
    groups: dict[tuple[int, bool, bool], dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        below = top - layers.get(name, top)
        still = not decay_norms and (
            parameter.ndim <= 1 or name.rpartition(".")[2] == "bias" or name in spared
        )
        inside = lr_backbone is not None and name.startswith("backbone.")
        group = groups.setdefault((below, inside, still), {"params": []})
        group["params"].append(parameter)
        if still:
            group["weight_decay"] = 0.0
        if layer_decay is not None or lr_backbone is not None:
            share = lr_backbone if lr_backbone is not None and inside else 1.0
            group["lr"] = lr * share * (layer_decay or 1.0) ** below
    return [groups[key] for key in sorted(groups)]


def by_name(
    params: Iterable[Any],
    library: str,
    name: str,
    lr: float,
    weight_decay: float,
    kwargs: Mapping[str, Any] | None,
) -> Optimizer:
    """Any optimizer of a library.

    Args:
        params: parameters, or groups of them.
        library: ``timm`` (names of ``timm.optim.list_optimizers``, ``lookahead_`` before them
            if wanted) or ``torch`` (classes of ``torch.optim``).
        name: of the optimizer.
        lr: learning rate.
        weight_decay: as the optimizer understands it, decoupled or not.
        kwargs: its other settings, if any.

    Raises:
        UserError: for a name or a setting that does not exist, or a value that it refuses.
    """
    known = _timm(name) if library == "timm" else _torch(name)
    where = f"optimizer={library} optimizer.name={name}"
    taken = inspect.signature(known).parameters
    own = [key for key in taken if key not in OURS]
    for key in kwargs or {}:
        if key in OURS:
            raise UserError(
                "optimizer.kwargs",
                f"{where}: optimizer.kwargs.{key} has a key of its own, optimizer.{key}",
            )
        if key not in own:
            raise UserError(
                "optimizer.kwargs",
                f"{where} has no setting {key!r}{_mean(key, own)}",
                f"it has {', '.join(own)}",
            )
    given = {"lr": lr, **(kwargs or {})}
    if "weight_decay" in taken:
        given["weight_decay"] = weight_decay
    elif weight_decay:
        raise UserError(
            "optimizer.weight_decay",
            f"{where} knows no weight decay",
            "set optimizer.weight_decay=0",
        )
    try:
        if library == "timm":
            from timm.optim import create_optimizer_v2

            optimizer: Optimizer = create_optimizer_v2(params, opt=name, **given)
        else:
            optimizer = known(params, **given)
    except (TypeError, ValueError, ImportError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            "optimizer.kwargs", f"{where}: {reason}", "check optimizer.kwargs and its other keys"
        ) from error
    return optimizer


def scaled_lr(lr: float, batch: int, rule: str | None, reference: int) -> float:
    """A learning rate for another batch size; says in the log what it did.

    Args:
        lr: right for batches of ``reference`` samples.
        batch: samples an optimizer step, accumulation included.
        rule: ``linear`` (Goyal et al., 2017), ``sqrt`` (Krizhevsky, 2014), or null: as it is.
        reference: samples.
    """
    if rule is None:
        return lr
    share = batch / reference
    scaled = lr * (share if rule == "linear" else math.sqrt(share))
    log.info(
        "learning rate %.6g for batches of %d: %.6g for %d, scaled by scale_lr=%s",
        scaled,
        batch,
        lr,
        reference,
        rule,
    )
    return scaled


def _layers(network: nn.Module) -> dict[str, int]:
    """The layer of each parameter, from 0 at the input."""
    matcher = getattr(network, "group_matcher", None)
    if matcher is None:
        raise UserError(
            "layer_decay",
            "layer_decay: this model does not say what its layers are",
            "leave it out, or choose a network of timm or an rgbx model",
        )
    found: dict[str, int] = group_parameters(network, matcher(coarse=False), reverse=True)
    return found


def _spared(network: nn.Module) -> set[str]:
    """Parameters that timm would not let decay."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, part in network.named_modules()
        if callable(getattr(part, "no_weight_decay", None))
        for name in part.no_weight_decay()
    }


def _timm(name: str) -> Any:
    """The class behind a name of timm's."""
    from timm.optim import get_optimizer_info, list_optimizers

    names = list_optimizers()
    plain = name.removeprefix("lookahead_")
    if plain not in names:
        raise UserError(
            "optimizer", f"optimizer=timm has no {name!r}{_mean(plain, names)}", f"{_few(names)}"
        )
    info = get_optimizer_info(plain)
    if info.second_order:
        raise UserError(
            "optimizer.name",
            f"optimizer.name={name} needs second derivatives, which are not kept here",
        )
    if isinstance(info.opt_class, str):
        raise UserError(
            "optimizer.name",
            f"optimizer.name={name} needs {info.opt_class.partition('.')[0]}, which is not "
            "supported",
            "choose another",
        )
    return info.opt_class


def _torch(name: str) -> type[Optimizer]:
    """The class of that name in ``torch.optim``."""
    found = {
        key: value
        for key, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, Optimizer) and value is not Optimizer
    }
    for key in NOT_OURS:
        found.pop(key, None)
    if name not in found:
        raise UserError(
            "optimizer",
            f"optimizer=torch has no {name!r}{_mean(name, list(found))}",
            f"it has {', '.join(sorted(found))}",
        )
    return found[name]


def _mean(word: str, words: list[str]) -> str:
    """The nearest names, upper and lower case alike."""
    lower = {known.lower(): known for known in words}
    near = [lower[key] for key in difflib.get_close_matches(word.lower(), lower, 3)]
    return f"; did you mean {', '.join(near)}?" if near else ""


def _few(names: list[str]) -> str:
    return f"there are {len(names)}, such as adamw, lamb, lion, rmsproptf"
