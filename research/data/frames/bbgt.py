"""Annotations in the text format of Piotr's toolbox, which KAIST and Caltech use, as elements.

The first line is ``% bbGt version=3``; each other is an object: its class, left, top, width and
height in pixels from 0, whether it is occluded, the visible part (4), whether it is ignored, and an
angle.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

from research.data.texts import BadText, read_lines
from research.utils.conditions import is_exhausted

MARK = "% bbGt version=3"
IGNORED = 10
"""Column of the flag."""


def is_annotation(path: Path) -> bool:
    """Whether a text file begins as one in this format."""
    try:
        with path.open("rb") as file:
            return file.read(64).removeprefix(b"\xef\xbb\xbf").startswith(MARK.encode())
    except OSError as error:
        if is_exhausted(error):
            raise
        return False


def read(path: Path) -> ElementTree.Element:
    """The file as the root element of an annotation in VOC format.

    Raises:
        BadText: for a file that cannot be read, or a row without a box.
    """
    root = ElementTree.Element("annotation")
    for number, line in enumerate(read_lines(path), start=1):
        words = line.split()
        if not words or line.startswith("%"):
            continue
        if len(words) < 5:
            raise BadText(f"row {number} is {line[:50]!r}: expected class left top width height")
        item = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(item, "name").text = words[0]
        box = ElementTree.SubElement(item, "bndbox")
        for key, word in zip("xywh", words[1:], strict=False):
            ElementTree.SubElement(box, key).text = word
        if len(words) > IGNORED:
            ElementTree.SubElement(item, "difficult").text = words[IGNORED]
    return root
