"""Pictures for people: confusion matrices, contact sheets, curves, maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

RIGHT = (46, 125, 50)
WRONG = (198, 40, 40)


def render(figure: Figure) -> Image.Image:
    """A matplotlib figure as an image; no window, no global state."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def confusion_matrix(counts: Tensor, classes: Sequence[str]) -> Image.Image:
    """Rows are true classes, columns predictions; colours are shares of the row.

    Args:
        counts: [C, C] integers.
        classes: class names; written out up to 40 of them.
    """
    table = counts.numpy().astype(np.float64)
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    side = min(14.0, 3.0 + 0.35 * len(classes))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if len(classes) <= 40:
        axes.set_xticks(range(len(classes)), labels=list(classes), rotation=90)
        axes.set_yticks(range(len(classes)), labels=list(classes))
    if len(classes) <= 20:
        for (row, column), count in np.ndenumerate(table):
            if count:
                shade = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, f"{count:.0f}", ha="center", va="center", color=shade)
    return render(figure)


def contact_sheet(
    images: Tensor, captions: Sequence[str], right: Sequence[bool], columns: int = 6
) -> Image.Image:
    """Images in a grid with two-line captions, green where right and red where wrong.

    Args:
        images: uint8 [N, 3, H, W] RGB.
        captions: N texts.
        right: N truth values.
        columns: images a row.
    """
    cell, text = 128, 30
    rows = -(-len(captions) // columns)
    sheet = Image.new("RGB", (columns * (cell + 8) + 8, rows * (cell + text + 8) + 8), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (image, caption, good) in enumerate(zip(images, captions, right, strict=True)):
        left = 8 + number % columns * (cell + 8)
        top = 8 + number // columns * (cell + text + 8)
        pixels = Image.fromarray(image.permute(1, 2, 0).numpy())
        sheet.paste(pixels.resize((cell, cell), Image.Resampling.NEAREST), (left, top))
        draw.multiline_text((left, top + cell + 2), caption, fill=RIGHT if good else WRONG)
    return sheet


def learning_curves(history: Sequence[Mapping[str, Any]]) -> Image.Image:
    """Losses, metrics and the learning rate over epochs, one panel each.

    Args:
        history: one row an epoch, as in ``epoch_metrics.csv``.
    """
    epochs = [row["epoch"] for row in history]
    names = [name for name in history[-1] if name.startswith("val/") and name != "val/loss"]
    panels = [["train/loss", "val/loss"], names, ["learning_rate"]]
    panels = [panel for panel in panels if panel]
    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name in panel:
            axes.plot(epochs, [row.get(name, np.nan) for row in history], marker=".", label=name)
        axes.set_xlabel("epoch")
        axes.legend()
        axes.grid(alpha=0.3)
    return render(figure)


def energy_map(
    energy: NDArray[np.floating[Any]], title: str, kept: Sequence[int] = ()
) -> Image.Image:
    """The mean energy of each DCT frequency on a logarithmic scale.

    Args:
        energy: [64] mean squares, row-major (8·v + u).
        title: what the coefficients are of.
        kept: frequencies to frame.
    """
    figure = Figure(figsize=(4.5, 4), layout="constrained")
    axes = figure.add_subplot()
    shown = axes.imshow(np.log10(np.maximum(energy.reshape(8, 8), 1e-3)), cmap="viridis")
    for frequency in kept:
        v, u = divmod(frequency, 8)
        axes.add_patch(Rectangle((u - 0.5, v - 0.5), 1, 1, fill=False, edgecolor="red"))
    axes.set_title(title, fontsize="small")
    axes.set_xlabel("u (horizontal frequency)")
    axes.set_ylabel("v (vertical frequency)")
    figure.colorbar(shown, ax=axes, label="log10 mean square")
    return render(figure)
