"""The images below a source, found as label files name them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence, Set
from pathlib import Path, PurePosixPath

from research.data.frames.builder import FrameSetBuilder
from research.data.frames.frame import SkipFrame, short_name
from research.data.texts import NameIndex, name_key

UNNAMED = "not in any annotation file"
SPELLING = "image found under a name that differs in letter case or Unicode form"


class PictureIndex:
    """The images of a source, from one walk over its folders.

    Label files may name them through links, and with another letter case or Unicode form.

    Args:
        builder: collects what is passed over, and notes.
        suffixes: of images, in lower case.
        documents: the label files that are read.
    """

    def __init__(
        self, builder: FrameSetBuilder, suffixes: Set[str], documents: Iterable[Path]
    ) -> None:
        self.builder = builder
        self._suffixes = suffixes
        builder.remarks.labels.update(builder.relative(file) for file in documents)
        split = ((name, *os.path.splitext(name)) for name in builder.listing.names)
        stems = {name: stem for name, stem, suffix in split if suffix.lower() in suffixes}
        self._stems = stems
        self._by_name = NameIndex((name, name) for name in stems)
        self._by_stem = NameIndex((stem, name) for name, stem in stems.items())
        self._unnamed = set(stems)
        self._keys: dict[str, str] | None = None

    def of_path(self, folders: Iterable[str], path: PurePosixPath) -> list[str]:
        """The images of this path below any of the folders, in their order.

        A path without a suffix of images stands for an image with any of them. Folders are
        relative to the source, as ``builder.relative`` names them.
        """
        if path.suffix.lower() not in self._suffixes:
            return self.of_stem(folders, str(path))
        inner = _join(folders, str(path))
        linked = (name for each in inner if (name := self._behind_link(each)))
        return (
            self._by_name.exact(inner) or list(dict.fromkeys(linked)) or self._by_name.alike(inner)
        )

    def of_stem(self, folders: Iterable[str], stem: str) -> list[str]:
        """The images of this path without suffix below any of the folders."""
        return self._by_stem.find(_join(folders, stem))

    def of_key(self, key: Callable[[str], str], stem: str) -> list[str]:
        """The first image whose path without suffix has the same key; see ``ImageFiles``."""
        if self._keys is None:
            self._keys = {}
            for name, each in self._stems.items():
                self._keys.setdefault(key(each), name)
        found = self._keys.get(key(stem))
        return [] if found is None else [found]

    def choose(self, names: Sequence[str], path: PurePosixPath, where: str) -> Path:
        """The one image that an entry names.

        Args:
            names: those that were found.
            path: what the entry says.
            where: the entry.

        Raises:
            SkipFrame: if there is none, or more than one.
        """
        self._unnamed.difference_update(names)
        if not names:
            raise SkipFrame(
                "missing_file",
                f"its image {short_name(path)} does not exist: restore or remove it",
            )
        if len(names) > 1:
            found = " and ".join(map(short_name, names[:2]))
            raise SkipFrame("invalid", f"its image may be {found}: rename or remove one")
        said = str(path)
        exact = names[0].endswith(said) or os.path.splitext(names[0])[0].endswith(said)
        if not exact and name_key(said) in name_key(names[0]):  # not so if it is behind a link
            self.builder.note(SPELLING, where)
        return self.builder.root / names[0]

    def pass_over_unnamed(self) -> None:
        """Count the images that no label file names."""
        self.builder.remarks.passed_over.update(dict.fromkeys(self._unnamed, UNNAMED))

    def _behind_link(self, name: str) -> str:
        """The image that a path leads to which is no image of the listing; '' if there is none."""
        path = self.builder.root / name
        if not os.path.exists(path):  # False for any name that the file system does not take
            return ""
        root = os.path.realpath(self.builder.root)
        real = os.path.relpath(os.path.realpath(path), root).replace(os.sep, "/")
        return real if real in self._stems else ""


def _join(folders: Iterable[str], path: str) -> list[str]:
    return [path if folder == "." else f"{folder}/{path}" for folder in folders]
