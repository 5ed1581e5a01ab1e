"""What happens at the end of an epoch, and within it: pictures, checkpoints, signals."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final, Protocol

import torch
from PIL.Image import Image

from research.batch import Batch
from research.engine import distributed, evaluation
from research.engine.checkpoint import Checkpoints
from research.engine.interrupts import Interrupted, Interrupts
from research.engine.loop import EpochCallback, EvalResult
from research.engine.loss_log import LossLog
from research.engine.state import TrainState
from research.engine.steps import check_weights
from research.tasks.task import Task
from research.tracking.tracker import Tracker
from research.viz import pictures

SAMPLES: Final = 12
"""Training samples that are drawn."""


class Pruner(Protocol):
    """Receives the monitored value of every epoch; sets ``stopped`` to end the run."""

    stopped: bool

    def epoch(self, epoch: int, value: float) -> None:
        """Called after epoch ``epoch`` (from 1) is logged and its checkpoint is written."""
        ...


class EpochEnd(EpochCallback):
    """At the end of an epoch: draw pictures and tables if it is the best, save, flush the tracker.

    The first batch of a run is drawn in a thread, beside the steps after it.

    Every process calls it, the main one writes. Signals and saving are decided for all processes.

    Args:
        task: draws pictures and tables.
        metric: the monitored metric.
        checkpoints: writes the state.
        tracker: receives pictures and tables; flushed after the checkpoint is written.
        pruner: receives the value of ``metric`` of every epoch, and may stop the run.
        interrupts: signals that end the run after the current step.
        minutes: between two checkpoints within an epoch; None: only at its end.
    """

    def __init__(
        self,
        task: Task,
        metric: str,
        checkpoints: Checkpoints,
        tracker: Tracker,
        pruner: Pruner | None,
        interrupts: Interrupts,
        minutes: float | None,
    ) -> None:
        self.task = task
        self.metric = metric
        self.checkpoints = checkpoints
        self.tracker = tracker
        self.pruner = pruner
        self.interrupts = interrupts
        self.seconds = math.inf if minutes is None else 60 * minutes
        self.next_save = time.monotonic() + self.seconds
        self.has_drawn = False
        self.drawing: Future[Mapping[str, Image]] | None = None

    def step(self, state: TrainState, losses: LossLog, inputs: Batch | None) -> None:
        if not self.has_drawn and inputs is not None:
            self._draw_inputs(state, losses, inputs)
        if self.drawing is not None and self.drawing.done():
            self._record_inputs()
        is_due = distributed.is_main() and time.monotonic() >= self.next_save
        requested, save = distributed.largest(self.interrupts.requested, is_due)
        if requested or save:
            state.epoch_losses = losses.state_dict()
            self._save(self._content(state))
        if requested:
            raise Interrupted(requested)

    def _draw_inputs(self, state: TrainState, losses: LossLog, inputs: Batch) -> None:
        """Begin to draw the first batch of the run, as the model has seen it."""
        self.has_drawn = True
        if state.epoch or not distributed.is_main():
            return
        inputs = inputs.map(lambda tensor: tensor[:SAMPLES])
        basis = f"{losses.loader.basis(len(inputs))}, of step {state.step}"
        title = f"{basis}, as the network sees them: augmented, {state.transform.shows}"

        def drawn() -> dict[str, Image]:
            with torch.no_grad():
                images = self.task.training_pictures(inputs, state.transform.to_images)
            return {name: pictures.titled(image, title) for name, image in images.items()}

        executor = ThreadPoolExecutor(1, "drawing")
        self.drawing = executor.submit(drawn)
        executor.shutdown(wait=False)

    def _record_inputs(self) -> None:
        """Record what was drawn of the first batch, if it has not been; waits until it is."""
        if self.drawing is not None:
            drawn, self.drawing = self.drawing.result(), None
            self.tracker.pictures(1, drawn)

    @contextmanager
    def validation(self, state: TrainState) -> Iterator[None]:
        self._record_inputs()  # before loader processes start: a fork copies no other thread
        content = self._content(state)  # before: an interrupted process waits for no other
        try:
            with self.interrupts.immediate():
                yield
        except Interrupted:
            self._save(content)
            raise

    def _content(self, state: TrainState, saved: str = "") -> dict[str, Any]:
        """What is saved, at ``saved`` if it is the end of an epoch."""
        check_weights(state)
        self.correct_paths(state, saved)
        state.tracking = self.tracker.state()
        return state.state_dict()

    def correct_paths(self, state: TrainState, saved: str = "", *, all_rows: bool = False) -> None:
        """Correct what the rows of earlier epochs say of their checkpoints, which may be gone.

        Args:
            state: its history is corrected, and the records of the tracker.
            saved: as for ``Checkpoints.paths``.
            all_rows: also those that the history has right, since a crash may have come between.
        """
        if not distributed.is_main():
            return
        paths = self.checkpoints.paths(state, saved)
        wrong = {
            row["epoch"]: paths[row["epoch"]]
            for row in state.history
            if all_rows or row.get("checkpoint_path") != paths[row["epoch"]]
        }
        for row in state.history:
            row["checkpoint_path"] = paths[row["epoch"]]
        if wrong:
            self.tracker.correct("checkpoint_path", wrong)

    def _save(self, content: dict[str, Any], path: str = "", *, is_best: bool = False) -> None:
        """Write a checkpoint, of an epoch or (without ``path``) within one."""
        if distributed.is_main():
            self.checkpoints.save(content, path, is_best=is_best)
        self.tracker.flush()
        self.next_save = time.monotonic() + self.seconds

    @property
    def stop(self) -> bool:
        return self.pruner is not None and self.pruner.stopped

    def replay(self, row: Mapping[str, Any]) -> None:
        if self.pruner is not None:
            self.pruner.epoch(row["epoch"], row[self.metric])

    def checkpoint_path(self, epoch: int, loss: float, *, is_best: bool) -> str:
        return self.checkpoints.path_for(epoch, loss, is_best=is_best)

    def __call__(self, state: TrainState, row: Mapping[str, Any], result: EvalResult) -> None:
        if row["is_best"] and distributed.is_main():
            evaluation.draw(self.task, state.transform, result, self.tracker, state.epoch)
        path = row["checkpoint_path"]
        self._save(self._content(state, path), path, is_best=row["is_best"])
        self.replay(row)
        (requested,) = distributed.largest(self.interrupts.requested)
        if requested:
            raise Interrupted(requested)
