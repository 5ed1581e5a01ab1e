"""Loads pretrained weights by name and shape; says what was loaded, what was not and why."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from hashlib import file_digest
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from research.models.conversions import converted
from research.models.weight_files import KEY, TIMM, WeightsFile, find_weights, setting_text
from research.utils.errors import UserError, one_line
from research.utils.weights import shape_text, state_dict

log = logging.getLogger(__name__)

MAX_NAMES: Final = 3
"""How many tensors a log line names before it counts the rest."""
COUNTER: Final = "num_batches_tracked"
"""Of batch norm; files of PyTorch's first versions lack it."""
MOST_LEFT: Final = 0.5
"""Fraction of the parameters, without classifier and input layers, that may be missing."""

_records: ContextVar[list[dict[str, Any]] | None] = ContextVar("weights", default=None)


@dataclass
class LoadResult:
    """A state dict compared with a network, by name and shape.

    Attributes:
        matched: what fits, by its name in the network.
        missing: tensors of the network that keep their initial values, with the reason; empty if
            the source does not have them.
        lacking: those of them that are neither of the classifier nor of the input layers.
        unused: tensors of the source without a counterpart in the network.
        conflicts: those of ``lacking`` that the source has in another shape or kind of number.
        tensors: (in ``matched``, in the network).
        parameters: numbers in trainable parameters: (in ``matched``, in the network).
        trunk: the same without classifier and input layers.
    """

    matched: dict[str, Tensor] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    lacking: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    conflicts: dict[str, str] = field(default_factory=dict)
    tensors: tuple[int, int] = (0, 0)
    parameters: tuple[int, int] = (0, 0)
    trunk: tuple[int, int] = (0, 0)

    @property
    def is_whole(self) -> bool:
        """Whether everything but the classifier and the input layers is there."""
        return not self.lacking

    def __str__(self) -> str:
        line = "loaded {} of {} tensors, {:,} of {:,} parameters".format(
            *self.tensors, *self.parameters
        )
        parts = {
            "not loaded": [f"{name}: {why}" for name, why in self.missing.items() if why],
            "not in the source": [name for name, why in self.missing.items() if not why],
            "unused": self.unused,
        }
        return line + "".join(f"; {word}: {_shorten(n)}" for word, n in parts.items() if n)


@contextmanager
def recorded() -> Iterator[list[dict[str, Any]]]:
    """Collects what is loaded in the block: an entry of plain values for each network."""
    records: list[dict[str, Any]] = []
    token = _records.set(records)
    try:
        yield records
    finally:
        _records.reset(token)


def load_pretrained(
    network: nn.Module,
    name: str,
    source: str | bool | None,
    default: str = TIMM,
    inputs: Sequence[str] = (),
) -> None:
    """Load what fits by name and shape, and log what does not.

    A classifier for other classes (what timm's ``get_classifier`` returns) keeps its initial
    values, and so do input layers that read something else.

    Args:
        network: to load into.
        name: timm's or torchvision's name of the network.
        source: ``None``, or one of the sources of ``weight_files.find_weights``.
        default: as for ``find_weights``.
        inputs: names of modules whose shapes depend on the input, such as a stem.

    Raises:
        UserError: if there are no such weights, or they do not fit.
    """
    if source is None:
        return
    file, where = find_weights(source, name, default), setting_text(source)
    result = load_matching(network, state_dict(file.path, KEY), where, inputs)
    report(result, where, file)


def load_matching(
    network: nn.Module, state: Mapping[str, Tensor], where: str = KEY, inputs: Sequence[str] = ()
) -> LoadResult:
    """Load what fits, see ``load_pretrained``.

    Args:
        network: to load into.
        state: of the same network, or of one that ``converted`` knows.
        where: the setting, for messages.
        inputs: as for ``load_pretrained``.

    Raises:
        UserError: if little of the network is there, or a shape differs elsewhere than in the
            classifier and the input layers.
    """
    result = compare(network, state, inputs)
    if not result.is_whole:
        result = _best(result, network, state, inputs, where)
    hint = "use weights of the same architecture"
    if not hasattr(network, "get_classifier"):
        hint += "; the classifier may differ in networks that have a method get_classifier"
    if not result.parameters[0]:
        first = next(iter(state))
        raise UserError(
            KEY,
            f"{where}: none of the {len(state)} tensors there fits this network by name "
            f"and shape (the first is {first}, {shape_text(state[first])})",
            hint,
        )
    if result.conflicts:
        conflicts = [f"{name}: {reason}" for name, reason in result.conflicts.items()]
        raise UserError(KEY, f"{where}: does not fit this network: {_shorten(conflicts)}", hint)
    if result.trunk[0] < MOST_LEFT * result.trunk[1]:
        raise UserError(KEY, f"{where}: fits too little of this network: {result}", hint)
    with torch.no_grad():
        network.load_state_dict(result.matched, strict=False)
    return result


