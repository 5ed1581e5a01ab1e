"""What a sweep is to make better: the monitored metric, and what an image costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from research.utils.errors import UserError

MONITOR: Final = "monitor"
LATENCY: Final = "latency_ms"
BYTES: Final = "bytes_per_image"
ROUNDS: Final = 20
BLOCK: Final = 8  # pixels


class Objective(NamedTuple):
    """A name, of a metric or a cost, and Optuna's word for which way is better."""

    name: str
    direction: str


def objectives(asked: Sequence[str], monitor: str) -> list[Objective]:
    """What a sweep optimises.

    Args:
        asked: ``monitor``, ``latency_ms`` or ``bytes_per_image``.
        monitor: ``METRIC:max`` or ``METRIC:min``.

    Raises:
        UserError: for the same twice.
    """
    if len({*asked}) < len(asked):
        raise UserError(
            "hydra.sweeper.objectives", f"hydra.sweeper.objectives={list(asked)}: name each once"
        )
    metric, mode = monitor.rsplit(":", 1)
    found = []
    for name in asked:
        if name == MONITOR:
            found.append(Objective(metric, "maximize" if mode == "max" else "minimize"))
        else:
            found.append(Objective(name, "minimize"))
    return found


def monitor(config: Any) -> str:
    """``METRIC:max`` or ``METRIC:min``, by which a configuration's best epoch is picked."""
    from research.config import targets

    asked = config["monitor"] or config["task"].get("monitor")
    if asked is None:
        task = targets.locate("task", config["task"]["_target_"], config["trust"])
        asked = ":".join(task.monitor)
    return str(asked)


def values(
    wanted: Sequence[Objective], folder: Path, best: float, device: str, trust: Sequence[str]
) -> dict[str, float]:
    """A finished run's value of each objective.

    ``latency_ms``: of the best checkpoint with what follows it up to classes or boxes, one real
    image of the validation split that waits on the device, median of 20 rounds, in ms.
    ``bytes_per_image``: what the network is given, as it is stored: pixels of one byte a channel,
    coefficients of two bytes.

    Args:
        wanted: the objectives.
        folder: the run.
        best: its best value of the monitored metric.
        device: of the trial, where its latency is measured.
        trust: names of the user's own that its configuration has.
    """
    from research.engine.evaluation import load_eval_run
    from research.utils.timing import median_times

    names = [objective.name for objective in wanted]
    found = dict.fromkeys(names, best)
    if LATENCY not in names and BYTES not in names:
        return found
    one = load_eval_run(folder, "val", "best", device, [], trust)
    if LATENCY in names:
        found[LATENCY] = 1000 * median_times([one.timed_prediction(1)], ROUNDS)[0]
    if BYTES in names:
        of_coefficients = input_bytes(one.predictor.config, one.predictor.data.metadata())
        batch = next(batch for batch in one.loader.epoch(0) if len(batch))
        pixels = vars(batch)["inputs"]
        found[BYTES] = of_coefficients or pixels.nbytes / len(batch)
    return found


def input_bytes(config: Mapping[str, Any], metadata: Mapping[str, Any]) -> int | None:
    """Bytes of an image's coefficients, two each; null for a network that takes no coefficients."""
    from research.engine import build

    stem = build.stem_spec(config["compression"])
    if stem is None:
        return None
    blocks = (build.input_size(config, metadata) // BLOCK) ** 2
    luma, chroma = len(stem.selection.luma), len(stem.selection.chroma)
    return 2 * (blocks * luma + 2 * (blocks // 4) * chroma)
