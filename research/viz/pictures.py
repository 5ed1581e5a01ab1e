"""Pictures of results: confusion matrices, contact sheets, boxes, learning curves, maps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

if TYPE_CHECKING:  # a run draws after its first epoch; matplotlib is imported with the first figure
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Colour = tuple[int, int, int]
CAPTION_COLOURS: dict[bool | None, Colour] = {
    True: (46, 125, 50),
    False: (198, 40, 40),
    None: (0, 0, 0),
}
"""Of correct, incorrect and other images."""
TRUE_BOX: Colour = (0, 200, 83)
IGNORED_BOX: Colour = (160, 160, 160)
DASH = 4
"""Pixels of a dash, and of the gap after it, in the outline of an ignore region."""
PREDICTED_BOXES: tuple[Colour, ...] = ((255, 64, 192), (64, 192, 255))
"""Of the first box and of all others, as in guide 5; used if there is one class."""
CLASS_COLOURS: tuple[Colour, ...] = (
    *PREDICTED_BOXES,
    (255, 196, 0),
    (255, 112, 67),
    (170, 120, 255),
    (0, 220, 220),
    (255, 255, 255),
    (200, 140, 90),
)
"""Of the classes, in turn; none is similar to ``TRUE_BOX``."""
CURVES = 9
"""Metrics in one panel of the learning curves, of validation and, where it is logged, training."""
LEGEND_LINE = 48
"""Characters in one line of a legend."""
LONGEST_NAME = 40
"""Characters of a name in a picture; drawing one of 20,000 takes seconds."""


def new_figure(width: float, height: float) -> Figure:
    """An empty matplotlib figure; sides in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def render(figure: Figure) -> Image.Image:
    """A matplotlib figure as an image, without a window or global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def shown(names: Iterable[str]) -> list[str]:
    """Names as they are written in pictures: at most ``LONGEST_NAME`` characters."""
    return [name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…" for name in names]


def legend(axes: Axes) -> None:
    """Add a legend in columns above the axes.

    Not inside: ``loc="best"`` hides points if there is no free space, and warns when it is slow.
    """
    lines, names = axes.get_legend_handles_labels()
    if not lines:
        return
    names = shown(names)
    columns = min(len(names), max(1, LEGEND_LINE // max(len(name) for name in names)), 4)
    axes.legend(
        lines, names, loc="lower center", bbox_to_anchor=(0.5, 1.0),
        ncols=columns, fontsize="small", frameon=False,
    )  # fmt: skip


def confusion_matrix(counts: Tensor, classes: Sequence[str]) -> Image.Image:
    """Rows are true classes, columns predicted classes; colours are fractions of the row.

    Args:
        counts: [C, C] integers.
        classes: class names; shown if there are at most 40.
    """
    table = counts.numpy().astype(np.float64)
    fractions = table / np.maximum(table.sum(1, keepdims=True), 1)
    names = shown(classes) if len(classes) <= 40 else []
    longest = max((len(name) for name in names), default=0)
    side = min(14.0, 3.0 + 0.35 * len(classes)) + 0.08 * max(0, longest - 10)
    figure = new_figure(side, side)
    axes = figure.add_subplot()
    axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if names:
        axes.set_xticks(range(len(classes)), labels=names, rotation=90)
        axes.set_yticks(range(len(classes)), labels=names)
    if len(classes) <= 20:
        for (row, column), count in np.ndenumerate(table):
            if count:
                color = "white" if fractions[row, column] > 0.5 else "black"
                axes.text(column, row, f"{count:.0f}", ha="center", va="center", color=color)
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
    figure = new_figure(4.5, 5.5)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.bar(edges[:-1][filled], accuracy, width=edges[1], align="edge", edgecolor="white")
    upper.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    upper.plot(mean_confidence, accuracy, "o", color="black", markersize=3)
    upper.set_ylim(0, 1)
    upper.set_ylabel("accuracy")
    upper.set_title(f"expected calibration error {ece:.4f}", fontsize="small")
    lower.bar(edges[:-1], counts, width=edges[1], align="edge", edgecolor="white")
    lower.set_xlim(0, 1)
    lower.set_xlabel("confidence")
    lower.set_ylabel("samples")
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
    axes = figure.add_subplot()
    axes.plot(rates, losses, color="lightgrey", label="loss")
    axes.plot(rates, smoothed, label="smoothed")
    for number, (name, rate) in enumerate(marks.items()):
        axes.axvline(rate, color=f"C{number + 1}", linestyle="--", label=f"{name}: {rate:.2g}")
    low, high = float(losses.min()), float(smoothed.max())
    margin = 0.1 * (high - low) or 1.0
    axes.set_ylim(low - margin, high + margin)  # a diverging loss would flatten the rest
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss")
    legend(axes)
    axes.grid(alpha=0.3)
    return render(figure)


def titled(image: Image.Image, text: str) -> Image.Image:
    """A copy of the image below a line of text; wider, if the line is."""
    line = note(text)
    width = max(image.width, line.width)
    canvas = Image.new("RGB", (width, line.height + image.height), "white")
    canvas.paste(line, (0, 0))
    canvas.paste(image, ((width - image.width) // 2, line.height))
    return canvas


def note(text: str) -> Image.Image:
    """A line of text as an image, for an empty result."""
    canvas = Image.new("RGB", (16 + 7 * len(text), 32), "white")
    ImageDraw.Draw(canvas).text((8, 10), text, fill="black")
    return canvas


def from_pixels(pixels: Tensor) -> Image.Image:
    """A uint8 RGB tensor [3, H, W] as an image."""
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())


def contact_sheet(
    images: Tensor, captions: Sequence[str], correct: Sequence[bool], columns: int = 6
) -> Image.Image:
    """Images in a grid with captions of two lines, green if correct, else red.

    Args:
        images: uint8 [N, 3, H, W] RGB.
        captions: N texts.
        correct: N booleans.
        columns: images per row.
    """
    cells = [from_pixels(image).resize((128, 128), Image.Resampling.NEAREST) for image in images]
    return sheet(cells, captions, correct, columns)


def sheet(
    cells: Sequence[Image.Image],
    captions: Sequence[str],
    correct: Sequence[bool | None],
    columns: int,
) -> Image.Image:
    """Images of one size in a grid, with captions as in ``contact_sheet``; None: black."""
    width, height, text = cells[0].width, cells[0].height, 30
    rows = -(-len(cells) // columns)
    canvas = Image.new("RGB", (columns * (width + 8) + 8, rows * (height + text + 8) + 8), "white")
    draw = ImageDraw.Draw(canvas)
    for index, (cell, caption, is_correct) in enumerate(zip(cells, captions, correct, strict=True)):
        left = 8 + index % columns * (width + 8)
        top = 8 + index // columns * (height + text + 8)
        canvas.paste(cell, (left, top))
        fill = CAPTION_COLOURS[is_correct]
        draw.multiline_text((left, top + height + 2), caption, fill=fill)
    return canvas


def side_by_side(images: Sequence[Image.Image]) -> Image.Image:
    """Images of one height in a row, without gaps."""
    canvas = Image.new("RGB", (sum(image.width for image in images), images[0].height))
    left = 0
    for image in images:
        canvas.paste(image, (left, 0))
        left += image.width
    return canvas


def class_colours(labels: Iterable[int]) -> list[Colour]:
    """A colour for each label; equal labels have equal colours."""
    return [CLASS_COLOURS[label % len(CLASS_COLOURS)] for label in labels]


def draw_boxes(
    image: Image.Image,
    boxes: Sequence[Sequence[float]],
    captions: Sequence[str] = (),
    colours: Sequence[Colour] = PREDICTED_BOXES,
) -> Image.Image:
    """A copy of the image with boxes, outlined by two pixels inside their edges.

    Args:
        image: RGB.
        boxes: N boxes, xyxy in pixels of the image, clipped to it.
        captions: empty, or N texts, written above the boxes (inside at the upper edge).
        colours: of the boxes in order; the last one is used for all further boxes.
    """
    image = image.copy()
    captions = shown(captions)
    draw = ImageDraw.Draw(image)
    for index, box in reversed([*enumerate(boxes)]):  # the first box is on top
        colour = colours[min(index, len(colours) - 1)]
        left, right = _span(box[0], box[2], image.width)
        top, bottom = _span(box[1], box[3], image.height)
        draw.rectangle((left, top, right, bottom), outline=colour, width=2)
        if captions:
            x0, y0, x1, y1 = draw.textbbox((0, 0), captions[index])
            x = max(0, min(left, image.width - int(x1)))
            y = top - int(y1) if top >= y1 else top + 2
            draw.rectangle((x + x0, y + y0, x + x1, y + y1), fill=colour)
            draw.text((x, y), captions[index], fill="black")
    return image


def draw_ignored(image: Image.Image, boxes: Sequence[Sequence[float]]) -> Image.Image:
    """A copy of the image with ignore regions, outlined by dashes of two pixels.

    Args:
        image: RGB.
        boxes: N boxes, xyxy in pixels of the image, clipped to it.
    """
    image = image.copy()
    draw = ImageDraw.Draw(image)
    for box in boxes:
        left, right = _span(box[0], box[2], image.width)
        top, bottom = _span(box[1], box[3], image.height)
        for x in range(left, right + 1, 2 * DASH):
            for y in (top, max(top, bottom - 1)):
                stop = min(x + DASH - 1, right), min(y + 1, bottom)
                draw.rectangle((x, y, *stop), fill=IGNORED_BOX)
        for y in range(top, bottom + 1, 2 * DASH):
            for x in (left, max(left, right - 1)):
                stop = min(x + 1, right), min(y + DASH - 1, bottom)
                draw.rectangle((x, y, *stop), fill=IGNORED_BOX)
    return image


def _span(start: float, stop: float, length: int) -> tuple[int, int]:
    """First and last pixel between two edges; at least one pixel, inside the image."""
    first = min(max(round(start), 0), length - 1)
    return first, max(first, min(round(stop), length) - 1)


def learning_curves(history: Sequence[Mapping[str, Any]], title: str) -> Image.Image:
    """Losses, metrics and learning rate over epochs, in a panel each; more panels for many metrics.

    Args:
        history: one row per epoch, as in ``epoch_metrics.csv``.
        title: of the picture.
    """
    epochs = [row["epoch"] for row in history]
    floats = [name for name, value in history[-1].items() if type(value) is float]  # no counts
    names = [name for name in floats if name.startswith("val/") and name != "val/loss"]
    pairs = [(name, f"train/{name.removeprefix('val/')}") for name in names]
    metrics = [
        [name for pair in pairs[start : start + CURVES] for name in pair if name in floats]
        for start in range(0, len(pairs), CURVES)
    ]
    panels = [["train/loss", "val/loss"], *metrics, ["learning_rate"]]
    figure = new_figure(5 * len(panels), 4)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name in panel:
            axes.plot(epochs, [row.get(name, np.nan) for row in history], marker=".", label=name)
        axes.set_xlabel("epoch")
        legend(axes)
        axes.grid(alpha=0.3)
    figure.suptitle(title, fontsize="small")
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

    figure = new_figure(4.5, 4)
    axes = figure.add_subplot()
    mesh = axes.imshow(np.log10(np.maximum(energy.reshape(8, 8), 1e-3)), cmap="viridis")
    for frequency in selected:
        v, u = divmod(frequency, 8)
        axes.add_patch(Rectangle((u - 0.5, v - 0.5), 1, 1, fill=False, edgecolor="red"))
    axes.set_title(title, fontsize="small")
    axes.set_xlabel("u (horizontal frequency)")
    axes.set_ylabel("v (vertical frequency)")
    figure.colorbar(mesh, ax=axes, label="log10 mean square")
    return render(figure)
