"""Classification with one metric more."""

from __future__ import annotations

import torch

from research.tasks.classification import Classification, ClassificationMetrics


class Balanced(Classification):
    """Classification that also measures ``balanced_top1``."""

    def metrics(self, device: torch.device) -> BalancedMetrics:
        return BalancedMetrics(len(self.classes), device)


class BalancedMetrics(ClassificationMetrics):
    """``balanced_top1``: mean of the classes' recall, 0…1."""

    @property
    def names(self) -> list[str]:
        return [*super().names, "balanced_top1"]

    def compute(self) -> dict[str, float]:
        counts = self.confusion.double()
        seen = counts.sum(1) > 0
        recall = counts.diag()[seen] / counts.sum(1)[seen]
        return {**super().compute(), "balanced_top1": float(recall.mean())}
