"""Python's garbage collector, where its passes cost more than they free."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused() -> Iterator[None]:
    """Without collections, for imports: libraries create a million objects, and all of them stay.

    Each collection of the oldest generation would visit them all, a sixth of the time of
    ``import torch, timm``.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def freeze_at_exit() -> None:
    """At its exit the interpreter collects several times; let it ignore all objects by then.

    The memory goes back to the system with the process. May be called more than once.
    """
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)
