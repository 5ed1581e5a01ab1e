"""Pictures of a prepared store: class balance, box statistics and a contact sheet."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from research.data.rgbx.arrays import to_pil_images
from research.data.warehouse.lint import TINY
from research.data.warehouse.samples import Samples, class_counts, decoded
from research.viz import pictures
from research.viz.boxes import draw_ignored, draw_true
from research.viz.colours import LINES, SEQUENTIAL
from research.viz.figures import legend, new_figure, render, shown, subplots

CONTACT_SHEET = 36
"""Samples on the contact sheet."""

CELL = 192
"""Side of its cells in pixels."""

MAX_NAMES = 60
"""With more classes their names are not drawn."""


def draw(samples: Samples) -> dict[str, Image.Image]:
    """Pictures of a store by name: class balance, samples, and box centres and sizes of frames."""
    if samples.manifest.kind == "features":
        return {}
    drawn = {"class_balance": class_balance(samples)}
    if not len(samples.positions):
        return drawn
    # Evenly spaced, to include every split and most groups.
    indices = np.unique(
        np.linspace(0, len(samples.positions) - 1, CONTACT_SHEET).round().astype(np.int64)
    )
    chosen = samples.positions[indices].tolist()
    if samples.manifest.kind == "frames":
        boxes = samples.boxes()
        side = samples.manifest.transform["image_size"]
        drawn |= {"box_centres": box_centres(boxes), "box_sizes": box_sizes(boxes * side)}
        cells = [_frame(samples, position) for position in chosen]
    else:
        cells = [
            pictures.from_pixels(torch.from_numpy(decoded(samples, position))).resize((CELL, CELL))
            for position in chosen
        ]
    captions = [_caption(samples, position) for position in chosen]
    columns = max(1, 6 * CELL // cells[0].width)
    drawn["samples"] = pictures.sheet(cells, captions, [None] * len(cells), columns=columns)
    return drawn


def class_balance(samples: Samples) -> Image.Image:
    """Number of boxes or samples of each class, with one bar for each split."""
    counts = class_counts(samples)
    classes = samples.manifest.classes
    names = shown(classes) if len(classes) <= MAX_NAMES else []
    longest = max((len(name) for name in names), default=0)
    figure = new_figure(min(24.0, 4 + 0.3 * len(classes)), 4 + 0.09 * max(0, longest - 6))
    [[axes]] = subplots(figure)
    width = 0.8 / max(1, len(counts))
    for number, (split, by_class) in enumerate(counts.items()):
        axes.bar(
            np.arange(len(classes)) + (number + 0.5) * width - 0.4, by_class, width, label=split
        )
    axes.set_ylabel("boxes" if samples.manifest.kind == "frames" else "samples")
    if names:
        axes.set_xticks(range(len(classes)), labels=names, rotation=90)
    legend(axes)
    return render(figure)


def box_centres(boxes: NDArray[Any]) -> Image.Image:
    """Heat map of the centres of boxes.

    Args:
        boxes: [N, 4] xyxy, fractions of the frame.
    """
    x, y = (boxes[:, :2] + boxes[:, 2:]).T / 2
    heat, _, _ = np.histogram2d(y, x, bins=24, range=((0, 1), (0, 1)))
    figure = new_figure(5, 4.5)
    [[axes]] = subplots(figure)
    axes.grid(visible=False)
    image = axes.imshow(heat, cmap=SEQUENTIAL, extent=(0, 1, 1, 0))
    axes.set_title(f"centres of {len(boxes)} boxes", fontsize="small")
    figure.colorbar(image, ax=axes, label="boxes")
    return render(figure)


def box_sizes(boxes: NDArray[Any]) -> Image.Image:
    """Histograms of the sizes and aspect ratios of boxes.

    Args:
        boxes: [N, 4] xyxy in pixels of the frame.
    """
    width, height = np.maximum(boxes[:, 2:] - boxes[:, :2], 1e-3).T
    figure = new_figure(9, 4)
    [[left, right]] = subplots(figure, 1, 2)
    left.hist(np.sqrt(width * height), bins=40)
    left.axvline(TINY, color=LINES[1], linestyle="--", label=f"{TINY:g} px: tiny")
    legend(left)
    left.set_xlabel("square root of the area, px")
    right.hist(np.log2(width / height), bins=40)
    right.set_xlabel("log2 of width / height")
    for axes in (left, right):
        axes.set_ylabel("boxes")
    return render(figure)


def _frame(samples: Samples, position: int) -> Image.Image:
    """A frame with its boxes; of several channels, RGB and each other one side by side."""
    store = samples.store
    array = store.rows("images", position)
    panels = to_pil_images(array) if array.shape[2] > 3 else [Image.fromarray(array.copy())]
    boxes = store.rows("boxes", position)
    finite = np.isfinite(boxes).all(1)
    row = np.searchsorted(samples.positions, position)
    objects, ignored = (
        (boxes[shown[row] & finite] * CELL).tolist() for shown in (samples.objects, samples.ignored)
    )
    drawn = (draw_ignored(panel.resize((CELL, CELL)), ignored) for panel in panels)
    return pictures.side_by_side([draw_true(panel, objects) for panel in drawn])


def _caption(samples: Samples, position: int) -> str:
    group = next(g for g in samples.manifest.groups if g.start <= position < g.stop)
    label = ""
    if samples.manifest.kind != "frames":
        label = samples.class_name(int(samples.store.rows("labels", position)))
    name = samples.records[position]["name"]
    return f"{group.split} {label or group.name}\n{name[-30:]}"
