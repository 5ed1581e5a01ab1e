"""The boxes of a label file of a capture run, whose pixels and fractions are compared."""

from __future__ import annotations

from typing import Any

from research.data.frames.frame import (
    NORMALISED_SLACK,
    PIXEL_SLACK,
    BoxXYXY,
    ImageSize,
    SkipFrame,
    is_number,
    normalize_box,
    shorten,
)

LABEL_LISTS = ("labels", "polyp_labels")
"""Keys of the lists of labels, of the later and the earlier schema."""


def read_boxes(
    document: dict[str, Any], size: ImageSize, scale_boxes: bool
) -> tuple[tuple[BoxXYXY, ...], bool]:
    """The boxes of a label file, and whether their pixels are those of another size.

    If it has both lists of labels, they are compared.

    Args:
        document: content of the file.
        size: of its image.
        scale_boxes: accept boxes whose pixels and fractions fit to another size of the image.

    Raises:
        SkipFrame: for a box that is not valid, or whose pixels and fractions differ.
    """
    found = {
        key: _listed_boxes(key, document[key], size, scale_boxes)
        for key in LABEL_LISTS
        if key in document
    }
    if not found:
        raise SkipFrame("invalid", "labels is not a list: fix or prune it")
    (boxes, is_scaled), *others = found.values()
    if any(other[0] != boxes for other in others):
        raise SkipFrame("invalid", f"{' and '.join(found)} have other boxes: remove one of them")
    return boxes, is_scaled


def _listed_boxes(
    key: str, entries: object, size: ImageSize, scale_boxes: bool
) -> tuple[tuple[BoxXYXY, ...], bool]:
    """The boxes of a list of labels; an entry without a box is an object out of view.

    If an entry has pixels and fractions, the two are compared and the fractions are used.
    """
    if not isinstance(entries, list):
        raise SkipFrame("invalid", f"{key} is not a list: fix or prune it")
    boxes, is_scaled = [], False
    for row, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise SkipFrame("invalid", f"{key}[{row}] is not a JSON object: fix or prune it")
        fractions, pixels = entry.get("bbox_norm"), entry.get("bbox_px")
        box = None
        if fractions is not None:
            box = normalize_box(fractions, 1, 1, NORMALISED_SLACK, f"{key}[{row}].bbox_norm")
        if pixels is not None:
            name = f"{key}[{row}].bbox_px"
            other = None if box is None else _other_size(pixels, box, size, name)
            if other is None:
                in_pixels = normalize_box(pixels, size.width, size.height, PIXEL_SLACK, name)
                box = in_pixels if box is None else box
            elif not scale_boxes:
                raise SkipFrame(
                    "invalid",
                    f"{name} and bbox_norm fit to {other[0]:.0f}×{other[1]:.0f}, the image is "
                    f"{size.width}×{size.height}: restore it, or set scale_boxes=true to use "
                    "bbox_norm",
                )
            else:
                is_scaled = True
        if box is not None:
            boxes.append(box)
    return tuple(boxes), is_scaled


def _other_size(
    pixels: object, box: BoxXYXY, size: ImageSize, name: str
) -> tuple[float, float] | None:
    """The size of the image to which the pixels of a box belong; ``None`` for the real one.

    Raises:
        SkipFrame: for pixels that fit to no size.
    """
    if not isinstance(pixels, list) or len(pixels) != 4 or not all(map(is_number, pixels)):
        return None  # reported with the box
    sides = []
    for real, low, high, first, last in (
        (size.width, pixels[0], pixels[2], box[0], box[2]),
        (size.height, pixels[1], pixels[3], box[1], box[3]),
    ):
        slack = PIXEL_SLACK + NORMALISED_SLACK * real
        if max(abs(low - first * real), abs(high - last * real)) <= slack:
            sides.append(float(real))
            continue
        side = (high - low) / (last - first)
        slack = PIXEL_SLACK + NORMALISED_SLACK * abs(side)
        if side <= 0 or max(abs(low - first * side), abs(high - last * side)) > slack:
            text = f"{name} {shorten(pixels)} is not bbox_norm {shorten(list(box))}"
            raise SkipFrame("invalid", f"{text}: fix the label")
        sides.append(side)
    return None if sides == [size.width, size.height] else (sides[0], sides[1])
