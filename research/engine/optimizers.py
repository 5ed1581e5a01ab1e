"""Optimizers of timm and torch by name, and their learning rates.

``parameter_groups`` sets the learning rate and weight decay of each layer, ``scaled_lr`` scales the
learning rate to the batch size.
"""

from __future__ import annotations

import difflib
import inspect
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final

import torch
from torch import nn
from torch.optim import Optimizer

from research.utils.errors import UserError

log = logging.getLogger(__name__)

OWN_KEYS: Final = ("params", "lr", "weight_decay")
"""Arguments that are not set by ``optimizer.kwargs``."""
UNSUPPORTED: Final = ("LBFGS", "SparseAdam")
"""Of torch: LBFGS needs a closure, SparseAdam sparse gradients."""
FUSED: Final = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad)
"""Classes whose ``fused`` kernels update all parameters in one pass, on a CPU and on CUDA. Others
of torch and timm make one pass for each operation on CUDA (``foreach``)."""
OTHER_KERNELS: Final = {"fused", "foreach", "differentiable", "capturable", "dampening"}
"""Arguments with which ``fused`` is not chosen; with ``dampening`` the first step is another."""


def parameter_groups(
    network: nn.Module,
    decay_norms: bool,
    layer_decay: float | None,
    lr_backbone: float | None,
    lr: float,
) -> list[dict[str, Any]]:
    """Groups of the trainable parameters for an optimizer, those of the head first.

    Args:
        network: the network.
        decay_norms: whether every parameter has weight decay. Otherwise norms, biases (parameters
            of at most one dimension, and every ``bias``) and the parameters of timm's
            ``no_weight_decay``, such as position embeddings, have none.
        layer_decay: factor of the learning rate from each layer to the one below it (Clark et
            al., 2020, §A; Bao et al., 2021); None: all layers at ``lr``. The layers are those of
            the network's ``group_matcher``, as in timm.
        lr_backbone: factor of the learning rate of ``network.backbone``; None: 1.
        lr: learning rate of the head.

    Raises:
        UserError: if the network has no ``group_matcher`` or no ``backbone``.
    """
    if lr_backbone is not None and not hasattr(network, "backbone"):
        raise UserError(
            "lr_backbone",
            "lr_backbone: this model has no backbone of its own",
            "remove it, or choose a siamese model",
        )
    layers = _layers(network) if layer_decay is not None else {}
    top = max(layers.values(), default=0)
    excluded = set() if decay_norms else _no_weight_decay(network)
    groups: dict[tuple[int, bool, bool], dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        depth = top - layers.get(name, top)  # layers between it and the head
        no_decay = not decay_norms and (
            parameter.ndim <= 1 or name.rpartition(".")[2] == "bias" or name in excluded
        )
        in_backbone = lr_backbone is not None and name.startswith("backbone.")
        group = groups.setdefault((depth, in_backbone, no_decay), {"params": []})
        group["params"].append(parameter)
        if no_decay:
            group["weight_decay"] = 0.0
        if layer_decay is not None or lr_backbone is not None:
            scale = lr_backbone if lr_backbone is not None and in_backbone else 1.0
            group["lr"] = lr * scale * (layer_decay or 1.0) ** depth
    return [groups[key] for key in sorted(groups)]


def created(make: Callable[..., Optimizer], groups: list[dict[str, Any]]) -> Optimizer:
    """Create the optimizer of a configuration; a fused one if torch has it, see ``FUSED``.

    Args:
        make: called with ``groups``: ``by_name``, or a class with its arguments.
        groups: from ``parameter_groups``.
    """
    arguments = {}
    if isinstance(make, partial) and isinstance(make.func, type):
        arguments = _fused(make.func, make.keywords, groups)
    optimizer = make(groups, **arguments)
    if optimizer.defaults.get("fused") and optimizer.defaults.get("momentum"):
        optimizer.register_step_pre_hook(_start_momentum)
    return optimizer


def _fused(
    optimizer_class: type[Optimizer], arguments: Mapping[str, Any], params: Iterable[Any]
) -> dict[str, bool]:
    """``fused=True`` for a class of ``FUSED`` on parameters that its kernel can update."""
    if optimizer_class not in FUSED or arguments.keys() & OTHER_KERNELS:
        return {}
    tensors = [p for each in params for p in (each["params"] if isinstance(each, dict) else [each])]
    supported = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in tensors)
    return {"fused": True} if supported else {}


