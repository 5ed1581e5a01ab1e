"""How this project is installed: a checkout, or a copy among the packages of an environment."""

from __future__ import annotations

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
TRAIN: Final = "lab train" if IS_COPY else "python train.py"
"""The command that trains, as it is typed."""
TRAIN_FILE: Final = "-m research.train" if IS_COPY else "train.py"
"""The same for ``torchrun``."""
