"""Cross-validation results over folds: ``python -m research.crossval RUN RUN …``."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from research.config import cli, outputs
from research.utils.errors import UserError
from research.utils.progress import track
from research.utils.tables import TextTable, terminal_width

if TYPE_CHECKING:
    from research.data.datamodule import DataModule
    from research.data.folds import FoldResult

log = logging.getLogger("research.crossval")  # as a command, this module is called __main__

USAGE = cli.usage(
    "python -m research.crossval RUN RUN … [key=value …]",
    """
Evaluates runs trained on the folds of one data set (dataset.folds=5 dataset.fold=0,1,2,3,4), each
on its own test split, and compares them with a baseline: the difference of the means, with a 95 %
bootstrap interval over groups, since samples of one group are alike.
  detectors from a warehouse: IoU of frames with objects; the baseline is the best constant box of
    the training split; groups are runs of the camera
  rankings of photos: accuracy on pairs, without ties; the baseline prefers the sharper photo;
    groups are series
n is the number of samples of the test split, of which the first metric is. Folds without a run, and
runs of which more settings differ, are reported.
Options
""",
    cli.RunOptions,
    "Any setting of the runs may follow, such as dataset.root=FOLDER if the data was moved.",
)


@dataclass(frozen=True)
class Fold:
    """One run on its own test split.

    Attributes:
        run: the run folder.
        metric: of the whole test split.
        n: samples of this split.
        result: value and baseline of each sample.
        config: of the run.
    """

    run: Path
    metric: float
    n: int
    result: FoldResult
    config: Mapping[str, Any]


def evaluate_fold(
    run: Path,
    which: str,
    device: str,
    overrides: Sequence[str] = (),
    trust: Sequence[str] = (),
) -> Fold:
    """Evaluate a run on its whole test split, see ``evaluation.load_eval_run``.

    Raises:
        UserError: if the data set of the run is not ``CrossValidated``.
    """
    from research.data.folds import CrossValidated, beside_baseline, no_baseline
    from research.engine.evaluation import load_eval_run

    def check(data: DataModule) -> None:
        if not isinstance(data, CrossValidated):
            raise no_baseline(data.name, run)

    loaded = load_eval_run(run, "test", which, device, overrides, trust, check)
    evaluated = loaded.evaluate()
    result = beside_baseline(loaded.predictor.data, evaluated.totals, run)
    metric = evaluated.metrics[result.columns.metric]
    return Fold(run, metric, evaluated.n, result, loaded.predictor.config)


def remarks(folds: Sequence[Fold]) -> Iterator[str]:
    """What keeps the row of all runs from being the cross-validation of one recipe, a line each."""
    from research.sweeps.identity import changed_settings, format_changes

    first = folds[0]
    for other in folds[1:]:
        own = frozenset({"seed", "dataset.fold"})
        if changes := changed_settings(first.config, other.config, own):
            yield f"{first.run} and {other.run} differ in settings ({format_changes(changes)})"
    count = first.config["dataset"].get("folds")
    missing = sorted({*range(count or 0)} - {fold.config["dataset"].get("fold") for fold in folds})
    if missing:
        numbers = ", ".join(map(str, missing))
        yield f"dataset.fold={numbers} of {count} folds is missing: the last row is of the others"


def table(folds: Sequence[Fold]) -> TextTable:
    """One row for each fold and one for all.

    Raises:
        UserError: if the runs are of two types, or a group is in the test splits of two folds.
    """
    from research.comparison.statistics import group_interval  # imports scipy

    columns = folds[0].result.columns
    for fold in folds:
        if fold.result.columns != columns:
            raise UserError(
                "RUN",
                f"{folds[0].run} is evaluated on {columns.units}, {fold.run} on "
                f"{fold.result.columns.units}",
                "pass runs of one type",
            )
    run_of: dict[str, Path] = {}
    for fold in folds:
        for group in set(fold.result.groups):
            if group in run_of:
                raise UserError(
                    "RUN",
                    f"{group} is in the test splits of {run_of[group]} and {fold.run}",
                    "pass runs of different folds of one data set",
                )
            run_of[group] = fold.run
    rows = []
    for fold in folds:
        result = fold.result
        counts = [len(set(result.groups)), len(result.values), fold.n]
        means = [fold.metric, result.values.mean(), result.baseline.mean()]
        difference = f"{(result.values - result.baseline).mean():+.3f}"
        rows.append([fold.run.name, *map(str, counts), *_decimals(means), difference])
    values = np.concatenate([fold.result.values for fold in folds])
    baseline = np.concatenate([fold.result.baseline for fold in folds])
    interval = group_interval(
        values - baseline, [group for fold in folds for group in fold.result.groups]
    )
    counts = [len(run_of), len(values), sum(fold.n for fold in folds)]
    means = [float(np.mean([fold.metric for fold in folds])), values.mean(), baseline.mean()]
    difference = f"{(values - baseline).mean():+.3f}"
    if interval is not None:
        difference += f"\n[{interval[0]:+.3f}, {interval[1]:+.3f}]"
    rows.append(["all", *map(str, counts), *_decimals(means), difference])
    titles = ["run", columns.groups, columns.units, "n", *columns[2:], "difference"]
    return TextTable(titles, rows, "lrrrrrrr")


def _decimals(values: Sequence[float]) -> list[str]:
    return [f"{value:.3f}" for value in values]


def main(words: list[str]) -> None:
    paths, options, overrides = cli.parse(cli.RunOptions, words, others="")
    if not paths:
        raise UserError("RUN", "pass the RUN folders of the folds first, then key=value settings")
    # Imported late: mistakes are reported before torch is imported.
    from research.utils import logs

    logs.to_terminal()
    which, device, trust = options.checkpoint, options.device, options.trust
    folds = [
        evaluate_fold(Path(path), which, device, overrides, trust)
        for path in track(paths, "evaluating folds", unit="runs")
    ]
    print(table(folds).text(terminal_width()))
    for line in remarks(folds):
        log.warning("%s", line)
    gains = [(fold.result.values - fold.result.baseline).mean() for fold in folds]
    weakest = folds[int(np.argmin(gains))].run
    words = ["split=test", *outputs.typed_options(options), *overrides]
    outputs.print_next(outputs.command_of("evaluate", weakest, *words))


if __name__ == "__main__":
    cli.command(USAGE, main)
