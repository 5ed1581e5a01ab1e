"""``batch_size`` is per process; ``global_batch_size`` is that of all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from research.config import batch_sizes, check_jobs
from research.engine import build, distributed
from research.utils.conditions import explain
from tests.conftest import TINY, user_error

Compose = Callable[..., dict[str, Any]]


@pytest.mark.parametrize(
    ("processes", "words", "each"),
    [
        (1, (), 8),
        (4, (), 8),
        (1, ("global_batch_size=12",), 12),  # 8 is a default here, which it replaces
        (4, ("global_batch_size=12",), 3),
        (4, ("global_batch_size=12", "batch_size=3"), 3),
        (4, ("global_batch_size=12", "batch_size=12"), 3),
    ],
)
def test_the_batch_of_a_process(
    processes: int,
    words: tuple[str, ...],
    each: int,
    small: Compose,
) -> None:
    config = small(*words)
    batch_sizes.check_batch_size(config, words, processes)
    assert batch_sizes.batch_size(config, processes) == each


@pytest.mark.parametrize(
    ("words", "key", "reported"),
    [
        (("global_batch_size=10",), "global_batch_size", "does not divide by 4"),
        (
            ("global_batch_size=12", "batch_size=4"),
            "batch_size",
            "set global_batch_size=16",
        ),
    ],
)
def test_batches_that_contradict_each_other(
    words: tuple[str, ...], key: str, reported: str, small: Compose
) -> None:
    config = small(*words)
    with user_error(key, reported):
        batch_sizes.check_batch_size(config, words, 4)


def test_jobs_of_a_sweep_are_checked_before_the_first() -> None:
    check_jobs(["global_batch_size=12", "batch_size=12", "seed=0,1"], multirun=True)
    with user_error("batch_size", "gives one process 12", "set global_batch_size=16"):
        check_jobs(["global_batch_size=12", "batch_size=12,16"], multirun=True)


def test_the_learning_rate_follows_the_batch_of_all_processes(
    small: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guide 3: one process with 64 samples trains at 0.1, four processes at 0.4."""
    guide = ("batch_size=64", "optimizer.lr=0.1", "scale_lr=linear", "scale_lr_batch=64")
    for processes, rate in ((1, 0.1), (4, 0.4)):
        with monkeypatch.context() as patch:
            patch.setattr(distributed, "count", lambda count=processes: count)
            built = build.experiment(small(*TINY, *guide))
        assert built.train.global_batch == 64 * processes
        assert [group["initial_lr"] for group in built.state.optimizer.param_groups] == [rate]


def test_the_setting_that_counts_is_advised_when_memory_runs_out(small: Compose) -> None:
    limits = build.limits(small("global_batch_size=12"))
    known = explain(MemoryError(), limits)
    assert known is not None
    assert "global_batch_size=6 accumulate=2" in str(known)
