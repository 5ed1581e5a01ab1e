from __future__ import annotations

import contextlib
import itertools
import os
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from research.batch import Batch
from research.data.loader import EpochLoader, EpochSampler, ProcessShard, SampleKey
from tests.conftest import user_error


class Numbers:
    """A dataset that returns the requested indices and random numbers of (epoch, index)."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.skipped = {"empty": 2}
        self.groups: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, keys: list[SampleKey]) -> Batch:
        draws = [
            np.random.default_rng((key.epoch, key.index)).integers(1 << 20, size=2) for key in keys
        ]
        index = torch.tensor([key.index for key in keys])
        return Batch(torch.cat([index[:, None], torch.tensor(np.array(draws))], dim=1), None)


def loader(
    count: int, batch_size: int, *, train: bool, seed: int = 0, workers: int = 0
) -> EpochLoader:
    return EpochLoader(Numbers(count), batch_size, seed=seed, train=train, workers=workers)


def epoch(loader: EpochLoader, number: int) -> list[list[list[int]]]:
    return [batch.index.tolist() for batch in loader.epoch(number)]


def indices(loader: EpochLoader, number: int) -> list[int]:
    return [sample[0] for batch in epoch(loader, number) for sample in batch]


def test_validation_sees_everything_in_order() -> None:
    batches = loader(10, 4, train=False)
    assert len(batches) == 3
    assert indices(batches, 0) == list(range(10))
    assert [len(batch) for batch in epoch(batches, 0)] == [4, 4, 2]


def test_training_shuffles_by_seed_and_epoch_alone() -> None:
    one, two = loader(40, 8, train=True), loader(40, 8, train=True)
    list(one.epoch(0))
    assert epoch(one, 3) == epoch(two, 3)
    assert epoch(one, 3) == epoch(one, 3)
    assert sorted(indices(one, 3)) == list(range(40)) != indices(one, 3)
    assert indices(one, 3) != indices(one, 4)
    assert indices(one, 3) != indices(loader(40, 8, train=True, seed=1), 3)


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_have_their_epoch(workers: int) -> None:
    made = loader(10, 4, train=True, workers=workers)
    assert [{batch.epoch for batch in made.epoch(epoch)} for epoch in (3, 1)] == [{3}, {1}]


def test_augmentation_differs_by_epoch() -> None:
    def draws(number: int) -> dict[int, list[int]]:
        batches = epoch(loader(12, 4, train=True), number)
        return {sample[0]: sample[1:] for batch in batches for sample in batch}

    one, two = draws(1), draws(2)
    assert all(one[index] != two[index] for index in one)


@pytest.mark.parametrize(
    ("count", "sizes"), [(10, [4, 4]), (8, [4, 4]), (5, [4]), (4, [4]), (3, [3]), (1, [1])]
)
def test_training_drops_an_incomplete_batch_unless_it_is_the_only_one(
    count: int, sizes: list[int]
) -> None:
    batches = loader(count, 4, train=True)
    assert len(batches) == len(sizes)
    assert [len(batch) for batch in epoch(batches, 0)] == sizes


def test_every_sample_is_dropped_in_turn() -> None:
    batches = loader(10, 4, train=True)
    seen = {index for number in range(12) for index in indices(batches, number)}
    assert seen == set(range(10))


def test_workers_change_nothing_and_survive_epochs() -> None:
    alone, shared = loader(20, 3, train=True), loader(20, 3, train=True, workers=2)
    for number in (2, 0, 2):
        assert epoch(shared, number) == epoch(alone, number)


def evaluated(count: int, batch_size: int, limit: int, processes: int = 1, **more: Any) -> Any:
    """The samples of a limited evaluation, as the processes read them one after the other."""
    source = Numbers(count)
    source.groups = more.pop("groups", None)
    shards = [ProcessShard(rank, processes) for rank in range(processes)]
    loaders = [
        EpochLoader(source, batch_size, train=False, limit=limit, shard=shard, **more)
        for shard in shards
    ]
    assert all(len(loader) <= limit for loader in loaders)
    return [key.index for loader in loaders for batch in loader.sampler for key in batch]


@given(
    count=st.integers(1, 60),
    batch_size=st.integers(1, 4),
    processes=st.integers(1, 4),
    limit=st.integers(1, 6),
    seed=st.integers(0, 5),
)
def test_a_limited_evaluation_is_of_a_sample_that_no_process_changes(
    count: int, batch_size: int, processes: int, limit: int, seed: int
) -> None:
    whole = batch_size * processes
    one = evaluated(count, whole, limit, seed=seed)
    assert one == sorted({*one})
    assert len(one) == min(count, limit * whole)
    assert evaluated(count, batch_size, limit, processes, seed=seed) == one
    assert {*one} <= {*evaluated(count, whole, limit + 1, seed=seed)}


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12), most=st.integers(1, 40))
def test_a_limit_takes_whole_groups_but_for_the_last(sizes: list[int], most: int) -> None:
    groups = np.repeat(np.arange(len(sizes)) * 3, sizes)
    chosen = evaluated(len(groups), 1, most, seed=1, groups=groups)
    found = Counter(groups[chosen].tolist())
    assert len(chosen) == min(len(groups), most)
    assert sum(found[3 * group] not in (0, size) for group, size in enumerate(sizes)) <= 1


def test_a_limited_evaluation_is_spread_over_the_split_and_drawn_from_the_seed() -> None:
    """Of 1000 samples, in 200 draws of 20 each tenth is met about 400 times."""
    draws = [evaluated(1000, 10, 2, seed=seed) for seed in range(200)]
    tenths = np.bincount(np.concatenate(draws) // 100, minlength=10)
    assert tenths.sum() == 4000
    assert abs(tenths - 400).max() < 4 * (4000 * 0.1 * 0.9) ** 0.5
    assert len({tuple(draw) for draw in draws}) == 200


class HalfDamaged(Numbers):
    """Of its samples only the last few can be read."""

    def __getitems__(self, keys: list[SampleKey]) -> Batch:
        index = torch.tensor([key.index for key in keys if key.index >= self.count - 3])
        return Batch(index.long(), None)


def test_examples_are_drawn_from_what_is_evaluated() -> None:
    batches = EpochLoader(Numbers(100), 4, seed=2, train=False, limit=5)
    examples = batches.examples().index[:, 0].tolist()
    assert len(examples) == 4
    assert {*examples} < {key.index for batch in batches.sampler for key in batch}
    assert examples != list(range(4))
    assert batches.examples().index[:, 0].tolist() == examples
    last = EpochLoader(
        Numbers(100), 4, seed=2, train=False, limit=5, shard=ProcessShard(1, 2)
    )  # fmt: skip
    assert last.examples().index[:, 0].tolist() == examples  # whichever process draws them
    many = EpochLoader(Numbers(1000), 500, seed=0, train=False)
    assert len(many.examples()) == 64


def test_examples_that_cannot_be_read_are_replaced() -> None:
    batches = EpochLoader(HalfDamaged(40), 4, seed=0, train=False)
    found = batches.examples().index.tolist()
    assert found
    assert min(found) >= 37


def test_what_a_figure_is_of() -> None:
    source = Numbers(480)
    batches = EpochLoader(source, 4, seed=0, train=False, split="val", unit="images")
    assert (batches.basis(480), batches.basis(96)) == ("val, 480 images", "val, 96 of 480 images")
    assert EpochLoader(source, 4, seed=0, train=False).basis(480) == "480 samples"


def test_the_global_generators_are_not_touched() -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - the global generator is what is watched
    expected = torch.rand(3), np.random.rand(3)  # noqa: NPY002
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    epoch(loader(20, 4, train=True), 5)
    assert torch.equal(torch.rand(3), expected[0])
    assert (np.random.rand(3) == expected[1]).all()  # noqa: NPY002


def test_skipped_samples_are_counted() -> None:
    assert loader(4, 2, train=True).skipped == {"left_out/empty": 2}


def test_the_length_of_a_sampler_is_its_number_of_batches() -> None:
    for count in range(1, 12):
        for train in (True, False):
            sampler = EpochSampler(count, 4, seed=0, train=train, shard=ProcessShard())
            assert len(list(sampler)) == len(sampler)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_workers_end_at_once_with_a_killed_main_process() -> None:
    """They hold copies of its open files, and with them the lock of its run folder."""
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        batches = iter(loader(8, 2, train=True, workers=2).epoch(0))
        next(batches)
        os.write(writable, b"started")
        time.sleep(60)
        os._exit(1)
    os.close(writable)
    assert os.read(readable, 7) == b"started"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    start = time.monotonic()
    assert os.read(readable, 1) == b""  # the workers hold the other end of the pipe
    os.close(readable)
    assert time.monotonic() - start < 3  # torch looks every 5 s


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_workers_outlive_signals_to_the_job_at_any_time() -> None:
    """Also those that reach a worker before it has started, and every one of its threads."""
    child = os.fork()
    if child == 0:
        rounds = 0
        try:
            for seed in range(8):
                batches = loader(8, 2, train=True, workers=2, seed=seed)
                rounds += sum(len(epoch(batches, number)) for number in range(3))
        finally:
            os._exit(0 if rounds == 8 * 3 * 4 else 1)
    sent, ended = 0, (0, 0)
    numbers = itertools.cycle((signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT))
    while ended == (0, 0):
        with contextlib.suppress(psutil.NoSuchProcess):
            for worker in psutil.Process(child).children():
                worker.send_signal(next(numbers))
                sent += 1
        ended = os.waitpid(child, os.WNOHANG)
    assert sent > 100
    assert os.waitstatus_to_exitcode(ended[1]) == 0


def test_a_temporary_folder_whose_path_is_too_long_for_sockets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("x" * 75)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    assert indices(loader(4, 2, train=False), 0) == [0, 1, 2, 3]
    with user_error("TMPDIR", str(folder), "at most 75"):
        loader(4, 2, train=False, workers=1)
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        longest = Path(short) / ("y" * (75 - len(short) - 1))
        longest.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(longest))
        assert indices(loader(4, 2, train=False, workers=1), 0) == [0, 1, 2, 3]
