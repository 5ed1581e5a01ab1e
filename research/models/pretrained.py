"""Pretrained weights from timm, torchvision or a file, loaded by name and shape."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import timm
import torch
from torch import Tensor, nn
from torchvision import models

from research.utils.errors import UserError, one_line
from research.utils.weights import shape_text, state_dict

log = logging.getLogger(__name__)

KEY: Final = "model.pretrained"
TIMM: Final = "timm"
TORCHVISION: Final = "torchvision"
MAX_NAMES: Final = 3
"""How many tensors a log line names before it counts the rest."""


@dataclass(frozen=True)
class LoadResult:
    """What ``load_matching`` loaded.

    Attributes:
        tensors: (loaded, in the network).
        parameters: numbers in trainable parameters: (loaded, in the network).
        missing: tensors of the network that keep their initial values, with the reason.
        unused: tensors of the source without a counterpart in the network.
    """

    tensors: tuple[int, int]
    parameters: tuple[int, int]
    missing: dict[str, str]
    unused: list[str]

    def __str__(self) -> str:
        line = "loaded {} of {} tensors, {:,} of {:,} parameters".format(
            *self.tensors, *self.parameters
        )
        missing = [f"{name}: {reason}" for name, reason in self.missing.items()]
        line += f"; not loaded: {_shorten(missing)}" if missing else ""
        return line + (f"; unused: {_shorten(self.unused)}" if self.unused else "")

    def log(self, source: str) -> None:
        """Log this line; as a warning when less than half of the parameters were loaded."""
        loaded, total = self.parameters
        level = logging.INFO if 2 * loaded >= total else logging.WARNING
        log.log(level, "%s=%s: %s", KEY, source, self)


def load_pretrained(
    network: nn.Module, name: str, source: str | None, kwargs: Mapping[str, Any] | None = None
) -> None:
    """Load what fits by name and shape, and log what does not.

    Args:
        network: to load into. A classifier of another width and a stem for coefficients keep
            their initial values.
        name: timm's or torchvision's name of the network.
        source: ``None``; ``timm`` or ``torchvision`` (their weights of that name, downloaded on
            first use); or a file, see ``research.utils.weights.state_dict``.
        kwargs: more arguments of ``timm.create_model``, such as ``img_size``: timm resizes
            position embeddings while it loads.

    Raises:
        UserError: when there are no such weights or none of them fits.
    """
    if source is not None:
        load_matching(network, find_weights(name, source, kwargs or {})).log(source)


def find_weights(name: str, source: str, kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict of a source; arguments as for ``load_pretrained``.

    Raises:
        UserError: when there are no such weights.
    """
    if source == TIMM:
        known = timm.is_model(name.partition(".")[0]) and timm.models.is_model_pretrained(name)
        create = partial(timm.create_model, name, pretrained=True, **kwargs)
    elif source == TORCHVISION:
        known = name in models.list_models(module=models)
        create = partial(models.get_model, name, weights="DEFAULT")
    else:
        return state_dict(Path(source), KEY)
    if not known:
        raise UserError(KEY, f"{KEY}={source}: {source} has no weights of {name}", "use a file")
    return _download(source, name, create)


def _download(library: str, name: str, create: Callable[[], nn.Module]) -> dict[str, Tensor]:
    # Initial values that are overwritten must not advance the run's generator.
    with torch.random.fork_rng(devices=[]):
        try:
            return create().state_dict()
        except Exception as error:
            # Downloads fail in many ways; each library has exceptions of its own for them.
            raise UserError(
                KEY,
                f"{KEY}={library}: cannot get the weights of {name} ({one_line(error)})",
                "use a local file",
            ) from None


def load_matching(network: nn.Module, state: Mapping[str, Tensor]) -> LoadResult:
    """Load the tensors that fit by name and shape.

    A network behind a stem for coefficients (``backbone.`` before its names) takes the weights of
    the plain network, and the other way round.

    Raises:
        UserError: when no trainable parameter fits.
    """
    own = network.state_dict()
    matched: dict[str, Tensor] = {}
    missing = dict.fromkeys(own, "not in the source")
    unused = []
    for key, value in state.items():
        names = (key, f"backbone.{key}", key.removeprefix("backbone."))
        target = next((name for name in names if name in own), None)
        if target is None:
            unused.append(key)
        elif value.shape == own[target].shape:
            matched[target] = value
            missing.pop(target, None)
        else:
            missing[target] = f"{shape_text(value)} in the source, {shape_text(own[target])} here"
    sizes = {key: p.numel() for key, p in network.named_parameters()}
    loaded = sum(size for key, size in sizes.items() if key in matched)
    if not loaded:
        first = next(iter(state))
        raise UserError(
            KEY,
            f"{KEY}: none of the {len(state)} tensors there fits this network by name "
            f"and shape (the first is {first}, {shape_text(state[first])})",
            "use weights of the same architecture",
        )
    with torch.no_grad():
        network.load_state_dict(matched, strict=False)
    return LoadResult((len(matched), len(own)), (loaded, sum(sizes.values())), missing, unused)


def _shorten(entries: list[str]) -> str:
    more = len(entries) - MAX_NAMES
    return ", ".join(entries[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")
