"""Of how many samples, and of which, the figures and sheets of a run are."""

from __future__ import annotations

import csv
import itertools
import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from research.batch import ClassificationBatch
from research.engine import build, epoch_end
from research.engine.loop import evaluate
from research.engine.rng import generator_for
from research.tasks.classification import Classification
from research.tracking.files import read_rows
from research.viz import pictures
from tests.conftest import TINY, run
from tests.engine.test_distributed import torchrun
from tests.golden.configurations import DATA, PICTURES

Compose = Callable[..., dict[str, Any]]


def test_a_limited_validation_and_its_sheet_see_all_classes(
    small: Compose, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of folders sorted by class, whose first batches are of one class."""
    titles: list[str] = []
    titled: Any = pictures.titled
    monkeypatch.setattr(
        pictures, "titled", lambda image, text: titles.append(text) or titled(image, text)
    )
    caplog.set_level(logging.INFO)
    config = small(*TINY, "max_val_batches=1", "max_train_batches=2", "batch_size=8", "epochs=2")
    folder = run(config)
    for row in read_rows(folder / "epoch_metrics.csv"):
        assert (row["train/n"], row["val/n"]) == ("16", "8")
        hits = 8 * float(row["val/top1"])
        assert hits == pytest.approx(round(hits))
    with (folder / "tables/per_class.csv").open(newline="") as file:
        support = [int(row["support"]) for row in csv.DictReader(file)]
    assert sum(support) == 8
    assert min(support) > 0
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["best_n"], summary["unit"]) == (8, "images")
    of_val = {title for title in titles if title.startswith("val")}
    assert set() < of_val <= {f"val, 8 of 12 images, epoch {epoch}" for epoch in (1, 2)}
    [of_training] = [title for title in titles if title.startswith("train")]
    assert of_training.startswith("train, 8 of 24 images, of step 1,")
    assert any("(n=8 images) at epoch" in line for line in caplog.messages)

    built = build.experiment(config)
    parts = (built.state.model, built.task, built.val, built.state.transform, built.cfg)
    result = evaluate(*parts, torch.device("cpu"))
    batch, predictions = result.examples()
    assert {*batch.labels.tolist()} == {0, 1, 2}  # type: ignore[attr-defined]
    assert len(predictions) == len(batch) == 8


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_first_batch_is_drawn_as_the_network_sees_it(
    accumulate: int, small: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of the first optimizer step, augmented, in another thread, once in a run."""
    drawn: list[ClassificationBatch] = []
    threads: list[str] = []

    def remember(task: Any, batch: ClassificationBatch, to_images: Any) -> dict[str, Image.Image]:
        drawn.append(batch)
        threads.append(threading.current_thread().name)
        assert not torch.is_grad_enabled()
        return {"training_samples": Image.new("RGB", (400, 9))}

    monkeypatch.setattr(Classification, "training_pictures", remember)
    config = small(*TINY, "epochs=2", "batch_size=4", f"accumulate={accumulate}", "seed=3")
    folder = run(config)
    [batch] = drawn
    assert threads[0].startswith("drawing")
    with Image.open(folder / "pictures/training_samples.png") as image:
        assert image.width == 400
    built = build.experiment(config)
    transform = built.state.transform.train()
    batches = built.train.epoch(1)
    raw = next(itertools.islice(batches, accumulate - 1, None))
    expected = transform(raw, generator_for(3, 1, accumulate - 1))
    assert torch.equal(batch.index, raw.index)
    assert torch.equal(batch.inputs.y, expected.inputs.y)  # type: ignore[union-attr]
    assert not torch.equal(
        transform.eval()(raw, None).inputs.y, expected.inputs.y
    )  # it is augmented


def test_the_title_counts_the_samples_that_are_drawn(
    small: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    titles: list[str] = []

    def remember(task: Any, batch: ClassificationBatch, to_images: Any) -> dict[str, Image.Image]:
        counts.append(len(batch))
        return {"training_samples": Image.new("RGB", (400, 9))}

    titled: Any = pictures.titled
    monkeypatch.setattr(
        pictures, "titled", lambda image, text: titles.append(text) or titled(image, text)
    )
    monkeypatch.setattr(Classification, "training_pictures", remember)
    monkeypatch.setattr(epoch_end, "SAMPLES", 3)
    run(small(*TINY, "epochs=1", "batch_size=4"))
    assert counts == [3]
    assert [title for title in titles if title.startswith("train, 3 of ")]


@pytest.mark.whole
def test_two_processes_count_what_one_does(tmp_path: Path) -> None:
    """``train/top1`` and a limited validation: the same batches, and neither batch norm nor flips,
    which depend on the number of processes.
    """
    (tmp_path / "data").symlink_to(DATA / "data")
    rows = []
    for processes in (1, 2):
        folder = tmp_path / f"run_{processes}"
        done = torchrun(
            processes, Path(__file__).parents[2] / "train.py", "model=timm", "model.name=test_vit",
            *PICTURES, "device=cpu", "logging=csv", "epochs=2", f"batch_size={4 // processes}",
            "max_val_batches=2", "dataset.random_flip=false", f"run_dir={folder}", cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        rows.append(read_rows(folder / "epoch_metrics.csv"))
    for one, two in zip(*rows, strict=True):
        for name in ("train/top1", "train/n", "val/n", "val/top1"):
            assert float(one[name]) == float(two[name]), name
        assert float(one["val/loss"]) == pytest.approx(float(two["val/loss"]), rel=1e-5)
    assert {(row["train/n"], row["val/n"]) for row in rows[0]} == {("24", "8")}
