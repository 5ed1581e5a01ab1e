"""Files that are found damaged while samples are read: each is named once, the first ones."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from research.data.listing import MAX_LOGGED, LeftOutFiles
from research.data.loader import EpochLoader, SampleKey
from research.engine import build
from tests.conftest import prepared
from tests.data.pairs.test_source import write_photos

Compose = Callable[..., dict[str, Any]]
CPU = torch.device("cpu")
KINDS = {
    "pixels": (),
    "coefficients": ("model=resnet34_compressed", "compression.source=bitstream"),
    "blocks": (
        "model=resnet34_compressed", "compression=block_stem", "compression.source=bitstream",
        "dataset.stored_size=64",
    ),
    "pairs": ("model=siamese_e2e", "dataset=phototriage", "dataset.root=photos"),
}  # fmt: skip


def cut(folder: Path, count: int) -> set[str]:
    """Cut the first files of a folder short, so that only reading all of each shows it."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() == ".jpg")[:count]
    for file in files:
        file.write_bytes(file.read_bytes()[:-40])
    return {str(file) for file in files}


@pytest.fixture
def source(small: Compose, tmp_path: Path) -> Callable[..., tuple[Any, dict[str, Any], set[str]]]:
    """Makes the data of one of ``KINDS``, with so many damaged files in training."""

    def make(kind: str, damaged: int) -> tuple[Any, dict[str, Any], set[str]]:
        if kind == "pairs":
            write_photos(tmp_path / "photos")
        words = [word.replace("=photos", f"={tmp_path / 'photos'}") for word in KINDS[kind]]
        names = cut(tmp_path / ("photos" if kind == "pairs" else "data/train"), damaged)
        config = small(*words) if kind != "pairs" else composed_pairs(words, tmp_path)
        return prepared(config), config, names

    return make


def composed_pairs(words: list[str], folder: Path) -> dict[str, Any]:
    from research.config import compose_config, resolved

    more = ["dataset.image_size=32", f"dataset.cache_dir={folder / 'cache'}", "batch_size=8"]
    return resolved(compose_config([*words, *more, "device=cpu", "logging=csv"])[0])


def named(records: list[logging.LogRecord]) -> Iterator[str]:
    for record in records:
        if (text := record.getMessage()).startswith("left out: "):
            yield text.removeprefix("left out: ")


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_batch_names_the_files_that_it_lacks(source: Callable[..., Any], kind: str) -> None:
    data, _, names = source(kind, 3)
    samples = data.dataset("train", seed=0, train=True, device=CPU)
    batch = samples.__getitems__([SampleKey(1, index) for index in range(len(samples))])
    assert {*batch.left_out} == names
    assert {f"left_out/{found}" for found in batch.left_out.values()} == {*batch.skipped}
    assert batch.map(torch.clone).left_out == batch.left_out


@pytest.mark.parametrize("workers", [0, 2])
def test_each_file_is_named_once_in_a_run(
    source: Callable[..., Any], caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    data, config, names = source("pixels", 3)
    loaders = [build.loader({**config, "workers": workers}, data, "train", CPU, train=True),
               build.loader(config, data, "train", CPU, train=False)]  # fmt: skip
    for loader in loaders:
        for epoch in (1, 2):
            list(loader.epoch(epoch))
    assert sorted(named(caplog.records)) == sorted(f"{name}: truncated" for name in names)


@pytest.mark.parametrize("found", [0, 1, MAX_LOGGED, MAX_LOGGED + 1, 3 * MAX_LOGGED])
def test_so_many_are_named_and_the_others_mentioned(
    caplog: pytest.LogCaptureFixture, found: int
) -> None:
    left_out = LeftOutFiles()
    for file in range(found):
        for _ in range(2):
            left_out.log({f"{file}.jpg": "value_range"})
    lines = list(named(caplog.records))
    assert lines[:MAX_LOGGED] == [f"{n}.jpg: value range" for n in range(min(found, MAX_LOGGED))]
    assert lines[MAX_LOGGED:] == ["… and more; they are counted"] * (found > MAX_LOGGED)


def test_a_loader_that_is_no_pass_of_a_run_names_none(
    source: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    data, _, names = source("pixels", 3)
    samples = data.dataset("train", seed=0, train=False, device=CPU)
    batches = list(EpochLoader(samples, 8, seed=0, train=False).epoch(0))
    assert {name for batch in batches for name in batch.left_out} == names
    assert list(named(caplog.records)) == []
