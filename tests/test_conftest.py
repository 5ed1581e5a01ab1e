from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import GOLDEN, unlike


def test_torch_keeps_to_the_threads_that_test_processes_are_given() -> None:
    assert torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"])


FILES = sorted(GOLDEN.rglob("*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(GOLDEN)))
def test_golden_files_notice_every_change(path: Path) -> None:
    """A number by a little, a word, an entry that is gone or new: one line each."""
    kept = json.loads(path.read_text())
    assert not list(unlike(kept, kept, 1e-5))
    places = list(leaves(kept, ()))
    for place in places[:: max(1, len(places) // 40)]:
        found = json.loads(path.read_text())
        *above, last = place
        node = reduce(getitem, above, found)
        was = node[last]
        node[last] = 1.00002 * was if type(was) is float and abs(was) > 0 else "other"
        assert len(list(unlike(kept, found, 1e-5))) == 1
        if isinstance(node, dict):
            del node[last]
            assert [line.endswith(": gone") for line in unlike(kept, found, 1e-5)] == [True]
            assert [line.endswith(": new") for line in unlike(found, kept, 1e-5)] == [True]


def leaves(node: Any, place: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    children = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in children:
        if isinstance(value, dict | list) and value:
            yield from leaves(value, (*place, key))
        else:
            yield (*place, key)
