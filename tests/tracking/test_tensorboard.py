"""Event files, read as TensorBoard reads them."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from research.tracking.tensorboard import TensorBoardTracker
from research.tracking.tracker import Position, Run
from tests.conftest import TINY, interrupted_at, result_of, run

Compose = Callable[..., dict[str, Any]]


def read(folder: Path, part: str) -> EventAccumulator:
    everything = {"scalars": 0, "images": 0, "tensors": 0}
    return EventAccumulator(str(folder / "tensorboard" / part), size_guidance=everything).Reload()


def scalars(folder: Path, part: str, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read(folder, part).Scalars(tag)]


def text(folder: Path, tag: str) -> str:
    event = read(folder, "epoch").Tensors(f"{tag}/text_summary")[-1]
    return event.tensor_proto.string_val[0].decode()


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_event_files_of_a_resumed_run_match_the_tables(
    small: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (*TINY, "logging=tensorboard", "epochs=2", "run_dir=one", "log_every=1")

    with interrupted_at(6, monkeypatch):
        run(small(*settings))
    assert [step for step, _ in scalars(Path("one"), "batch", "batch/loss")] == [1, 2, 3, 4, 5]
    folder = run(small(*settings, "resume=auto"))

    epochs, batches = (table(folder / f"{name}_metrics.csv") for name in ("epoch", "batch"))
    assert (len(epochs), len(batches)) == (2, 6)
    for part, rows, prefix in (("epoch", epochs, ""), ("batch", batches, "batch/")):
        words = ("epoch", "batch", "timestamp", "checkpoint_path", "is_best")
        names = [name for name in rows[0] if name not in words]
        also = ["is_best"] if part == "epoch" else []
        assert sorted(read(folder, part).Tags()["scalars"]) == sorted(
            f"{prefix}{name}" for name in names + also
        )
        for name in names:
            found = scalars(folder, part, f"{prefix}{name}")
            assert [step for step, _ in found] == list(range(1, len(rows) + 1))
            expected = [float(row[name]) for row in rows]
            assert [value for _, value in found] == pytest.approx(expected, rel=1e-6)
    shown = read(folder, "epoch")
    names = [path.stem for path in (folder / "pictures").iterdir()]
    assert sorted(shown.Tags()["images"]) == sorted(f"pictures/{name}" for name in names)
    assert "window: 1" in text(folder, "config")
    assert "most_confused_with" in text(folder, "tables/per_class")


def started(folder: Path, resumed: int = 0, **state: str) -> TensorBoardTracker:
    tracker = TensorBoardTracker()
    tracker.start(
        Run(folder, "run", {"epochs": 4}, resumed=Position(resumed, step=resumed), state=state)
    )
    return tracker


def epoch(tracker: TensorBoardTracker, number: int, batches: int, loss: float) -> dict[str, str]:
    """Log the rows of an epoch; returns the state for its checkpoint."""
    for step in range((number - 1) * batches + 1, number * batches + 1):
        tracker.log("batch", step, {"epoch": number, "batch": 1, "loss": loss, "timestamp": "t"})
    tracker.log("epoch", number, {"epoch": number, "train/loss": loss, "is_best": True})
    state = tracker.state()
    tracker.flush()
    return state


def test_events_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    tracker = started(tmp_path)
    state, *_ = (epoch(tracker, number, 10, 0.5) for number in (1, 2, 3))
    tracker.finish("KILLED")
    again = started(tmp_path, 1, **state)
    epoch(again, 2, 10, 0.25)
    again.finish("FINISHED")
    assert scalars(tmp_path, "epoch", "train/loss") == [(1, 0.5), (2, 0.25)]
    expected = [(step, 0.5 if step <= 10 else 0.25) for step in range(1, 21)]
    assert scalars(tmp_path, "batch", "batch/loss") == expected
    assert "epochs: 4" in text(tmp_path, "config")


def test_a_fresh_run_starts_empty(tmp_path: Path) -> None:
    for loss in (0.5, 0.25):
        tracker = started(tmp_path)
        epoch(tracker, 1, 2, loss)
        tracker.finish("FINISHED")
    assert scalars(tmp_path, "epoch", "train/loss") == [(1, 0.25)]


def test_a_resumed_run_without_event_files_starts_them(tmp_path: Path) -> None:
    tracker = started(tmp_path, 2)
    epoch(tracker, 3, 2, 0.5)
    tracker.finish("FINISHED")
    assert scalars(tmp_path, "epoch", "train/loss") == [(3, 0.5)]
    assert scalars(tmp_path, "batch", "batch/loss") == [(5, 0.5), (6, 0.5)]


def test_pictures_and_tables(tmp_path: Path) -> None:
    tracker = started(tmp_path)
    tracker.pictures(2, {"a": Image.new("RGB", (7, 5), "red")})
    tracker.tables(
        2, {"t": [{"class": "x|y", "share": 0.5}, {"class": "z", "share": float("nan")}]}
    )
    tracker.tables(3, {"empty": []})
    tracker.evaluation(result_of(epoch=2), [])
    tracker.finish("FINISHED")
    assert scalars(tmp_path, "epoch", "test/top1") == [(2, 0.5)]
    (image,) = read(tmp_path, "epoch").Images("pictures/a")
    assert (image.step, image.width, image.height) == (2, 7, 5)
    assert text(tmp_path, "tables/t").splitlines() == [
        "| class | share |", "| --- | --- |", "| x\\|y | 0.5000 |", "| z | nan |",
    ]  # fmt: skip
    assert text(tmp_path, "tables/empty") == "no rows"
    (line,) = tracker.locations()
    assert line == f"tensorboard --logdir {tmp_path / 'tensorboard'}"
    tracker.folder = Path("my runs")
    assert tracker.locations() == ["tensorboard --logdir 'my runs'"]


def test_a_folder_that_cannot_be_written_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tensorboard").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        tracker = started(tmp_path, 1)
        epoch(tracker, 2, 2, 0.5)
        tracker.finish("FINISHED")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert os.path.basename(tmp_path) in caplog.text
