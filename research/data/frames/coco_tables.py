"""The tables of COCO documents: categories, and annotations by image."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from research.data.frames.builder import FrameSetBuilder
from research.data.frames.frame import SkipFrame, short_name, shorten
from research.utils.errors import UserError

Annotations = list[tuple[int, dict[str, Any]]]
"""Row and content of each."""


def to_id(value: object) -> str | None:
    """An id as text, the same for 7, 7.0 and "7"; ``None`` for what is no number or text."""
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, float) and isfinite(value):
        return str(int(value) if value == int(value) else value)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def class_tables(
    builder: FrameSetBuilder, documents: Mapping[Path, dict[str, Any]]
) -> tuple[list[str], dict[Path, dict[str, int]]]:
    """Class names of all documents, and for each document: category id → index of the class.

    Documents are matched by the names of their categories; that they differ is noted.

    Raises:
        UserError: for a category without id or name, or an id with two names.
    """
    names: dict[Path, dict[str, str]] = {}
    for file, document in documents.items():
        names[file] = _categories(builder, file, document["categories"])
        first = next(iter(names))
        if difference := _difference(names[first], names[file]):
            builder.note(
                "categories differ between annotation files, matched by their names",
                f"{builder.relative(first)} and {builder.relative(file)} ({difference})",
            )
    classes = list(dict.fromkeys(name for table in names.values() for name in table.values()))
    index = {name: number for number, name in enumerate(classes)}
    return classes, {
        file: {key: index[name] for key, name in table.items()} for file, table in names.items()
    }


def _categories(builder: FrameSetBuilder, file: Path, entries: list[Any]) -> dict[str, str]:
    """Category id → name, in the order of the ids."""
    names: dict[str, str] = {}
    for entry in entries:
        key = to_id(entry.get("id")) if isinstance(entry, dict) else None
        name = entry.get("name") if isinstance(entry, dict) else None
        if key is None or not isinstance(name, str | int) or not str(name).strip():
            raise UserError("labels", f"{file}: every entry of categories needs an id and a name")
        if names.setdefault(key, str(name)) != str(name):
            raise UserError(
                "labels",
                f"{file}: category {shorten(entry['id'])} is both {shorten(names[key])} and "
                f"{shorten(name)}",
                "give each its own id",
            )
    counts: dict[str, str] = {}
    for key, name in names.items():
        if (other := counts.setdefault(name, key)) != key:
            ids = f"ids {short_name(other)} and {short_name(key)} ({shorten(name)})"
            where = f"{builder.relative(file)} {ids}"
            builder.note("categories of one name, read as one class", where)
    return dict(sorted(names.items(), key=lambda item: _order(item[0])))


def _order(key: str) -> tuple[bool, float, str]:
    try:
        return False, float(key), ""
    except ValueError:
        return True, 0.0, key


def _difference(first: dict[str, str], other: dict[str, str]) -> str:
    """The first difference of two tables, in words; empty if there is none."""
    known, own = set(first.values()), set(other.values())
    if missing := sorted(known ^ own):
        place = "first" if missing[0] in known else "second"
        return f"{shorten(missing[0])} is only in the {place}"
    for key in sorted(first.keys() & other.keys()):
        if first[key] != other[key]:
            return f"{short_name(key)} is {shorten(first[key])} and {shorten(other[key])}"
    return "their ids" if first.keys() != other.keys() else ""


def group_images(entries: list[Any]) -> dict[str, list[tuple[int, Any]]]:
    """Rows of images by id: row, and what the row says of the image. More than one is an error."""
    rows: dict[str, list[tuple[int, Any]]] = {}
    for row, entry in enumerate(entries):
        key = to_id(entry.get("id")) if isinstance(entry, dict) else None
        if key is not None:
            said = [entry.get(name) for name in ("file_name", "width", "height")]
            rows.setdefault(key, []).append((row, said))
    return rows


def group_annotations(
    builder: FrameSetBuilder,
    part: str,
    name: str,
    entries: list[Any],
    images: Mapping[str, object],
) -> dict[str, Annotations]:
    """Annotations by image id; those of unknown images are skipped and counted.

    An annotation that is listed again is used once; that others share an id is noted.

    Args:
        builder: collects problems and notes.
        part: see ``FrameSetBuilder.add``.
        name: of the document.
        entries: its annotations.
        images: the ids of its images.
    """
    groups: dict[str, Annotations] = {key: [] for key in images}
    seen: dict[str, Any] = {}
    for row, entry in enumerate(entries):
        where = f"{name} annotations[{row}]"
        value = entry.get("image_id") if isinstance(entry, dict) else None
        key = to_id(value)
        if key is None or key not in groups:
            reason = f"belongs to no image ({shorten(value)}): fix or remove it"
            builder.skip(part, where, SkipFrame("invalid", reason))
            continue
        own = to_id(entry.get("id"))
        if own is not None and (first := seen.setdefault(own, entry)) is not entry:
            if first == entry:
                builder.note("annotation listed again, used once", where)
                continue
            builder.note("annotations that share an id, all used", where)
        groups[key].append((row, entry))
    return groups
