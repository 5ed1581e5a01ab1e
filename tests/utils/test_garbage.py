from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

from research.utils import garbage


@pytest.fixture(autouse=True)
def frozen() -> Iterator[int]:
    yield gc.get_freeze_count()
    gc.unfreeze()


@pytest.fixture
def library() -> Iterator[None]:
    names = [f"library_{number}" for number in range(garbage.MANY)]
    yield
    for name in names:
        sys.modules.pop(name, None)


def test_nothing_is_collected_within() -> None:
    with garbage.paused():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_a_pause_within_a_pause_ends_with_the_outer_one() -> None:
    with garbage.paused():
        with garbage.paused():
            pass
        assert not gc.isenabled()


@pytest.mark.usefixtures("library")
def test_the_objects_of_a_library_are_ignored_later(frozen: int) -> None:
    with garbage.paused():
        for number in range(garbage.MANY):
            sys.modules[f"library_{number}"] = ModuleType("library")
    assert gc.get_freeze_count() > frozen


def test_what_a_run_leaves_can_be_freed(frozen: int) -> None:
    with garbage.paused():
        own: list[object] = []
        own.append(own)
    assert gc.get_freeze_count() == frozen
