"""COCO reader: one JSON file per split; boxes are [x, y, width, height] in pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isclose, isfinite
from pathlib import Path, PurePosixPath
from typing import Any

from research.data.frames.builder import FrameSetBuilder
from research.data.frames.coco_tables import (
    Annotations,
    class_tables,
    group_annotations,
    group_images,
    to_id,
)
from research.data.frames.coco_writer import DETECTIONS
from research.data.frames.declared_size import (
    BoxPixels,
    SizeMatch,
    boxes_are_stored,
    match_size,
    parse_side,
)
from research.data.frames.frame import (
    IMAGE_FILES,
    BoxXYXY,
    Frame,
    FrameSet,
    ImageFiles,
    SkipFrame,
    is_number,
    parse_flag,
    read_json,
    safe_relative_path,
    short_name,
    shorten,
)
from research.data.frames.layout import build_frame_set, splits_from_files
from research.data.frames.picture_index import PictureIndex
from research.data.frames.reading import and_join
from research.data.listing import list_files
from research.utils.errors import UserError
from research.utils.progress import track

IN_FOLDERS = ("_annotations.coco.json", "coco.json")
"""Names of annotation files in folders of images, in lower case: Roboflow's, FLIR's."""
SMALL = "boxes of less than a pixel: are they fractions?"
POLYGONS = "boxes around polygons, as their bbox is missing"
NO_AREAS = "areas that are no numbers of pixels, those of the boxes are used"
DIFFERENT = "bbox and segmentation differ, bbox is used"


@dataclass(frozen=True)
class _Entry:
    """An image of a document.

    Attributes:
        part: name of the document, see ``FrameSetBuilder.add``.
        where: the document and the row.
        image: the file.
        match: its declared size against the real one.
        annotations: of the image.
        classes: category id → index of the class.
    """

    part: str
    where: str
    image: Path
    match: SizeMatch
    annotations: Annotations
    classes: Mapping[str, int]


def coco_documents(source: Path) -> dict[Path, dict[str, Any]]:
    """The annotation files of a source and their contents.

    Raises:
        UserError: for a file that is not valid JSON, or the only one if it has no annotations.
    """
    places: tuple[list[Path], ...] = [], [], []
    for name in list_files(source, {".json"}).names:
        *folders, last = PurePosixPath(name).parts
        if [folder.lower() for folder in folders] == ["annotations"]:
            places[0].append(source / name)
        elif not folders:
            places[1].append(source / name)
        elif len(folders) == 1 and last.lower() in IN_FOLDERS:
            places[2].append(source / name)
    files = [file for place in places for file in place]
    # The archive of COCO also has captions and keypoints of the same images.
    files = [file for file in files if file.name.lower().startswith("instances_")] or files
    documents, problems, unlabelled = {}, [], []
    for file in files:
        try:
            document = read_json(file)
        except SkipFrame as reason:
            problems.append(f"{file}: {reason}")
            continue
        if not isinstance(document, dict):
            continue
        lists = [isinstance(document.get(key), list) for key in ("images", "categories")]
        if all(lists) and isinstance(document.get("annotations"), list):
            documents[file] = document
        elif all(lists):
            unlabelled.append(file)
    if problems:  # without this error the split would be missing silently
        raise UserError("labels", problems[0])
    if unlabelled and not documents:
        raise UserError(
            "labels",
            f"{unlabelled[0]}: no list of annotations",
            "add it, as [] for images without objects",
        )
    return documents


def is_detections(document: Mapping[str, Any]) -> bool:
    """Whether a document has the boxes of a model, with scores, and no labels."""
    if annotations := document["annotations"]:
        return all(isinstance(entry, dict) and "score" in entry for entry in annotations)
    info = document.get("info")
    return isinstance(info, dict) and info.get("description") == DETECTIONS


def read_coco(
    source: Path,
    documents: dict[Path, dict[str, Any]],
    images: str | None = None,
    files: ImageFiles = IMAGE_FILES,
) -> FrameSet:
    """Read the frames of a source in COCO format.

    Args:
        source: root folder of the source.
        documents: annotation files and their contents.
        images: name of the folder of images; ``None`` for ``images`` or the root folder.
        files: which files are images.

    Raises:
        UserError: for invalid categories, or no usable frame.
    """
    builder = FrameSetBuilder(source)
    pictures = PictureIndex(builder, files.suffixes, documents)
    classes, tables = class_tables(builder, documents)
    entries: list[_Entry] = []
    for file, document in documents.items():
        entries += _entries(builder, pictures, files, file, document, images, tables[file])
    as_stored = boxes_are_stored(entry.match for entry in entries)
    parts: dict[str, str] = {}
    splits = splits_from_files({_part_name(file) for file in documents})
    builder.remarks.names = and_join(sorted(map(builder.relative, documents)))
    builder.remarks.split = f"the names of {and_join(sorted(splits))}" if splits else ""
    for entry in entries:
        try:
            frame = _frame(builder, entry, as_stored)
        except SkipFrame as reason:
            builder.skip(entry.part, entry.where, reason, entry.image)
            continue
        split = splits.get(entry.part, "")
        if split and parts.get(frame.name, split) != split:
            builder.reject(frame.name, entry.part, entry.where, "in another split")
        elif builder.add(entry.part, entry.where, frame) and split:
            parts[frame.name] = split
    pictures.pass_over_unnamed()
    parts = {name: split for name, split in parts.items() if name in builder.frames}
    return build_frame_set(builder, "coco", classes, parts)


def _entries(
    builder: FrameSetBuilder,
    pictures: PictureIndex,
    files: ImageFiles,
    file: Path,
    document: dict[str, Any],
    images: str | None,
    classes: Mapping[str, int],
) -> list[_Entry]:
    """The images of a document that have a usable file of the declared size."""
    part = _part_name(file)
    folders = list(map(builder.relative, _image_folders(builder.root, file, part, images)))
    name = builder.relative(file)
    rows = group_images(document["images"])
    annotations = group_annotations(builder, part, name, document["annotations"], rows)
    entries = []
    builder.ensure_part(part)
    for row, item in enumerate(track(document["images"], "reading labels", unit="images")):
        where = f"{name} images[{row}]"
        image: Path | None = None
        try:
            key, first = _image_id(item, row, rows)
            if first != row:
                builder.note("image listed again in its file, used once", where)
                continue
            path = _file_name(item)
            found = pictures.of_path(folders, path)
            # A folder that the user names takes precedence over others with a file of the name.
            image = pictures.choose(found[:1] if images else found, path, where)
            declared = (
                parse_side(item.get("width"), "width"),
                parse_side(item.get("height"), "height"),
            )
            match = match_size(declared, files.size(image), files.scale_boxes)
        except SkipFrame as reason:
            builder.skip(part, where, reason, image)
            continue
        entries.append(_Entry(part, where, image, match, annotations[key], classes))
    return entries


def _part_name(file: Path) -> str:
    """The stem of an annotation file, or its folder where all have one name."""
    return file.parent.name if file.name.lower() in IN_FOLDERS else file.stem


def _image_id(item: object, row: int, rows: Mapping[str, list[tuple[int, Any]]]) -> tuple[str, int]:
    """The id of an image, and the first row that describes the same image."""
    if not isinstance(item, dict) or item.get("id") is None:
        raise SkipFrame("invalid", "has no id: add one")
    key = to_id(item["id"])
    if key is None:
        raise SkipFrame("invalid", f"id is {shorten(item['id'])}: expected a number or a text")
    first, *others = rows[key]
    for other in others:
        if other[1] != first[1]:
            twin = other if first[0] == row else first
            raise SkipFrame(
                "invalid",
                f"has the id of images[{twin[0]}], {short_name(key)}: give each an id of its own",
            )
    return key, first[0]


def _file_name(item: dict[str, Any]) -> PurePosixPath:
    name = item.get("file_name")
    if not isinstance(name, str) or not name.strip():
        raise SkipFrame("missing_image", "names no file: set file_name or remove it")
    return safe_relative_path(name)


def _frame(builder: FrameSetBuilder, entry: _Entry, as_stored: bool | None) -> Frame:
    pixels = entry.match.pixels(as_stored)
    boxes, labels, ignored, areas = [], [], [], []
    for row, item in entry.annotations:
        key = f"annotations[{row}]"
        boxes.append(_box(builder, item, pixels, f"{entry.where} {key}", key))
        category = to_id(item.get("category_id"))
        if category is None or category not in entry.classes:
            raise SkipFrame(
                "invalid", f"{key}: category {shorten(item.get('category_id'))} is not listed"
            )
        labels.append(entry.classes[category])
        # An area of several objects, or one that the benchmark ignores.
        flags = [parse_flag(item.get(name), f"{key}.{name}") for name in ("iscrowd", "ignore")]
        ignored.append(any(flags))
        areas.append(_area(builder, item, pixels, f"{entry.where} {key}"))
    if boxes:
        entry.match.note(builder, pixels, entry.where)
    return Frame(
        builder.relative(entry.image),
        entry.image,
        "",
        tuple(boxes),
        tuple(labels),
        tuple(ignored) if any(ignored) else (),
        _other_areas(boxes, areas),
    )


def _area(
    builder: FrameSetBuilder, item: dict[str, Any], pixels: BoxPixels, where: str
) -> float | None:
    """The declared area as a fraction of the image; ``None`` if it is missing, 0 or no area."""
    area = item.get("area")
    if area is None or area == 0:
        return None
    if not is_number(area) or area < 0:
        builder.note(NO_AREAS, where)
        return None
    width, height = pixels.size
    return float(area / (width * height))


def _other_areas(boxes: Sequence[BoxXYXY], areas: Sequence[float | None]) -> tuple[float, ...]:
    """The declared areas, else those of the boxes; empty if they are the same."""
    own = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in boxes]
    known = [size if area is None else area for area, size in zip(areas, own, strict=True)]
    same = all(isclose(a, b, rel_tol=1e-6) for a, b in zip(known, own, strict=True))
    return () if same else tuple(known)


def _box(
    builder: FrameSetBuilder, item: dict[str, Any], pixels: BoxPixels, where: str, key: str
) -> BoxXYXY:
    """The box of an annotation: of ``bbox``, else around its polygons."""
    edges, outline = item.get("bbox"), _outline(item.get("segmentation"))
    if edges in (None, []) and outline is not None:
        box = pixels.normalize(outline, f"{key}.segmentation")
        builder.note(POLYGONS, where)
        return box
    if isinstance(edges, list) and len(edges) == 4 and all(map(is_number, edges)):
        x, y, width, height = edges
        edges = [x, y, x + width, y + height]
        if max(abs(width), abs(height)) < 1:
            builder.note(SMALL, where)
        slack = max(2.0, 0.1 * max(width, height))
        if outline and any(abs(a - b) > slack for a, b in zip(edges, outline, strict=True)):
            builder.note(DIFFERENT, where)
    return pixels.normalize(edges, f"{key}.bbox as corners")


def _outline(segmentation: object) -> list[float] | None:
    """Corners of the box around polygons [[x, y, x, y, …], …]; ``None`` for anything else."""
    if not isinstance(segmentation, list) or not segmentation:
        return None
    polygons = segmentation if isinstance(segmentation[0], list) else [segmentation]
    numbers: list[float] = []
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            return None
        numbers += polygon
    # There may be a hundred million of them: not each is passed to is_number.
    if not set(map(type, numbers)) <= {int, float}:
        return None
    x, y = numbers[::2], numbers[1::2]
    outline = [min(x), min(y), max(x), max(y)]
    return outline if all(map(is_number, outline)) and isfinite(sum(numbers)) else None


def _image_folders(source: Path, file: Path, part: str, images: str | None) -> list[Path]:
    """Folders to search for the images of an annotation file, in order."""
    word = part.rsplit("_", 1)[-1]  # instances_train2017 → train2017
    inner = images or "images"
    folders = [file.parent, source, source / inner, source / word, source / inner / word]
    if images:  # named folders take precedence over others with a file of the same name
        folders = [file.parent / inner, source / word / inner, *folders[::-1]]
    return folders
