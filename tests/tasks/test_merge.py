"""Metrics of several processes, merged, are those of one process over the whole split."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from research.batch import Batch
from research.data.loader import ProcessShard
from tests.tasks import test_classification, test_detection, test_ranking

Case = tuple[Callable[[], Any], Any, Batch]
CPU = torch.device("cpu")


def classification(seed: int) -> Case:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(7, (101,), generator=generator)
    logits = torch.randn(101, 7, generator=generator)
    metrics = test_classification.ClassificationMetrics
    return lambda: metrics(7, CPU), logits, test_classification.batch(labels)


def detection(seed: int) -> Case:
    predictions, frames = test_detection.random_case(seed, count=101)
    drawn = torch.rand(frames.mask.shape, generator=torch.Generator().manual_seed(seed))
    frames.ignored = frames.mask & (drawn < 0.3)
    frames.mask &= ~frames.ignored
    return lambda: test_detection.task().metrics(CPU), predictions, frames


def ranking(seed: int) -> Case:
    logits, pairs = test_ranking.random_pairs(seed, [5] * 12)
    return lambda: test_ranking.ranking().metrics(CPU), logits, pairs


def evaluated(case: Case, shard: ProcessShard, size: int) -> Any:
    """Metrics of one process's part, in batches of ``size``."""
    make, predictions, samples = case
    metrics = make()
    part = shard.part(np.arange(len(samples)))
    for start in range(0, len(part), size):
        rows = part[start : start + size]
        chosen = torch.from_numpy(rows)
        metrics.update(
            [{**predictions[row]} for row in rows]
            if isinstance(predictions, list)
            else predictions[chosen],
            samples.map(lambda tensor, chosen=chosen: tensor[chosen]),
        )
    return metrics


@pytest.mark.parametrize("make", [classification, detection, ranking])
@settings(max_examples=4, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([2, 3, 5]), st.integers(1, 40))
def test_merged_parts_are_the_whole(
    make: Callable[[int], Case], seed: int, processes: int, size: int
) -> None:
    case = make(seed)
    whole = evaluated(case, ProcessShard(), 101)
    first, *others = (
        evaluated(case, ProcessShard(rank, processes), size) for rank in range(processes)
    )
    first.compute()  # as the progress of an evaluation does
    for other in others:
        first.merge(other.state())
    expected, found = whole.compute(), first.compute()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        counted = "mAP" in name or "mAR" in name or name in ("top1", "top5", "pair_accuracy")
        assert found[name] == (value if counted else pytest.approx(value, rel=1e-6, nan_ok=True))
    if make is not detection:
        assert torch.equal(_worst(first), _worst(whole))


def _worst(metrics: Any) -> torch.Tensor:
    """Indices of the most confident mistakes."""
    worst = metrics.worst
    batch = worst[0] if isinstance(worst, tuple) else worst.batch
    return batch.index
