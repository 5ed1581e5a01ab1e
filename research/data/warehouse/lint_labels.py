"""Checks of boxes and classes that are valid one by one, and still suspicious."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from research.data.frames.letterbox import Letterbox
from research.data.warehouse.samples import Samples, class_counts

SAME_BOX: Final = 0.99
"""IoU from which two boxes of one class are the same object."""
WHOLE: Final = 0.99
"""Fraction of the picture from which a box covers all of it."""
UNLIKE: Final = 0.2
"""Largest usual distance of the class frequencies of two splits (total variation, 0 … 1), beyond
twice what chance makes of it."""
FEW: Final = 30
"""Boxes or samples of a split, with fewer of which its class frequencies say nothing."""
CHUNK: Final = 1 << 20
"""Most pairs of boxes that are compared at once."""

Boxes = NDArray[np.float64]


def image_areas(samples: Samples) -> Boxes:
    """[N, 4] where the image of each frame is in its letterbox: xyxy in pixels."""
    side = samples.manifest.transform["image_size"]
    areas = np.zeros((len(samples.positions), 4))
    for index, (height, width) in enumerate(samples.all("sizes").tolist()):
        box = Letterbox.of(max(1, height), max(1, width), side)
        areas[index] = (box.pad_x, box.pad_y, box.pad_x + box.width, box.pad_y + box.height)
    return areas


def duplicate_boxes(samples: Samples) -> Iterator[str]:
    """Boxes of one class that are the same, or overlap by an IoU of ``SAME_BOX``; each once."""
    boxes, objects = _objects(samples)
    labels = samples.all("labels")
    for index in np.flatnonzero(objects.sum(1) > 1).tolist():
        slots = np.flatnonzero(objects[index])
        own, classes = boxes[index, slots], labels[index, slots]
        step = max(1, CHUNK // len(slots))
        for start in range(0, len(slots), step):
            overlap = _overlaps(own[start : start + step], own)
            same = classes[start : start + step, None] == classes
            earlier = np.tri(len(overlap), len(slots), start - 1, dtype=bool)
            found = same & earlier & (overlap > SAME_BOX)
            for row in np.flatnonzero(found.any(1)).tolist():
                first = int(found[row].argmax())
                yield (
                    f"{samples.where(samples.positions[index])} box {slots[start + row]}: the same "
                    f"{samples.class_name(int(classes[first]))} as box {slots[first]} "
                    f"(IoU {overlap[row, first]:.3f})"
                )


def whole_picture_boxes(samples: Samples) -> Iterator[str]:
    """Boxes that cover the whole picture: often a placeholder of a labelling tool."""
    boxes, objects = _objects(samples)
    side, labels = samples.manifest.transform["image_size"], samples.all("labels")
    areas = image_areas(samples)[:, None]
    pixels = boxes * side
    low = np.maximum(pixels[..., :2], areas[..., :2])
    high = np.minimum(pixels[..., 2:], areas[..., 2:])
    covered = (high - low).clip(0).prod(-1)
    whole = objects & (covered >= WHOLE * (areas[..., 2:] - areas[..., :2]).prod(-1))
    for index, slot in zip(*(part.tolist() for part in whole.nonzero()), strict=True):
        name = samples.class_name(int(labels[index, slot]))
        yield (
            f"{samples.where(samples.positions[index])} box {slot}: {name} covers the whole picture"
        )


def unusable_classes(samples: Samples) -> Iterator[str]:
    """Classes that are only in training, so that nothing evaluates them, or have one sample."""
    counts = class_counts(samples)
    unit = "box" if samples.manifest.kind == "frames" else "sample"
    others = [split for split in counts if split != "train"]
    for label, name in enumerate(samples.manifest.classes):
        total = sum(int(by_class[label]) for by_class in counts.values())
        where = [split for split, by_class in counts.items() if by_class[label]]
        if total == 1:
            yield f"class {name}: one {unit} in all, in {where[0]}"
        elif where == ["train"] and others:
            yield f"class {name}: none in {' and '.join(others)}, so that nothing evaluates it"


def unlike_splits(samples: Samples) -> Iterator[str]:
    """Splits whose classes are distributed otherwise than in training."""
    counts = class_counts(samples)
    train = counts.pop("train", np.zeros(0))
    for split, by_class in counts.items():
        if min(train.sum(), by_class.sum()) < FEW:
            continue
        known, found = train / train.sum(), by_class / by_class.sum()
        distance = np.abs(known - found).sum() / 2
        spread = known * (1 - known) * (1 / train.sum() + 1 / by_class.sum())
        chance = np.sqrt(2 / np.pi * spread).sum() / 2
        if distance <= UNLIKE + 2 * chance:
            continue
        most = int(np.abs(known - found).argmax())
        yield (
            f"{split}: its classes are distributed otherwise than in train, most of all "
            f"{samples.manifest.classes[most]} ({known[most]:.0%} of train, {found[most]:.0%} of "
            f"{split})"
        )


def _objects(samples: Samples) -> tuple[Boxes, NDArray[np.bool_]]:
    """[N, M, 4] boxes, and [N, M] which of them are valid boxes of objects."""
    boxes = samples.all("boxes").astype(np.float64)
    objects = samples.objects.copy()
    objects &= np.isfinite(boxes).all(-1) & (boxes[..., 2:] > boxes[..., :2]).all(-1)
    return np.where(objects[..., None], boxes, 0), objects


def _overlaps(boxes: Boxes, others: Boxes) -> NDArray[Any]:
    """[N, M] IoU of boxes [N, 4] with others [M, 4]."""
    x0, y0, x1, y1 = boxes.T[..., None]
    left, top, right, bottom = others.T
    width = (np.minimum(x1, right) - np.maximum(x0, left)).clip(0)
    shared = width * (np.minimum(y1, bottom) - np.maximum(y0, top)).clip(0)
    areas = (right - left) * (bottom - top)
    return np.asarray(shared / ((x1 - x0) * (y1 - y0) + areas - shared))
