"""Ordinal regression: classes that have an order, such as grades."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from PIL.Image import Image
from torch import Tensor, nn

from research.batch import ClassificationBatch
from research.data.frames.media import Still
from research.inference.writers import Overlay, Panels
from research.tasks.task import Monitor
from research.tracking.tracker import Rows


class Ordinal:
    """Squared error of the expected class, from a model that returns logits [B, C].

    Args:
        classes: class names, in their order.
    """

    monitor = Monitor("val/mae", "min")

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = list(classes)

    def losses(self, model: nn.Module, batch: ClassificationBatch) -> dict[str, Tensor]:
        return {"squared_error": (self.predict(model, batch) - batch.labels).square().mean()}

    def predict(self, model: nn.Module, batch: ClassificationBatch) -> Tensor:
        """The expected class [B], 0…C-1."""
        chances = model(batch.inputs).float().softmax(1)
        return chances @ torch.arange(len(self.classes), device=chances.device).float()

    def postprocess(self, predictions: Tensor, batch: ClassificationBatch) -> Tensor:
        return predictions

    def writer(self, folder: Path) -> OrdinalWriter:
        return OrdinalWriter(folder / "predictions.csv")

    def example_batch(
        self, count: int, inputs: Callable[[int], Any], metadata: Mapping[str, Any]
    ) -> ClassificationBatch:
        index = torch.arange(count)
        return ClassificationBatch(index, inputs(count), torch.zeros_like(index))

    def metrics(self, device: torch.device) -> OrdinalMetrics:
        return OrdinalMetrics(device)

    def pictures(
        self,
        metrics: OrdinalMetrics,
        batch: ClassificationBatch,
        predictions: Tensor,
        to_images: Callable[[Any], list[Tensor]],
    ) -> Mapping[str, Image]:
        return {}

    def training_pictures(
        self, batch: ClassificationBatch, to_images: Callable[[Any], list[Tensor]]
    ) -> Mapping[str, Image]:
        return {}

    def tables(
        self, metrics: OrdinalMetrics, names: Callable[[Any], dict[str, list[str]]]
    ) -> Mapping[str, Rows]:
        return {}


class OrdinalMetrics:
    """``mae``: mean absolute error in classes."""

    names = ("mae",)

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.reset()

    def reset(self) -> None:
        self.errors: list[Tensor] = []

    def update(self, predictions: Tensor, batch: ClassificationBatch) -> None:
        self.errors.append((predictions - batch.labels).abs())

    def compute(self) -> dict[str, float]:
        return {"mae": float(torch.cat(self.errors).mean())} if self.errors else {}

    def state(self) -> dict[str, Any]:
        return {"errors": [errors.cpu() for errors in self.errors]}

    def merge(self, state: Mapping[str, Any]) -> None:
        self.errors += [errors.to(self.device) for errors in state["errors"]]


class OrdinalWriter:
    """``predictions.csv``: a file and its expected class a row."""

    score_threshold = None

    def __init__(self, table: Path) -> None:
        self.table = table
        self.rows: list[tuple[str, str]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.table.parent.mkdir(parents=True, exist_ok=True)
        with self.table.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("file", "expected_class"), *self.rows])

    def add(
        self, stills: Sequence[Still], images: Sequence[Panels], predictions: Tensor
    ) -> list[Overlay]:
        texts = [f"{value:.2f}" for value in predictions.tolist()]
        self.rows += zip((still.name for still in stills), texts, strict=True)
        return [Overlay(text) for text in texts]

    def summary(self) -> dict[str, Any]:
        return {}

    def where(self) -> list[str]:
        return [f"table:    {self.table}"]
