"""Pascal VOC: an XML file an image; boxes in pixels, counted from 1, the last one included."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path, PurePosixPath

from research.data.frames.frame import (
    PIXEL_SLACK,
    Box,
    Frame,
    FrameSet,
    LeftOut,
    Reading,
    image_size,
    inner_path,
    normalised,
)
from research.data.frames.layout import ALL, finish, number_in
from research.data.index import EXTENSIONS


def xml_files(source: Path) -> list[Path]:
    for folder in ("Annotations", "annotations", "."):
        pattern = "*.xml" if folder == "." else "**/*.xml"
        if files := sorted((source / folder).glob(pattern)):
            return [file for file in files if not file.name.startswith(".")]
    return []


def read_voc(source: Path, files: list[Path]) -> FrameSet:
    reading = Reading(source)
    found: dict[str, list[str]] = {}
    for file in files:
        try:
            image, objects = _voc_objects(source, file)
        except LeftOut as reason:
            reading.leave(ALL, reading.name(file), reason)
            continue
        name = reading.name(image)
        found.setdefault(name, [class_name for class_name, _ in objects])
        boxes = tuple(box for _, box in objects)
        reading.take(ALL, reading.name(file), Frame(name, image, "", boxes, ()))
    classes = sorted({class_name for names in found.values() for class_name in names})
    index = {class_name: number for number, class_name in enumerate(classes)}
    for name, frame in reading.frames.items():
        labels = tuple(index[class_name] for class_name in found[name])
        reading.frames[name] = replace(frame, labels=labels)
    return finish(reading, "voc", classes, _voc_split(source, reading))


def _voc_objects(source: Path, file: Path) -> tuple[Path, list[tuple[str, Box]]]:
    root = _xml(file)
    image = _voc_image(source, file, (root.findtext("filename") or "").strip())
    width, height = image_size(image)
    objects = []
    for row, item in enumerate(root.iter("object")):
        class_name = (item.findtext("name") or "").strip()
        if not class_name:
            raise LeftOut("invalid", f"object {row} has no name: give its class")
        edges = [
            number_in(item.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax")
        ]
        if None not in edges:
            edges[:2] = [edge - 1 for edge in edges[:2]]
        box = normalised(edges, width, height, PIXEL_SLACK, f"object {row} bndbox")
        objects.append((class_name, box))
    return image, objects


def _xml(file: Path) -> ElementTree.Element:
    try:
        content = file.read_bytes()
        if b"<!DOCTYPE" in content or b"<!ENTITY" in content:  # nested entities can fill a memory
            raise LeftOut("invalid", "defines a DOCTYPE or entities: take them out")
        return ElementTree.fromstring(content)
    except OSError as error:
        raise LeftOut("invalid", f"cannot be read ({error.strerror}): mend it") from None
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # LookupError: encoding
        raise LeftOut("invalid", f"bad XML ({error}): mend it") from None


def _voc_image(source: Path, file: Path, named: str) -> Path:
    """The image of an XML file: the one that it names, else one of the same stem."""
    folder = next((name for name in ("JPEGImages", "images") if (source / name).is_dir()), "")
    top = source / folder
    inner = file.parent.relative_to(source).parts[1:]  # sub-folders of Annotations are mirrored
    places = [file.parent] if not folder else [top.joinpath(*inner), top]
    if named:
        path = inner_path(named)
        for place in places:
            if (place / path).is_file():
                return place / path
    for place in places:
        for suffix in sorted(EXTENSIONS):
            for spelled in (suffix, suffix.upper()):
                if (place / f"{file.stem}{spelled}").is_file():
                    return place / f"{file.stem}{spelled}"
    told = named or f"{file.stem}.jpg"
    raise LeftOut("missing_file", f"its image {told} is not there: restore or remove it")


def _voc_split(source: Path, reading: Reading) -> dict[str, str]:
    listed = {}
    for split in ("train", "val", "test"):
        for folder in ("ImageSets/Main", "ImageSets"):
            file = source / folder / f"{split}.txt"
            if file.is_file():
                words = file.read_text(encoding="utf-8", errors="replace").split()
                listed.update(dict.fromkeys(words, split))
                break
    stems = {name: PurePosixPath(name).stem for name in reading.frames}
    return {name: listed[stem] for name, stem in stems.items() if stem in listed}
