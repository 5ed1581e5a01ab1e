"""What goes wrong every day while a run trains: what it says, what it keeps, how it goes on."""

from __future__ import annotations

import errno
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import get_worker_info

from research.data import image_files
from research.data.folder import ImageSamples
from research.engine import build, checkpoint
from research.tasks.classification import Classification
from research.tracking.files import FileTracker, read_rows
from tests.conftest import TINY, run, trained_epoch, user_error
from tests.engine.test_interrupts import same

Compose = Callable[..., dict[str, Any]]
WORDS = (*TINY, "epochs=2", "scheduler=cosine", "batch_size=6", "log_every=3", "keep=0")
CPU = torch.device("cpu")


class Poisoned:
    """The classification loss, with a value of its own at some training steps (from 1)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: dict[int, str]) -> None:
        self.step = 0
        losses = Classification.losses

        def poisoned(task: Any, model: nn.Module, batch: Any) -> dict[str, torch.Tensor]:
            self.step += 1
            how = at.get(self.step)
            buffers = [buffer.clone() for buffer in model.buffers()]
            if how == "loss":
                batch = batch.map(lambda t: t * torch.nan if t.is_floating_point() else t)
            result: dict[str, torch.Tensor] = losses(task, model, batch)
            if how == "gradient":  # d sqrt(x) at 0 is infinite
                weight = next(model.parameters())
                zero = (weight - weight.detach()).square().sum().sqrt()
                result = {name: loss + zero for name, loss in result.items()}
            if how == "constant":
                result = {name: 0.0 * next(model.parameters()).sum() for name in result}
                for buffer, before in zip(model.buffers(), buffers, strict=True):
                    buffer.copy_(before)
            return result

        monkeypatch.setattr(Classification, "losses", poisoned)


def test_a_loss_that_is_not_finite_stops_the_run(
    small: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    Poisoned(monkeypatch, {6: "loss"})
    with user_error(
        "optimizer.lr", "step 6 (epoch 2, batch 2)", "cross_entropy nan", "learning rate 0.0",
        "data/train/", "and 3 more", "lower optimizer.lr, set grad_clip=1, or skip such batches",
    ) as caught:  # fmt: skip
        run(small(*WORDS, "run_dir=bad"))
    (note,) = caught.value.__notes__
    assert note.count(".jpg") == 6
    assert json.loads(Path("bad/summary.json").read_text())["status"] == "FAILED"
    # The checkpoint is that of the epoch before.
    assert checkpoint.load(Path("bad/checkpoints/last.pt"))["state"]["epoch"] == 1


@pytest.mark.parametrize(
    ("how", "more"),
    [
        ("loss", ()), ("gradient", ()),
        pytest.param("gradient", ("grad_clip=1.0",), marks=pytest.mark.long),
        pytest.param("loss", ("ema=0.5", "precision=bf16"), marks=pytest.mark.long),
    ],
)  # fmt: skip
def test_a_skipped_batch_changes_nothing(
    small: Compose, monkeypatch: pytest.MonkeyPatch, how: str, more: tuple[str, ...]
) -> None:
    built = build.experiment(small(*WORDS, "skip_nonfinite=1", "max_train_batches=1", *more))
    Poisoned(monkeypatch, {1: how})
    if how == "gradient":
        built.state.model.eval()  # otherwise the forward pass itself moves the statistics
    before = {n: copied(p.state_dict()) for n, p in built.state._stateful() if p is not None}
    if how == "loss":
        # Nothing is left of the epoch: its only batch is skipped.
        with user_error("dataset", "6 left_out/not_finite"):
            trained_epoch(built)
    else:
        stats = trained_epoch(built)
        assert stats.skipped == {"left_out/not_finite": 6}
    after = {n: copied(p.state_dict()) for n, p in built.state._stateful() if p is not None}
    if how == "gradient":
        for part in (before, after):  # the forward pass was finite: its statistics count
            part["model"] = {n: t for n, t in part["model"].items() if "running" not in n}
            part["model"] = {n: t for n, t in part["model"].items() if "tracked" not in n}
    assert same(before, after)
    assert built.state.skips == 1
    assert all(p.grad is None for p in built.state.model.parameters())


def copied(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_accumulation_steps_with_the_other_batches(
    small: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four batches in a step the second is skipped, as if its loss were 0 everywhere."""
    weights = []
    for how in ("loss", "constant"):
        built = build.experiment(small(*WORDS, "accumulate=4", "skip_nonfinite=1"))
        with monkeypatch.context() as patch:
            Poisoned(patch, {2: how})
            stats = trained_epoch(built)
        assert stats.skipped == ({"left_out/not_finite": 6} if how == "loss" else {})
        assert built.state.scheduler.last_epoch == 1
        weights.append(copied(built.state.model.state_dict()))
    assert same(*weights)


def test_no_more_than_allowed_are_skipped_also_after_a_resume(
    small: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        monkeypatch.context() as patch,
        user_error("optimizer.lr", "step 6 (epoch 2, batch 2)", "skip_nonfinite=12"),
    ):
        Poisoned(patch, {2: "loss", 3: "gradient", 6: "loss"})
        run(small(*WORDS, "skip_nonfinite=2", "run_dir=run"))
    (row,) = read_rows(Path("run/epoch_metrics.csv"))
    assert row["train/left_out/not_finite"] == "12"
    state = checkpoint.load(Path("run/checkpoints/last.pt"))["state"]
    assert (state["epoch"], state["skips"]) == (1, 2)
    Poisoned(monkeypatch, {1: "loss"})
    with user_error("optimizer.lr", "step 5 (epoch 2, batch 1)"):
        run(small(*WORDS, "skip_nonfinite=2", "resume=run"))


