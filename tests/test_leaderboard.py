"""Runs side by side: ranks, times and metrics against what each run says by itself."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import research
from research import leaderboard
from research.batch import ClassificationBatch
from research.config import compose_config
from research.data.loader import EpochLoader, SampleKey
from research.engine import evaluation
from research.tasks.classification import Classification
from research.tasks.task import Monitor
from research.utils import timing
from research.utils.errors import UserError
from tests.conftest import ROOT, TINY, evaluated, refusal, run, user_error
from tests.test_robustness import Plain

Compose = Callable[..., dict[str, Any]]


@pytest.mark.parametrize(
    ("values", "ranks"),
    [
        ([3.0, 1.0, 2.0], [3, 1, 2]),
        ([1.0, 1.0, 2.0], [1, 1, 3]),
        ([float("nan"), 5.0, -5.0], [3, 2, 1]),
        ([1.0], [1]),
    ],
)
def test_ranks(values: list[float], ranks: list[int]) -> None:
    assert leaderboard._ranks(values) == ranks


def test_times_are_medians_of_rounds_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0
    order = []

    def network(name: str, seconds: list[float]) -> Callable[[], None]:
        left = iter([100.0, 100.0, *seconds])  # the first two warm up

        def once() -> None:
            nonlocal clock
            order.append(name)
            clock += next(left)

        return once

    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: clock))
    passes = [network("a", [1.0, 9.0, 2.0]), network("b", [5.0, 4.0, 3.0])]
    assert timing.median_times(passes, 3) == [2.0, 4.0]
    assert order == ["a", "b"] * 5


# -- of runs that were trained ------------------------------------------------------------------


def test_a_run_beside_its_weights(
    small: Compose,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = run(small(*TINY, "run_dir=runs/r"))
    weights = "runs/r/checkpoints/final.safetensors"
    capsys.readouterr()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    leaderboard.main(["runs/r", weights, "rounds=2", "batch=8,1", "out=seen"])
    printed = capsys.readouterr().out.strip().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed]
    assert cells[0] == [
        "run", "model", "parameters", "size MB", "ms/image, batch 1", "ms/image, batch 8",
        "FPS, batch 8", "n", "top1", "speed", "accuracy", "size",
    ]  # fmt: skip
    reported = json.loads((tmp_path / "seen" / "judged.json").read_text())
    assert (reported["ranked_by"], reported["split"], reported["rounds"]) == ("top1", "val", 2)
    assert reported["device"] == "cpu"
    model = research.load(folder, "cpu").model
    expected = evaluated(folder, "val", "best").metrics
    for row, shown, name in zip(reported["runs"], cells[2:], ("runs/r", weights), strict=True):
        assert row["parameters"] == sum(p.numel() for p in model.parameters())
        assert row["size"] == sum(t.nbytes for t in model.state_dict().values())
        assert row["metrics"] == expected
        assert shown[:3] == [name, "resnet18", f"{row['parameters']:,}"]
        assert float(shown[4]) == pytest.approx(1000 * row["seconds"]["1"], abs=0.051)
        assert float(shown[5]) == pytest.approx(1000 / 8 * row["seconds"]["8"], abs=0.051)
        assert float(shown[6]) == pytest.approx(8 / row["seconds"]["8"], abs=0.051)
        assert (row["n"], shown[7]) == (12, "12 images")
        assert float(shown[8]) == pytest.approx(expected["top1"], abs=5.1e-4)
        assert shown[9:] == [str(row["ranks"][key]) for key in ("speed", "accuracy", "size")]
    assert [row["ranks"]["size"] for row in reported["runs"]] == [1, 1]
    assert sorted(row["ranks"]["speed"] for row in reported["runs"]) == [1, 2]
    with (tmp_path / "seen" / "judged.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == ["runs/r", weights]
    assert float(rows[0]["fps"]) == pytest.approx(8 / reported["runs"][0]["seconds"]["8"])
    with Image.open(tmp_path / "seen" / "judged.png") as chart:
        assert chart.width > 300


# -- of runs that are made up -------------------------------------------------------------------


class Digits:
    """Six images whose class is their value; each batch of the loader holds four at most."""

    skipped: dict[str, int] = {}  # noqa: RUF012

    def __len__(self) -> int:
        return 6

    def __getitems__(self, keys: list[SampleKey]) -> ClassificationBatch:
        index = torch.tensor([key.index for key in keys])
        images = (index % 3)[:, None, None, None].expand(-1, 3, 4, 4)
        return ClassificationBatch(index, images, index % 3)


class Slow(nn.Module):
    """Right on classes below ``known``; takes so many milliseconds an image."""

    def __init__(self, known: int, milliseconds: float) -> None:
        super().__init__()
        self.known, self.milliseconds = known, milliseconds
        self.weight = nn.Parameter(torch.zeros(known, 10))
        self.seen: list[list[int]] = []

    def forward(self, images: Tensor) -> Tensor:
        values = images[:, 0, 0, 0]
        self.seen.append(values.tolist())
        time.sleep(len(images) * self.milliseconds / 1000)
        said = torch.where(values < self.known, values, (values + 1) % 3)
        return nn.functional.one_hot(said.long(), 3).float()


def made_up(
    monkeypatch: pytest.MonkeyPatch, models: dict[str, Slow], **other: Any
) -> Callable[..., evaluation.EvalRun]:
    """Runs of these names, in the place of runs on the disk."""
    usual = compose_config(["model=resnet34", "device=cpu"]).config
    task = Classification(["a", "b", "c"], 0.0, "none")

    def trial_of(path: Path, *_: Any) -> evaluation.EvalRun:
        own = other.get(path.name, {})
        fingerprint = own.get("data", "same")
        data: Any = SimpleNamespace(fingerprint=lambda: fingerprint, metadata=dict)
        dataset = {**usual["dataset"], **own.get("dataset", {})}
        about = {"name": path.name, "monitor": own.get("monitor"), "dataset": dataset}
        config = {**usual, **about}
        loaded = evaluation.Predictor(
            config, ["a", "b", "c"], own.get("task", task), models[path.name], data, Plain(),
            torch.device("cpu"),
        )  # fmt: skip
        loader = EpochLoader(Digits(), 4, seed=0, train=False)
        return evaluation.EvalRun(loaded, loader, {}, "val", path)

    monkeypatch.setattr(evaluation, "load_eval_run", trial_of)
    return trial_of


def test_ranks_by_speed_accuracy_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    made_up(monkeypatch, {"large": Slow(3, 1), "middle": Slow(2, 9), "small": Slow(1, 20)})
    runs = [Path("middle"), Path("large"), Path("small")]
    rows, monitor = leaderboard.evaluate_runs(runs, "val", "best", "cpu", [], 3, [1, 5])
    assert monitor == ("top1", "max")
    assert [row.metrics["top1"] for row in rows] == pytest.approx([2 / 3, 1, 1 / 3])
    assert [row.ranks["accuracy"] for row in rows] == [2, 1, 3]
    assert [row.ranks["speed"] for row in rows] == [2, 1, 3]
    assert [row.ranks["size"] for row in rows] == [2, 3, 1]
    for row, milliseconds in zip(rows, (9, 1, 20), strict=True):
        for count in (1, 5):
            assert 1000 * row.seconds[count] >= count * milliseconds
    assert rows[2].seconds[5] == pytest.approx(0.1, rel=0.3)


def test_more_images_than_a_batch_holds_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Slow(3, 0)
    loaded = made_up(monkeypatch, {"a": model})(Path("a"))
    loaded.timed_prediction(6)()
    loaded.timed_prediction(2)()
    assert model.seen == [[0, 1, 2, 0, 0, 1], [0, 1]]


def test_a_metric_that_should_be_low_ranks_the_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    low = {"monitor": "val/loss:min"}
    made_up(monkeypatch, {"a": Slow(1, 0), "b": Slow(3, 0)}, a=low, b=low)
    rows, monitor = leaderboard.evaluate_runs(
        [Path("a"), Path("b")], "val", "best", "cpu", [], 1, [1]
    )
    assert monitor == ("loss", "min")
    assert [row.ranks["accuracy"] for row in rows] == [2, 1]
    assert leaderboard.table(rows, monitor).text().splitlines()[0].count("| top1 | loss |") == 1
    # The training loss is none of the split's metrics.
    made_up(monkeypatch, {"a": Slow(1, 0)}, a={"monitor": "train/loss:min"})
    assert leaderboard.evaluate_runs([Path("a")], "val", "best", "cpu", [], 1, [1])[1] == Monitor(
        "top1", "max"
    )


def test_runs_of_two_tasks_and_of_other_data(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Pairs:
        names = ("pairs",)

        def update(self, *_: Any) -> None: ...

        def compute(self) -> dict[str, float]:
            return {"pairs": 0.5}

    ranking = SimpleNamespace(
        metrics=lambda device: Pairs(), predict=lambda model, batch: None,
        monitor=Monitor("val/pairs", "max"),
    )  # fmt: skip
    models = {"a": Slow(1, 0), "b": Slow(3, 0)}
    made_up(monkeypatch, models, b={"task": ranking})
    with pytest.raises(UserError, match="b: has no metric top1, which a has") as caught:
        leaderboard.evaluate_runs([Path("a"), Path("b")], "val", "best", "cpu", [], 1, [1])
    assert "\n" not in str(caught.value)
    # Also if they have the metric that ranks: the table shows the main ones, too.
    low = {"monitor": "val/loss:min"}
    made_up(monkeypatch, models, a=low, b={"task": ranking, **low})
    monkeypatch.setattr(Pairs, "compute", lambda _: {"loss": 0.5})
    with user_error("RUN", "b: has no metric top1"):
        leaderboard.evaluate_runs([Path("a"), Path("b")], "val", "best", "cpu", [], 1, [1])
    made_up(monkeypatch, models, b={"data": "other"})
    leaderboard.evaluate_runs([Path("a"), Path("b")], "val", "best", "cpu", [], 1, [1])
    assert "b is evaluated on other data than a" in caplog.text
    caplog.clear()
    folds = {name: {"dataset": {"folds": 3, "fold": n}} for n, name in enumerate(models)}
    made_up(monkeypatch, models, **folds)
    leaderboard.evaluate_runs([Path("a"), Path("b")], "val", "best", "cpu", [], 1, [1])
    assert "b is evaluated on other data than a" in caplog.text


@pytest.mark.parametrize(
    ("words", "reported"),
    [
        ([], "pass RUN folders first"),
        (["a", "batch=0"], "batch=0: expected a whole number"),
        (["a", "batch=1,x"], "batch=1,x: expected a whole number"),
        (["a", "rounds=0"], "rounds=0: expected a whole number"),
        (["a", "round=1"], "did you mean 'rounds'?"),
        (["a", "split=all"], "split=all"),
        (["a"], "a: no such run or checkpoint"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], reported: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert reported in refusal(leaderboard.main, words)


@pytest.mark.long
def test_the_old_name_runs_the_command_and_says_so(tmp_path: Path) -> None:
    outcomes = [
        subprocess.run(
            [sys.executable, "-m", f"research.{name}", "none"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        for name in ("leaderboard", "judge")
    ]
    new, old = outcomes
    assert new.returncode == old.returncode == 2
    assert old.stderr == f"research.judge is called research.leaderboard now\n{new.stderr}"
