"""Settings as text: ``key=value`` overrides and command lines of ``train.py``."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from research.config.messages import quoted
from research.utils.installation import TRAIN
from research.utils.launch import torchrun, train_prefix


def override(key: str, value: Any) -> str:
    """``key=value``, quoted if necessary so that Hydra parses the same value."""
    return f"{key}={quoted(value)}"


def train_command(
    overrides: Sequence[str],
    settings: Mapping[str, Any] | None = None,
    *,
    multirun: bool = False,
    own: Path | None = None,
    processes: int | None = None,
) -> str:
    """A command line of ``train.py``, quoted for the shell.

    Args:
        overrides: ``key=value`` each, as the user typed them.
        settings: more keys with their values.
        multirun: with ``-m``.
        own: folder of ``--config-dir``.
        processes: number of processes; None: launched as this process was.
    """
    more = [override(key, value) for key, value in (settings or {}).items()]
    flags = [*["-m"] * multirun, *(["--config-dir", str(own)] if own is not None else [])]
    words = shlex.join([*flags, *overrides, *more])
    if multirun or processes == 1:
        prefix = TRAIN
    else:
        prefix = train_prefix() if processes is None else torchrun(processes)
    return f"{prefix} {words}".rstrip()
