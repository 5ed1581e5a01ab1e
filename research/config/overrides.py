"""Settings as text: ``key=value`` overrides and command lines of ``train.py``."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from research.config.messages import format_value
from research.utils.installation import TRAIN
from research.utils.launch import train_prefix


def override(key: str, value: Any) -> str:
    """``key=value``, quoted if necessary so that Hydra parses the same value."""
    return f"{key}={_quoted(value)}"


def train_command(
    overrides: Sequence[str],
    settings: Mapping[str, Any] | None = None,
    *,
    multirun: bool = False,
    own: Path | None = None,
) -> str:
    """A command line of ``train.py``, launched as this process was, and quoted for the shell.

    Args:
        overrides: ``key=value`` each, as the user typed them.
        settings: more keys with their values.
        multirun: with ``-m``.
        own: folder of ``--config-dir``.
    """
    more = [override(key, value) for key, value in (settings or {}).items()]
    flags = [*["-m"] * multirun, *(["--config-dir", str(own)] if own is not None else [])]
    words = shlex.join([*flags, *overrides, *more])
    return f"{TRAIN if multirun else train_prefix()} {words}".rstrip()


def _quoted(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_quoted, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{_quoted(entry)}' for key, entry in value.items())}}}"
    if not isinstance(value, str):
        return repr(value) if isinstance(value, float) else format_value(value)
    plain = re.fullmatch(r"[A-Za-z_/][\w./@%+-]*", value)
    if plain and value.lower() not in ("null", "true", "false", "nan", "inf"):
        return value
    # Hydra keeps backslashes, except before a quote.
    escaped = re.sub(r"(\\*)('|\Z)", lambda match: match[1] * 2 + "\\'" * bool(match[2]), value)
    return f"'{escaped}'"
