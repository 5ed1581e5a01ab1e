"""Objectives of a sweep: the monitored metric, latency and bytes per image."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from research.utils.errors import UserError, one_line

if TYPE_CHECKING:
    from research.engine.evaluation import EvalRun

log = logging.getLogger(__name__)

MONITOR: Final = "monitor"
LATENCY: Final = "latency_ms"
BYTES: Final = "bytes_per_image"
ROUNDS: Final = 20
BLOCK: Final = 8  # pixels
PLACEHOLDERS: Final = [f"class {number}" for number in range(100)]
"""Classes of a task that is built without data; enough for every metric that needs several."""


class Objective(NamedTuple):
    """The name of a metric or cost, and Optuna's direction, ``maximize`` or ``minimize``."""

    name: str
    direction: str


def objectives(names: Sequence[str], monitor: str) -> list[Objective]:
    """What a sweep optimises.

    Args:
        names: ``monitor``, ``latency_ms`` or ``bytes_per_image``.
        monitor: ``METRIC:max`` or ``METRIC:min``.

    Raises:
        UserError: if a name occurs twice.
    """
    if len({*names}) < len(names):
        raise UserError(
            "hydra.sweeper.objectives", f"hydra.sweeper.objectives={list(names)}: name each once"
        )
    metric, mode = monitor.rsplit(":", 1)
    monitored = Objective(metric, "maximize" if mode == "max" else "minimize")
    return [monitored if name == MONITOR else Objective(name, "minimize") for name in names]


def monitor(config: Any) -> str:
    """``METRIC:max`` or ``METRIC:min``, by which a configuration's best epoch is chosen."""
    from research.config import targets

    chosen = config["monitor"] or config["task"].get("monitor")
    if chosen is None:
        task = targets.locate("task", config["task"]["_target_"], config["trust"])
        chosen = ":".join(task.monitor)
    return str(chosen)


def check_monitored(config: Mapping[str, Any]) -> None:
    """Check, before the first trial, that trials will log the monitored metric.

    Only a task knows what it logs. It is built with classes that the data may not have, so one that
    cannot be built this way is checked by its trials.

    Raises:
        UserError: if they will not.
    """
    import torch

    from research.engine import build
    from research.tasks.task import check_monitor

    try:
        task = build.build_task(config, PLACEHOLDERS)
        task.metrics(torch.device("cpu"))
    except Exception as error:
        log.debug("the metrics are not known before the data: %s", one_line(error))
        return
    check_monitor(build.monitor(config, task), task, torch.device("cpu"))


def measure(
    wanted: Sequence[Objective], folder: Path, best: float, device: str, trust: Sequence[str]
) -> dict[str, float]:
    """The value of each objective for a finished run.

    ``latency_ms``: the best checkpoint including postprocessing to classes or boxes, for one real
    image of the validation split that is already on the device; median of 20 rounds, in ms.
    ``bytes_per_image``: the network's input as it is stored: pixels with one byte a channel,
    coefficients with two bytes.

    Args:
        wanted: the objectives.
        folder: of the run.
        best: the run's best value of the monitored metric.
        device: of the trial; latency is measured on it.
        trust: the user's own classes and functions that the configuration may name.
    """
    from research.engine.evaluation import load_eval_run
    from research.utils.timing import median_times

    names = [objective.name for objective in wanted]
    values = dict.fromkeys(names, best)
    if LATENCY not in names and BYTES not in names:
        return values
    run = load_eval_run(folder, "val", "best", device, [], trust)
    if LATENCY in names:
        values[LATENCY] = 1000 * median_times([run.timed_prediction(1)], ROUNDS)[0]
    if BYTES in names:
        values[BYTES] = bytes_per_image(run)
    return values


def bytes_per_image(run: EvalRun) -> float:
    """Of an image as it is stored: pixels have a byte for each channel, coefficients two bytes."""
    of_coefficients = input_bytes(run.predictor.config, run.predictor.data.metadata())
    batch = next(batch for batch in run.loader.epoch(0) if len(batch))
    return float(of_coefficients or vars(batch)["inputs"].nbytes / len(batch))


def input_bytes(config: Mapping[str, Any], metadata: Mapping[str, Any]) -> int | None:
    """Bytes of an image's coefficients, two each; ``None`` if the network takes pixels."""
    from research.engine import build

    stem = build.stem_spec(config["compression"])
    if stem is None:
        return None
    blocks = (build.input_size(config, metadata) // BLOCK) ** 2
    luma, chroma = len(stem.selection.luma), len(stem.selection.chroma)
    return 2 * (blocks * luma + 2 * (blocks // 4) * chroma)
