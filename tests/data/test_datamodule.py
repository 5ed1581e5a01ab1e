"""What all data sets have from their base."""

from __future__ import annotations

import inspect
import re
from functools import partial
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from research.config.options import option_node, options
from research.data.datamodule import Common, DataModule
from research.data.splits import evenly_spaced, split_named
from tests.conftest import arguments, user_error

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("option", options("dataset"))
def test_the_keys_of_the_yaml_are_the_arguments(option: str) -> None:
    node = option_node("dataset", option)
    target = resolve_name(node.pop("_target_"))
    assert issubclass(target, DataModule)
    assert {*node, "network"} == arguments(target)
    own = inspect.signature(target.__init__).parameters
    assert not own.keys() & Common.__annotations__.keys()


@pytest.mark.parametrize(
    ("device", "workers", "pin_memory", "expected"),
    [
        (CPU, None, None, (0, False)),
        (CPU, 2, None, (2, False)),
        (GPU, 0, None, (0, True)),
        (GPU, 3, False, (3, False)),
    ],
)
def test_loading_is_chosen_by_device(
    device: torch.device, workers: int | None, pin_memory: bool | None, expected: Any
) -> None:
    data: Any = SimpleNamespace()
    assert DataModule.loading(data, device, workers, pin_memory) == expected
    assert DataModule.loading(data, GPU, None, None)[0] > 0


@given(st.dictionaries(st.sampled_from(["train", "val", "test"]), st.lists(st.integers(0, 4))))
def test_a_split_is_remarked_if_it_lacks_a_class(labels: dict[str, list[int]]) -> None:
    data: Any = SimpleNamespace(classes=list("abcde"), labelled="box", remarks=[])
    data.remark = partial(DataModule.remark, data)
    found = {split: np.array(own, np.int64) for split, own in labels.items()}
    DataModule.remark_missing_classes(data, found)
    expected = {split: set("abcde") - {"abcde"[n] for n in own} for split, own in labels.items()}
    assert [line.split()[0] for line in data.remarks] == [s for s in expected if expected[s]]
    for line in data.remarks:
        missing = expected[line.split()[0]]
        assert f"has no box of {len(missing)} of 5 classes" in line
        named = set(re.findall(r"'(.)'", line))
        assert named <= missing
        assert len(named) == min(3, len(missing))


@given(st.integers(0, 40), st.one_of(st.none(), st.integers(1, 50)))
def test_evenly_spaced(count: int, limit: int | None) -> None:
    found = evenly_spaced(count, limit).tolist()
    assert len(found) == min(count, count if limit is None else limit)
    assert found == sorted(set(found))
    if len(found) > 1:
        assert (found[0], found[-1]) == (0, count - 1)
        assert np.ptp(np.diff(found)) <= 1


def test_a_split_that_there_is_not() -> None:
    splits = {"train": [1], "val": [2]}
    assert split_named(splits, "val", "here", "add one") == [2]
    with user_error("split", "split=test: here has train, val", "add one"):
        split_named(splits, "test", "here", "add one")
    with user_error("split", "split=best: here has train, val") as caught:
        split_named(splits, "best", "here", "add one")
    assert "add one" not in str(caught.value)
