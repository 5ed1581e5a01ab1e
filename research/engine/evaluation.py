"""Evaluation of a trained run on one split of its data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from research.data.loader import EpochLoader
from research.engine import build, predictor
from research.engine.loop import EvalResult, autocast, evaluate
from research.engine.predictor import Predictor
from research.tasks.task import Monitor
from research.tracking.console import ConsoleTracker
from research.utils.conditions import explained
from research.utils.errors import UserError
from research.utils.timing import synchronize

MAIN = ("mAP50", "mAP75", "mAP", "top1")
"""Main metrics, most important first."""


@dataclass(frozen=True)
class EvalRun:
    """A trained run with one split of its data.

    Attributes:
        predictor: the model and its preprocessing.
        loader: batches of the split.
        saved: content of the checkpoint.
    """

    predictor: Predictor
    loader: EpochLoader
    saved: Mapping[str, Any]

    def evaluate(self, phase: str) -> EvalResult:
        """One pass over the split; ``phase`` is its name in progress lines."""
        model, cfg = self.predictor, build.loop_config(self.predictor.config)
        with explained(evaluation_limits(model.config)):
            return evaluate(
                model.model,
                model.task,
                self.loader,
                model.transform,
                cfg,
                model.device,
                ConsoleTracker(),
                phase,
            )

    def timed_prediction(self, count: int) -> Callable[[], None]:
        """A function that predicts ``count`` images on the device and synchronizes.

        The images are those of the first nonempty batch, repeated if it has fewer.
        """
        model = self.predictor
        batch = next(batch for batch in self.loader.epoch(0) if len(batch))
        chosen = torch.arange(count) % len(batch)
        images = batch.map(lambda tensor: tensor[chosen.to(tensor.device)]).to(model.device)
        with torch.inference_mode():
            inputs = model.transform(images, None)

        @torch.inference_mode()
        def predict() -> None:
            with autocast(model.device, model.config["precision"]):
                model.task.predict(model.model, inputs)
            synchronize(model.device)

        return predict

    def main_metric(self, metrics: Mapping[str, float]) -> Monitor:
        """The metric that selected the best epoch, without its split.

        Args:
            metrics: of a split. If the monitored metric is not among them, such as a training loss,
                the first of ``MAIN`` is returned.
        """
        chosen = build.monitor(self.predictor.config, self.predictor.task)
        where, _, name = chosen.metric.partition("/")
        if where == "val" and name in metrics:
            return Monitor(name, chosen.mode)
        return Monitor(next((name for name in MAIN if name in metrics), next(iter(metrics))), "max")


def evaluation_limits(config: build.Config) -> dict[str, Any]:
    """``build.limits`` without the settings that only training has."""
    limits = build.limits({**config, "global_batch_size": None})
    return {key: value for key, value in limits.items() if key != "accumulate"}


def load_eval_run(
    run: Path,
    split: str,
    which: str,
    device: str,
    overrides: Sequence[str],
    trust: Sequence[str] = (),
) -> EvalRun:
    """Load a trained run and one split of its data.

    Args:
        run: run folder or checkpoint file.
        split: ``train``, ``val`` or ``test``.
        which: ``best`` or ``last``, of a run folder.
        device: as in the run settings.
        overrides: changed settings of the run, ``key=value``.
        trust: the user's own ``_target_`` names that the configuration may contain.

    Raises:
        UserError: if the run, setting or split does not exist, or the classes have changed.
    """
    words = [f"device={device}", *overrides]
    return of_predictor(run, split, *predictor.load(run, which, words, trust, data=True))


def of_predictor(run: Path, split: str, loaded: Predictor, saved: Mapping[str, Any]) -> EvalRun:
    """The same for a run loaded with ``predictor.load``."""
    config = loaded.config
    with explained(evaluation_limits(config)):
        loaded.data.prepare(config["seed"])
    if loaded.data.classes != loaded.classes:
        raise UserError(
            "dataset",
            f"the data set has {len(loaded.data.classes)} classes that differ from the "
            f"{len(loaded.classes)} of {run}",
            "check the dataset settings",
        )
    alone = {**config, "global_batch_size": None}  # in one process, batch_size counts
    loader = build.loader(alone, loaded.data, split, loaded.device, train=False)
    return EvalRun(loaded, loader, saved)
