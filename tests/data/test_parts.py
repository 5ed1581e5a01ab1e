"""Every data set, read by several processes: the order of one; parts without samples."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from research.batch import Batch
from research.compression.blocks import Blocks
from research.config import compose_config
from research.data.loader import EpochLoader, ProcessShard, SampleKey
from tests.conftest import prepared
from tests.golden.configurations import DATA, GOLDEN, PICTURES, overrides

STORED = "a store on the device"
FILES = "files of a stored size"
CONFIGURATIONS = {
    **{name: tuple(overrides(name)) for name in GOLDEN},
    STORED: (*overrides("dct_from_store"), "dataset.on_device=true"),
    FILES: (
        *overrides("dct_from_bitstream"), *PICTURES, "dataset.stored_size=48",
    ),
}  # fmt: skip
SOURCES = (
    "rgb", "dct_from_bitstream", "dct_from_store", STORED, FILES, "bigdet", "rgbx",
    "ranking_frozen", "ranking",
)  # fmt: skip
"""One configuration for each class that reads samples."""
CPU = torch.device("cpu")


def source_of(name: str, *words: str) -> Any:
    data = prepared(compose_config([*CONFIGURATIONS[name], *words]).config)
    return data.dataset("train", seed=3, train=True, device=CPU)


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("data", "stores"):
        (tmp_path / name).symlink_to(DATA / name)


def shapes(batch: Batch) -> dict[str, Any]:
    """Type and shape of a sample, by field."""
    found = {}
    for field in fields(batch):
        value = getattr(batch, field.name)
        for part in value if isinstance(value, Blocks) else (value,):
            if isinstance(part, torch.Tensor):
                found[f"{field.name}{len(found)}"] = part.dtype, part.shape[1:]
    return found


@pytest.mark.parametrize("name", SOURCES)
def test_a_part_without_samples(name: str) -> None:
    source = source_of(name)
    empty, one = source.__getitems__([]), source.__getitems__([SampleKey(1, 0)])
    assert len(empty) == 0
    assert not empty.skipped
    slots = ("boxes1", "mask2", "labels3", "boxes2", "mask3", "labels4")  # as many as boxes
    assert {k: v for k, v in shapes(empty).items() if k not in slots or name != "rgbx"} == {
        k: v for k, v in shapes(one).items() if k not in slots or name != "rgbx"
    }


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.long)])
def test_the_loader_asks_no_source_for_nothing(workers: int) -> None:
    class Source:
        skipped: ClassVar[dict[str, int]] = {}

        def __len__(self) -> int:
            return 2

        def __getitems__(self, keys: list[SampleKey]) -> Batch:
            return Batch(torch.tensor([keys[0].index]), torch.zeros(len(keys), 3))

    found = []
    for rank in range(3):
        shard = ProcessShard(rank, 3)
        loader = EpochLoader(Source(), 4, seed=0, train=True, workers=workers, shard=shard)
        found.append([len(batch) for batch in loader.epoch(1)])
    assert found == [[1], [1], [0]]


class Repeated:
    """A split of 101 samples: those of ``source``, again and again."""

    def __init__(self, source: Any) -> None:
        self.source = source
        self.skipped = source.skipped

    def __len__(self) -> int:
        return 101

    def __getitems__(self, keys: list[SampleKey]) -> Batch:
        count = len(self.source)
        batch: Batch = self.source.__getitems__([SampleKey(k.epoch, k.index % count) for k in keys])
        batch.index = torch.tensor([key.index for key in keys])
        return batch


@pytest.mark.whole
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_two_epochs_have_the_samples_of_one_process(name: str, workers: int) -> None:
    source = Repeated(source_of(name))

    def seen(batch: int, shard: ProcessShard) -> list[list[int]]:
        loader = EpochLoader(source, batch, seed=3, train=True, workers=workers, shard=shard)
        batches = [batch for epoch in (1, 2) for batch in loader.epoch(epoch)]
        return [batch.index.tolist() for batch in batches]

    alone = seen(12, ProcessShard())
    assert [len(batch) for batch in alone] == [12] * 16
    for processes in (2, 3):
        parts = [seen(12 // processes, ProcessShard(rank, processes)) for rank in range(processes)]
        joined = [[i for part in step for i in part] for step in zip(*parts, strict=True)]
        assert joined == alone
