"""``Task``: the interface of tasks, with losses, predictions, metrics and pictures."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from PIL.Image import Image
from torch import Tensor, nn

from research.batch import Batch
from research.inference.writers import PredictionWriter
from research.tracking.tracker import Rows
from research.utils.errors import UserError


class Monitor(NamedTuple):
    """The metric that selects the best epoch, and its direction: ``max`` or ``min``."""

    metric: str
    mode: str

    def better(self, value: float, best: float | None) -> bool:
        if best is None:
            return value == value
        return value > best if self.mode == "max" else value < best


class LossTerms(dict[str, Tensor]):
    """Terms of a training loss by name, each [], and metrics of the same forward pass.

    The loop sums the terms. It logs both: of an epoch the mean of each term over its batches, and
    of each metric over its samples.

    Args:
        terms: by name.
        metrics: by name, a value for each sample of the batch, [B]; NaN does not count.
    """

    def __init__(
        self, terms: Mapping[str, Tensor] = {}, metrics: Mapping[str, Tensor] = {}
    ) -> None:
        super().__init__(terms)
        self.metrics = metrics


class Metrics(Protocol):
    """Metrics over a split, with ``update``, ``compute`` and ``reset`` as in torchmetrics.

    ``names`` lists the keys of ``compute`` after at least one sample. The samples of a run on
    several processes are counted by each, and merged in the order of the split.
    """

    @property
    def names(self) -> list[str]: ...

    def update(self, predictions: Any, batch: Batch) -> None: ...

    def compute(self) -> dict[str, float]: ...

    def reset(self) -> None: ...

    def state(self) -> dict[str, Any]:
        """What ``merge`` of another process needs, on the CPU."""
        ...

    def merge(self, state: Mapping[str, Any]) -> None:
        """Add the samples of ``state`` after the own ones."""
        ...


def main_values(metrics: Metrics, monitor: Monitor) -> dict[str, float]:
    """The monitored metric of a split and its loss, of the samples so far; for one line."""
    values = metrics.compute()
    names = (monitor.metric.partition("/")[2], "loss")
    return {name: values[name] for name in names if name in values}


class Task(Protocol):
    """Losses, predictions, metrics and pictures of one kind of problem.

    ``losses`` is called in training mode and returns each term by name; the loop sums them. With
    ``LossTerms`` it also returns metrics of the training samples, such as their accuracy.
    ``predict`` is called in evaluation mode and returns the input of ``metrics().update``. The
    validation loss, if there is one, is a metric computed from predictions, so that evaluation
    needs one forward pass.
    """

    monitor: Monitor

    def losses(self, model: nn.Module, batch: Any) -> dict[str, Tensor]: ...

    def predict(self, model: nn.Module, batch: Any) -> Any: ...

    def postprocess(self, predictions: Any, batch: Any) -> Any:
        """Predictions in the units of the files, such as boxes in pixels."""
        ...

    def writer(self, folder: Path) -> PredictionWriter:
        """A writer of predictions for a user's own images.

        Args:
            folder: output folder, created with the first prediction.
        """
        ...

    def example_batch(
        self, count: int, inputs: Callable[[int], Any], metadata: Mapping[str, Any]
    ) -> Batch:
        """A batch with valid targets, for commands that need one but no data.

        Args:
            count: number of samples.
            inputs: returns the given number of network inputs.
            metadata: of the data set, see ``DataModule.metadata``.
        """
        ...

    def metrics(self, device: Any) -> Metrics: ...

    def pictures(
        self,
        metrics: Any,
        batch: Any,
        predictions: Any,
        to_images: Callable[[Any], list[Tensor]],
    ) -> Mapping[str, Image]:
        """Named images for the tracker.

        Args:
            metrics: the metrics over the whole split.
            batch: samples drawn from the whole split, as passed to the model.
            predictions: from ``predict`` for this batch.
            to_images: converts a batch to images, see ``DeviceTransform.to_images``.
        """
        ...

    def training_pictures(
        self, batch: Any, to_images: Callable[[Any], list[Tensor]]
    ) -> Mapping[str, Image]:
        """Named images of the first training samples, drawn beside training; may be empty.

        Args:
            batch: some samples of the first batch, as passed to the model: augmented, with targets.
            to_images: as for ``pictures``.
        """
        ...

    def tables(
        self, metrics: Any, names: Callable[[Any], dict[str, list[str]]]
    ) -> Mapping[str, Rows]:
        """Named tables for the tracker.

        Args:
            metrics: the metrics over the whole split.
            names: names of the samples of a batch, see ``DeviceTransform.names``.
        """
        ...


def check_methods(task: Task, processes: int, device: Any) -> None:
    """Check, before training, that a task of the user's own and its metrics have all methods.

    Args:
        processes: of the run; ``state`` and ``merge`` of the metrics are for more than one.

    Raises:
        UserError: naming those that are missing.
    """
    _check_members(task, Task)
    single = {"state", "merge"} if processes == 1 else set()
    _check_members(task.metrics(device), Metrics, single)


def _check_members(of: object, protocol: type, without: Collection[str] = ()) -> None:
    members = [name for name in vars(protocol) if not name.startswith("_")]
    members += vars(protocol).get("__annotations__", {})
    missing = [name for name in members if name not in without and not hasattr(of, name)]
    if missing:
        raise UserError(
            "task",
            f"task: {type(of).__name__} has no {', '.join(missing)}",
            "add what is missing; docs/adding.md lists the methods of a task",
        )


def check_monitor(monitor: Monitor, task: Task, device: Any) -> None:
    """Check, before training, that the monitored metric will be logged.

    Raises:
        UserError: if it will not.
    """
    known = ["train/loss", *(f"val/{name}" for name in task.metrics(device).names)]
    if monitor.metric not in known:
        message = f"monitor: no metric {monitor.metric!r} is logged"
        raise UserError("monitor", message, f"choose one of {', '.join(known)}")
