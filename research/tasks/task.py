"""What a task is: the only thing that the loop knows of detection, ranking or classification."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from PIL.Image import Image
from torch import Tensor, nn

from research.batch import Batch
from research.inference.writers import Report
from research.tracking.tracker import Rows


class Monitor(NamedTuple):
    """The metric that picks the best epoch, and which way is better: ``max`` or ``min``."""

    metric: str
    mode: str

    def better(self, value: float, best: float | None) -> bool:
        if best is None:
            return value == value
        return value > best if self.mode == "max" else value < best


class Metrics(Protocol):
    """Accumulates over a split; torchmetrics' manner of update, compute, reset.

    ``names`` says what ``compute`` will yield once samples were seen.
    """

    @property
    def names(self) -> list[str]: ...

    def update(self, predictions: Any, batch: Batch) -> None: ...

    def compute(self) -> dict[str, float]: ...

    def reset(self) -> None: ...


class Task(Protocol):
    """Losses, predictions, metrics and pictures of one kind of problem.

    ``losses`` is called in training mode and returns every part by name; the loop sums them.
    ``predict`` is called in evaluation mode and returns whatever ``metrics().update`` takes.
    A loss on the validation split is a metric of the task's own, computed from its predictions,
    so that evaluation needs one forward pass.
    """

    monitor: Monitor

    def losses(self, model: nn.Module, batch: Any) -> dict[str, Tensor]: ...

    def predict(self, model: nn.Module, batch: Any) -> Any: ...

    def postprocess(self, predictions: Any, batch: Any) -> Any:
        """Predictions as a user takes them: in the units of the files, on no grid of ours."""
        ...

    def report(self, folder: Path, objectness: float | None) -> Report:
        """Where the answers for a user's own images go.

        Args:
            folder: for files; it is made when there is something to write.
            objectness: score from which a box counts, 0…1; null is the task's own.

        Raises:
            UserError: for an ``objectness`` where there are no boxes.
        """
        ...

    def metrics(self, device: Any) -> Metrics: ...

    def pictures(
        self,
        metrics: Any,
        batch: Any,
        predictions: Any,
        panels: Callable[[Any], list[Tensor]],
    ) -> Mapping[str, Image]:
        """Named images for people to look at.

        Args:
            metrics: the split's metrics, complete.
            batch: the first batch of the split, as the model saw it.
            predictions: what ``predict`` said of it.
            panels: shows a batch's samples, see ``DeviceTransform.to_images``.
        """
        ...

    def tables(
        self, metrics: Any, names: Callable[[Any], dict[str, list[str]]]
    ) -> Mapping[str, Rows]:
        """Named tables for people to read.

        Args:
            metrics: the split's metrics, complete.
            names: tells what a user calls a batch's samples, see ``DeviceTransform.names``.
        """
        ...
