"""The one way to read the texts that users give: label files, lists, tables, descriptions.

Encoding, line ends, size, depth and numbers are checked here, so that every reader accepts the same
files, and a bad one ends in one line. Names of files are compared in one form, ``name_key``.
"""

from __future__ import annotations

import codecs
import json
import os
import re
import stat
import unicodedata
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import yaml

from research.utils.conditions import is_exhausted
from research.utils.documents import parse_json, parse_yaml
from research.utils.errors import one_line

MAX_TEXT: Final = 2**26
"""Bytes of a label file, a list or a table."""
MAX_JSON: Final = 2**31
"""Bytes; the annotations of COCO have 450 MB."""
MAX_YAML: Final = 2**16
"""Bytes; reading YAML takes up to 15 microseconds a byte."""
MAX_DEPTH: Final = 64
"""Of a YAML file."""
MAX_LINE: Final = 2**16
"""Characters of a line in a list or a label file."""
MAX_NAME: Final = 255
"""Bytes of the name of a file or folder."""
MAX_PATH: Final = 4000
"""Bytes of a path."""
MARKS: Final = (  # that of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks and their encodings."""

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_XML_ENCODING = re.compile(rb"\s*<\?xml[^>]{0,100}?encoding\s*=\s*[\"']([^\"']{1,40})[\"']")
_TEXT_ENCODING = re.compile(
    r"utf-?(8|16|32)\w*|(us-)?ascii|iso-?8859-\d+|latin-?\d+|(windows-|cp)\d+|gb\w+|big5\w*|"
    r"euc-\w+|shift_jis|koi8-\w",
    re.IGNORECASE,
)
"""Encodings of XML files; Python knows others, such as bz2."""


class BadText(Exception):
    """A text that cannot be read; the message says why and what to do, without naming the file."""


def read_text(path: Path, limit: int = MAX_TEXT) -> str:
    """The content of a text file: UTF-8, or UTF-16 and UTF-32 with a byte order mark.

    The byte order mark is no content. Line ends become ``\\n``.

    Args:
        path: the file.
        limit: largest size in bytes.

    Raises:
        BadText: for a file that cannot be read, is too large, has another encoding, or contains a
            NUL character.
    """
    return _decode(read_bytes(path, limit))


def read_lines(path: Path, limit: int = MAX_TEXT) -> list[str]:
    """The lines of a text file, without their ends; only an end of line separates two.

    Raises:
        BadText: see ``read_text``; also for a line of more than ``MAX_LINE`` characters.
    """
    lines = read_text(path, limit).split("\n")
    for number, line in enumerate(lines, start=1):
        if len(line) > MAX_LINE:
            raise BadText(f"line {number} has {len(line):,} characters: fix it")
    return lines


def read_json(path: Path) -> Any:
    """The content of a JSON file; numbers may be infinite or NaN.

    Raises:
        BadText: see ``read_text``; also for a file that is not valid JSON, or in which an object
            has two values for one key.
    """
    text = read_text(path, MAX_JSON)
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise BadText(f"bad JSON at {where} ({error.msg}): fix it") from None
    except RecursionError:
        raise BadText("bad JSON (nested too deeply): fix it") from None
    except ValueError as error:  # an integer of too many digits, two values of a key
        raise BadText(f"bad JSON ({one_line(error)}): fix it") from None


def read_yaml(path: Path) -> Any:
    """The content of a YAML file: plain values without tags and merge keys.

    Raises:
        BadText: see ``read_text``; also for a file that is not valid YAML, or in which a mapping
            has a key twice.
    """
    text = read_text(path, MAX_YAML)
    if _yaml_depth(text) > MAX_DEPTH:  # the time of reading grows with its square
        raise BadText("bad YAML (nested too deeply): fix it")
    try:
        return parse_yaml(text)
    except RecursionError:
        raise BadText("bad YAML (nested too deeply): fix it") from None
    except (yaml.YAMLError, ValueError, OverflowError, TypeError) as error:
        raise BadText(f"bad YAML ({one_line(error)}): fix it") from None


def read_xml(path: Path) -> ElementTree.Element:
    """The root of an XML file without a DOCTYPE and entities, in the encoding that it declares.

    Raises:
        BadText: see ``read_text``; also for a file that is not valid XML.
    """
    content = read_bytes(path, MAX_TEXT)
    declared = _XML_ENCODING.match(content)
    encoding = declared[1].decode("ascii", "replace") if declared else "utf-8"
    text = _decode(content, encoding)
    if not encoding.lower().startswith("utf") and not content.isascii() and _is_utf8(content):
        raise BadText(f"declares the encoding {encoding}, is UTF-8: correct its declaration")
    if "<!DOCTYPE" in text or "<!ENTITY" in text:  # nested entities can exhaust memory
        raise BadText("defines a DOCTYPE or entities: remove them")
    try:
        parser = ElementTree.XMLParser(encoding="utf-8")  # noqa: S314 - without entities
        parser.feed(text.encode())
        return parser.close()
    except (ElementTree.ParseError, ValueError) as error:
        raise BadText(f"bad XML ({one_line(error)}): fix it") from None


def parse_number(text: str | None) -> float | None:
    """The text as a float, or ``None`` if it is not a finite decimal number."""
    if text is None or len(text) > 100 or not _NUMBER.fullmatch(text.strip()):
        return None
    value = float(text)
    return value if abs(value) != float("inf") else None


def name_key(name: str) -> str:
    """The form in which names are compared: without letter case and Unicode form."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def names_alike(names: Iterable[str]) -> list[tuple[str, str]]:
    """Names that are the same in any letter case, Unicode form and spacing: the first, another."""
    first: dict[str, str] = {}
    pairs = []
    for name in names:
        key = " ".join(name_key(name).split())
        if key in first:
            pairs.append((first[key], name))
        first.setdefault(key, name)
    return pairs


class NameIndex:
    """Finds names: as they are written, else in another letter case or Unicode form.

    Args:
        names: each name, and what it stands for; several may have the same name.
    """

    def __init__(self, names: Iterable[tuple[str, str]]) -> None:
        self._exact: dict[str, list[str]] = {}
        self._by_key: dict[str, list[str]] = {}
        for name, value in names:
            self._exact.setdefault(name, []).append(value)
            self._by_key.setdefault(name_key(name), []).append(value)

    def exact(self, names: Iterable[str]) -> list[str]:
        """What the names stand for, as they are written."""
        return _unique(value for name in names for value in self._exact.get(name, ()))

    def alike(self, names: Iterable[str]) -> list[str]:
        """The same in any letter case and Unicode form."""
        return _unique(value for name in names for value in self._by_key.get(name_key(name), ()))

    def find(self, names: Iterable[str]) -> list[str]:
        """What the names stand for: ``exact``, or ``alike`` if there is none."""
        names = list(names)
        return self.exact(names) or self.alike(names)


def name_problem(path: str) -> str:
    """Why no file can have this relative path, or ''."""
    if any(unicodedata.category(char) == "Cc" for char in path):
        return "contains a control character"
    try:
        parts = os.fsencode(path).replace(b"\\", b"/").split(b"/")
    except UnicodeEncodeError:
        return "is not valid Unicode"
    if max(map(len, parts)) > MAX_NAME or len(path) > MAX_PATH:
        return "is longer than file systems allow"
    return ""


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _yaml_depth(text: str) -> int:
    """At least the depth of nested lists and mappings."""
    depth = deepest = 0
    for char in text:
        if char in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif char in "]}":
            depth -= 1
    marks = re.findall(r"^(?:\s*[-?:]\s)+", text, re.MULTILINE)
    return max(deepest, *(len(re.findall(r"[-?:]", mark)) for mark in marks), 0)


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most ``limit`` bytes.

    Raises:
        BadText: for another kind of file, a larger one, or one that cannot be read.
    """
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):  # opening a pipe would block
            raise BadText("is not a regular file: replace it")
        if about.st_size > limit:
            raise BadText(f"has {about.st_size:,} bytes, at most {limit:,} are read: fix it")
        return path.read_bytes()
    except OSError as error:
        if is_exhausted(error):
            raise
        raise BadText(f"cannot be read ({error.strerror}): fix it") from None


def _is_utf8(content: bytes) -> bool:
    """Whether bytes are valid UTF-8: beyond ASCII, those of other encodings are by chance only."""
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _decode(content: bytes, encoding: str = "utf-8") -> str:
    encoding = next((name for mark, name in MARKS if content.startswith(mark)), encoding)
    if not _TEXT_ENCODING.fullmatch(encoding.removesuffix("-sig")):
        raise BadText(f"has the unknown encoding {encoding}: save it as UTF-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        name = error.encoding.upper()
        raise BadText(f"is not {name} (line {line}): save it as UTF-8") from None
    except LookupError:
        raise BadText(f"has the unknown encoding {encoding}: save it as UTF-8") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise BadText(f"contains a NUL character (line {line}): save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")
