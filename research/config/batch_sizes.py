"""The batch of each process: ``batch_size``, or its part of ``global_batch_size``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from research.utils.errors import UserError

Config = Mapping[str, Any]


def check_batch_size(config: Config, overrides: Sequence[str], processes: int = 1) -> None:
    """Check the batch of a new run before its folder is created.

    Args:
        config: resolved and checked.
        overrides: arguments of the command line. A ``batch_size`` that is not among them is
            a default, which ``global_batch_size`` replaces.
        processes: of the run.

    Raises:
        UserError: if ``global_batch_size`` does not divide by the number of processes, or if
            ``batch_size`` is another number.
    """
    whole, own = config["global_batch_size"], config["batch_size"]
    each = batch_size(config, processes)
    is_typed = any(text.startswith("batch_size=") for text in overrides)
    if is_typed and own not in (whole, each):
        where = f"each of {processes} processes" if processes > 1 else "one process"
        raise UserError(
            "batch_size",
            f"batch_size={own}, but global_batch_size={whole} gives {where} {each}",
            f"set global_batch_size={own * processes}, or leave batch_size out",
        )


def batch_size(config: Config, processes: int) -> int:
    """Samples of a batch of one process.

    Raises:
        UserError: if ``global_batch_size`` does not divide by the number of processes.
    """
    whole = config["global_batch_size"]
    if whole is None:
        own: int = config["batch_size"]
        return own
    if whole % processes:
        raise UserError(
            "global_batch_size",
            f"a batch of {whole} samples over all processes does not divide by {processes}",
            f"start a number of processes that divides {whole}",
        )
    return int(whole // processes)
