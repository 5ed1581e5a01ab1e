"""Cross-validation results over folds: ``python -m research.crossval RUN RUN …``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from research.config import cli
from research.utils.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from research.data.pairs.source import PhotoPairs
    from research.data.warehouse.dataset import Warehouse
    from research.engine.loop import EvalResult

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
Options
""",
    cli.RunOptions,
    "Any setting of the runs may follow, such as dataset.root=FOLDER if the data was moved.",
)

RESAMPLES = 10_000


class Columns(NamedTuple):
    """Titles of the table's columns for one type of run.

    Attributes:
        groups: number of groups, which are resampled whole.
        units: number of samples that have a value.
        metric: of the whole test split.
        values: mean of the run's values.
        baseline: mean of the baseline's values.
    """

    groups: str
    units: str
    metric: str
    values: str
    baseline: str


FRAMES = Columns("groups", "frames", "mAP50", "mean IoU", "constant box")
PAIRS = Columns("series", "pairs", "constant_accuracy", "pair accuracy", "sharper photo")


@dataclass(frozen=True)
class Fold:
    """One run on its own test split.

    Attributes:
        run: the run folder.
        columns: what the numbers are.
        metric: of the whole test split.
        groups: [n] group of each unit.
        values: [n] of the run, 0…1: IoU of a frame's best-scored detection with the nearest true
            box; 1 for a pair whose winner is predicted, 0.5 for a pair left open.
        baseline: [n] the same of the baseline.
    """

    run: Path
    columns: Columns
    metric: float
    groups: list[str]
    values: NDArray[np.float64]
    baseline: NDArray[np.float64]


def evaluate_fold(
    run: Path,
    which: str,
    device: str,
    overrides: Sequence[str] = (),
    trust: Sequence[str] = (),
) -> Fold:
    """Evaluate a run on its whole test split, see ``evaluation.load_eval_run``.

    Raises:
        UserError: if the run is neither a detector trained from a warehouse nor a ranking.
    """
    from research.data.pairs.source import PhotoPairs
    from research.data.warehouse.dataset import Warehouse
    from research.engine import predictor
    from research.engine.evaluation import of_predictor

    words = [f"device={device}", "max_val_batches=null", *overrides]
    loaded, saved = predictor.load(run, which, words, trust, data=True)
    data = loaded.data
    frames = isinstance(data, Warehouse) and data.kind.name == "frames"
    if not frames and not isinstance(data, PhotoPairs):
        raise UserError(
            "RUN",
            f"{run}: neither a detector trained from a warehouse of frames nor a ranking of photos",
            "pass runs of one of these types",
        )
    result = of_predictor(run, "test", loaded, saved).evaluate("test")
    if isinstance(data, PhotoPairs):
        return of_pairs(run, data, result)
    assert isinstance(data, Warehouse)
    return of_frames(run, data, result)


def of_frames(run: Path, data: Warehouse, result: EvalResult) -> Fold:
    """Frames with objects; the baseline is the best constant box of the training split."""
    from research.data.frames.constant_box import best_constant_box, constant_iou
    from research.data.warehouse.kinds import true_boxes
    from research.tasks.detection import DetectionMetrics

    assert isinstance(result.totals, DetectionMetrics)
    boxes, mask = true_boxes(data.store, data.positions("test"))
    has_box = mask.any(1)
    box = best_constant_box(*true_boxes(data.store, data.positions("train")))
    groups = [
        name for name, here in zip(data.groups("test"), has_box.tolist(), strict=True) if here
    ]
    return Fold(
        run,
        FRAMES,
        result.metrics[FRAMES.metric],
        groups,
        np.array(result.totals.best_iou),
        constant_iou(box, boxes[has_box], mask[has_box]).double().numpy(),
    )


def of_pairs(run: Path, data: PhotoPairs, result: EvalResult) -> Fold:
    """Decided pairs; the baseline prefers the sharper photo."""
    from research.data.pairs.sharpness import measure_sharpness
    from research.tasks.ranking_metrics import RankingMetrics

    assert isinstance(result.totals, RankingMetrics)
    pairs, known = result.totals.pairs(), data.pairs("test")
    files = {photo: known.photos[photo] for photo in np.unique(pairs.photos).tolist()}
    measured = measure_sharpness([*files.values()], data.cache)
    first, second = np.array(
        [[measured[files[photo]] for photo in both] for both in pairs.photos.tolist()]
    ).T
    sharper = replace(pairs, logits=first - second).named
    valid = np.isfinite(sharper)  # no tie of votes, and the sharpness of both photos is known
    return Fold(
        run,
        PAIRS,
        result.metrics[PAIRS.metric],
        [known.series[series] for series in pairs.series[valid].tolist()],
        pairs.named[valid],
        sharper[valid],
    )


def interval(differences: NDArray[np.float64], groups: Sequence[str]) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean; groups are resampled whole."""
    names = sorted(set(groups))
    member = np.array([names.index(group) for group in groups])
    sums = np.bincount(member, weights=differences)
    counts = np.bincount(member)
    drawn = np.random.default_rng(0).integers(0, len(names), (RESAMPLES, len(names)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def table(folds: Sequence[Fold]) -> str:
    """One row for each fold and one for all, as a Markdown table.

    Raises:
        UserError: if the runs are of two types, or a group is in the test splits of two folds.
    """
    columns = folds[0].columns
    for fold in folds:
        if fold.columns != columns:
            raise UserError(
                "RUN",
                f"{folds[0].run} is evaluated on {columns.units}, {fold.run} on "
                f"{fold.columns.units}",
                "pass runs of one type",
            )
    run_of: dict[str, Path] = {}
    for fold in folds:
        for group in set(fold.groups):
            if group in run_of:
                raise UserError(
                    "RUN",
                    f"{group} is in the test splits of {run_of[group]} and {fold.run}",
                    "pass runs of different folds of one data set",
                )
            run_of[group] = fold.run
    lines = [
        f"| run | {' | '.join(columns)} | difference |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for fold in folds:
        lines.append(
            f"| {fold.run.name} | {len(set(fold.groups))} | {len(fold.values)} "
            f"| {fold.metric:.3f} | {fold.values.mean():.3f} | {fold.baseline.mean():.3f} "
            f"| {(fold.values - fold.baseline).mean():+.3f} |"
        )
    values = np.concatenate([fold.values for fold in folds])
    baseline = np.concatenate([fold.baseline for fold in folds])
    low, high = interval(values - baseline, [group for fold in folds for group in fold.groups])
    metric = np.mean([fold.metric for fold in folds])
    lines.append(
        f"| all | {len(run_of)} | {len(values)} | {metric:.3f} | {values.mean():.3f} "
        f"| {baseline.mean():.3f} | {(values - baseline).mean():+.3f} [{low:+.3f}, {high:+.3f}] |"
    )
    return "\n".join(lines)


def main(words: list[str]) -> None:
    paths, options, overrides = cli.parse(cli.RunOptions, words, others="")
    if not paths:
        raise UserError("RUN", "pass the RUN folders of the folds first, then key=value settings")
    # Imported late: mistakes are reported before torch is imported.
    from research.utils import logs

    # Standard output is for the result only.
    logs.to_terminal(sys.stderr)
    which, device, trust = options.checkpoint, options.device, options.trust
    folds = [evaluate_fold(Path(path), which, device, overrides, trust) for path in paths]
    print(table(folds))


if __name__ == "__main__":
    cli.command(USAGE, main)
