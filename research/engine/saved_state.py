"""Checks of the parts of a checkpoint, before a run is resumed from it.

A checkpoint may be damaged, or somebody else's. What ``load_state_dict`` of optimizers, schedulers
and scalers would accept without a look is compared with what this run has itself: structure, shapes
and types must be the same. Settings stay those of this run; only what training changes is taken.
All functions raise ``ValueError`` for a part that does not fit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

MOST: Final = 2**53
"""Of a counter."""
MOST_TEXT: Final = 1000
"""Characters of a text of a tracker."""
Plain = dict[str, Any]


class OptimizerState:
    """The structure of an optimizer's ``state_dict``, found by a step with zero gradients.

    The step changes the parameters and the optimizer, so that both must be loaded afterwards.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.groups: list[Plain] = [dict(group) for group in optimizer.state_dict()["param_groups"]]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.after = optimizer.state_dict()
        self.shapes = [tuple(parameter.shape) for parameter in parameters]

    def restored(self, saved: Any) -> Plain:
        """The state to load: the state of ``saved`` and the settings of this optimizer."""
        if not isinstance(saved, Mapping) or saved.keys() != self.after.keys():
            raise ValueError("the optimizer has other parts")
        groups = saved["param_groups"]
        if not isinstance(groups, list) or len(groups) != len(self.groups):
            raise ValueError("the optimizer has other groups")
        for key in self.after.keys() - {"state", "param_groups"}:
            if not _same_structure(self.after[key], saved[key]):
                raise ValueError(f"{key} of the optimizer has another structure")
        numbers = zip(self.groups, self.after["param_groups"], groups, strict=True)
        return {
            **saved,
            "param_groups": [_group(*each) for each in numbers],
            "state": self._state(saved["state"]),
        }

    def _state(self, saved: Any) -> dict[int, Plain]:
        if not isinstance(saved, Mapping):
            raise ValueError("the optimizer has no state")
        for index, entry in saved.items():
            if type(index) is not int or not 0 <= index < len(self.shapes):
                raise ValueError(f"the optimizer has no parameter {str(index)[:20]}")
            if not isinstance(entry, Mapping):
                raise ValueError(f"no state of parameter {index}")
            own = self.after["state"].get(index, {})
            missing = own.keys() - entry.keys() if entry else set()
            if missing:
                raise ValueError(f"no {missing.pop()} of parameter {index}")
            for name, value in entry.items():
                # Lookahead has one more tensor after some steps.
                expected = own[name] if name in own else torch.empty(self.shapes[index])
                if not _is_like(value, expected, self.shapes[index]):
                    raise ValueError(f"{str(name)[:40]} of parameter {index} does not fit")
        return {index: self._laid_out(index, entry) for index, entry in saved.items()}

    def _laid_out(self, index: int, entry: Plain) -> Plain:
        """Tensors with the strides of this optimizer's: the run may have had another memory format,
        and fused kernels read tensors in the order of their memory.
        """
        own = self.after["state"].get(index, {})
        return {
            name: _with_strides(value, own[name]) if isinstance(own.get(name), Tensor) else value
            for name, value in entry.items()
        }


def _with_strides(value: Tensor, expected: Tensor) -> Tensor:
    if value.stride() == expected.stride():
        return value
    made = torch.empty_strided(expected.shape, expected.stride(), dtype=value.dtype)
    return made.copy_(value)


def _group(before: Plain, after: Plain, saved: Any) -> Plain:
    """The settings of a parameter group with the values that training changes."""
    if not isinstance(saved, Mapping) or saved.get("params") != before["params"]:
        raise ValueError("the optimizer has groups of other parameters")
    changing = {key for key in after if key not in before or after[key] != before[key]} | {"lr"}
    changed = {key: saved[key] for key in changing & saved.keys()}
    for key, value in changed.items():
        # LAMB has its step as a tensor.
        if not _same_structure(value, after[key]) or not is_number(float(value)):
            raise ValueError(f"{key} of the optimizer is not a number")
    return {**before, **changed}


