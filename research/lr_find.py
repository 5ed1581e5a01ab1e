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

from research.config import cli, compose_config, outputs
from research.config.batch_sizes import check_batch_size
from research.config.overrides import train_command
from research.config.rules import PATH, number, whole
from research.tracking.tracker import Row, Table, Tracker
from research.utils import progress
from research.utils.conditions import explained
from research.utils.counts import counted
from research.utils.errors import NotFinite, UserError
from research.utils.files import write_atomic, write_text

if TYPE_CHECKING:
    from research.engine.build import Experiment

DIVERGED: Final = 4.0
"""The test stops when the smoothed loss is this multiple of its minimum."""
RECENT: Final = 0.05
"""Fraction of the steps over which this loss is averaged."""
CEILING: Final = 1.5
"""Losses are clipped at this multiple of the first ones before they are smoothed."""
SMOOTHING: Final = 0.03
"""Standard deviation of the Gaussian, as a fraction of the steps."""
MIN_STEPS: Final = 10
ROOT: Final = Path("runs/lr_find")


@dataclass(frozen=True)
class LrFindOptions:
    """Options of the command."""

    start: float = cli.option(1e-6, number(above=0), "first learning rate")
    end: float = cli.option(
        1.0, number(above=0), "last learning rate; the test stops earlier if the loss diverges"
    )
    steps: int = cli.option(100, whole(MIN_STEPS), "optimizer steps between them")
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
class RangeTest:
    """The result of a learning-rate range test.

    Attributes:
        rates: [N] learning rate of every optimizer step.
        losses: [N] training loss before the step.
        end: why it ended: ``the last rate``, ``diverged`` or ``not finite``.
    """

    rates: NDArray[np.float64]
    losses: NDArray[np.float64]
    end: str


@dataclass(frozen=True)
class Suggestion:
    """Learning rates suggested by a range test.

    Attributes:
        smoothed: [N] smoothed losses, from which they are computed.
        steepest: learning rate at which the loss decreases fastest; None if it never decreased.
        tenth: a tenth of the learning rate with the lowest loss; None if it never decreased.
    """

    smoothed: NDArray[np.float64]
    steepest: float | None
    tenth: float | None


class _Diverged(Exception):
    pass


class _Collector(Tracker):
    """Collects losses by optimizer step; raises ``_Diverged`` far above the lowest loss."""

    def __init__(self, accumulate: int, steps: int) -> None:
        self.phase = progress.Phase("range test", steps, "steps")
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
        self.phase.update(len(self.losses), metrics={"loss": smoothed})
        if len(self.losses) >= MIN_STEPS and smoothed > DIVERGED * self.best:
            raise _Diverged


@progress.contained()
def range_test(
    experiment: Experiment,
    start: float,
    end: float,
    steps: int,
) -> RangeTest:
    """Train for ``steps`` optimizer steps while the learning rate rises from ``start`` to ``end``.

    The ratios between the learning rates of parameter groups are kept.

    Args:
        experiment: its schedule is replaced and its weights are trained.
        start: first learning rate.
        end: last learning rate.
        steps: number of optimizer steps.

    Raises:
        NotFinite: if no step had a finite loss.
    """
    from torch.optim.lr_scheduler import LambdaLR

    from research.engine import distributed
    from research.engine.loop import EpochCallback, train_epoch

    state, cfg = experiment.state, experiment.cfg
    optimizer = state.optimizer
    for group in optimizer.param_groups:
        group["lr"] = group.pop("initial_lr", group["lr"])
    base = optimizer.param_groups[0]["lr"]
    rates = start * (end / start) ** (np.arange(steps) / max(1, steps - 1))
    state.scheduler = LambdaLR(optimizer, lambda step: rates[min(step, steps - 1)].item() / base)
    collector = _Collector(cfg.accumulate, steps)
    epoch = min(len(experiment.train), cfg.max_train_batches or sys.maxsize)
    reason = "the last rate"
    losses_of = distributed.Losses(experiment.task, state.forward)
    try:
        while collector.before < steps:
            batches = min(epoch, (steps - collector.before) * cfg.accumulate)
            limits = replace(cfg, log_every=1, max_train_batches=batches)
            train_epoch(
                state,
                losses_of,
                experiment.train,
                limits,
                experiment.device,
                collector,
                EpochCallback(),
            )
            state.end_epoch()
            collector.before += math.ceil(batches / cfg.accumulate)
    except _Diverged:
        reason = "diverged"
    except NotFinite:
        if not collector.losses:
            raise
        reason = "not finite"
    losses = np.array([np.mean(part) if part else np.nan for part in collector.losses])
    used = np.isfinite(losses)  # all samples of a step may have been skipped
    return RangeTest(rates[: len(losses)][used], losses[used], reason)


