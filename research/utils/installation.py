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


def _train_file() -> str:
    """``train.py`` of a checkout, as it was typed if this process was started by it."""
    typed = Path(sys.argv[0])
    return shlex.quote(sys.argv[0]) if typed.resolve() == HOME / "train.py" else "train.py"


BY_LAB: Final = Path(sys.argv[0]).stem == "lab"
"""Whether the console script ``lab`` started this process."""
TRAIN: Final = "lab train" if IS_COPY or BY_LAB else f"python {_train_file()}"
"""The command that trains, as it is typed."""
TRAIN_FILE: Final = "-m research.train" if IS_COPY else _train_file()
"""The same for ``torchrun``."""
