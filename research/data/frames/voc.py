"""Pascal VOC reader: one XML file per image; boxes in pixels, from 1, including the last pixel."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from research.data.frames.frame import (
    IMAGE_FILES,
    PIXEL_SLACK,
    BoxXYXY,
    Frame,
    FrameSet,
    FrameSetBuilder,
    ImageFiles,
    SkipFrame,
    normalize_box,
    safe_relative_path,
)
from research.data.frames.layout import (
    ALL,
    build_frame_set,
    keep_split_frames,
    split_from_name,
    splits_from_folders,
)
from research.data.frames.reading import and_join
from research.data.texts import BadText, parse_number, read_lines, read_xml
from research.utils.errors import UserError


def xml_files(source: Path) -> list[Path]:
    """The annotation files of a source, sorted."""
    for folder in ("Annotations", "annotations", "."):
        pattern = "*.xml" if folder == "." else "**/*.xml"
        if files := sorted((source / folder).glob(pattern)):
            return [file for file in files if not file.name.startswith(".")]
    return []


def is_annotation(file: Path) -> bool:
    """Whether an XML file holds an annotation; other programs write XML files too."""
    try:
        return _xml(file).tag == "annotation"
    except SkipFrame:
        return False


def read_voc(
    source: Path, documents: list[Path], images: str | None = None, files: ImageFiles = IMAGE_FILES
) -> FrameSet:
    """Read the frames of a source in VOC format.

    Args:
        source: root folder of the source.
        documents: its XML files.
        images: name of the folder of images; ``None`` for ``JPEGImages`` or ``images``, or the
            folder of the XML file.
        files: which files are images.

    Raises:
        UserError: for no usable frame.
    """
    builder = FrameSetBuilder(source)
    builder.remarks.names = "the XML files"
    builder.remarks.labels.update(builder.relative(file) for file in documents)
    names_of: dict[str, list[str]] = {}
    folders = _image_folders(source, images)
    for file in documents:
        try:
            image, objects = _voc_objects(source, file, folders, files)
        except SkipFrame as reason:
            builder.skip(ALL, builder.relative(file), reason)
            continue
        name = builder.relative(image)
        names_of.setdefault(name, [class_name for class_name, _ in objects])
        boxes = tuple(box for _, box in objects)
        builder.add(ALL, builder.relative(file), Frame(name, image, "", boxes, ()))
    classes = sorted({class_name for names in names_of.values() for class_name in names})
    index = {class_name: number for number, class_name in enumerate(classes)}
    for name, frame in builder.frames.items():
        labels = tuple(index[class_name] for class_name in names_of[name])
        builder.frames[name] = replace(frame, labels=labels)
    return build_frame_set(builder, "voc", classes, _voc_split(builder))


def _voc_objects(
    source: Path, file: Path, folders: list[Path], files: ImageFiles
) -> tuple[Path, list[tuple[str, BoxXYXY]]]:
    root = _xml(file)
    named = (root.findtext("filename") or "").strip()
    image = _voc_image(source, file, named, folders, files)
    width, height = files.size(image)
    objects = []
    for row, item in enumerate(root.iter("object")):
        class_name = (item.findtext("name") or "").strip()
        if not class_name:
            raise SkipFrame("invalid", f"object {row} has no name: add its class")
        edges: list[Any] = [
            parse_number(item.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax")
        ]
        if None not in edges:
            edges[:2] = [edge - 1 for edge in edges[:2]]
        box = normalize_box(edges, width, height, PIXEL_SLACK, f"object {row} bndbox")
        objects.append((class_name, box))
    return image, objects


def _xml(file: Path) -> ElementTree.Element:
    try:
        return read_xml(file)
    except BadText as error:
        raise SkipFrame("invalid", str(error)) from None


def _image_folders(source: Path, images: str | None) -> list[Path]:
    """Folders to search for images; empty if images are beside their XML files."""
    named = [images] if images else ["JPEGImages", "images"]
    top = next((source / name for name in named if (source / name).is_dir()), None)
    if top is None:
        return []
    return [top, *sorted(path for path in top.glob("[!.]*") if split_from_name(path.name))]


def _voc_image(
    source: Path, file: Path, named: str, folders: list[Path], files: ImageFiles
) -> Path:
    """The image of an XML file: the one that it names, else the one with the same stem."""
    # Image folders have the subfolders of Annotations.
    inner = file.parent.relative_to(source).parts[1:]
    candidates = [folders[0].joinpath(*inner), *folders] if folders else [file.parent]
    if named:
        path = safe_relative_path(named)
        for folder in candidates:
            if (folder / path).is_file():
                return folder / path
    for folder in candidates:
        for suffix in sorted(files.suffixes):
            for name in (f"{file.stem}{suffix}", f"{file.stem}{suffix.upper()}"):
                if (folder / name).is_file():
                    return folder / name
    name = named or f"{file.stem}.jpg"
    raise SkipFrame("missing_file", f"its image {name} does not exist: restore or remove it")


def _voc_split(builder: FrameSetBuilder) -> dict[str, str]:
    """Frame name → split, from the lists in ``ImageSets``, else from the folders of the images."""
    by_folder, folders = splits_from_folders(builder.frames)
    declared: dict[str, set[str]] = {}
    lists: list[str] = []
    for folder in ("ImageSets/Main", "ImageSets", "imageSets"):
        for word, split in (("train", "train"), ("val", "val"), ("test", "test")):
            name = f"{folder}/{word}.txt"
            if name in builder.listing.names and not any(word in each for each in lists):
                lists.append(name)
                _read_list(builder, name, split, declared)
    builder.remarks.labels.update(lists)
    builder.remarks.split = and_join(lists) if lists else folders
    if not lists:
        return by_folder
    for name, split in by_folder.items():
        if declared.get(name):
            declared[name].add(split)  # in two splits, unless list and folder agree
    return keep_split_frames(builder, declared, and_join(lists), others=True)


def _read_list(
    builder: FrameSetBuilder, name: str, split: str, declared: dict[str, set[str]]
) -> None:
    """Add the frames that a list names: by stem, or by path without suffix."""
    try:
        lines = read_lines(builder.root / name)
    except BadText as error:
        raise UserError("labels", f"{builder.root / name}: {error}") from None
    known: dict[str, list[str]] = {}
    for frame in builder.frames:
        parts = PurePosixPath(frame).with_suffix("").parts
        for start in range(len(parts)):
            known.setdefault("/".join(parts[start:]), []).append(frame)
    skipped = {PurePosixPath(where).stem for where, _, _ in builder.skipped}
    for number, line in enumerate(lines, start=1):
        words = [line.strip(), line.strip().partition(" ")[0]]
        words += [str(PurePosixPath(word).with_suffix("")) for word in words if word]
        frames = next((known[word] for word in words if word in known), [])
        for frame in frames:
            declared.setdefault(frame, set()).add(split)
        if words[0] and not frames and PurePosixPath(words[0]).stem not in skipped:
            problem = f"{words[0][:60]} has no label file and image: restore it or remove the line"
            builder.skip(ALL, f"{name} line {number}", SkipFrame("missing_file", problem))
