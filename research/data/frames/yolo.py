"""YOLO reader: one text file per image; rows are "class cx cy width height" in fractions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import yaml

from research.data.frames.frame import (
    IMAGE_FILES,
    NORMALISED_SLACK,
    BoxXYXY,
    Frame,
    FrameSet,
    FrameSetBuilder,
    ImageFiles,
    SkipFrame,
    normalize_box,
)
from research.data.frames.layout import (
    ALL,
    build_frame_set,
    parse_number,
    split_from_name,
    split_from_path,
)
from research.data.listing import list_files
from research.utils.errors import UserError


def yolo_folders(source: Path, images: str = "images") -> dict[Path, Path]:
    """Folders of images and of their labels, in the source or in a folder for each split.

    Args:
        source: root folder of the source.
        images: name of the folders of images.
    """
    folders = [source, *sorted(path for path in source.glob("[!.]*") if split_from_name(path.name))]
    return {
        folder / images: folder / "labels"
        for folder in folders
        if (folder / images).is_dir() and (folder / "labels").is_dir()
    }


def read_yolo(
    source: Path,
    folders: dict[Path, Path],
    files: ImageFiles = IMAGE_FILES,
    require_labels: bool = False,
    class_names: Sequence[str] | None = None,
) -> FrameSet:
    """Read the frames of a source in YOLO format.

    Args:
        source: root folder of the source.
        folders: folders of images, and of their labels.
        files: which files are images.
        require_labels: treat an image without a label file as an error, not as empty.
        class_names: class names; ``None`` for those of the source.

    Raises:
        UserError: for invalid class names, no usable frame, or a required label file that is
            missing.
    """
    builder = FrameSetBuilder(source)
    classes = read_class_names(source) if class_names is None else list(class_names)
    parts = {}
    for images, labels in folders.items():
        texts = list_files(labels, {".txt"})
        builder.pass_over(labels, texts.passed_over)
        orphans = {path for path in texts.paths if path.name != "classes.txt"}
        listing = list_files(images, files.suffixes)
        builder.pass_over(images, listing.passed_over)
        for image in listing.paths:
            name = builder.relative(image)
            file = (labels / image.relative_to(images)).with_suffix(".txt")
            orphans.discard(file)
            part = split_from_path(PurePosixPath(name).parent.parts) or ALL
            try:
                files.size(image)
                if require_labels and not file.is_file():
                    raise UserError(
                        "labels",
                        f"{image}: has no label file {file}",
                        "add it (empty for a negative)",
                    )
                # In YOLO format an image without objects may have no label file.
                rows = _yolo_rows(file, len(classes)) if file.is_file() else []
            except SkipFrame as reason:
                where = file if file.is_file() else image
                builder.skip(part, builder.relative(where), reason)
                continue
            boxes = tuple(box for _, box in rows)
            frame = Frame(name, image, "", boxes, tuple(number for number, _ in rows))
            builder.add(part, name, frame)
            if part != ALL:
                parts[name] = part
        for file in sorted(orphans):
            part = split_from_path(file.relative_to(source).parts[:-1]) or ALL
            missing = SkipFrame("missing_file", "its image does not exist: restore or remove it")
            builder.skip(part, builder.relative(file), missing)
    if not classes:
        largest = max(
            (max(frame.labels, default=-1) for frame in builder.frames.values()), default=-1
        )
        classes = [str(number) for number in range(largest + 1)]
    return build_frame_set(builder, "yolo", classes, parts)


def _yolo_rows(file: Path, classes: int) -> list[tuple[int, BoxXYXY]]:
    rows = []
    for row, line in enumerate(file.read_text("utf-8", "replace").splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        numbers = [parse_number(word) for word in words]
        if len(words) != 5 or None in numbers or not words[0].isdecimal():
            raise SkipFrame("invalid", f"row {row} is {line[:50]!r}: expected class cx cy w h")
        number = int(words[0])
        if classes and number >= classes:
            raise SkipFrame("invalid", f"row {row}: class {number} of {classes}: name or fix it")
        x, y, width, height = numbers[1:]
        edges = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
        rows.append((number, normalize_box(edges, 1, 1, NORMALISED_SLACK, f"row {row}")))
    return rows


def read_class_names(source: Path) -> list[str]:
    """Class names from ``names`` of a YAML file (list or mapping of indices), or from a text file.

    Raises:
        UserError: for a YAML file that cannot be read, or indices that are not 0, 1, ….
    """
    for file in sorted([*source.glob("*.yaml"), *source.glob("*.yml")]):
        try:
            document = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UserError(
                "labels", f"{file}: bad YAML ({str(error).splitlines()[0]}): fix it"
            ) from None
        names = document.get("names") if isinstance(document, dict) else None
        if isinstance(names, dict):
            if sorted(names, key=str) != sorted(range(len(names)), key=str):
                raise UserError(
                    "labels", f"{file}: names must number the classes 0 to {len(names) - 1}"
                )
            return [str(names[number]) for number in range(len(names))]
        if isinstance(names, list):
            return [str(name) for name in names]
    for file in (source / "classes.txt", source / "labels" / "classes.txt", source / "obj.names"):
        if file.is_file():
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
            return [line.strip() for line in lines if line.strip()]
    return []
