"""Several processes see what one process sees, each sample once, and take the same step."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from research.data.loader import EpochSampler, ProcessShard
from research.engine import distributed
from tests.golden.configurations import DATA, GOLDEN

WORKER = Path(__file__).with_name("distributed_worker.py")


def torchrun(
    processes: int, script: Path, *words: str, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*command, f"--nproc_per_node={processes}", str(script), *words],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        cwd=cwd,
    )


def checked(processes: int, check: str, out: Path, *words: str, cwd: Path | None = None) -> Any:
    """The answer of the main process of ``distributed_worker.py``."""
    done = torchrun(processes, WORKER, check, str(out), *words, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(out.read_text(encoding="utf-8"))


def test_one_process_keeps_its_values() -> None:
    assert distributed.summed({"loss": 1.5, "left_out/empty": 2}) == {
        "loss": 1.5,
        "left_out/empty": 2,
    }
    assert distributed.gathered("own") == ["own"]
    assert distributed.broadcast("own") == "own"
    assert (distributed.rank(), distributed.count()) == (0, 1)


@given(
    samples=st.integers(0, 50),
    batch_size=st.integers(1, 6),
    processes=st.integers(1, 5),
    epoch=st.integers(0, 3),
    train=st.booleans(),
    start=st.integers(0, 3),
)
def test_parts_are_what_one_process_reads(
    samples: int, batch_size: int, processes: int, epoch: int, train: bool, start: int
) -> None:
    def batches(size: int, shard: ProcessShard) -> list[list[int]]:
        sampler = EpochSampler(samples, size, seed=3, train=train, shard=shard)
        sampler.epoch = epoch
        sampler.start = start if train else 0
        return [[key.index for key in batch] for batch in sampler]

    parts = [batches(batch_size, ProcessShard(rank, processes)) for rank in range(processes)]
    if train:
        whole = batches(batch_size * processes, ProcessShard())
        joined = [sum(each, []) for each in zip(*parts, strict=True)]  # noqa: RUF017
        assert joined == whole
        sizes = [len(own) for each in zip(*parts, strict=True) for own in each]
        assert not sizes or max(sizes) <= batch_size
    else:
        assert [i for part in parts for batch in part for i in batch] == list(range(samples))


@pytest.mark.long
@pytest.mark.parametrize(
    ("processes", "empty"),
    [(2, "0"), pytest.param(3, "012", marks=pytest.mark.whole)],
)
def test_the_first_gradient_is_that_of_one_process_on_the_joined_batch(
    processes: int, empty: str, tmp_path: Path
) -> None:
    differences = checked(processes, "gradients", tmp_path / "found.json", *empty)
    assert differences.keys() == set(GOLDEN)
    assert max(differences.values()) < 1e-6, differences


def test_a_step_without_its_last_batch_is_the_same_in_all_processes(tmp_path: Path) -> None:
    """Gradients are averaged in the last batch of a step, also if its loss is skipped."""
    first, second = checked(2, "skips", tmp_path / "found.json", "ranking_frozen")
    assert first == second


COUNTED = ("top1", "top5", "pair_accuracy")
"""Metrics that are counts divided by counts."""


@pytest.mark.whole
@pytest.mark.parametrize(("processes", "workers"), [(2, 0), (2, 2), (3, 0), (3, 2)])
def test_metrics_are_those_of_one_process(processes: int, workers: int, tmp_path: Path) -> None:
    for name in ("data", "stores"):
        (tmp_path / name).symlink_to(DATA / name)
    out = tmp_path / "found.json"
    found = checked(processes, "metrics", out, str(workers), cwd=tmp_path)
    assert found.keys() == set(GOLDEN)
    for name, (together, alone) in found.items():
        assert together.keys() == alone.keys()
        for key, value in alone.items():
            exact = key in COUNTED or "/" in key or "mAP" in key or "mAR" in key
            close = {"rel": 0, "abs": 0} if exact else {"rel": 1e-6}
            assert together[key] == pytest.approx(value, **close, nan_ok=True), (name, key)


def test_synced_batch_norm_waits_for_processes_with_samples_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It needs GPUs; this is the group that it is called with, of each batch anew."""
    norm = nn.SyncBatchNorm(2)
    called: list[Any] = []

    class Task:
        def losses(self, model: nn.Module, batch: Any) -> dict[str, torch.Tensor]:
            called.append(norm.process_group)
            return {"loss": torch.zeros(())}

    losses = distributed.Losses(Task(), nn.Sequential(nn.Conv2d(1, 2, 1), norm))  # type: ignore[arg-type]
    groups = [None, object(), object(), None]
    for group in groups:
        monkeypatch.setattr(distributed._Group, "active", group)
        losses(object())  # any batch
        assert set(losses(None)) == {""}
    assert called == groups
