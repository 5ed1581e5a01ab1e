"""Trained runs put to the test again: a checkpoint, a split of its data, and the verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from research.data.loader import EpochLoader
from research.engine import build, predictor
from research.engine.loop import Judged, autocast, evaluate
from research.engine.predictor import Trained
from research.tasks.task import Monitor
from research.tracking.console import ConsoleTracker
from research.utils.errors import UserError
from research.utils.timing import wait_for

MAIN = ("mAP50", "mAP75", "mAP", "top1")
"""Metrics worth most, where a task has them."""


@dataclass(frozen=True)
class Trial:
    """A trained run with one split of its data.

    Attributes:
        trained: the model, ready to predict.
        loader: the split's batches.
        saved: the checkpoint that it is from.
    """

    trained: Trained
    loader: EpochLoader
    saved: Mapping[str, Any]

    def judge(self, phase: str) -> Judged:
        """One pass over the split.

        Args:
            phase: what progress lines call it.
        """
        settings = build.settings(self.trained.config)
        return evaluate(self.trained, self.loader, settings, ConsoleTracker(), phase)

    def prediction(self, count: int) -> Callable[[], None]:
        """Something to be timed: predicts ``count`` images, read before, and waits for the end.

        The first images that can be read, again and again if there are not enough in a batch.
        """
        trained = self.trained
        batch = next(batch for batch in self.loader.epoch(0) if len(batch))
        chosen = torch.arange(count) % len(batch)
        images = batch.map(lambda tensor: tensor[chosen.to(tensor.device)]).to(trained.device)
        with torch.inference_mode():
            prepared = trained.transform(images, None)

        @torch.inference_mode()
        def once() -> None:
            with autocast(trained.device, trained.config["precision"]):
                trained.task.predict(trained.model, prepared)
            wait_for(trained.device)

        return once

    def monitor(self, metrics: Mapping[str, float]) -> Monitor:
        """The metric that picked the run's best epoch, without its split.

        Args:
            metrics: of a split. Where the run was chosen by something else, a training loss, the
                first of them that is worth most.
        """
        asked = self.trained.config["monitor"]
        chosen = self.trained.task.monitor if asked is None else Monitor(*asked.rsplit(":", 1))
        where, _, name = chosen.metric.partition("/")
        if where == "val" and name in metrics:
            return Monitor(name, chosen.mode)
        return Monitor(next((name for name in MAIN if name in metrics), next(iter(metrics))), "max")


def trial(
    run: Path,
    split: str,
    which: str,
    device: str,
    overrides: Sequence[str],
    trust: Sequence[str] = (),
) -> Trial:
    """A trained run and one split of its data.

    Args:
        run: run folder or checkpoint file.
        split: ``train``, ``val`` or ``test``.
        which: ``best`` or ``last``, of a run folder.
        device: where, as in the run settings.
        overrides: other settings of the run, ``key=value``.
        trust: names of the user's own that its configuration may have.

    Raises:
        UserError: when there is no such run, setting or split, or the data are others now.
    """
    words = [f"device={device}", *overrides]
    return of_trained(run, split, *predictor.load(run, which, words, trust, data=True))


def of_trained(run: Path, split: str, loaded: Trained, saved: Mapping[str, Any]) -> Trial:
    """The same of a run that has been loaded, see ``predictor.load``."""
    config = loaded.config
    loaded.data.prepare(config["seed"])
    if loaded.data.classes != loaded.classes:
        raise UserError(
            "dataset",
            f"the data's {len(loaded.data.classes)} classes are not the {len(loaded.classes)} that "
            f"{run} was trained on",
            "check the dataset settings",
        )
    loader = build.loader(config, loaded.data, split, loaded.device, train=False)
    return Trial(loaded, loader, saved)
