"""Folds judged together: ``python -m research.crossval RUN RUN …``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from research import cli
from research.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

USAGE = """
python -m research.crossval RUN RUN … [key=value …]

Judges detectors trained on the folds of one store (dataset.folds=5 dataset.fold=0,1,2,3,4),
each on its own test split, beside the best constant box of its training split, and says how far
the mean IoU over all frames with objects exceeds the constant's: with a 95 % bootstrap interval
over groups (runs of the camera), since frames of one group are alike.
  checkpoint=best    best or last
  device=auto        auto, cpu, cuda, cuda:N or mps
"""

RESAMPLES = 10_000


@dataclass(frozen=True)
class Fold:
    """One run on its own test split.

    Attributes:
        run: the run folder.
        metrics: of the whole test split.
        groups: [n] group of each frame with objects.
        iou: [n] overlap of the best-scored detection with the nearest true box.
        constant: [n] the same of the constant box.
    """

    run: Path
    metrics: dict[str, float]
    groups: list[str]
    iou: NDArray[np.float64]
    constant: NDArray[np.float64]


def judge(run: Path, which: str, device: str) -> Fold:
    """Evaluate one run on its test split.

    Raises:
        UserError: when the run is no detector trained from a warehouse.
    """
    from research import build, checkpoint, trained
    from research.data.frames.constant_box import best_constant_box, constant_iou
    from research.data.warehouse.dataset import Warehouse
    from research.data.warehouse.kinds import true_boxes
    from research.loop import evaluate
    from research.tasks.detection import DetectionMetrics
    from research.tracking.console import ConsoleTracker

    saved = checkpoint.load(checkpoint.find(run, which))
    config = {**saved["config"], "device": device}
    loaded = trained.restore(config, saved)
    data = loaded.data
    if not isinstance(data, Warehouse) or data.kind.name != "frames":
        raise UserError(f"{run}: no detector trained from a warehouse of frames")
    data.prepare(config["seed"])
    loader = build.loader(config, data, "test", loaded.device, train=False)
    everything = {**config, "max_val_batches": None}
    judged = evaluate(loaded, loader, build.settings(everything), ConsoleTracker(), "test")
    assert isinstance(judged.totals, DetectionMetrics)
    boxes, mask = true_boxes(data.store, data.positions("test"))
    seen = mask.any(1)
    box = best_constant_box(*true_boxes(data.store, data.positions("train")))
    groups = [name for name, here in zip(data.groups("test"), seen.tolist(), strict=True) if here]
    return Fold(
        run,
        judged.metrics,
        groups,
        np.array(judged.totals.best_iou),
        constant_iou(box, boxes[seen], mask[seen]).double().numpy(),
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
        UserError: when a group was judged in two folds.
    """
    where: dict[str, Path] = {}
    for fold in folds:
        for group in set(fold.groups):
            if group in where:
                raise UserError(
                    f"{group} is in the test splits of {where[group]} and {fold.run}; give runs "
                    "of different folds of one store"
                )
            where[group] = fold.run
    lines = [
        "| run | groups | frames | mAP50 | mean IoU | constant box | difference |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for fold in folds:
        lines.append(
            f"| {fold.run.name} | {len(set(fold.groups))} | {len(fold.iou)} "
            f"| {fold.metrics['mAP50']:.3f} | {fold.iou.mean():.3f} | {fold.constant.mean():.3f} "
            f"| {(fold.iou - fold.constant).mean():+.3f} |"
        )
    iou = np.concatenate([fold.iou for fold in folds])
    constant = np.concatenate([fold.constant for fold in folds])
    low, high = interval(iou - constant, [group for fold in folds for group in fold.groups])
    mean50 = np.mean([fold.metrics["mAP50"] for fold in folds])
    lines.append(
        f"| all | {len(where)} | {len(iou)} | {mean50:.3f} | {iou.mean():.3f} "
        f"| {constant.mean():.3f} | {(iou - constant).mean():+.3f} [{low:+.3f}, {high:+.3f}] |"
    )
    return "\n".join(lines)


def main(words: list[str]) -> None:
    paths, settings = cli.split(words)
    if not paths:
        raise UserError("give the RUN folders of the folds first, then key=value settings")
    chosen, rest = cli.options(settings, {"checkpoint": "best", "device": "auto"})
    if rest:
        raise UserError(f"{rest[0]}: settings are checkpoint and device")
    cli.choose("checkpoint", chosen["checkpoint"], ["best", "last"])
    # Imported late: a mistake is answered before torch is there.
    from research import logs

    # Standard output is for the result alone.
    logs.to_terminal(sys.stderr)
    print(table([judge(Path(path), chosen["checkpoint"], chosen["device"]) for path in paths]))


if __name__ == "__main__":
    cli.command(USAGE, main)
