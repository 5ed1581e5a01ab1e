"""Learning-rate range test: ``python -m research.lr_find model=densenet121 dataset=cifar10``."""

from __future__ import annotations

import csv
import io
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from research.config import cli, compose_config
from research.config.rules import PATH, number, whole
from research.tracking.tracker import Row, Table, Tracker, Trackers
from research.utils.errors import NotFinite, UserError
from research.utils.files import write_atomic, write_text

if TYPE_CHECKING:
    from research.engine.build import Experiment

DIVERGED: Final = 4.0
"""So many times the best smoothed loss is the end."""
RECENT: Final = 0.05
"""Share of the steps over which the loss is averaged to judge that."""
CEILING: Final = 1.5
"""So many times the first losses, the loss says nothing more of where it fell."""
SMOOTHING: Final = 0.03
"""Standard deviation of the smoothing, as a share of the steps."""
LEAST: Final = 10
ROOT: Final = Path("runs/lr_find")


@dataclass(frozen=True)
class LrFindOptions:
    """Options of the command."""

    start: float = cli.option(1e-6, number(above=0), "first learning rate")
    end: float = cli.option(
        1.0, number(above=0), "last learning rate; the test stops earlier if the loss diverges"
    )
    steps: int = cli.option(100, whole(LEAST), "optimizer steps between them")
    out: Path | None = cli.option(
        None,
        PATH,
        "folder for lr_find.png and lr_find.csv; by default a folder in runs/lr_find",
        placeholder="FOLDER",
    )


USAGE = cli.usage(
    "python -m research.lr_find [key=value …]",
    """
Trains the composed configuration for some steps with exponentially increasing learning rate, and
suggests a learning rate from where the loss decreases (Smith, 2017). Every setting of train.py may
follow; schedule, epochs, scale_lr, ema and logging are ignored. The trained weights are not saved.
""",
    LrFindOptions,
)


@dataclass(frozen=True)
class Sweep:
    """What a range test saw.

    Attributes:
        rates: [N] learning rate of every optimizer step.
        losses: [N] training loss before the step.
        ended: why there are no more: ``the last rate``, ``diverged``, ``not finite``.
    """

    rates: NDArray[np.float64]
    losses: NDArray[np.float64]
    ended: str


@dataclass(frozen=True)
class Suggestion:
    """What a range test says.

    Attributes:
        smoothed: [N] losses as they were judged.
        steepest: learning rate at which the loss falls fastest; null where it never fell.
        tenth: a tenth of the learning rate at which the loss is lowest; null likewise.
    """

    smoothed: NDArray[np.float64]
    steepest: float | None
    tenth: float | None


class _Diverged(Exception):
    pass


class _Collector(Tracker):
    """Losses by optimizer step; raises ``_Diverged`` when they have risen far above their best."""

    def __init__(self, accumulate: int, steps: int) -> None:
        self.accumulate = accumulate
        self.memory = 1 - 1 / max(2.0, RECENT * steps * accumulate)
        self.before = 0
        self.losses: list[list[float]] = []
        self.average = 0.0
        self.weight = 0.0
        self.best = math.inf

    def log(self, table: Table, step: int, row: Row) -> None:
        loss, batch = float(row["loss"]), int(row["batch"])
        while len(self.losses) <= self.before + (batch - 1) // self.accumulate:
            self.losses.append([])
        self.losses[-1].append(loss)
        self.average = self.memory * self.average + (1 - self.memory) * loss
        self.weight = self.memory * self.weight + 1 - self.memory
        smoothed = self.average / self.weight
        self.best = min(self.best, smoothed)
        if len(self.losses) >= LEAST and smoothed > DIVERGED * self.best:
            raise _Diverged


def sweep(
    experiment: Experiment,
    start: float,
    end: float,
    steps: int,
    shown: Tracker | None = None,
) -> Sweep:
    """Train for ``steps`` optimizer steps while the learning rate rises from ``start`` to ``end``.

    Parameter groups with rates of their own keep their share of the first one's.

    Args:
        experiment: its schedule is replaced and its weights are trained.
        start: first learning rate.
        end: last learning rate.
        steps: how many optimizer steps.
        shown: hears of the progress.

    Raises:
        NotFinite: when no step had a finite loss.
    """
    from torch.optim.lr_scheduler import LambdaLR

    from research.engine.loop import train_epoch

    state, cfg = experiment.state, experiment.cfg
    optimizer = state.optimizer
    for group in optimizer.param_groups:
        group["lr"] = group.pop("initial_lr", group["lr"])
    base = optimizer.param_groups[0]["lr"]
    rates = start * (end / start) ** (np.arange(steps) / max(1, steps - 1))
    state.scheduler = LambdaLR(optimizer, lambda step: rates[min(step, steps - 1)].item() / base)
    collector = _Collector(cfg.accumulate, steps)
    tracker = Trackers([collector] if shown is None else [collector, shown])
    epoch = min(len(experiment.train), cfg.max_train_batches or sys.maxsize)
    ended = "the last rate"
    try:
        while collector.before < steps:
            batches = min(epoch, (steps - collector.before) * cfg.accumulate)
            limits = replace(cfg, log_every=1, max_train_batches=batches)
            train_epoch(
                state, experiment.task, experiment.train, limits, experiment.device, tracker
            )
            state.epoch, state.batch = state.epoch + 1, 0
            collector.before += math.ceil(batches / cfg.accumulate)
    except _Diverged:
        ended = "diverged"
    except NotFinite:
        if not collector.losses:
            raise
        ended = "not finite"
    losses = np.array([np.mean(part) if part else np.nan for part in collector.losses])
    used = np.isfinite(losses)  # a step may have lost all its samples to damage
    return Sweep(rates[: len(losses)][used], losses[used], ended)