def _start_momentum(optimizer: Optimizer, *_: Any) -> None:
    """Set the momentum of parameters that have none to zero, before a step of fused SGD.

    Without it, the kernel refuses parameters of which only some have a momentum (of those without
    gradients in the first step), and keeps uninitialised memory after a first step that the
    gradient scaler skips. A step from zero is the same as a first step.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None and "momentum_buffer" not in optimizer.state[parameter]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def by_name(
    params: Iterable[Any],
    library: str,
    name: str,
    lr: float,
    weight_decay: float,
    kwargs: Mapping[str, Any] | None,
) -> Optimizer:
    """Create an optimizer of a library.

    Args:
        params: parameters or parameter groups.
        library: ``timm`` (names of ``timm.optim.list_optimizers``, optionally with the prefix
            ``lookahead_``) or ``torch`` (classes of ``torch.optim``).
        name: name of the optimizer.
        lr: learning rate.
        weight_decay: decoupled or not, depending on the optimizer.
        kwargs: its other arguments, or None.

    Raises:
        UserError: for a name or an argument that does not exist, or an invalid value.
    """
    optimizer_class = _timm(name) if library == "timm" else _torch(name)
    where = f"optimizer={library} optimizer.name={name}"
    parameters = inspect.signature(optimizer_class).parameters
    own = [key for key in parameters if key not in OWN_KEYS]
    for key in kwargs or {}:
        if key in OWN_KEYS:
            raise UserError(
                "optimizer.kwargs",
                f"{where}: optimizer.kwargs.{key} has its own key",
                f"set optimizer.{key}",
            )
        if key not in own:
            raise UserError(
                "optimizer.kwargs",
                f"{where} has no argument {key!r}{_suggestion(key, own)}",
                f"it has {', '.join(own)}",
            )
    params = [*params]
    arguments = {"lr": lr, **(kwargs or {})}
    if "weight_decay" in parameters:
        arguments["weight_decay"] = weight_decay
    elif weight_decay:
        raise UserError(
            "optimizer.weight_decay",
            f"{where} has no weight decay",
            "set optimizer.weight_decay=0",
        )
    if not name.startswith("lookahead_"):
        arguments |= _fused(optimizer_class, arguments, params)
    try:
        if library == "timm":
            from timm.optim import create_optimizer_v2

            optimizer: Optimizer = create_optimizer_v2(params, opt=name, **arguments)
        else:
            optimizer = optimizer_class(params, **arguments)
    except (TypeError, ValueError, ImportError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            "optimizer.kwargs", f"{where}: {reason}", "check optimizer.kwargs and its other keys"
        ) from error
    return optimizer


def scaled_lr(lr: float, batch: int, rule: str | None, reference: int) -> float:
    """The learning rate scaled to the batch size; logs the result.

    Args:
        lr: learning rate for batches of ``reference`` samples.
        batch: samples per optimizer step, including accumulation.
        rule: ``linear`` (Goyal et al., 2017), ``sqrt`` (Krizhevsky, 2014), or None: not scaled.
        reference: samples per optimizer step that ``lr`` is for.
    """
    if rule is None:
        return lr
    ratio = batch / reference
    scaled = lr * (ratio if rule == "linear" else math.sqrt(ratio))
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
    """The index of each parameter's layer, from 0 at the input."""
    matcher = getattr(network, "group_matcher", None)
    if matcher is None:
        raise UserError(
            "layer_decay",
            "layer_decay: this model does not define its layers",
            "remove it, or choose a network of timm or an rgbx model",
        )
    from timm.models import group_parameters

    layers: dict[str, int] = group_parameters(network, matcher(coarse=False), reverse=True)
    return layers


def _no_weight_decay(network: nn.Module) -> set[str]:
    """Names of the parameters in ``no_weight_decay()`` of any submodule."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in network.named_modules()
        if callable(getattr(module, "no_weight_decay", None))
        for name in module.no_weight_decay()
    }


def _timm(name: str) -> Any:
    """The class of an optimizer of timm."""
    from timm.optim import get_optimizer_info, list_optimizers

    names = list_optimizers()
    plain = name.removeprefix("lookahead_")
    if plain not in names:
        raise UserError(
            "optimizer.name",
            f"optimizer=timm has no {name!r}{_suggestion(plain, names)}",
            f"there are {len(names)}, such as adamw, lamb, lion, rmsproptf",
        )
    info = get_optimizer_info(plain)
    if info.second_order:
        raise UserError(
            "optimizer.name",
            f"optimizer.name={name} needs second derivatives, which are not computed here",
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
    """The class of an optimizer of ``torch.optim``."""
    classes = {
        key: value
        for key, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, Optimizer) and value is not Optimizer
    }
    for key in UNSUPPORTED:
        classes.pop(key, None)
    if name not in classes:
        raise UserError(
            "optimizer.name",
            f"optimizer=torch has no {name!r}{_suggestion(name, list(classes))}",
            f"it has {', '.join(sorted(classes))}",
        )
    return classes[name]


def _suggestion(word: str, words: list[str]) -> str:
    """The nearest names, regardless of case."""
    lower = {known.lower(): known for known in words}
    near = [lower[key] for key in difflib.get_close_matches(word.lower(), lower, 3)]
    return f"; did you mean {', '.join(near)}?" if near else ""