def _is_like(value: Any, expected: Any, shape: tuple[int, ...]) -> bool:
    """Whether a value of the optimizer's state for a parameter of this shape is as expected."""
    if not isinstance(expected, Tensor):
        return _same_structure(value, expected)
    if not isinstance(value, Tensor) or value.shape != expected.shape:
        return False
    is_counter = expected.ndim == 0 and shape != ()
    return value.dtype == expected.dtype and (not is_counter or is_number(value.item()))


def _same_structure(one: Any, two: Any) -> bool:
    """Whether two values have the same keys, lengths, shapes and types; numbers must be valid."""
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        return one.keys() == two.keys() and all(_same_structure(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        return len(one) == len(two) and all(map(_same_structure, one, two))
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        return one.shape == two.shape and one.dtype == two.dtype
    return (is_number(one) and is_number(two)) or type(one) is type(two) is not float


def scheduler_steps(groups: int, saved: Any, step: int) -> int:
    """The steps that a scheduler had made.

    Args:
        groups: number of learning rates.
        saved: of the checkpoint.
        step: training batches of the checkpoint, at least the steps of the scheduler.
    """
    if not isinstance(saved, Mapping) or not is_count(saved.get("last_epoch"), most=step):
        raise ValueError("the scheduler has no position")
    rates = saved.get("_last_lr")
    if not isinstance(rates, list) or len(rates) != groups:
        raise ValueError("the scheduler has other learning rates")
    if not all(map(is_number, rates)):
        raise ValueError("the scheduler has no learning rates")
    steps: int = saved["last_epoch"]
    return steps


def scaler_state(own: Plain, saved: Any) -> Plain:
    """The state of this gradient scaler with the scale of ``saved``."""
    if not isinstance(saved, Mapping):
        raise ValueError("the scaler has no state")
    if not own:
        return own  # disabled
    if not is_number(saved.get("scale")) or not saved["scale"]:
        raise ValueError("the scaler has no scale")
    if not is_count(saved.get("_growth_tracker")):
        raise ValueError("the scaler has no counter")
    return {**own, **{key: saved[key] for key in ("scale", "_growth_tracker")}}


def counters(saved: Plain, samples: int, metric: str) -> Plain:
    """Counters and history, which ``stored_state`` has checked one by one, if they go together.

    Args:
        saved: of the checkpoint.
        samples: of an epoch of training, rounded up to whole batches.
        metric: name of the monitored metric.
    """
    epoch, history = saved["epoch"], saved["history"]
    if [row["epoch"] for row in history] != list(range(1, epoch + 1)):
        raise ValueError(f"the history has other rows than {epoch} epochs")
    if not all(type(row.get(metric)) in (int, float) for row in history):
        raise ValueError(f"the history has no {metric}")
    if saved["best_epoch"] > epoch or (saved["best"] is None) != (saved["best_epoch"] == 0):
        raise ValueError("the best epoch is none of these")
    if not epoch <= saved["step"] <= (epoch + 1) * samples:
        raise ValueError(f"{saved['step']} steps in {epoch} epochs")
    if saved["samples"] > samples:
        raise ValueError(f"sample {saved['samples']} in an epoch of {samples}")
    return saved


def tracking(saved: Any) -> dict[str, str]:
    """The state of the trackers."""
    texts = [*saved.keys(), *saved.values()] if isinstance(saved, Mapping) else [None]
    if not all(isinstance(text, str) and len(text) <= MOST_TEXT for text in texts):
        raise ValueError("the state of the trackers is not text")
    return dict(saved)


def is_number(value: Any) -> bool:
    """Whether it is a finite number of at least 0."""
    return type(value) in (int, float) and 0 <= value < math.inf and value < 2**1000


def is_count(value: Any, most: int = MOST) -> bool:
    return type(value) is int and 0 <= value <= most
