"""Pascal VOC reader: one XML file per image; boxes in pixels, from 1, including the last pixel."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from research.data.frames import bbgt
from research.data.frames.builder import FrameSetBuilder
from research.data.frames.declared_size import (
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
    parse_flag,
    safe_relative_path,
    short_name,
    shorten,
)
from research.data.frames.layout import (
    ALL,
    build_frame_set,
    keep_split_frames,
    split_from_name,
    splits_from_folders,
)
from research.data.frames.picture_index import PictureIndex
from research.data.frames.reading import and_join
from research.data.image_files import EXTENSIONS
from research.data.listing import list_files, list_folders
from research.data.texts import BadText, NameIndex, parse_number, read_lines, read_xml
from research.utils.conditions import is_exhausted
from research.utils.errors import UserError
from research.utils.progress import track

IMAGE_FOLDERS = ("jpegimages", "images")
"""Names of the folder of images, in lower case."""
OTHER_NAME = "names an image that does not exist, the one with the name of the XML file is read"
SIDES = ("width", "height")
XYWH = ("x", "y", "w", "h")
CORNERS = ("xmin", "ymin", "xmax", "ymax")
FROM_ZERO = "coordinates that count from 0, where VOC counts from 1: boxes may begin a pixel early"
LISTED = EXTENSIONS | {".npy", ".txt", ".xml"}
"""Suffixes that names in lists may have, in lower case."""
HEAD = 4096
"""Bytes in which a file beside images must have its first element to be an annotation."""


@dataclass(frozen=True)
class _Entry:
    """An XML file whose image is usable and has the declared size.

    Attributes:
        where: the XML file.
        image: the file.
        match: its declared size against the real one.
        objects: class name, corners as read, and whether it is ignored, of each object.
    """

    where: str
    image: Path
    match: SizeMatch
    objects: list[tuple[str, list[Any], bool]]


def xml_files(source: Path) -> list[Path]:
    """The annotation files of a source, sorted.

    Those in a folder ``Annotations``; if there is none, the XML files with an element
    ``annotation``, at any depth: some tools write them beside the images. If there is none of
    those either, the text files of KAIST.
    """
    listing = list_files(source, {".xml"})
    placed = [name for name in listing.names if name.lower().startswith("annotations/")]
    if placed:
        return sorted(source / name for name in placed)
    found = [path for path in listing.paths if is_annotation(path)]
    texts = list_files(source, {".txt"}).paths if not found else []
    return found or [path for path in texts if bbgt.is_annotation(path)]


def is_annotation(path: Path) -> bool:
    """Whether an XML file holds an annotation; other programs write XML files too."""
    try:
        with path.open("rb") as file:
            return b"<annotation" in file.read(HEAD).replace(b"\0", b"")  # also in UTF-16
    except OSError as error:
        if is_exhausted(error):
            raise
        return True  # reported when it is read


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
    builder.remarks.names = "the annotation files"
    pictures = PictureIndex(builder, files.suffixes, documents)
    folders = _image_folders(source, images)
    entries = []
    for file in track(documents, "reading labels"):
        where, image = builder.relative(file), None
        try:
            root = _xml(file)
            image = _voc_image(builder, pictures, file, root, folders, files.key)
            declared = [parse_side(_text(root, f"size/{key}"), f"size/{key}") for key in SIDES]
            match = match_size((declared[0], declared[1]), files.size(image), files.scale_boxes)
            entries.append(_Entry(where, image, match, _voc_objects(root)))
        except SkipFrame as reason:
            builder.skip(ALL, where, reason, image)
    pictures.pass_over_unnamed()
    as_stored = boxes_are_stored(entry.match for entry in entries)
    boxes = {entry.where: _boxes(builder, entry, as_stored) for entry in entries}
    names = {
        name for entry in entries if boxes[entry.where] is not None for name, *_ in entry.objects
    }
    index = {name: number for number, name in enumerate(sorted(names))}
    for entry in entries:
        if (found := boxes[entry.where]) is not None:
            labels = tuple(index[name] for name, *_ in entry.objects)
            ignored = tuple(flag for *_, flag in entry.objects)
            name = builder.relative(entry.image)
            frame = Frame(name, entry.image, "", found, labels, ignored if any(ignored) else ())
            builder.add(ALL, entry.where, frame)
    return build_frame_set(builder, "voc", sorted(names), _voc_split(builder))


def _voc_objects(root: ElementTree.Element) -> list[tuple[str, list[Any], bool]]:
    objects = []
    for row, item in enumerate(root.iter("object")):
        class_name = _text(item, "name") or ""
        if not class_name:
            raise SkipFrame("invalid", f"object {row} has no name: add its class")
        edges: list[Any] = [parse_number(_text(item, f"bndbox/{key}")) for key in CORNERS]
        if None not in edges:
            edges[:2] = [edge - 1 for edge in edges[:2]]
        elif edges == [None] * 4:
            edges = _from_sides([parse_number(_text(item, f"bndbox/{key}")) for key in XYWH])
        ignored = parse_flag(_text(item, "difficult"), f"object {row} difficult")
        objects.append((class_name, edges, ignored))
    return objects


def _from_sides(values: list[Any]) -> list[Any]:
    """Corners of a box that is written as in KAIST: left, top, width and height, from 0."""
    if None in values:
        return [None] * 4
    x, y, width, height = values
    return [x, y, x + width, y + height]


def _boxes(
    builder: FrameSetBuilder, entry: _Entry, as_stored: bool | None
) -> tuple[BoxXYXY, ...] | None:
    """The boxes of an XML file; ``None`` if one is not valid, which is recorded."""
    try:
        pixels = entry.match.pixels(as_stored)
        boxes = tuple(
            pixels.normalize(edges, f"object {row} bndbox")
            for row, (_, edges, _) in enumerate(entry.objects)
        )
    except SkipFrame as reason:
        builder.skip(ALL, entry.where, reason, entry.image)
        return None
    if boxes:
        entry.match.note(builder, pixels, entry.where)
    if any(min(edges[:2]) < 0 for _, edges, _ in entry.objects):
        builder.note(FROM_ZERO, entry.where)
    return boxes


def _text(item: ElementTree.Element, path: str) -> str | None:
    """The text of an element below another, without spaces around it; ``None`` if it is missing.

    Raises:
        SkipFrame: for several elements that differ.
    """
    found = list(dict.fromkeys((each.text or "").strip() for each in item.findall(path)))
    if len(found) > 1:
        both = f"{shorten(found[0])} and {shorten(found[1])}"
        raise SkipFrame("invalid", f"{item.tag} has two of {path}, {both}: remove one")
    return found[0] if found else None


def _xml(file: Path) -> ElementTree.Element:
    try:
        return bbgt.read(file) if file.suffix.lower() == ".txt" else read_xml(file)
    except BadText as error:
        raise SkipFrame("invalid", str(error)) from None


def _image_folders(source: Path, images: str | None) -> list[Path]:
    """Folders to search for images; empty if images are beside their XML files."""
    existing = {name.lower(): name for name in list_folders(source)}
    named = [images] if images else [existing[name] for name in IMAGE_FOLDERS if name in existing]
    top = next((source / name for name in named if (source / name).is_dir()), None)
    if top is None:
        return []
    return [top, *(top / name for name in list_folders(top) if split_from_name(name))]


def _voc_image(
    builder: FrameSetBuilder,
    pictures: PictureIndex,
    file: Path,
    root: ElementTree.Element,
    folders: list[Path],
    key: Callable[[str], str] | None,
) -> Path:
    """The image of an XML file: the one that it names, which has its stem if such a one exists."""
    # Image folders have the subfolders of Annotations.
    inner = file.parent.relative_to(builder.root).parts[1:]
    places = [folders[0].joinpath(*inner), *folders] if folders else [file.parent]
    candidates = list(map(builder.relative, places))
    text, where = _text(root, "filename") or "", builder.relative(file)
    path = safe_relative_path(text) if text else PurePosixPath(file.stem)
    alike = pictures.of_stem(candidates[:1], file.stem) or pictures.of_stem(candidates, file.stem)
    if not alike and key is not None:
        alike = pictures.of_key(key, PurePosixPath(where).with_suffix("").as_posix())
        text = ""  # where pictures of several modalities are nested, the name tells little
    if not text:
        return pictures.choose(alike, path, where)
    named = pictures.of_path(candidates[:1], path) or pictures.of_path(candidates, path)
    if named and alike and named[0] not in alike:
        raise SkipFrame(
            "invalid",
            f"names {short_name(path)}, but {short_name(alike[0])} has its name: correct filename",
        )
    if alike and not named:
        builder.note(OTHER_NAME, where)
    return pictures.choose(named or alike, path, where)


def _voc_split(builder: FrameSetBuilder) -> dict[str, str]:
    """Frame name → split, from the lists in ``ImageSets``, else from the folders of the images."""
    by_folder, folders = splits_from_folders(builder.frames)
    declared: dict[str, set[str]] = {}
    lists: list[str] = []
    index = NameIndex((name, name) for name in builder.listing.names)
    for split in ("train", "val", "test"):
        # Those of the folder Main are of the task of detection.
        places = (f"ImageSets/{folder}{split}.txt" for folder in ("Main/", ""))
        for name in next(filter(None, (index.find([place]) for place in places)), []):
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
    paths = [(frame, PurePosixPath(frame).with_suffix("").parts) for frame in builder.frames]
    known = NameIndex(
        ("/".join(parts[start:]), frame) for frame, parts in paths for start in range(len(parts))
    )
    skipped = {PurePosixPath(where).stem for where, _, _ in builder.skipped}
    for number, line in enumerate(lines, start=1):
        words = [line.strip(), *line.split(maxsplit=1)[:1]]
        suffixes = [(word, PurePosixPath(word).suffix) for word in words]
        words += [word.removesuffix(end) for word, end in suffixes if end.lower() in LISTED]
        found = (look([word]) for look in (known.exact, known.alike) for word in words)
        frames: list[str] = next(filter(None, found), [])
        for frame in frames:
            declared.setdefault(frame, set()).add(split)
        if words[0] and not frames and PurePosixPath(words[0]).stem not in skipped:
            problem = f"{words[0][:60]} has no label file and image: restore it or remove the line"
            builder.skip(ALL, f"{name} line {number}", SkipFrame("missing_file", problem))
