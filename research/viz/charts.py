"""Charts of results: confusion, calibration, precision and recall, speed, robustness, spectra."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from research.viz.colours import FRACTIONS, LINES, QUIET, SEQUENTIAL, ink, series
from research.viz.figures import (
    label_points,
    legend,
    new_figure,
    render,
    series_label,
    shortened,
    shown,
    subplots,
    whole_numbers,
)

NAMED: Final = 40
"""Classes of a confusion matrix up to which their names are written."""
COUNTED: Final = 20
"""The same for the counts in its cells."""
SMALLEST: Final = 5.0
"""Size of letters, in points, below which a count is left out."""
LONGEST_ROW: Final = 40
"""Letters of all names below a panel up to which they stand side by side."""


def confusion_matrix(counts: Tensor, classes: Sequence[str]) -> Image.Image:
    """Rows are true classes, columns predicted classes; colours are fractions of the row.

    Args:
        counts: [C, C] integers.
        classes: class names; written if there are at most 40. The counts if there are at most 20.
    """
    import matplotlib

    table = counts.numpy().astype(np.float64)
    fractions = table / np.maximum(table.sum(1, keepdims=True), 1)
    names = shown(classes) if len(classes) <= NAMED else []
    longest = max((len(name) for name in names), default=0)
    digits = len(f"{table.max(initial=0):.0f}")
    cell = max(0.35, 0.09 * digits) if len(classes) <= COUNTED else 0.25
    side = min(14.0, max(2.0, cell * len(classes))) + 1.4 + 0.085 * longest
    figure = new_figure(side + 0.6, side)
    [[axes]] = subplots(figure)
    axes.grid(visible=False)
    image = axes.imshow(fractions, cmap=FRACTIONS, vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="fraction of the true class", shrink=0.7)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if names:
        axes.set_xticks(range(len(classes)), labels=names, rotation=90)
        axes.set_yticks(range(len(classes)), labels=names)
    figure.draw_without_rendering()  # the layout, for the size of a cell
    width = axes.get_window_extent().width * 72 / figure.dpi / len(classes)
    size = min(10.0, width / (0.7 * digits + 0.3))
    if len(classes) <= COUNTED and size >= SMALLEST:
        colours = matplotlib.colormaps[FRACTIONS]
        for (row, column), count in np.ndenumerate(table):
            if count:
                light = ink([255 * part for part in colours(fractions[row, column])[:3]])
                axes.text(
                    column, row, f"{count:.0f}", ha="center", va="center", fontsize=size,
                    color=[part / 255 for part in light],
                )  # fmt: skip
    return render(figure)


def reliability(
    counts: NDArray[np.floating[Any]],
    confidence: NDArray[np.floating[Any]],
    correct: NDArray[np.floating[Any]],
    ece: float,
) -> Image.Image:
    """Accuracy over confidence in bins of equal width, and the number of samples in each bin.

    Args:
        counts: [N] samples in each of N bins of 0…1.
        confidence: [N] sum of their confidences.
        correct: [N] number of correct predictions.
        ece: expected calibration error, 0…1, for the title.
    """
    edges = np.linspace(0, 1, len(counts) + 1)
    filled = counts > 0
    mean_confidence = confidence[filled] / counts[filled]
    accuracy = correct[filled] / counts[filled]
    figure = new_figure(5, 5.8)
    [upper], [lower] = subplots(figure, 2, 1, sharex=True, height_ratios=[3, 1])
    upper.bar(
        edges[:-1][filled], accuracy, width=edges[1], align="edge", color=LINES[0],
        edgecolor="white", label="accuracy of a bin",
    )  # fmt: skip
    upper.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1, label="calibrated")
    upper.plot(
        mean_confidence, accuracy, "o", color="white", markersize=5, markeredgecolor="black",
        label="at its mean confidence",
    )  # fmt: skip
    upper.set_ylim(0, 1.03)
    upper.set_ylabel("accuracy")
    legend(upper)
    lower.bar(edges[:-1], counts, width=edges[1], align="edge", color=LINES[0], edgecolor="white")
    lower.set_xlim(0, 1)
    lower.set_xlabel("confidence")
    lower.set_ylabel("samples")
    title = f"expected calibration error {ece:.4f} (n={counts.sum():.0f})"
    figure.suptitle(title, fontsize="medium")
    return render(figure)


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
    [[left, right]] = subplots(figure, 1, 2)
    left.plot(recall, precision)
    left.set_xlabel(f"recall (of {positives} boxes)")
    left.set_ylabel("precision")
    right.plot(scores[order], precision, label="precision")
    right.plot(scores[order], recall, linestyle="--", label="recall")
    right.set_xlabel("score threshold")
    right.set_ylabel("precision, recall")
    legend(right)
    for axes in (left, right):
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, 1.02)
    figure.suptitle(title, fontsize="medium")
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
    [[left, right]] = subplots(figure, 1, 2)
    left.plot([0, 1], [0, 1], color=QUIET, linewidth=0.8)
    left.scatter(optimal, greedy, s=16, facecolors="none", edgecolors=LINES[0])
    left.set_xlabel("mean IoU per frame, optimal matching")
    left.set_ylabel("mean IoU per frame, greedy matching")
    gap = optimal - greedy
    right.hist(gap, bins=30, range=(0, max(0.1, float(gap.max(initial=0)))))
    right.set_yscale("symlog")  # most frames have no gap
    right.set_xlabel("optimal − greedy")
    right.set_ylabel("frames")
    worse = int((gap > 1e-6).sum())
    figure.suptitle(f"greedy matching is worse in {worse} of {len(gap)} frames", fontsize="medium")
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
    [[axes]] = subplots(figure)
    for number, (name, (scores, hits, positives)) in enumerate(curves.items()):
        true_positives = np.cumsum(hits[np.argsort(-scores, kind="stable")])
        precision = true_positives / np.arange(1, len(true_positives) + 1)
        recall = true_positives / max(1, positives)
        [short] = shortened([name])
        style = series(number) | {"markevery": 0.1}
        label = series_label(f"{short} ({positives} boxes)")
        axes.plot(recall, precision, label=label, **style)  # type: ignore[arg-type]
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("recall")
    axes.set_ylabel("precision")
    legend(axes)
    figure.suptitle(title, fontsize="medium")
    return render(figure)


def speed_and_accuracy(
    names: Sequence[str],
    milliseconds: Sequence[float],
    accuracy: Sequence[float],
    megabytes: Sequence[float],
    metric: str,
) -> Image.Image:
    """Accuracy over latency, a numbered disc per model; its area is the size of the weights.

    Args:
        names: N model names, listed beside the axes.
        milliseconds: N latencies in ms per image.
        accuracy: N values of the metric; NaN is not drawn.
        megabytes: N sizes of the weights.
        metric: name of the metric, and what it is of.
    """
    listed = shown(names)
    longest = max(len(name) for name in listed)
    figure = new_figure(6 + 0.09 * (longest + 6), max(5.0, 0.8 + 0.22 * len(names)))
    [[axes]] = subplots(figure)
    areas = 30 + 400 * np.array(megabytes) / max(megabytes)
    style = {"facecolors": "none", "linewidths": 1.6}
    for number, area in enumerate(areas):
        colour = LINES[number % len(LINES)]
        at = [milliseconds[number]], [accuracy[number]]
        axes.scatter(*at, s=[area], edgecolors=colour, **style)  # type: ignore[arg-type]
    axes.set_xlabel("ms per image")
    axes.set_ylabel(metric)
    axes.margins(0.2)
    axes.set_title("area: size of the weights", fontsize="small")
    lines = [f"{number}  {name}" for number, name in enumerate(listed, start=1)]
    handles = [axes.plot([], [], linestyle="")[0] for _ in lines]
    figure.legend(
        handles, lines, loc="outside right center", fontsize="small", frameon=False, handlelength=0
    )
    drawn = [n for n, value in enumerate(accuracy) if np.isfinite(value)]
    points = [(milliseconds[n], accuracy[n]) for n in drawn]
    radius = math.sqrt(float(areas.max()) / math.pi)
    label_points(axes, points, [str(n + 1) for n in drawn], away=radius)
    return render(figure)


def robustness(
    groups: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
    clean: float,
    metric: str,
    basis: str,
) -> Image.Image:
    """A metric over the strength of corruptions, a panel per kind of corruption.

    Args:
        groups: for each kind, by what is corrupted, (strength, metric) pairs: a line, or a bar for
            a kind without strengths, which are 0.
        clean: the metric without corruption.
        metric: name of the metric.
        basis: the samples that it is of, in words.
    """
    names = max((shown(lines) for lines in groups.values()), key=lambda each: sum(map(len, each)))
    is_long = sum(map(len, names)) > LONGEST_ROW
    # Room for a legend with a name a line, and for names below the bars.
    room = (0.2 * len(names) + 0.09 * max(map(len, names))) if is_long else 0
    figure = new_figure(5 * len(groups), 4.4 + room)
    [panels] = subplots(figure, 1, len(groups), sharey=True)
    for axes, (kind, lines) in zip(panels, groups.items(), strict=True):
        if all(strength == 0 for points in lines.values() for strength, _ in points):
            axes.bar(range(len(lines)), [points[0][1] for points in lines.values()])
            angle = 90 if is_long else 0
            axes.set_xticks(range(len(lines)), labels=shown(lines), rotation=angle)
            axes.axhline(clean, color="black", linestyle="--", label="without corruption")
        else:
            for number, (name, points) in enumerate(lines.items()):
                amounts, values = zip((0.0, clean), *points, strict=True)
                axes.plot(amounts, values, label=series_label(name), **series(number))  # type: ignore[arg-type]
        legend(axes)
        axes.set_xlabel(kind)
    heights = [
        value for lines in groups.values() for points in lines.values() for _, value in points
    ]
    panels[0].set_ylim(0, 1.05 * float(np.nanmax([clean, *heights, 0])) or 1)
    panels[0].set_ylabel(metric)
    figure.suptitle(f"{metric} ({basis}), without corruption {clean:.3f}", fontsize="medium")
    return render(figure)


def speeds(groups: Mapping[str, Mapping[str, Sequence[float]]], footer: str) -> Image.Image:
    """Relative speeds, a panel per group: a bar to the median, a dot for each round.

    Args:
        groups: by title, the speeds of each candidate by name; the reference has 1.
        footer: a line below the panels, such as the machine.
    """
    rows = [len(candidates) for candidates in groups.values()]
    figure = new_figure(9, 1.2 + sum(0.8 + 0.35 * n for n in rows))
    panels = subplots(figure, len(groups), 1, height_ratios=[n + 1 for n in rows])
    for [axes], (title, candidates) in zip(panels, groups.items(), strict=True):
        places = np.arange(len(candidates))
        axes.barh(places, [float(np.median(each)) for each in candidates.values()])
        for place, each in zip(places, candidates.values(), strict=True):
            axes.plot(each, [place] * len(each), "o", color="white", mec="black", markersize=4)
        axes.axvline(1, color="black", linestyle="--", linewidth=1)
        axes.set_yticks(places, shown(candidates))
        axes.invert_yaxis()
        axes.set_title(title, fontsize="small")
    panels[-1][0].set_xlabel("speed relative to the first")
    figure.supxlabel(footer, fontsize="x-small")
    return render(figure)


def range_test(
    rates: NDArray[np.floating[Any]],
    losses: NDArray[np.floating[Any]],
    smoothed: NDArray[np.floating[Any]],
    marks: Mapping[str, float],
) -> Image.Image:
    """Loss over learning rate on a logarithmic scale.

    Args:
        rates: [N] learning rates.
        losses: [N] loss of each step.
        smoothed: [N] smoothed losses.
        marks: learning rates to mark, by name.
    """
    figure = new_figure(7, 4)
    [[axes]] = subplots(figure)
    axes.plot(rates, losses, color=QUIET, linewidth=0.8, marker=".", label="loss of a step")
    axes.plot(rates, smoothed, label="smoothed", linewidth=2)
    for number, (name, rate) in enumerate(marks.items(), start=1):
        style = series(number) | {"marker": ""}
        axes.axvline(rate, label=f"{name}: {rate:.2g}", **style)  # type: ignore[arg-type]
    low, high = float(losses.min()), float(smoothed.max())
    margin = 0.1 * (high - low) or 1.0
    axes.set_ylim(low - margin, high + margin)  # a diverging loss would flatten the rest
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss")
    legend(axes)
    return render(figure)


def energy_map(
    energy: NDArray[np.floating[Any]], title: str, selected: Sequence[int] = ()
) -> Image.Image:
    """Mean energy of each DCT frequency on a logarithmic scale.

    Args:
        energy: [64] mean squares, row-major (8·v + u).
        title: of the picture.
        selected: frequencies to outline.
    """
    from matplotlib.patches import Rectangle

    figure = new_figure(4.8, 4.2)
    [[axes]] = subplots(figure)
    axes.grid(visible=False)
    mesh = axes.imshow(np.log10(np.maximum(energy.reshape(8, 8), 1e-3)), cmap=SEQUENTIAL)
    for frequency in selected:
        v, u = divmod(frequency, 8)
        for width, colour in ((3, "black"), (1.2, "white")):  # seen on every colour of the map
            axes.add_patch(
                Rectangle((u - 0.46, v - 0.46), 0.92, 0.92, fill=False, ec=colour, lw=width)
            )
    axes.set_title(title, fontsize="small")
    axes.set_xlabel("u (horizontal frequency)")
    axes.set_ylabel("v (vertical frequency)")
    whole_numbers(axes)
    figure.colorbar(mesh, ax=axes, label="log10 mean square")
    return render(figure)