def suggest(test: RangeTest) -> Suggestion:
    """Learning rates from a range test.

    Losses are clipped at ``CEILING`` and smoothed by a Gaussian, so that neither single batches nor
    the divergence at the end shift the minimum. The steepest descent is searched between the points
    where the loss has decreased by a tenth of its total decrease and where it is lowest.
    """
    count = len(test.losses)
    tenth = max(1, count // 10)
    ceiling = CEILING * float(np.median(test.losses[:tenth]))
    smoothed = _smoothed(np.minimum(test.losses, ceiling), max(1.0, SMOOTHING * count))
    lowest = int(smoothed.argmin())
    top, bottom = float(smoothed[:tenth].mean()), float(smoothed[lowest])
    if lowest < tenth or bottom >= top:
        return Suggestion(smoothed, None, None)
    high = np.flatnonzero(smoothed[:lowest] > top - 0.1 * (top - bottom))
    first = int(high[-1]) if len(high) else 0
    slopes = np.gradient(smoothed, np.log(test.rates))[first : lowest + 1]
    steepest = float(test.rates[first + int(slopes.argmin())])
    return Suggestion(smoothed, steepest, float(test.rates[lowest]) / 10)


def _smoothed(values: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    """Gaussian filter of ``sigma`` steps, normalised at the ends."""
    steps = np.arange(len(values))
    weights = np.exp(-0.5 * ((steps[:, None] - steps) / sigma) ** 2)
    smoothed: NDArray[np.float64] = weights @ values / weights.sum(1)
    return smoothed


def write(folder: Path, test: RangeTest, suggestion: Suggestion) -> None:
    """Write ``lr_find.csv`` and ``lr_find.png``."""
    from research.viz import charts

    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["step", "learning_rate", "loss", "smoothed"])
    columns = (test.rates.tolist(), test.losses.tolist(), suggestion.smoothed.tolist())
    for step, row in enumerate(zip(*columns, strict=True), start=1):
        writer.writerow([step, *row])
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "lr_find.csv", text.getvalue())
    rates = {
        "steepest descent": suggestion.steepest,
        "a tenth of the minimum": suggestion.tenth,
    }
    marks = {name: rate for name, rate in rates.items() if rate is not None}
    picture = charts.range_test(test.rates, test.losses, suggestion.smoothed, marks)
    write_atomic(folder / "lr_find.png", lambda path: picture.save(path, "PNG"))


def find(
    config: Mapping[str, Any], start: float, end: float, steps: int, folder: Path
) -> Suggestion:
    """Run the test on a configuration, print the suggestions and write its files.

    Raises:
        UserError: if the test ends within less than ``MIN_STEPS`` steps, or ``folder`` cannot be
            written to.
    """
    from research.engine import build

    plain = {**config, "scale_lr": None, "ema": None}
    with explained(build.limits(plain)):
        experiment = build.experiment(plain)
        test = range_test(experiment, start, end, steps)
    count = len(test.rates)
    if count < MIN_STEPS:
        raise UserError(
            "start",
            f"the test ended after {counted(count, 'steps')} ({test.end})",
            f"set a lower value than start={start:g}",
        )
    suggestion = suggest(test)
    batch = experiment.train.global_batch * config["accumulate"]
    print(f"{count} steps up to {test.rates[-1]:.3g}: {test.end}; batches of {batch}")
    if suggestion.steepest is None or suggestion.tenth is None:
        print("the loss did not decrease: no suggestion")
    else:
        print(f"steepest descent:        optimizer.lr={suggestion.steepest:.2g}")
        print(f"a tenth of the minimum:  optimizer.lr={suggestion.tenth:.2g}")
    if test.end == "the last rate":
        print(f"the loss did not diverge; set a larger end= than {end:g} to see more")
    if config["scale_lr"] is not None:
        print(f"these rates are for this batch size, with scale_lr=null, not {config['scale_lr']}")
    # Printed before the files are written: a full disk must not lose it.
    with outputs.writing_to(folder):
        write(folder, test, suggestion)
    return suggestion


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
            "resume", "resume has no effect here", "set init_from=RUN to start from its weights"
        )
    stamp = f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{config['name'] or composed.choices['model']}"
    folder = options.out or ROOT / stamp
    # Imported late: mistakes are reported before torch is imported.
    from research.utils import logs

    logs.to_terminal()
    check_batch_size(config, settings)
    suggestion = find(config, start, end, options.steps, folder)
    train = ""
    if suggestion.steepest is not None:
        chosen: dict[str, Any] = {"optimizer.lr": float(f"{suggestion.steepest:.2g}")}
        chosen |= {"scale_lr": None} if config["scale_lr"] else {}
        others = [word for word in settings if word.partition("=")[0] not in chosen]
        train = train_command(others, chosen)
    outputs.print_files(folder, "lr_find.png", "lr_find.csv", following=train)


if __name__ == "__main__":
    cli.command(USAGE, main)