def test_weights_that_are_not_finite_are_not_saved(
    small: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient of the last step of an epoch: no loss follows that would show it."""
    Poisoned(monkeypatch, {8: "gradient"})
    with user_error("optimizer.lr", "weights are not finite after step 8", "not saved"):
        run(small(*WORDS, "run_dir=run"))
    assert checkpoint.load(Path("run/checkpoints/last.pt"))["state"]["epoch"] == 1
    assert json.loads(Path("run/summary.json").read_text())["epochs_done"] == 1


def test_a_batch_too_small_for_its_norm(small: Compose) -> None:
    with user_error("batch_size", "batch norm", "batch_size=1", "at least two"):
        run(small(*TINY, "batch_size=1"))
    with user_error("dataset", "one sample", "batch_size=1"):
        run(small(*TINY, "dataset.max_train_images=1"))


def test_a_step_without_a_batch_is_none(small: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two batches the second has one readable sample and is left out: one step, one rate."""
    read = ImageSamples.__getitems__

    def alone(self: ImageSamples, keys: Any) -> Any:
        return read(self, keys[:1] if self.split.files and keys[0].epoch == 1 and seen else keys)

    built = build.experiment(small(*WORDS, "max_train_batches=2"))
    seen: list[int] = []
    monkeypatch.setattr(ImageSamples, "__getitems__", lambda s, k: (alone(s, k), seen.append(1))[0])
    stats = trained_epoch(built)
    assert stats.skipped == {"left_out/alone": 1}
    assert built.state.scheduler.last_epoch == 1


def test_one_class_is_refused(small: Compose) -> None:
    for name in ("field", "spots"):
        for split in ("train", "val"):
            shutil.rmtree(Path("data", split, name))
    with user_error("dataset", "only the class bars", "needs two"):
        run(small(*TINY))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_exception_while_reading_names_the_file(
    small: Compose, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    read = ImageSamples.__getitems__

    def broken(self: ImageSamples, keys: Any) -> Any:
        for key in keys:
            if self.split.files[key.index].name == "005.jpg":
                raise ZeroDivisionError("of the\nreader")
        return read(self, keys)

    monkeypatch.setattr(ImageSamples, "__getitems__", broken)
    with user_error("dataset", "005.jpg: cannot be read (ZeroDivisionError: of the reader)") as e:
        run(small(*TINY, f"workers={workers}"))
    cause = e.value.__cause__
    assert "in broken" in str(cause) or isinstance(cause, ZeroDivisionError)


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EMFILE, "many")])
def test_a_condition_of_the_machine_in_a_worker(
    small: Compose, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """No file is damaged for it; the line has the settings of the run."""

    config = small(*WORDS, "workers=1")
    read = image_files._read_jpeg_header

    def exhausted(file: Any, size: int) -> Any:
        if get_worker_info() is None:  # headers are read in the main process
            return read(file, size)
        raise error

    monkeypatch.setattr(image_files, "_read_jpeg_header", exhausted)
    key = "ulimit" if isinstance(error, OSError) else "batch_size"
    with user_error(key, "workers=0" if key == "ulimit" else "batch_size=6"):
        run(config)


@pytest.mark.parametrize(
    "where",
    [
        "training", pytest.param("model", marks=pytest.mark.long),
        pytest.param("validation", marks=pytest.mark.long),
    ],
)  # fmt: skip
def test_out_of_memory_names_the_settings(
    small: Compose, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def full(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    target = {
        "model": "research.engine.build.model",
        "training": "research.tasks.classification.Classification.losses",
        "validation": "research.tasks.classification.Classification.predict",
    }
    monkeypatch.setattr(target[where], full)
    with user_error(
        "batch_size", "batch_size=6, accumulate=1, precision=fp32, dataset.image_si"
        "ze=32", "set batch_size=3 accumulate=2 or precision=bf16",
    ):  # fmt: skip
        run(small(*WORDS, "run_dir=run"))
    # The advice is accepted.
    monkeypatch.undo()
    small(*WORDS, "batch_size=3", "accumulate=2", "precision=bf16")


def test_out_of_memory_after_a_saved_state_keeps_the_settings(
    small: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = Classification.losses

    def full(self: Any, *args: Any, **kwargs: Any) -> Any:
        if Path("run/checkpoints/last.pt").exists():
            raise MemoryError
        return losses(self, *args, **kwargs)

    monkeypatch.setattr(Classification, "losses", full)
    advice = "free memory, then continue with python train.py resume="
    with user_error("batch_size", advice, "a new run needs less with batch_size=3 accumulate=2"):
        run(small(*WORDS, "run_dir=run"))


@pytest.mark.long
def test_a_deleted_folder(small: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    """``checkpoints/`` is made again; without the run folder the run ends and leaves nothing."""
    log = FileTracker.log
    gone = "run/checkpoints"

    def delete(self: FileTracker, table: Any, step: int, row: Any) -> None:
        if table == "batch" and row["epoch"] == 2:
            shutil.rmtree(gone, ignore_errors=True)
        log(self, table, step, row)

    monkeypatch.setattr(FileTracker, "log", delete)
    run(small(*WORDS, "run_dir=run"))
    assert checkpoint.load(Path("run/checkpoints/last.pt"))["state"]["epoch"] == 2
    gone = "lost"
    with user_error("disk", "lost was deleted or moved", "restore it, then"):
        run(small(*WORDS, "run_dir=lost"))
    assert not Path("lost").exists()
