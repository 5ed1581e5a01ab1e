"""The images of a split: a folder, a list of paths, or several of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from posixpath import normpath
from typing import Final

from research.data import texts
from research.data.frames.builder import FrameSetBuilder
from research.data.frames.frame import SkipFrame
from research.data.frames.layout import ALL
from research.data.texts import BadText, NameIndex
from research.utils.errors import UserError

GUESSED: Final = "paths taken below the source"
NONE: Final = "none"
"""Value of ``data_yaml`` to use no description."""


@dataclass(frozen=True)
class Description:
    """A YAML file or ``obj.data``.

    Attributes:
        file: path below the source.
        names: class names; empty if it has none.
        path: folder that its entries are relative to, as written.
        entries: split → folders, lists and images, as written.
        keypoints: numbers after the box in a row of its label files.
        count: number of classes; ``None`` if it does not say.
    """

    file: str
    names: list[str]
    path: str
    entries: dict[str, list[str]]
    keypoints: int = 0
    count: int | None = None


class ListReader:
    """Finds the images of folders and lists, as ultralytics and darknet do.

    Attributes:
        files: list files that were read.
    """

    def __init__(self, builder: FrameSetBuilder, suffixes: frozenset[str]) -> None:
        self.builder = builder
        self.names = builder.listing.names
        self.index = NameIndex((name, name) for name in self.names)
        self.suffixes = suffixes
        self.files: set[str] = set()
        self.missing: dict[str, str] = {}

    def read(self, description: Description) -> dict[str, set[str]]:
        """Image → splits.

        Raises:
            UserError: for an entry that is neither a folder nor a file.
        """
        folders = self._folders(description)
        splits: dict[str, set[str]] = {}
        found = {
            split: {
                name
                for entry in entries
                for name in self._entry(description, split, entry, folders)
            }
            for split, entries in description.entries.items()
        }
        if found.get("test") and found.get("test") == found.get("val"):
            del found["test"]
            self.builder.remarks.note("test splits that are the val split", description.file)
        for split, names in found.items():
            for name in names:
                splits.setdefault(name, set()).add(split)
        return splits

    def is_list(self, name: str) -> bool:
        """Whether the first line of a text file is an image of the source."""
        try:
            lines = texts.read_lines(self.builder.root / name)
        except BadText:
            return False
        first = next((line.strip() for line in lines if line.strip()), "")
        return bool(self._image(first, "", [""]))

    def count_missing(self) -> None:
        """Count the lines without an image."""
        for where, line in self.missing.items():
            text = line if len(line) <= 60 else f"{line[:57]}…"
            reason = f"its image {text} does not exist: restore it or remove the line"
            self.builder.skip(ALL, where, SkipFrame("missing_file", reason))

    def _folders(self, description: Description) -> list[str]:
        """Folders, below the source, that entries may be relative to; '' is the source."""
        top = str(PurePosixPath(description.file).parent)
        top = "" if top == "." else top
        tried = [_join(top, description.path), top, ""]
        return list(dict.fromkeys(folder for folder in tried if folder is not None))

    def _entry(
        self, description: Description, split: str, entry: str, folders: Sequence[str]
    ) -> set[str]:
        for name, guessed in self._tried(entry, folders):
            inside = f"{name}/" if name else ""
            below = {each for each in self.names if each.startswith(inside)}
            found = {each for each in below if self._is_image(each)}
            file = "" if found else self._file(name)
            if (found or file) and guessed:
                self.builder.remarks.note(GUESSED, f"{entry} as {name}")
            if found:
                return found
            if file:
                return {file} if self._is_image(file) else self._list(file, folders)
        where = description.file or entry
        raise UserError(
            "data_yaml",
            f"{self.builder.root / where}: {split}: {entry} is no folder of images and no list in "
            f"{self.builder.root}",
            f"fix it, or read without it: data_yaml={NONE}",
        )

    def _list(self, file: str, folders: Sequence[str]) -> set[str]:
        self.files.add(file)
        try:
            lines = texts.read_lines(self.builder.root / file)
        except BadText as error:
            raise UserError("labels", f"{self.builder.root / file}: {error}") from None
        found: set[str] = set()
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            name = self._image(line.strip(), str(PurePosixPath(file).parent), folders)
            if not name:
                self.missing[f"{file} line {number}"] = line.strip()
            elif name in found:
                self.builder.remarks.note("repeated lines of lists", f"{file} line {number}")
            found |= {name} - {""}
        return found

    def _image(self, line: str, folder: str, folders: Sequence[str]) -> str:
        """The image that a line of a list names, or ''."""
        own = "" if folder == "." else folder
        for name, guessed in self._tried(line, [own, *folders]):
            if (found := self._file(name)) and self._is_image(found):
                if guessed:
                    self.builder.remarks.note(GUESSED, f"{line} as {name}")
                return found
        return ""

    def _tried(self, entry: str, folders: Sequence[str]) -> list[tuple[str, bool]]:
        """Paths below the source for an entry, and whether they are guesses.

        The guesses for a path of another machine, or to a folder above, are its last parts.
        """
        if texts.name_problem(entry):
            return []
        path = entry.replace("\\", "/")
        root = self.builder.root.resolve().as_posix()
        if path.startswith(f"{root}/"):
            path = path[len(root) + 1 :]
        tried = [_join(folder, path) for folder in folders]
        parts = [part for part in path.split("/") if part not in ("", ".", "..")]
        guesses = ["/".join(parts[start:]) for start in range(len(parts))]
        found = {name: False for name in tried if name is not None}
        return list((found | {name: True for name in guesses if name not in found}).items())

    def _file(self, name: str) -> str:
        """The file of this name, or '' if there is none or more than one."""
        found = self.index.find([name])
        return found[0] if len(found) == 1 else ""

    def _is_image(self, name: str) -> bool:
        return PurePosixPath(name).suffix.lower() in self.suffixes


def _join(folder: str, path: str) -> str | None:
    """A path below the source, or ``None`` if it leaves it; '' is the source."""
    path = path.replace("\\", "/")
    if path.startswith("/") or path[1:2] == ":":
        return None
    joined = normpath(f"{folder}/{path}" if folder else path or ".")
    if joined == ".." or joined.startswith("../"):
        return None
    return "" if joined == "." else joined.removeprefix("/")
