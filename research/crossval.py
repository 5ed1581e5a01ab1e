"""Folds judged together: ``python -m research.crossval RUN RUN …``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from research.config import cli
from research.config.rules import DEVICE, Rule, one_of
from research.utils.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from research.data.pairs.source import PhotoPairs
    from research.data.warehouse.dataset import Warehouse
    from research.engine.loop import EvalResult

USAGE = """
python -m research.crossval RUN RUN … [key=value …]

Judges runs trained on the folds of one data set (dataset.folds=5 dataset.fold=0,1,2,3,4), each on
its own test split beside a baseline, and says how far its mean exceeds the baseline's: with a 95 %
bootstrap interval over groups, since what is of one group is alike.
  detectors from a warehouse: IoU of frames with objects, beside the best constant box of the
    training split, by runs of the camera
  rankings of photos: pairs whose winner is named, ties left out, beside naming the sharper photo,
    by series
  checkpoint=best    best or last
  device=auto        auto, cpu, cuda, cuda:N or mps
  trust=[]           classes and functions of your own that the runs name: [my_models.Net]
Any setting of the runs may follow, such as dataset.root=FOLDER for data that were moved.
"""

OPTIONS: dict[str, tuple[str, Rule]] = {
    "checkpoint": ("best", one_of("best", "last")),
    "device": ("auto", DEVICE),
    **cli.TRUST,
}

RESAMPLES = 10_000


class Kind(NamedTuple):
    """What is judged of runs of one kind, by its names in the table.

    Attributes:
        groups: what is resampled whole.
        units: what has a value.
        metric: of a whole split, beside the means.
        values: mean of the run's values.
        baseline: mean of the baseline's.
    """

    groups: str
    units: str
    metric: str
    values: str
    baseline: str


FRAMES = Kind("groups", "frames", "mAP50", "mean IoU", "constant box")
PAIRS = Kind("series", "pairs", "constant_accuracy", "pair accuracy", "sharper photo")


@dataclass(frozen=True)
class Fold:
    """One run on its own test split.

    Attributes:
        run: the run folder.
        kind: says what the numbers are.
        metric: of the whole test split.
        groups: [n] group of each unit.
        values: [n] 0…1, of the run: overlap of a frame's best-scored detection with the nearest
            true box; 1 for a pair whose winner is named, one half for a pair left open.
        baseline: [n] the same of the baseline.
    """

    run: Path
    kind: Kind
    metric: float
    groups: list[str]
    values: NDArray[np.float64]
    baseline: NDArray[np.float64]


def judge(
    run: Path,
    which: str,
    device: str,
    overrides: Sequence[str] = (),
    trust: Sequence[str] = (),
) -> Fold:
    """Evaluate one run on its whole test split, see ``research.engine.evaluation.trial``.

    Raises:
        UserError: when the run is neither a detector trained from a warehouse nor a ranking.
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
            f"{run}: no detector trained from a warehouse of frames, nor a ranking of photos",
            "give runs of one of these kinds",
        )
    judged = of_predictor(run, "test", loaded, saved).evaluate("test")
    if isinstance(data, PhotoPairs):
        return of_pairs(run, data, judged)
    assert isinstance(data, Warehouse)
    return of_frames(run, data, judged)


def of_frames(run: Path, data: Warehouse, judged: EvalResult) -> Fold:
    """Frames with objects, beside the best constant box of the training split."""
    from research.data.frames.constant_box import best_constant_box, constant_iou
    from research.data.warehouse.kinds import true_boxes
    from research.tasks.detection import DetectionMetrics

    assert isinstance(judged.totals, DetectionMetrics)
    boxes, mask = true_boxes(data.store, data.positions("test"))
    seen = mask.any(1)
    box = best_constant_box(*true_boxes(data.store, data.positions("train")))
    groups = [name for name, here in zip(data.groups("test"), seen.tolist(), strict=True) if here]
    return Fold(
        run,
        FRAMES,
        judged.metrics[FRAMES.metric],
        groups,
        np.array(judged.totals.best_iou),
        constant_iou(box, boxes[seen], mask[seen]).double().numpy(),
    )


def of_pairs(run: Path, data: PhotoPairs, judged: EvalResult) -> Fold:
    """Decided pairs, beside who names the sharper photo."""
    from research.data.pairs.sharpness import measure_sharpness
    from research.tasks.ranking_metrics import RankingMetrics

    assert isinstance(judged.totals, RankingMetrics)
    pairs, known = judged.totals.pairs(), data.pairs("test")
    files = {photo: known.photos[photo] for photo in np.unique(pairs.photos).tolist()}
    measured = measure_sharpness([*files.values()], data.cache)
    first, second = np.array(
        [[measured[files[photo]] for photo in both] for both in pairs.photos.tolist()]
    ).T
    sharper = replace(pairs, logits=first - second).named
    seen = np.isfinite(sharper)  # neither a tie of votes nor a photo that cannot be measured
    return Fold(
        run,
        PAIRS,
        judged.metrics[PAIRS.metric],
        [known.series[series] for series in pairs.series[seen].tolist()],
        pairs.named[seen],
        sharper[seen],
    )


def interval(differences: NDArray[np.float64], groups: Sequence[str]) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean, groups resampled whole."""
    names = sorted(set(groups))
    member = np.array([names.index(group) for group in groups])
    sums = np.bincount(member, weights=differences)
    counts = np.bincount(member)
    drawn = np.random.default_rng(0).integers(0, len(names), (RESAMPLES, len(names)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def table(folds: Sequence[Fold]) -> str:
    """A line a fold and one for all, as Markdown.

    Raises:
        UserError: when runs are of two kinds, or a group was judged in two folds.
    """
    kind = folds[0].kind
    for fold in folds:
        if fold.kind != kind:
            raise UserError(
                "RUN",
                f"{folds[0].run} is judged by {kind.units}, {fold.run} by {fold.kind.units}",
                "give runs of one kind",
            )
    where: dict[str, Path] = {}
    for fold in folds:
        for group in set(fold.groups):
            if group in where:
                raise UserError(
                    "RUN",
                    f"{group} is in the test splits of {where[group]} and {fold.run}",
                    "give runs of different folds of one data set",
                )
            where[group] = fold.run
    lines = [
        f"| run | {' | '.join(kind)} | difference |",
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
        f"| all | {len(where)} | {len(values)} | {metric:.3f} | {values.mean():.3f} "
        f"| {baseline.mean():.3f} | {(values - baseline).mean():+.3f} [{low:+.3f}, {high:+.3f}] |"
    )
    return "\n".join(lines)


def main(words: list[str]) -> None:
    paths, settings = cli.split(words)
    if not paths:
        raise UserError("RUN", "give the RUN folders of the folds first, then key=value settings")
    chosen, rest = cli.mixed(settings, OPTIONS, "crossval")
    # Imported late: a mistake is answered before torch is there.
    from research.utils import logs

    # Standard output is for the result alone.
    logs.to_terminal(sys.stderr)
    asked = chosen["checkpoint"], chosen["device"], rest, chosen["trust"]
    print(table([judge(Path(path), *asked) for path in paths]))


if __name__ == "__main__":
    cli.command(USAGE, main)
