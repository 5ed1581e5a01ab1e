"""COCO reader: one JSON file per split; boxes are [x, y, width, height] in pixels."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from research.data.frames.frame import (
    IMAGE_FILES,
    PIXEL_SLACK,
    Frame,
    FrameSet,
    FrameSetBuilder,
    ImageFiles,
    SkipFrame,
    is_number,
    normalize_box,
    read_json,
    safe_relative_path,
)
from research.data.frames.layout import build_frame_set, splits_from_files
from research.data.frames.reading import and_join
from research.utils.errors import UserError


def coco_documents(source: Path) -> dict[Path, dict[str, Any]]:
    """The annotation files of a source and their contents.

    Raises:
        UserError: for a file that is not valid JSON.
    """
    patterns = ("annotations/*.json", "*.json", "[!.]*/_annotations.coco.json")
    files = [file for pattern in patterns for file in sorted(source.glob(pattern))]
    # The archive of COCO also has captions and keypoints of the same images.
    files = [file for file in files if file.name.startswith("instances_")] or files
    documents, problems = {}, []
    for file in files:
        try:
            document = read_json(file)
        except SkipFrame as reason:
            problems.append(f"{file}: {reason}")
            continue
        keys = ("images", "annotations", "categories")
        if isinstance(document, dict) and all(isinstance(document.get(key), list) for key in keys):
            documents[file] = document
    if problems:  # without this error the split would be missing silently
        raise UserError("labels", problems[0])
    return documents


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
    builder.remarks.labels.update(builder.relative(file) for file in documents)
    builder.remarks.names = and_join(sorted(map(builder.relative, documents)))
    classes: list[str] = []
    parts = {}
    names = {file: _part_name(file) for file in documents}
    splits = splits_from_files(list(names.values()))
    builder.remarks.split = f"the names of {and_join(sorted(splits))}" if splits else ""
    for file, document in documents.items():
        part = names[file]
        categories = _coco_categories(file, document["categories"])
        classes += [name for name in dict.fromkeys(categories.values()) if name not in classes]
        class_of = {key: classes.index(name) for key, name in categories.items()}
        rows = _coco_rows(builder, part, file, document)
        folders = _image_folders(source, file, part, images)
        builder.ensure_part(part)
        for row, entry in enumerate(document["images"]):
            where = f"{builder.relative(file)} images[{row}]"
            try:
                frame = _coco_frame(builder, folders, files, entry, rows, class_of)
            except SkipFrame as reason:
                builder.skip(part, where, reason)
                continue
            builder.add(part, where, frame)
            if split := splits.get(part):
                parts[frame.name] = split
    return build_frame_set(builder, "coco", classes, parts)


def _part_name(file: Path) -> str:
    """The stem of an annotation file, or its folder where all have one name."""
    return file.parent.name if file.stem in ("_annotations.coco", "coco") else file.stem


def _coco_categories(file: Path, entries: list[Any]) -> dict[int, str]:
    try:
        categories = {int(entry["id"]): str(entry["name"]) for entry in entries}
    except (KeyError, TypeError, ValueError):
        raise UserError(
            "labels", f"{file}: every entry of categories needs an id and a name"
        ) from None
    return dict(sorted(categories.items()))


def _coco_rows(
    builder: FrameSetBuilder, part: str, file: Path, document: dict[str, Any]
) -> dict[object, list[tuple[int, dict[str, Any]]]]:
    """Annotations by image id; those of unknown images are skipped and counted."""
    rows: dict[object, list[tuple[int, dict[str, Any]]]] = {
        entry["id"]: []
        for entry in document["images"]
        if isinstance(entry, dict) and isinstance(entry.get("id"), int | str)
    }
    for row, entry in enumerate(document["annotations"]):
        key = entry.get("image_id") if isinstance(entry, dict) else None
        if not isinstance(key, int | str) or key not in rows:
            reason = SkipFrame("invalid", f"belongs to no image ({key!r}): fix or remove it")
            builder.skip(part, f"{builder.relative(file)} annotations[{row}]", reason)
        else:
            rows[key].append((row, entry))
    return rows


def _coco_frame(
    builder: FrameSetBuilder,
    folders: list[Path],
    files: ImageFiles,
    entry: Any,
    rows: dict[object, list[tuple[int, dict[str, Any]]]],
    classes: dict[int, int],
) -> Frame:
    if not isinstance(entry, dict) or not isinstance(entry.get("id"), int | str):
        raise SkipFrame("invalid", "has no id: add one")
    name = entry.get("file_name")
    if not isinstance(name, str) or not name.strip():
        raise SkipFrame("missing_image", "names no file: set file_name or remove it")
    image = _coco_image(folders, safe_relative_path(name))
    width, height = files.size(image)
    boxes, labels = [], []
    for row, item in rows[entry["id"]]:
        if item.get("iscrowd"):  # a region of several objects
            continue
        key = f"annotations[{row}]"
        edges = item.get("bbox")
        if isinstance(edges, list) and len(edges) == 4 and all(map(is_number, edges)):
            edges = [edges[0], edges[1], edges[0] + edges[2], edges[1] + edges[3]]
        boxes.append(normalize_box(edges, width, height, PIXEL_SLACK, f"{key}.bbox as corners"))
        if item.get("category_id") not in classes:
            raise SkipFrame("invalid", f"{key}: category {item.get('category_id')!r} is not listed")
        labels.append(classes[item["category_id"]])
    return Frame(builder.relative(image), image, "", tuple(boxes), tuple(labels))


def _image_folders(source: Path, file: Path, part: str, images: str | None) -> list[Path]:
    """Folders to search for the images of an annotation file, in order."""
    word = part.rsplit("_", 1)[-1]  # instances_train2017 → train2017
    inner = images or "images"
    folders = [file.parent, source, source / inner, source / word, source / inner / word]
    if images:  # named folders take precedence over others with a file of the same name
        folders = [file.parent / inner, source / word / inner, *folders[::-1]]
    return folders


def _coco_image(folders: list[Path], name: PurePosixPath) -> Path:
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise SkipFrame("missing_file", f"its image {name} does not exist: restore or remove it")
