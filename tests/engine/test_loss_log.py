"""Rows of batches and means of an epoch: measured times, metrics, counts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from research.batch import Batch
from research.config import compose_config, resolved, stored_state
from research.data.loader import EpochLoader, SampleKey
from research.engine import build, loss_log
from research.engine.loss_log import EpochStats, LossLog
from research.tasks.task import LossTerms
from research.tracking.tracker import Row, Table, Tracker
from tests.conftest import train_state, trained_epoch
from tests.golden import stored
from tests.golden.configurations import overrides


class Nothing:
    """A split of eight samples, of which nothing is read."""

    skipped: dict[str, int] = {}  # noqa: RUF012

    def __len__(self) -> int:
        return 8

    def __getitems__(self, keys: list[SampleKey]) -> Batch:
        raise NotImplementedError


class Rows(Tracker):
    """Keeps the rows of batches, and when they came."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock
        self.rows: list[Row] = []
        self.written: list[float] = []

    def log(self, table: Table, step: int, row: Row) -> None:
        self.rows.append(row)
        if self.clock is not None:
            self.written.append(self.clock.now)


class Clock:
    """The time, which stands still unless it is set."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now


def made(tracker: Tracker, batches: int, log_every: int) -> LossLog:
    loader = EpochLoader(Nothing(), 2, seed=0, train=True)
    return LossLog(tracker, 1, batches, log_every, loader)


def terms(value: float = 1.0, **metrics: list[float]) -> LossTerms:
    values = {name: torch.tensor(each) for name, each in metrics.items()}
    return LossTerms({"term": torch.tensor(value)}, values)


def add(log: LossLog, i: int, losses: LossTerms, samples: int = 2) -> None:
    log.add(i + 1, i, Batch(torch.arange(samples), None), losses, samples)


@pytest.mark.parametrize("log_every", [1, 2, 3, 10])
def test_the_time_of_a_batch_is_its_own(log_every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many rows are written together; a skipped batch has a time, but no row."""
    clock = Clock()
    monkeypatch.setattr(loss_log, "time", clock)
    monkeypatch.setattr(loss_log, "timestamp", lambda: f"at {clock.now:g}")
    tracker = Rows(clock)
    log = made(tracker, 7, log_every)
    ends = [100.5, 101.5, 103.5, 104.0, 108.0, 108.25, 109.0]
    for i, end in enumerate(ends):
        clock.now = end
        add(log, i, LossTerms() if i == 3 else terms())
        if i == 4:
            clock.now += 0.125  # a checkpoint: until the next batch ends
            log.state_dict()
    kept = [i for i in range(7) if i != 3]
    assert [row["batch"] for row in tracker.rows] == [i + 1 for i in kept]
    seconds = [end - start for start, end in zip([100.0, *ends], ends, strict=False)]
    assert [row["batch_time_sec"] for row in tracker.rows] == [seconds[i] for i in kept]
    assert [row["timestamp"] for row in tracker.rows] == [f"at {ends[i]:g}" for i in kept]
    assert all(now >= ends[i] for now, i in zip(tracker.written, kept, strict=True))


def test_a_metric_is_the_mean_over_the_samples_that_count() -> None:
    """Batches of different sizes weigh as many samples as they have; losses weigh the same."""
    log = made(Rows(), 4, 3)
    add(log, 0, terms(1.0, right=[1, 0, math.nan]), 3)
    add(log, 1, terms(2.0, right=[1]), 1)
    add(log, 2, LossTerms())
    add(log, 3, terms(6.0, right=[math.nan, math.nan]), 2)
    stats = log.close()
    assert stats.metrics == {
        "train/loss": 3.0, "train/term": 3.0, "train/right": pytest.approx(2 / 3), "train/n": 6,
    }  # fmt: skip


def test_a_metric_of_no_sample_is_not_logged() -> None:
    log = made(Rows(), 1, 1)
    add(log, 0, terms(1.0, right=[math.nan]))
    assert log.close().metrics == {"train/loss": 1.0, "train/term": 1.0, "train/n": 2}


def epoch(*, stop: int | None, tracker: Rows, without: tuple[str, ...] = ()) -> EpochStats:
    """An epoch of five batches; resumed after ``stop``, from a checkpoint without some entries."""
    values = torch.rand(5, 4, generator=torch.Generator().manual_seed(0)) > 0.5
    log = made(tracker, 5, 2)
    for i in range(5):
        if i == stop:
            saved = {key: v for key, v in log.state_dict().items() if key not in without}
            state = vars(train_state(epoch_losses=saved))
            checked = stored_state.state({name: state[name] for name in stored_state.STATE}, "a")
            log = made(tracker, 5, 2)
            log.load_state_dict(checked["epoch_losses"])
        add(log, i, terms(float(i), top1=values[i].float().tolist()), 4)
    return log.close()


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_an_epoch_that_is_resumed(stop: int) -> None:
    whole, parts = Rows(), Rows()
    expected = epoch(stop=None, tracker=whole)
    assert epoch(stop=stop, tracker=parts) == expected
    assert expected.metrics["train/n"] == 20
    assert [row["loss"] for row in parts.rows] == [row["loss"] for row in whole.rows]


def test_an_epoch_that_an_earlier_version_began() -> None:
    """What it did not count stays out of the row; the next epoch has it."""
    found = epoch(stop=2, tracker=Rows(), without=("n", "metrics"))
    assert found.metrics == {"train/loss": 2.0, "train/term": 2.0}


@pytest.mark.parametrize(
    ("name", "metric"), [("fastnet_bf16", "top1"), ("rgb", "top1"), ("ranking", "pair_accuracy")]
)
def test_training_metrics_are_of_the_batches_as_trained(
    name: str, metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The accuracy of what the network gave in each training step; with mixup and two batches a
    step in ``fastnet_bf16``: against the label with the larger share.
    """
    config = resolved(compose_config([*overrides(name), "epochs=1"])[0])
    data = stored.load(name, build.data_module(config))
    monkeypatch.setattr(build, "data_module", lambda _: data)
    built = build.experiment(config)
    losses, outputs = built.task.losses, []
    seen: list[Any] = []
    built.state.model.register_forward_hook(
        lambda *call: outputs.append(call[-1].detach().float()) if call[0].training else None
    )

    def spied(model: Any, batch: Any) -> dict[str, Tensor]:
        seen.append(batch)
        return losses(model, batch)

    monkeypatch.setattr(built.task, "losses", spied)
    found = trained_epoch(built).metrics
    right: list[bool] = []
    for logits, batch in zip(outputs, seen, strict=True):
        for i, logit in enumerate(logits):
            if metric == "pair_accuracy":
                votes = float(batch.preference[i])
                right += [(float(logit) > 0) == (votes > 0.5)] if votes != 0.5 else []
                continue
            label = int(batch.labels[i])
            if batch.lam is not None and float(batch.lam[i]) < 0.5:
                label = int(batch.labels_b[i])
            right.append(int(logit.argmax()) == label)
    assert 0 < sum(right) < len(right)
    assert found[f"train/{metric}"] == pytest.approx(sum(right) / len(right), abs=1e-12)
    assert found["train/n"] == sum(len(batch) for batch in seen)
    mixed = name == "fastnet_bf16"
    assert any(batch.lam is not None for batch in seen if mixed) == mixed
