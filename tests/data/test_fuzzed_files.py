"""Changed files of data sets end in one line, soon, and in little memory; or they are read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from research.data import cifar_files
from research.utils.errors import UserError
from tests import fuzz, fuzz_data
from tests.fuzz_data import PARSERS, harmful_archive, harmful_pickle

FEW = 100
"""Changed files of each parser in every run of the tests."""


@pytest.mark.parametrize("parser", PARSERS)
def test_a_hundred_changed_files(
    parser: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fuzz_data.Jpeg, "first", 1.0)  # the others take half a second
    monkeypatch.setattr(fuzz_data.Frozen, "first", 1.0)
    made = PARSERS[parser](tmp_path)
    first = next(iter(made.readers().values()))
    made.write(made.tree)
    usual = fuzz.judged(first, 30).seconds
    failed = []
    for seed, rng in fuzz.seeds(0, FEW):
        name, read = made.case(rng)
        verdict = fuzz.judged(read, usual)
        if verdict.failed:
            failed.append((seed, name, verdict))
    assert not failed, "\n".join(map(str, failed))


@pytest.mark.whole
@pytest.mark.parametrize("parser", PARSERS)
def test_ten_thousand_changed_files(parser: str) -> None:
    last, failed = fuzz.run("tests.fuzz_data", parser, "0", "10000")
    print(parser, last)
    assert not failed, failed
    assert last["inputs"] == 10_000
    assert last["memory"] < 512


# -- inputs on which a parser failed --------------------------------------------------------------


def seed_of(parser: str, name: str, content: bytes) -> Callable[[fuzz_data.Parser], object]:
    return lambda made: Path("source", name).write_bytes(content)
