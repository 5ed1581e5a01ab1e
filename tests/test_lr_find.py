from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from research import lr_find
from research.batch import Batch
from research.config import compose_config
from research.data.loader import ProcessShard
from research.engine.build import Experiment
from research.engine.loop import LoopConfig
from research.engine.state import TrainState
from research.utils.errors import UserError
from research.utils.progress import Phase, open_phases
from tests.conftest import ROOT, SMALL, TINY, advised, data_overrides, refusal, user_error

Compose = Callable[..., dict[str, Any]]
CURVATURE = 0.5
CFG = LoopConfig(
    epochs=1,
    seed=0,
    precision="fp32",
    accumulate=1,
    grad_clip=None,
    patience=None,
    log_every=10,
    max_train_batches=None,
    skip_nonfinite=0,
)


class Bowl(nn.Module):
    """``curvature · w² / 2``: gradient descent diverges from a rate of ``2 / curvature`` on."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((3,), 10.0))

    def forward(self, batch: Batch) -> Tensor:
        return 0.5 * CURVATURE * (self.w**2).sum()


class BowlTask:
    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {"bowl": model(batch)}


class Unchanged(nn.Module):
    def forward(self, batch: Batch, generator: torch.Generator) -> Batch:
        return batch


@dataclass
class Batches:
    """A loader of ``count`` batches."""

    count: int
    skipped: dict[str, int]
    batch_size: int = 2
    global_batch: int = 2
    shard: ClassVar = ProcessShard()

    def __len__(self) -> int:
        return self.count

    def names(self, index: torch.Tensor) -> list[str]:
        return [str(i) for i in index.tolist()]

    def epoch(self, number: int, start: int) -> Iterator[Batch]:
        return iter([Batch(torch.arange(2), None) for _ in range(self.count)])


def bowl(batches: int = 7, **changed: Any) -> Experiment:
    model: Any = Bowl()
    none: Any = None
    task: Any = BowlTask()
    loader: Any = Batches(batches, {})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, 0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    transform: Any = Unchanged()
    state = TrainState(model, model, transform, optimizer, scheduler, scaler)
    cfg, cpu = LoopConfig(**{**vars(CFG), **changed}), torch.device("cpu")
    return Experiment(state, task, loader, none, none, cfg, cpu, none, 3, [])


def test_the_rate_rises_exponentially_over_epochs_and_the_loss_is_gradient_descents() -> None:
    parts = bowl()
    seen = lr_find.range_test(parts, 1e-4, 1.0, 30)
    assert seen.end == "the last rate"
    np.testing.assert_allclose(seen.rates, np.geomspace(1e-4, 1.0, 30), rtol=1e-12)
    left = np.concatenate([[1.0], np.cumprod(1 - seen.rates[:-1] * CURVATURE)])
    np.testing.assert_allclose(seen.losses, 1.5 * CURVATURE * 100 * left**2, rtol=1e-5)


def test_it_stops_soon_after_the_rate_that_theory_gives() -> None:
    seen = lr_find.range_test(bowl(), 1e-4, 1e6, 200)
    assert seen.end == "diverged"
    critical = 2 / CURVATURE
    assert critical < seen.rates[-1] < 10 * critical
    said = lr_find.suggest(seen)
    assert said.tenth is not None
    assert said.steepest is not None
    assert said.steepest < 10 * said.tenth <= critical
    # Where the loss falls fastest over log(rate), computed without smoothing.
    slopes = np.gradient(seen.losses, np.log(seen.rates))
    expected = seen.rates[slopes[seen.rates < critical].argmin()]
    assert expected / 2 < said.steepest < expected * 2


@pytest.mark.parametrize("accumulate", [2, 3])
def test_a_step_is_an_optimizer_step(accumulate: int) -> None:
    seen = lr_find.range_test(bowl(accumulate=accumulate), 1e-4, 1.0, 25)
    # Batches are all alike: accumulating them changes nothing.
    whole = lr_find.range_test(bowl(), 1e-4, 1.0, 25)
    np.testing.assert_allclose(seen.rates, whole.rates)
    np.testing.assert_allclose(seen.losses, whole.losses, rtol=1e-5)


def test_a_limit_on_batches_holds() -> None:
    seen = lr_find.range_test(bowl(max_train_batches=2), 1e-4, 1.0, 25)
    assert len(seen.losses) == 25


class Spoiled(BowlTask):
    """Not finite from the ``after``-th batch on."""

    def __init__(self, after: int) -> None:
        self.left = after

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        self.left -= 1
        return {"bowl": model(batch) * (1.0 if self.left >= 0 else torch.inf)}


def test_it_stops_where_the_loss_is_not_finite() -> None:
    parts = bowl()
    parts.task = Spoiled(17)  # type: ignore[assignment]
    seen = lr_find.range_test(parts, 1e-4, 1.0, 30)
    assert (seen.end, len(seen.losses)) == ("not finite", 17)
    assert np.isfinite(seen.losses).all()
    parts.task = Spoiled(0)  # type: ignore[assignment]
    with pytest.raises(UserError, match="finite"):
        lr_find.range_test(parts, 1e-4, 1.0, 30)


def test_groups_keep_their_share_and_progress_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = bowl()
    extra = nn.Parameter(torch.zeros(1))
    parts.state.optimizer.add_param_group({"params": [extra], "lr": 0.03, "initial_lr": 0.03})
    used = []

    def update(phase: Phase, done: int, *_: object, **__: object) -> None:
        if phase.name == "range test":
            assert done == len(used) + 1
            used.append([group["lr"] for group in parts.state.optimizer.param_groups])

    monkeypatch.setattr(Phase, "update", update)
    lr_find.range_test(parts, 1e-3, 1.0, 20)
    assert len(used) == 20
    assert not open_phases()
    for first, second in used:
        assert second == pytest.approx(first / 10)


def fall(rates: np.ndarray, noise: float) -> np.ndarray:
    """3 until about 1e-3, 1 from 1e-1 on, steepest at 1e-2; up from 0.5."""
    rng = np.random.default_rng(0)
    drop = 2 / (1 + np.exp(-3 * np.log(rates / 1e-2)))
    return (
        3
        - drop
        + np.exp(np.minimum(3 * np.log(rates / 0.5), 30))
        + rng.normal(0, noise, len(rates))
    )


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("last", [1.0, 3.0])
def test_suggestions_are_where_the_curve_says(noise: float, last: float) -> None:
    rates = np.geomspace(1e-6, last, 100)
    losses = fall(rates, noise)
    losses[-1] = 1e12  # a last loss beyond all others reaches back to nothing
    said = lr_find.suggest(lr_find.RangeTest(rates, losses, "diverged"))
    assert said.steepest == pytest.approx(1e-2, rel=0.5)
    lowest = rates[fall(rates, 0.0).argmin()]
    assert said.tenth == pytest.approx(lowest / 10, rel=0.6)


@pytest.mark.parametrize("slope", [0.0, 0.5])
def test_a_loss_that_does_not_fall_gives_no_suggestion(slope: float) -> None:
    rates = np.geomspace(1e-6, 1, 100)
    losses = 2 + slope * np.arange(100)
    said = lr_find.suggest(lr_find.RangeTest(rates, losses, "the last rate"))
    assert (said.steepest, said.tenth) == (None, None)


def test_picture_table_and_lines(small: Compose, capsys: pytest.CaptureFixture[str]) -> None:
    config = small(*TINY, "scale_lr=linear", "ema=0.9", "optimizer=adamw", "decay_norms=false")
    lr_find.find(config, 1e-5, 0.1, 12, Path("out"))
    said = capsys.readouterr().out
    with Path("out/lr_find.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(1, len(rows) + 1))
    expected = np.geomspace(1e-5, 0.1, 12)[: len(rows)]
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx(expected)
    assert all(float(row["loss"]) > 0 and float(row["smoothed"]) > 0 for row in rows)
    with Image.open("out/lr_find.png") as picture:
        assert picture.width > 300
    assert "batches of 8" in said
    assert "with scale_lr=null" in said
    assert not list(Path().glob("runs/*/config.yaml"))  # no run was made


def test_a_folder_that_cannot_be_written_to_loses_no_suggestion(
    small: Compose, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = np.geomspace(1e-5, 1, 100)
    test = lr_find.RangeTest(rates, np.linspace(2, 1, 100), "the last rate")
    monkeypatch.setattr(lr_find, "range_test", lambda *args: test)
    config = small(*TINY)
    Path("file").touch()
    with user_error("out", "file"):
        lr_find.find(config, 1e-5, 1, 100, Path("file/out"))
    assert "steepest descent:  " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["start=fast"], "start=fast: expected a number above 0"),
        (["end=-1"], "end=-1: expected"),
        (["start=1", "end=0.1"], "expected start below end"),
        (["steps=5"], "steps=5: expected a whole number at least 10"),
        (["steps=x"], "steps=x: expected a whole number"),
        (["step=50"], "did you mean 'steps'"),
        (["resume=auto"], "resume has no effect here"),
        (["model=resnet43"], "'resnet34'"),
        (["folder"], "key=value"),
    ],
)
def test_mistakes_are_one_line(words: list[str], says: str) -> None:
    assert says in refusal(lr_find.main, words)


@pytest.mark.whole
def test_the_command(folders: Path, tmp_path: Path) -> None:
    words = [*SMALL, *TINY, *data_overrides(folders)]
    done = subprocess.run(
        [sys.executable, "-m", "research.lr_find", *words, "steps=10"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs" / "lr_find").iterdir()
    assert folder.name.endswith("_resnet34_compressed")
    assert {path.name for path in folder.iterdir()} == {"lr_find.csv", "lr_find.png"}
    assert "steps up to" in done.stdout
    if "the loss did not decrease" not in done.stdout:
        lr = compose_config(advised(done.stderr)[2:]).config["optimizer"]["lr"]
        assert f"optimizer.lr={lr:.2g}\n" in done.stdout
