"""Python's garbage collector, where its passes cost more than they free."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

MANY: Final = 100
"""Modules of a library that is worth the pass over its objects."""


@contextmanager
def paused() -> Iterator[None]:
    """Without collections, for imports: libraries create a million objects, and all of them stay.

    Each collection of the oldest generation would visit them all, a sixth of the time of
    ``import torch, timm``. When a library was imported, all objects by then are ignored later too:
    the first collection alone, directly after the pause, would take 0.2 s.
    """
    was_enabled, modules = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        # Not after every pause: in a process of many runs, what earlier ones left has to be freed.
        if len(sys.modules) - modules >= MANY:
            gc.freeze()
        if was_enabled:
            gc.enable()


def freeze_at_exit() -> None:
    """At its exit the interpreter collects several times; let it ignore all objects by then.

    The memory goes back to the system with the process. May be called more than once.
    """
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)
