"""Validates the counters and the history of a run that are read from a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from research.config.migrations import current_column
from research.config.rules import Rule, list_of, mapping_of, whole
from research.config.stored import SCALAR, Plain, record, refused
from research.utils.errors import UserError

STATE: Final[dict[str, Rule]] = {
    "epoch": whole(0),
    "step": whole(0),
    "samples": whole(0),
    "global_batch": whole(0),
    "epoch_losses": Rule("the losses of an epoch", lambda value: _is_losses(value)),
    "skips": whole(0),
    "best": Rule("a number, or null", lambda value: value is None or type(value) in (int, float)),
    "best_epoch": whole(0),
    "history": list_of(Rule("a row of an epoch", lambda row: _is_row(row))),
}
"""Counters and history of a run, see ``research.engine.state.TrainState``."""

ADDED: Final = {"samples": 0, "global_batch": 0, "epoch_losses": {}, "skips": 0}
"""Entries that checkpoints of earlier versions lack, and what they had instead."""


def _is_row(row: Any) -> bool:
    """Whether a row of a history is flat and has the columns that the summary needs."""
    if not mapping_of(SCALAR).is_valid(row):
        return False
    texts = {name for name, value in row.items() if isinstance(value, str)}
    numbers = all(type(row.get(name)) in (int, float) for name in ("epoch", "epoch_time_sec"))
    return numbers and texts <= {"checkpoint_path", "timestamp"}


def _is_losses(value: Any) -> bool:
    """Whether it is empty or the ``state_dict`` of a ``LossLog``."""
    if not isinstance(value, dict) or not value:
        return value == {}
    numbers = ("count", "learning_rate", "seconds")
    counted = value.get("n"), value.get("metrics", {})
    sums = mapping_of(Rule("a number", lambda entry: type(entry) in (int, float)))
    return (
        value.keys() - {"n", "metrics"} == {"sums", "skipped", *numbers}
        and (counted[0] is None or whole(0).is_valid(counted[0]))
        and mapping_of(Rule("a sum and a number", _is_pair)).is_valid(counted[1])
        and all(type(value[name]) in (int, float) for name in numbers)
        and sums.is_valid(value["sums"])
        and ("loss" in value["sums"] or not value["count"])
        and mapping_of(whole(0)).is_valid(value["skipped"])
    )


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and [type(each) in (int, float) for each in value] == [True] * 2


def state(document: Any, where: str) -> Plain:
    """Validate counters and history of a run from a file; columns get their current names.

    Raises:
        UserError: for an unknown or missing entry, or an invalid value.
    """
    if isinstance(document, Mapping):
        # Earlier checkpoints have ``batch``, always 0: they were written after an epoch.
        document = {name: value for name, value in document.items() if name != "batch"}
    found = {**ADDED, **record(document, STATE, where, "state")}
    for name in STATE:
        if name not in found:
            raise refused(UserError(name, f"no {name}"), where, "metadata have", "state")
    rows = [{current_column(k): v for k, v in row.items()} for row in found["history"]]
    losses = found["epoch_losses"]
    if losses:  # earlier checkpoints did not count the samples
        losses = {"n": None, "metrics": {}, **losses}
    return {**found, "history": rows, "epoch_losses": losses}
