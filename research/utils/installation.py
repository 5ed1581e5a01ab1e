"""How this project is installed: a checkout, or a copy among the packages of an environment."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Final

VERSION = "0.12.0"
"""Of this project, written nowhere else: ``pyproject.toml`` reads it."""
NAME: Final = "backbone-lab"
PACKAGE: Final = Path(__file__).resolve().parents[1]
IS_COPY: Final = (PACKAGE / "conf").is_dir()
"""Whether the package contains ``conf/`` and ``train.py``; in a checkout they lie beside it."""
HOME: Final = PACKAGE if IS_COPY else PACKAGE.parent
CONF: Final = HOME / "conf"


def is_here(name: str) -> bool:
    """Whether a path from ``HOME`` leads to the same from the current folder."""
    try:
        return Path(name).samefile(HOME / name)
    except OSError:  # not there, or the folder was deleted
        return False


def _train_file() -> str:
    """``train.py`` of a checkout, as it can be typed here; as it was typed, if this process was
    started by it.
    """
    if Path(sys.argv[0]).resolve() == HOME / "train.py":
        return shlex.quote(sys.argv[0])
    return "train.py" if is_here("train.py") else shlex.quote(str(HOME / "train.py"))


BY_LAB: Final = Path(sys.argv[0]).stem == "lab"
"""Whether the console script ``lab`` started this process."""
TRAIN: Final = "lab train" if IS_COPY or BY_LAB else f"python {_train_file()}"
"""The command that trains, as it is typed."""
TRAIN_FILE: Final = "-m research.train" if IS_COPY else _train_file()
"""The same for ``torchrun``."""
