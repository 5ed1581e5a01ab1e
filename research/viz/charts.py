"""Charts of results: precision and recall, box matching, speed and accuracy, robustness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from research.viz.pictures import legend, new_figure, render, shown


def precision_recall(
    scores: NDArray[np.floating[Any]], hits: NDArray[np.bool_], positives: int, title: str
) -> Image.Image:
    """Precision over recall, and both over the score threshold.

    Args:
        scores: [N] scores of the detections.
        hits: [N] whether a detection is a true positive.
        positives: number of ground-truth boxes.
        title: of the picture.
    """
    order = np.argsort(-scores, kind="stable")
    true_positives = np.cumsum(hits[order])
    precision = true_positives / np.arange(1, len(true_positives) + 1)
    recall = true_positives / max(1, positives)
    figure = new_figure(9, 4)
    left, right = figure.subplots(1, 2)
    left.plot(recall, precision)
    left.set_xlabel("recall")
    left.set_ylabel("precision")
    right.plot(scores[order], precision, label="precision")
    right.plot(scores[order], recall, label="recall")
    right.set_xlabel("score threshold")
    legend(right)
    for axes in (left, right):
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, 1.02)
        axes.grid(alpha=0.3)
    figure.suptitle(title, fontsize="small")
    return render(figure)


def matching_audit(
    greedy: NDArray[np.floating[Any]], optimal: NDArray[np.floating[Any]]
) -> Image.Image:
    """Mean IoU of greedy matching over that of optimal matching, one point per frame.

    Args:
        greedy: [N] total IoU of the matched pairs of a frame / its ground-truth boxes, 0…1.
        optimal: [N] the same with the optimal assignment.
    """
    figure = new_figure(9, 4)
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    left.scatter(optimal, greedy, s=12, alpha=0.5)
    left.set_xlabel("mean IoU per frame, optimal matching")
    left.set_ylabel("mean IoU per frame, greedy matching")
    gap = optimal - greedy
    right.hist(gap, bins=30, range=(0, max(0.1, float(gap.max(initial=0)))))
    right.set_yscale("symlog")  # most frames have no gap
    right.set_xlabel("optimal − greedy")
    right.set_ylabel("frames")
    worse = int((gap > 1e-6).sum())
    figure.suptitle(f"greedy matching is worse in {worse} of {len(gap)} frames", fontsize="small")
    return render(figure)


def precision_recall_per_class(
    curves: Mapping[str, tuple[NDArray[np.floating[Any]], NDArray[np.bool_], int]], title: str
) -> Image.Image:
    """Precision over recall, a curve per class.

    Args:
        curves: for each class the scores of its detections, whether each is a true positive, and
            the number of ground-truth boxes.
        title: of the picture.
    """
    figure = new_figure(6, 5 + 0.2 * len(curves))
    axes = figure.add_subplot()
    for name, (scores, hits, positives) in curves.items():
        true_positives = np.cumsum(hits[np.argsort(-scores, kind="stable")])
        precision = true_positives / np.arange(1, len(true_positives) + 1)
        recall = true_positives / max(1, positives)
        axes.plot(recall, precision, label=f"{name} ({positives} boxes)")
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("recall")
    axes.set_ylabel("precision")
    legend(axes)
    axes.grid(alpha=0.3)
    figure.suptitle(title, fontsize="small")
    return render(figure)


def speed_and_accuracy(
    names: Sequence[str],
    milliseconds: Sequence[float],
    accuracy: Sequence[float],
    megabytes: Sequence[float],
    metric: str,
) -> Image.Image:
    """Accuracy over latency, a disc per model; its area is the size of the weights.

    Args:
        names: N model names.
        milliseconds: N latencies in ms per image.
        accuracy: N values of the metric; NaN is not drawn.
        megabytes: N sizes of the weights.
        metric: name of the metric, and what it is of.
    """
    figure = new_figure(7, 5)
    axes = figure.add_subplot()
    areas = 30 + 400 * np.array(megabytes) / max(megabytes)
    for number, name in enumerate(shown(names)):
        x, y = milliseconds[number], accuracy[number]
        axes.scatter([x], [y], s=[areas[number]], alpha=0.6)
        axes.annotate(name, (x, y), textcoords="offset points", xytext=(8, 6), fontsize="small")
    axes.set_xlabel("ms per image")
    axes.set_ylabel(metric)
    axes.margins(0.2)
    axes.grid(alpha=0.3)
    axes.set_title("area: size of the weights", fontsize="small")
    return render(figure)


def robustness(
    groups: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
    clean: float,
    metric: str,
    basis: str,
) -> Image.Image:
    """A metric over the strength of corruptions, a panel per kind of corruption.

    Args:
        groups: for each kind, by what is corrupted, (strength, metric) pairs: a line, or a bar if
            there is one pair.
        clean: the metric without corruption.
        metric: name of the metric.
        basis: the samples that it is of, in words.
    """
    figure = new_figure(5 * len(groups), 4)
    panels = figure.subplots(1, len(groups), squeeze=False, sharey=True)[0]
    for axes, (kind, lines) in zip(panels, groups.items(), strict=True):
        if all(len(points) == 1 for points in lines.values()):
            axes.bar(list(lines), [points[0][1] for points in lines.values()])
            axes.axhline(clean, color="grey", linestyle="--")
        else:
            for name, points in lines.items():
                amounts, values = zip((0.0, clean), *points, strict=True)
                axes.plot(amounts, values, marker="o", label=name)
            legend(axes)
        axes.set_xlabel(kind)
        axes.grid(alpha=0.3)
    heights = [
        value for lines in groups.values() for points in lines.values() for _, value in points
    ]
    panels[0].set_ylim(0, 1.05 * float(np.nanmax([clean, *heights, 0])) or 1)
    panels[0].set_ylabel(metric)
    figure.suptitle(f"{metric} ({basis}), without corruption {clean:.3f}", fontsize="small")
    return render(figure)


def speeds(groups: Mapping[str, Mapping[str, Sequence[float]]], footer: str) -> Image.Image:
    """Relative speeds, a panel per group: a bar to the median, a dot for each round.

    Args:
        groups: by title, the speeds of each candidate by name; the reference has 1.
        footer: a line below the panels, such as the machine.
    """
    rows = [len(candidates) for candidates in groups.values()]
    figure = new_figure(9, 1.2 + sum(0.8 + 0.35 * n for n in rows))
    panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=[n + 1 for n in rows])
    for axes, (title, candidates) in zip(panels[:, 0], groups.items(), strict=True):
        places = np.arange(len(candidates))
        axes.barh(places, [float(np.median(each)) for each in candidates.values()], alpha=0.4)
        for place, each in zip(places, candidates.values(), strict=True):
            axes.plot(each, [place] * len(each), "k.", markersize=4)
        axes.axvline(1, color="grey", linestyle="--", linewidth=1)
        axes.set_yticks(places, list(candidates))
        axes.invert_yaxis()
        axes.set_title(title, fontsize="small")
    panels[-1, 0].set_xlabel("speed relative to the first")
    figure.supxlabel(footer, fontsize="x-small")
    return render(figure)
