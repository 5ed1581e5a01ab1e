"""Sources of frames for tests: pictures with a bright rectangle, and label files in each format."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from research.data.frames.frame import FrameSet
from research.data.image_files import decode
from research.data.image_modes import to_rgb

COLOUR = (228, 31, 31)
"""Of the objects, on a dark ground; RGB."""
BACK = {2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}
"""Orientation → the one whose turn reverses it."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Box = tuple[int, int, int, int]
"""x, y, width, height in pixels."""


def draw(
    path: Path, size: tuple[int, int] = (100, 50), boxes: Sequence[Box] = (), orientation: int = 1
) -> Path:
    """A picture with rectangles; stored turned, with a tag, for an orientation above 1.

    Args:
        path: the file.
        size: width and height of the upright picture.
        boxes: in the upright picture.
        orientation: 1…8.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((size[1], size[0], 3), 29, np.uint8)
    for x, y, width, height in boxes:
        pixels[y : y + height, x : x + width] = COLOUR
    save(Image.fromarray(pixels), path, orientation)
    return path


def save(image: Image.Image, path: Path, orientation: int = 1) -> None:
    """Save an upright picture as a camera does that was turned."""
    exif = Image.Exif()
    if orientation > 1:
        exif[0x0112] = orientation
        image = image.transpose(TURNS[BACK[orientation]])
    lossy = {"quality": 97, "subsampling": 0} if path.suffix in (".jpg", ".jpeg") else {}
    image.save(path, exif=exif, **lossy)


def write(path: Path, content: str | bytes | Mapping[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Mapping):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def coco(
    images: Sequence[Mapping[str, Any]],
    annotations: Sequence[Mapping[str, Any]] = (),
    categories: Sequence[Mapping[str, Any]] = ({"id": 3, "name": "cat"},),
) -> dict[str, Any]:
    """A document; ids of annotations, boxes and the only category are filled in."""
    rows = [
        {"id": number, "category_id": 3, "bbox": [20, 10, 40, 20], "iscrowd": 0, **row}
        for number, row in enumerate(annotations)
    ]
    return {"images": [*images], "annotations": rows, "categories": [*categories]}


def voc(
    *objects: Mapping[str, Any], filename: str = "", size: tuple[Any, Any] | None = None
) -> str:
    """An annotation of objects: ``box`` (x, y, width, height), ``name``, ``difficult``."""
    items = "".join(_voc_object(**item) for item in objects)
    words = (
        "" if size is None else f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    )
    name = f"<filename>{filename}</filename>" if filename else ""
    return f"<annotation>{name}{words}{items}</annotation>"


def _voc_object(
    box: Sequence[float] = (20, 10, 40, 20), name: str = "cat", difficult: Any = None
) -> str:
    x, y, width, height = box
    edges = {"xmin": x + 1, "ymin": y + 1, "xmax": x + width, "ymax": y + height}
    corners = "".join(f"<{key}>{value}</{key}>" for key, value in edges.items())
    flag = "" if difficult is None else f"<difficult>{difficult}</difficult>"
    return f"<object><name>{name}</name>{flag}<bndbox>{corners}</bndbox></object>"


def pixel_boxes(frames: FrameSet) -> dict[str, list[tuple[float, ...]]]:
    """x, y, width, height of each box in pixels of the upright picture, by name of the frame."""
    found = {}
    for frame in frames.frames:
        width, height = decode(frame.image).size
        found[frame.name] = [
            tuple(
                round(value, 3)
                for value in (x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height)
            )
            for x0, y0, x1, y1 in frame.boxes
        ]
    return found


def means(frames: FrameSet) -> list[list[float]]:
    """Mean colour in every box, rounded."""
    colours = []
    for frame in frames.frames:
        pixels = np.asarray(to_rgb(decode(frame.image)))
        for x0, y0, x1, y1 in frame.boxes:
            rows = slice(round(y0 * pixels.shape[0]), round(y1 * pixels.shape[0]))
            columns = slice(round(x0 * pixels.shape[1]), round(x1 * pixels.shape[1]))
            colours.append([round(float(value)) for value in pixels[rows, columns].mean((0, 1))])
    return colours


def left_out(frames: FrameSet) -> int:
    """Number of entries that are not used."""
    return sum(run.seen - run.total for run in frames.runs)