def suggest(seen: Sweep) -> Suggestion:
    """Judge a range test.

    Losses far above the first ones are cut off and the rest is smoothed by a Gaussian, so that
    neither single batches nor the end reach over to where all is well. The descent is what lies
    between a tenth of the fall and its bottom.
    """
    count = len(seen.losses)
    tenth = max(1, count // 10)
    ceiling = CEILING * float(np.median(seen.losses[:tenth]))
    smoothed = _smoothed(np.minimum(seen.losses, ceiling), max(1.0, SMOOTHING * count))
    lowest = int(smoothed.argmin())
    top, bottom = float(smoothed[:tenth].mean()), float(smoothed[lowest])
    if lowest < tenth or bottom >= top:
        return Suggestion(smoothed, None, None)
    high = np.flatnonzero(smoothed[:lowest] > top - 0.1 * (top - bottom))
    first = int(high[-1]) if len(high) else 0
    slopes = np.gradient(smoothed, np.log(seen.rates))[first : lowest + 1]
    steepest = float(seen.rates[first + int(slopes.argmin())])
    return Suggestion(smoothed, steepest, float(seen.rates[lowest]) / 10)


def _smoothed(values: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    """Gaussian of ``sigma`` places over what there is: at the ends over fewer values."""
    places = np.arange(len(values))
    weights = np.exp(-0.5 * ((places[:, None] - places) / sigma) ** 2)
    found: NDArray[np.float64] = weights @ values / weights.sum(1)
    return found


def write(folder: Path, seen: Sweep, said: Suggestion) -> None:
    """``lr_find.csv`` and ``lr_find.png``."""
    from research.viz import pictures

    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["step", "learning_rate", "loss", "smoothed"])
    columns = (seen.rates.tolist(), seen.losses.tolist(), said.smoothed.tolist())
    for step, row in enumerate(zip(*columns, strict=True), start=1):
        writer.writerow([step, *row])
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "lr_find.csv", text.getvalue())
    marks = {"steepest descent": said.steepest, "a tenth of the minimum": said.tenth}
    shown = {name: rate for name, rate in marks.items() if rate is not None}
    picture = pictures.range_test(seen.rates, seen.losses, said.smoothed, shown)
    write_atomic(folder / "lr_find.png", lambda path: picture.save(path, "PNG"))


def find(config: Mapping[str, Any], start: float, end: float, steps: int, folder: Path) -> None:
    """Run the test on a configuration, write its files and print what it suggests.

    Raises:
        UserError: when the loss is lost before there is anything to judge.
    """
    from research.engine import build
    from research.tracking.console import ConsoleTracker
    from research.tracking.tracker import Progress

    console = ConsoleTracker()

    def preparing(what: str, done: int, total: int) -> None:
        console.progress(Progress(what, done, total, unit="files"))

    plain = {**config, "scale_lr": None, "ema": None}
    experiment = build.experiment(plain, preparing)
    try:
        seen = sweep(experiment, start, end, steps, console)
    finally:
        console.finish("FINISHED")
    count = len(seen.rates)
    if count < LEAST:
        raise UserError(
            "start",
            f"the loss was lost within {count} steps ({seen.ended})",
            f"lower start={start:g}",
        )
    said = suggest(seen)
    write(folder, seen, said)
    batch = config["dataset"]["batch_size"] * config["accumulate"]
    print(f"{count} steps up to {seen.rates[-1]:.3g}: {seen.ended}; batches of {batch}")
    if said.steepest is None or said.tenth is None:
        print("the loss did not fall: nothing to suggest")
    else:
        print(f"steepest descent:        optimizer.lr={said.steepest:.2g}")
        print(f"a tenth of the minimum:  optimizer.lr={said.tenth:.2g}")
    if seen.ended == "the last rate":
        print(f"the loss did not diverge; a larger end= than {end:g} shows more")
    if config["scale_lr"] is not None:
        print(f"these rates are for this batch size, with scale_lr=null, not {config['scale_lr']}")
    print(f"picture and table: {folder}")


def main(words: list[str]) -> None:
    paths, options, settings = cli.parse(LrFindOptions, words, others="")
    cli.no_paths(paths)
    start, end = options.start, options.end
    if start >= end:
        raise UserError("start", f"start={start:g} with end={end:g}: expected start below end")
    composed = compose_config(settings)
    config = composed.config
    if config["resume"] is not None:
        raise UserError(
            "resume", "resume has no meaning here", "init_from=RUN starts from a run's weights"
        )
    stamp = f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{config['name'] or composed.choices['model']}"
    folder = options.out or ROOT / stamp
    # Imported late: mistakes are reported before torch is imported.
    from research.utils import logs

    logs.to_terminal()
    find(config, start, end, options.steps, folder)


if __name__ == "__main__":
    cli.command(USAGE, main)
