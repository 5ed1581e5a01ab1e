"""A trained model with its preprocessing, loaded from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from research.batch import Batch
from research.config.changes import for_use
from research.config.run_files import is_own
from research.data.datamodule import DataModule
from research.data.transforms import DeviceTransform
from research.engine import build, checkpoint, placement
from research.engine.build import Config
from research.engine.loop import autocast
from research.engine.state import load_weights
from research.tasks.task import Task
from research.utils.allocator import keep_freed_memory
from research.utils.conditions import explain
from research.utils.errors import DamagedImage, UserError, one_line


@dataclass
class Predictor:
    """A trained model with its preprocessing.

    ``model(paths)`` reads image files and returns what the task predicts for them.
    """

    config: Config
    classes: list[str]
    task: Task
    model: nn.Module
    data: DataModule
    transform: DeviceTransform
    device: torch.device

    def __call__(self, paths: str | Path | Sequence[str | Path]) -> Any:
        """Predictions for one image file or several, after the task's ``postprocess``.

        Logits [B, C] of a classifier; boxes of a detector, in pixels of the files.

        Raises:
            UserError: if a file cannot be read.
        """
        several = [paths] if isinstance(paths, str | Path) else paths
        try:
            batch = self.data.read([Path(path) for path in several])
        except DamagedImage as error:
            raise UserError("paths", str(error)) from None
        return self.infer(batch)

    @torch.inference_mode()
    def infer(self, batch: Batch) -> Any:
        """The same for a batch from ``data.read``."""
        prepared = self.transform(batch.to(self.device), None)
        with autocast(self.device, self.config["precision"]):
            return self.task.postprocess(self.task.predict(self.model, prepared), prepared)


def load(
    run: Path,
    which: str = "best",
    overrides: Sequence[str] = (),
    trust: Sequence[str] = (),
    *,
    data: bool = False,
) -> tuple[Predictor, dict[str, Any]]:
    """Load the model of a run or file, and the content of the checkpoint.

    Args:
        run: run folder or checkpoint file.
        which: ``best`` or ``last``, of a run folder.
        overrides: changed settings of the run, ``key=value`` each.
        trust: the user's own ``_target_`` names that the configuration may contain.
        data: whether the data set will be read; its paths in a file outside of ``runs/`` are not
            used.

    Raises:
        UserError: if no checkpoint can be read, or its configuration is refused.
    """
    path = checkpoint.find(run, which)
    saved = checkpoint.load(path, trust)
    return of_checkpoint(path, saved, overrides, data=data), saved


def of_checkpoint(
    path: Path, saved: Mapping[str, Any], overrides: Sequence[str], *, data: bool = False
) -> Predictor:
    """The same for a checkpoint that was read from ``path``.

    Raises:
        UserError: also if its parts do not fit together, such as a detector and the metadata of a
            classification data set.
    """
    own = is_own(path)
    config = for_use(saved["config"], overrides, str(path), own=own, data=data)
    try:
        return load_predictor(config, saved)
    except UserError:
        raise
    except Exception as error:
        if explain(error) is not None:
            raise  # the machine's, not the file's
        if config["trust"]:
            raise  # may be a bug in the user's own code, which needs the traceback
        raise UserError(
            "checkpoint",
            f"{path}: refused, its configuration cannot be built ({type(error).__name__}: "
            f"{one_line(error)})",
        ) from error


def load_predictor(config: Config, saved: Mapping[str, Any]) -> Predictor:
    """Rebuild model, task and preprocessing of a checkpoint, without reading the data set.

    Args:
        config: configuration of the checkpoint, with the user's changes.
        saved: the checkpoint, from ``checkpoint.load``.
    """
    keep_freed_memory()
    classes = saved["data"]["classes"]
    device = build.select_device(config["device"], config["precision"])
    # The weights come from the checkpoint; a file of pretrained weights may no longer exist.
    settings = dict(config["model"])
    if "pretrained" in settings:
        settings["pretrained"] = None
    config = {**config, "model": settings}
    network = build.model(config, saved["data"])
    load_weights(network, checkpoint.weights_of(saved), "checkpoint", "the checkpoint")
    data = build.data_module(config)
    data.load_metadata(saved["data"])
    transform = data.transform(measured=False)
    transform.load_state_dict(saved["transform"])
    layout = placement.memory_format(config, device, network)
    placement.lay_out(network, transform, device, layout)
    return Predictor(
        config,
        classes,
        build.build_task(config, classes),
        network.eval(),
        data,
        transform.eval(),
        device,
    )
