"""The keys of a node against the arguments of the class that it names. Imports no torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from inspect import Parameter
from typing import Any, Final, TypedDict

from research.utils.errors import UserError

POSITIONAL: Final = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
NAMED: Final = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)


class FilledIn(TypedDict):
    """Keys of a model that are filled in where its YAML has them as null.

    Attributes:
        num_classes: of the data set.
        max_boxes: box slots of a store.
        x_channels: channels in addition to RGB.
        feature_sizes: sizes of frozen features by name.
        image_size: side of the input in pixels.
        coefficients: ``StemSpec``; how the network reads them; None for pixels.
    """

    num_classes: int
    max_boxes: int | None
    x_channels: int | None
    feature_sizes: Mapping[str, int] | None
    image_size: int
    coefficients: object


@dataclass(frozen=True)
class Given:
    """Arguments that the program gives, in addition to the keys of the node.

    Attributes:
        names: of those given by name.
        count: of those given by position.
        is_all: whether there are no others, so that each without a default must be there; false for
            a node with ``_partial_: true`` that is called by code of the user.
    """

    names: tuple[str, ...] = ()
    count: int = 0
    is_all: bool = True


OF_NODES: Final[Mapping[str, Given]] = {
    "dataset": Given(("network",)),
    "task": Given(("classes",)),
    "optimizer": Given(count=1),  # groups of parameters
    "scheduler": Given(("epochs", "steps_per_epoch"), count=1),  # the optimizer
}
"""Of the nodes that ``build.experiment`` builds; others get the keys alone."""


def check(
    path: str,
    name: str,
    make: Callable[..., Any],
    keys: Collection[str],
    given: Given,
    file: str = "",
) -> None:
    """Check that a class or function takes the keys of its node, and gets what it requires.

    Args:
        path: dotted path of the node.
        name: of the class, as in ``_target_``.
        make: the class.
        keys: of the node, without ``_target_`` and ``_partial_``.
        given: by the program.
        file: in which the node is written, if it is known.

    Raises:
        UserError: with every key that it does not take, and every argument that is missing.
    """
    try:
        parameters = [*inspect.signature(make).parameters.values()]
    except (TypeError, ValueError):
        return  # of a class in C that does not say
    taken = {p.name for p in [p for p in parameters if p.kind in POSITIONAL][: given.count]}
    named = [p for p in parameters if p.kind in NAMED and p.name not in taken]
    takes_any = any(p.kind is Parameter.VAR_KEYWORD for p in parameters)
    known = {p.name for p in named}

    def is_wrong(key: str) -> bool:
        return key in taken or not (takes_any or key in known)

    surplus = [key for key in keys if is_wrong(key)]
    refused = [key for key in given.names if is_wrong(key) and key not in keys]
    missing = [
        p.name
        for p in named
        if given.is_all and p.default is Parameter.empty and p.name not in {*keys, *given.names}
    ]
    if not (surplus or refused or missing):
        return
    faults, remedies = [], []
    if surplus:
        no_such = "no such argument" if len(surplus) == 1 else "no such arguments"
        takes = ", ".join(p.name for p in named) or "none"
        faults.append(f"{_keys(path, surplus)}: {name}() has {no_such} (it takes {takes})")
        place = f" from {file}" if file else ""
        remedies.append(f"remove {', '.join(surplus)}{place}")
    if missing:
        faults.append(f"{_keys(path, missing)}: {name}() requires a value")
        filled_in = FilledIn.__annotations__ if path == "model" else {}
        values = ("null" if key in filled_in else "VALUE" for key in missing)
        pairs = zip(missing, values, strict=True)
        place = f" to {file}" if file else ""
        remedies.append(f"add {', '.join(f'{key}: {value}' for key, value in pairs)}{place}")
    if refused:
        faults.append(f"{path}: {name}() is called with {', '.join(refused)} as well")
        remedies.append(f"give it the argument {', '.join(refused)}")
    key = ".".join([path, *(surplus or missing)[:1]])
    raise UserError(key, "; ".join(faults), " and ".join(remedies))


def _keys(path: str, names: Collection[str]) -> str:
    return ", ".join(f"{path}.{name}" for name in names)
