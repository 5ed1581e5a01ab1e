"""Writers of predictions for a user's own images: files in a folder, and overlays for a player.

``python -m research.predict`` uses the writer that the task creates, see ``Task.writer``.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, Protocol, Self

import numpy as np
from PIL import Image
from torch import Tensor

from research.data.frames.coco_writer import CocoWriter
from research.data.frames.media import Still
from research.data.frames.run_writer import MAX_FRAMES, RunWriter
from research.utils.counts import counted
from research.utils.errors import UserError
from research.utils.spreadsheets import cell
from research.viz import pictures
from research.viz.boxes import draw_boxes
from research.viz.colours import PREDICTED_BOXES, Colour

BOXED: Final = "boxed"
SHEET: Final = "contact_sheet.png"
COCO: Final = "predictions.json"
SHOWN: Final = 48
THUMBNAIL: Final = 160
LISTED: Final = 8
"""Images of which the terminal shows the classes; of more, how many are of each class."""
BEST: Final = 5
UNDEFINED: Final = "no class"
"""Caption of an image whose scores are not finite."""

Panels = Sequence[Image.Image]
"""RGB pictures of one still, of equal size, see ``DataModule.load_image``."""


@dataclass(frozen=True)
class Overlay:
    """The predictions for one still, for a player.

    Attributes:
        caption: of the whole still.
        boxes: xyxy as fractions of the still, by decreasing score.
        scores: one per box, 0…1.
        texts: one per box.
        colours: one per box; the last one is used for all remaining boxes.
    """

    caption: str
    boxes: Sequence[Sequence[float]] = ()
    scores: Sequence[float] = ()
    texts: Sequence[str] = ()
    colours: Sequence[Colour] = PREDICTED_BOXES


class PredictionWriter(Protocol):
    """Writes predictions batch by batch; a context manager, closed after the last batch.

    Attributes:
        score_threshold: boxes of lower scores are not written; ``None`` for other predictions.
    """

    score_threshold: float | None

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: Any) -> None: ...

    def add(
        self, stills: Sequence[Still], images: Sequence[Panels], predictions: Any
    ) -> list[Overlay]:
        """Write the predictions for some stills.

        Args:
            stills: the files.
            images: their pixels.
            predictions: from ``Task.postprocess``.

        Raises:
            UserError: when it cannot be written.
        """
        ...

    def summary(self) -> dict[str, Any]:
        """Counts, for JSON."""
        ...

    def where(self) -> list[str]:
        """Lines for the user: what was predicted, and the files that show it."""
        ...


class BoxWriter:
    """Detections as pictures, in COCO format, and as capture runs, one per group of stills.

    ``FOLDER/boxed/STEM_boxed.png`` is a picture with boxes, all modalities side by side;
    ``FOLDER/predictions.json`` holds the boxes in pixels of the files; ``FOLDER/GROUP/`` is a run
    (``images/``, ``labels/``), if there is a single class: its labels name none. A run has at most
    ``MAX_FRAMES``, of a longer video the others are in ``GROUP_from_100000/``, and so on.

    Args:
        folder: output folder, created with the first still.
        score_threshold: boxes of lower scores are neither written nor drawn, 0…1.
        text: text of a box, from its label and score.
        colours: colours of boxes, from their labels.
        classes: class names, in index order.
    """

    def __init__(
        self,
        folder: Path,
        score_threshold: float,
        text: Callable[[int, float], str],
        colours: Callable[[Sequence[int]], Sequence[Colour]],
        classes: Sequence[str],
    ) -> None:
        self.folder = folder
        self.score_threshold: float | None = score_threshold
        self.text = text
        self.colours = colours
        self.coco = CocoWriter(classes)
        self.runs: dict[str, list[RunWriter]] = {}
        self.open = ExitStack()
        self.frames = self.boxes = self.with_boxes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.open.close()
        if self.frames and kind is None:
            try:
                self.coco.write(self.folder / COCO)
            except OSError as problem:
                raise failed(self.folder / COCO, problem) from None

    def add(
        self,
        stills: Sequence[Still],
        images: Sequence[Panels],
        predictions: list[dict[str, Tensor]],
    ) -> list[Overlay]:
        """``predictions``: of each still ``boxes`` [n, 4] in pixels, ``scores``, ``labels``."""
        return [self._add(*each) for each in zip(stills, images, predictions, strict=True)]

    def _add(self, still: Still, panels: Panels, detections: dict[str, Tensor]) -> Overlay:
        image = panels[0]
        boxes, scores, labels = (detections[key].cpu() for key in ("boxes", "scores", "labels"))
        pixels, kept = boxes.double(), scores.tolist()
        relative = (pixels / pixels.new_tensor([image.width, image.height] * 2)).tolist()
        # Of a class-agnostic task all boxes are of one class, whatever the network says.
        named = labels.clamp(max=len(self.coco.classes) - 1).tolist()
        texts = [self.text(label, score) for label, score in zip(named, kept, strict=True)]
        # Sorted by score: boxes above the threshold come first.
        count = sum(score >= (self.score_threshold or 0) for score in kept)
        if len(self.coco.classes) == 1:
            native = still.file.suffix.lower() in (".jpg", ".jpeg", ".png")
            self._run(still.group).add(
                still.file if native else image,
                relative[:count],
                source="model",
                confidences=kept[:count],
            )
        absolute = pixels[:count].tolist()
        self.coco.add(still.name, image.size, absolute, kept[:count], named[:count])
        colours = self.colours(named[:count])
        drawn = [draw_boxes(panel, absolute, texts[:count], colours) for panel in panels]
        save(pictures.side_by_side(drawn), self.folder / BOXED / f"{still.stem}_boxed.png")
        self.frames += 1
        self.boxes += count
        self.with_boxes += count > 0
        return Overlay("", relative, kept, texts, self.colours(named))

    def _run(self, group: str) -> RunWriter:
        """The run for the next frame of a group: another one if the last is full."""
        runs = self.runs.setdefault(group, [])
        if not runs or runs[-1].frames >= MAX_FRAMES:
            name = f"{group}_run" if group == BOXED else group
            name += f"_from_{len(runs) * MAX_FRAMES}" if runs else ""
            runs.append(self.open.enter_context(RunWriter(self.folder / name)))
        return runs[-1]

    def summary(self) -> dict[str, Any]:
        return {
            "objectness": self.score_threshold,
            "runs": [str(run.folder) for runs in self.runs.values() for run in runs],
            "frames_with_boxes": self.with_boxes,
            "boxes": self.boxes,
        }

    def where(self) -> list[str]:
        runs = f"capture runs: {sum(map(len, self.runs.values()))}; " if self.runs else ""
        return [
            f"{self.with_boxes} of {self.frames} frames have boxes, {self.boxes} in all "
            f"(objectness {self.score_threshold:g})",
            f"pictures: {self.folder / BOXED}",
            f"labels:   {self.folder}, {runs}COCO: {self.folder / COCO}",
        ]


class ClassWriter:
    """Classes as a table, ``FOLDER/predictions.csv``, and a contact sheet.

    An image with a NaN or infinite logit has no class, and is counted as ``undefined``.

    The sheet shows at most ``SHOWN`` images, drawn from all with a fixed seed (algorithm R; Vitter,
    1985), in the order of the table.

    Args:
        folder: output folder, created with the first still.
        classes: class names, in index order.
    """

    score_threshold: float | None = None

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        self.folder = folder
        self.classes = classes
        self.table = folder / "predictions.csv"
        self.counts: dict[str, int] = {}
        self.first: list[str] = []
        self.images = self.undefined = 0
        self.shown: dict[int, tuple[int, Image.Image, str]] = {}
        self.chance = np.random.default_rng(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.shown:
            _, cells, captions = zip(*sorted(self.shown.values(), key=itemgetter(0)), strict=True)
            paper = pictures.sheet(cells, captions, [None] * len(cells), columns=6)
            of = counted(self.images, "images")
            title = f"{SHOWN} of {of}" if self.images > SHOWN else of
            save(pictures.titled(paper, title), self.folder / SHEET)

    def add(
        self, stills: Sequence[Still], images: Sequence[Panels], predictions: Tensor
    ) -> list[Overlay]:
        """``predictions``: logits [B, C]."""
        logits = predictions.cpu()
        # Of equal logits the first class is first, as in evaluation; topk has them in any order.
        best = logits.argsort(dim=1, descending=True, stable=True)[:, :BEST]
        likely = logits.softmax(1).gather(1, best)
        rows, overlays = [], []
        for still, panels, probabilities, indices in zip(
            stills, images, likely.tolist(), best.tolist(), strict=True
        ):
            is_defined = math.isfinite(probabilities[0])
            names = [self.classes[index] if is_defined else "" for index in indices]
            row = [still.name]
            for name, probability in zip(names, probabilities, strict=True):
                row += [name, f"{probability:.4f}"]
            rows.append(row)
            if is_defined:
                self.counts[names[0]] = self.counts.get(names[0], 0) + 1
                pairs = zip(names, probabilities, strict=True)
                found = [f"{name} {value:.0%}" for name, value in pairs]
            else:
                self.undefined += 1
                found = [UNDEFINED]
            caption = found[0]
            if len(self.first) < LISTED:
                self.first.append(f"{still.name}  {', '.join(found)}")
            self.images += 1
            place = len(self.shown)
            if place == SHOWN:
                place = int(self.chance.integers(self.images))
            if place < SHOWN:
                text = f"{still.stem[-24:]}\n{caption}"
                self.shown[place] = self.images, thumbnail(panels[0]), text
            overlays.append(Overlay(caption))
        self._append(rows)
        return overlays

    def _part(self) -> str:
        """How many images the sheet shows: ``30``, or ``48 of 900``."""
        return f"{SHOWN} of {self.images}" if self.images > SHOWN else f"{self.images}"

    def _append(self, rows: list[list[str]]) -> None:
        header = ["file", "class", "score"]
        for rank in range(2, min(BEST, len(self.classes)) + 1):
            header += [f"class_{rank}", f"score_{rank}"]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            fresh = not self.table.exists()
            with self.table.open("a", newline="", encoding="utf-8") as file:
                cells = [list(map(cell, row)) for row in rows]
                csv.writer(file).writerows([header, *cells] if fresh else cells)
        except OSError as error:
            raise failed(self.table, error) from None

    def summary(self) -> dict[str, Any]:
        return {"classes": dict(sorted(self.counts.items())), "undefined": self.undefined}

    def where(self) -> list[str]:
        shown = f"{self.folder / SHEET} ({self._part()})"
        files = [f"pictures: {shown}", f"table:    {self.table}"]
        if self.undefined:
            files.append(f"no class: {counted(self.undefined, 'images')}, scores are not finite")
        if self.images <= len(self.first):
            return [*self.first, *files]
        counts = ", ".join(f"{name} {count}" for name, count in sorted(self.counts.items()))
        return [f"classes:  {counts}", *files]


def thumbnail(image: Image.Image) -> Image.Image:
    """The whole image on a white square."""
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    square = Image.new("RGB", (THUMBNAIL, THUMBNAIL), "white")
    square.paste(small, ((THUMBNAIL - small.width) // 2, (THUMBNAIL - small.height) // 2))
    return square


def save(image: Image.Image, file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # The smallest file takes three times as long.
        image.save(file, compress_level=1)
    except OSError as error:
        raise failed(file, error) from None


def failed(file: Path, error: OSError) -> UserError:
    return UserError(
        "out", f"{file}: {error.strerror or error}", "free space, or set another out=FOLDER"
    )
