"""What every command does first, ``train.py`` and ``python -m research.COMMAND`` alike."""

from __future__ import annotations

import os
import sys

from research.utils import bars, garbage, secrets
from research.utils.launch import process_prefix


def start() -> None:
    """Hide secrets, find the user's modules, show progress, and make the exit short."""
    secrets.hide_command_line()
    find_modules_here()
    if not process_prefix():  # of several processes, the main one shows it
        bars.show()
    garbage.freeze_at_exit()


def find_modules_here() -> None:
    """Let modules of the user's own be imported from the current folder, however this was started.

    It is the last place that is searched: a file there never stands for an installed module. With
    ``python -P`` it is not searched.
    """
    try:
        here = os.getcwd()
    except FileNotFoundError:
        return  # the folder was deleted
    if not sys.flags.safe_path and here not in sys.path:
        sys.path.append(here)