def _best(
    result: LoadResult,
    network: nn.Module,
    state: Mapping[str, Tensor],
    inputs: Sequence[str],
    where: str,
) -> LoadResult:
    """The comparison after ``converted``, if more fits then."""
    bare = {key.removeprefix("backbone."): value for key, value in state.items()}
    try:
        again = compare(network, converted(network, bare), inputs)
    except UserError:
        raise
    except Exception as error:  # raised by timm, for weights of any kind
        log.debug("%s: not converted (%s)", where, one_line(error))
        return result
    better = again.trunk[0] > result.trunk[0] or (again.is_whole and not result.is_whole)
    return again if better else result


def compare(
    network: nn.Module, state: Mapping[str, Tensor], inputs: Sequence[str] = ()
) -> LoadResult:
    """Compare a state dict with a network.

    A network behind a stem for coefficients (``backbone.`` before its names) takes the weights of
    the plain network, and the other way round.
    """
    own = network.state_dict()
    classifier = classifier_tensors(network)
    free = classifier | {key for key in own if key.startswith(tuple(f"{n}." for n in inputs))}
    result = LoadResult(missing=dict.fromkeys(own, ""))
    for key, value in state.items():
        names = (key, f"backbone.{key}", key.removeprefix("backbone."))
        target = next((name for name in names if name in own), None)
        if target is None:
            result.unused.append(key)
        elif _fits(value, own[target], target):
            result.matched[target] = value
            result.missing.pop(target, None)
        else:
            reason = _difference(value, own[target])
            note = " (classifier)" if target in classifier else ""
            result.missing[target] = reason + note
            if target not in free:
                result.conflicts[target] = reason
    result.lacking = [k for k in result.missing if k not in free and not k.endswith(COUNTER)]
    sizes = {key: p.numel() for key, p in network.named_parameters()}
    trunk = {key: size for key, size in sizes.items() if key not in free}
    result.tensors = len(result.matched), len(own)
    result.parameters = _counted(sizes, result.matched)
    result.trunk = _counted(trunk, result.matched)
    return result


def classifier_tensors(network: nn.Module) -> set[str]:
    """Names of the tensors of the classifier, which depend on the number of classes.

    It is what ``get_classifier`` of the network returns, as of timm's: a module, or several. The
    auxiliary ones of VOLO are only in timm's configuration of the network.
    """
    found = getattr(network, "get_classifier", lambda: ())()
    modules = [id(part) for part in (found if isinstance(found, tuple | list) else (found,))]
    names = [name for name, module in network.named_modules() if name and id(module) in modules]
    auxiliary = getattr(network, "pretrained_cfg", {}).get("classifier") or ()
    names += [auxiliary] if isinstance(auxiliary, str) else auxiliary
    return {key for key in network.state_dict() if any(key.startswith(f"{n}.") for n in names)}


def report(result: LoadResult, where: str, file: WeightsFile, part: str = "") -> None:
    """Log what was loaded, as a warning if a part is missing, and add it to ``recorded``.

    Args:
        where: ``KEY=SOURCE`` of the setting.
        part: of the network, if not all of it was to be loaded.
    """
    name = f" ({file.name})" if file.name else ""
    level = logging.INFO if result.is_whole else logging.WARNING
    log.log(level, "%s%s: %s%s", where, name, f"{part}: " if part else "", result)
    records = _records.get()
    if records is not None:
        records.append(record(result, where, file, part))


def record(result: LoadResult, where: str, file: WeightsFile, part: str = "") -> dict[str, Any]:
    """Which weights they were and what was loaded, as plain values."""
    return {
        "setting": where,
        "name": file.name or file.path.name,
        "part": part,
        "origin": file.origin,
        "file": str(file.path),
        "sha256": sha256_of(file.path),
        "tensors": list(result.tensors),
        "parameters": list(result.parameters),
        "not_loaded": list(result.missing),
        "unused": len(result.unused),
    }


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _fits(value: Tensor, own: Tensor, name: str) -> bool:
    # Scripts that store weights in half precision may have converted the counters, too.
    same = value.dtype.is_floating_point == own.dtype.is_floating_point or name.endswith(COUNTER)
    return value.shape == own.shape and same and not value.is_complex()


def _difference(value: Tensor, own: Tensor) -> str:
    if value.shape != own.shape:
        return f"{shape_text(value)} in the source, {shape_text(own)} here"
    return f"{value.dtype} in the source, {own.dtype} here".replace("torch.", "")


def _counted(sizes: Mapping[str, int], matched: Mapping[str, Tensor]) -> tuple[int, int]:
    return sum(size for key, size in sizes.items() if key in matched), sum(sizes.values())


def _shorten(entries: list[str]) -> str:
    more = len(entries) - MAX_NAMES
    return ", ".join(entries[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")
