"""Which modality and which frame a picture belongs to, by the names of its folders and its own.

A folder of a modality has its word as name (``rgb``, ``lwir``), or the word beside neutral ones
(``images_rgb_train``, ``thermal_8_bit``). Without such folders the last word of the picture's name
tells (``12_co.png``, ``12_ir.png``).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from research.data.frames.layout import NEUTRAL, SPLITS
from research.utils.errors import UserError

FOLDERS: Final[Mapping[str, Sequence[str]]] = {
    "rgb": ("rgb", "visible", "vis", "images"),
    "thermal": ("thermal", "infrared", "ir", "lwir"),
    "event": ("event", "events"),
}
"""Folder names of each modality, case-insensitive; the first one that exists is used."""
WORDS: Final[Mapping[str, frozenset[str]]] = {
    "rgb": frozenset({"rgb", "visible", "vis", "vi", "co", "color", "colour"}),
    "thermal": frozenset({"thermal", "infrared", "ir", "lwir", "previewdata"}),
    "event": frozenset({"event", "events", "dvs"}),
}
"""Words in names of folders and pictures; VEDAI has ``co`` and ``ir``, FLIR ``PreviewData``."""
ALL: Final = "images"
"""Name of a folder of RGB pictures, if no other folder has the name of the modality."""
BESIDE: Final = NEUTRAL | SPLITS.keys() | {"8", "16", "bit"}
CONTAINERS: Final = re.compile(r"(jpeg)?images|labels|annotations?([-_].*)?", re.IGNORECASE)
"""Folders that hold all pictures, or all labels."""
_SEPARATOR = re.compile(r"[^\w]+|_+")


def find_folders(
    source: Path, pictures: Sequence[str], named: Mapping[str, str | None]
) -> dict[str, str]:
    """Name of the folders of each modality.

    Args:
        source: folder of the source.
        pictures: the pictures below it.
        named: modality to folder name set by the user, if any.

    Returns:
        modality to folder name; ``*thermal*`` for folders with the word beside others, ``*_ir`` for
        a last word of pictures.

    Raises:
        UserError: for a named folder that does not exist or is used twice, no folder of RGB
            images, or no folder of another modality.
    """
    inner = {part for name in pictures for part in PurePosixPath(name).parent.parts}
    existing = sorted(inner | {path.name for path in source.glob("[!.]*/")})
    folders: dict[str, str] = {}
    for modality, names in FOLDERS.items():
        name = named.get(modality)
        if name and name not in existing:
            raise UserError(
                modality,
                f"{modality}={name}: no such folder in {source}",
                f"it has {join(existing)}",
            )
        words = [*(word for word in names if word != ALL), *sorted(WORDS[modality]), *names]
        matches = [folder for word in words for folder in existing if folder.lower() == word]
        matches += [f"*{word}*" for folder in existing if (word := _folder_word(modality, folder))]
        if folder := name or next(iter(matches), None):
            if folder in folders.values():
                raise UserError(
                    modality,
                    f"{source}: {folder} is used for two modalities",
                    f"set {modality}=FOLDER",
                )
            folders[modality] = folder
    if not (_is_complete(folders) or any(named.get(modality) for modality in FOLDERS)):
        folders = _by_last_word(pictures) or folders
    for required in (["rgb"], ["thermal", "event"]):
        if not folders.keys() & required:
            options = " or ".join(f"{modality}=FOLDER" for modality in required)
            raise UserError(
                required[0],
                f"{source}: no folder {join(n for key in required for n in FOLDERS[key])}",
                f"it has {join(existing)}: set {options}",
            )
    return folders


class ModalityNames:
    """Assigns pictures to modalities and frames.

    Attributes:
        folders: see ``find_folders``.
        synonyms: picture without suffix → name of the frame's picture, for pairs that a file lists.
    """

    def __init__(self, folders: Mapping[str, str], synonyms: Mapping[str, str]) -> None:
        self.folders = folders
        self.synonyms = synonyms

    def classify(self, name: str) -> tuple[str, str]:
        """Modality and frame of a picture; '' and '' if it is in no folder of a modality.

        The frame is the path without the folder of the modality, and without suffix.
        """
        path = PurePosixPath(name)
        parts = [*path.parent.parts, self.synonyms.get(path.stem, path.stem)]
        for position, folder in enumerate(parts[:-1]):
            for modality, place in self.folders.items():
                if folder == place:
                    return modality, "/".join(parts[:position] + parts[position + 1 :])
                pattern = place.startswith("*") and place.endswith("*")
                if pattern and (word := _folder_word(modality, folder)):
                    rest = [_without_word(folder, word)] if _without_word(folder, word) else []
                    inner = [*parts[:position], *rest, *parts[position + 1 :]]
                    return modality, "/".join(inner)
        for modality, place in self.folders.items():
            if place.startswith("*_") and (stem := without_last_word(modality, parts[-1])):
                return modality, "/".join([*parts[:-1], stem])
        return "", ""

    def label_key(self, stem: str) -> str:
        """What the path of a picture and that of its label have in common.

        Folders of modalities, of all pictures and of all labels do not count, nor does the word of
        a modality at the end.
        """
        _, frame = self.classify(f"{stem}.x")
        *folders, last = (frame or stem).split("/")
        for modality in self.folders:
            last = without_last_word(modality, last) or last
        return "/".join([*(each for each in folders if not CONTAINERS.fullmatch(each)), last])


def pair_by_last_word(frames: Mapping[str, Iterable[str]]) -> dict[tuple[str, str], str]:
    """Frames of pictures whose names differ by a word of the modality.

    Args:
        frames: modality → names of frames.

    Returns:
        (modality, name) → name without that word, for frames that are complete with it.
    """
    count = Counter(name for names in frames.values() for name in set(names))
    short: dict[str, list[tuple[str, str]]] = {}
    for modality, names in frames.items():
        for name in names:
            if count[name] == 1:
                folder, _, stem = name.rpartition("/")
                inner = without_last_word(modality, stem) or stem
                short.setdefault(f"{folder}/{inner}" if folder else inner, []).append(
                    (modality, name)
                )
    return {
        key: inner
        for inner, keys in short.items()
        if len({modality for modality, _ in keys}) == len(keys) > 1
        for key in keys
    }


def without_last_word(modality: str, stem: str) -> str:
    """The name of a picture without the word of its modality at the end, or ''."""
    match = re.fullmatch(r"(.*[^\W_])[\W_]+([^\W_]+)", stem)
    return match[1] if match and match[2].lower() in WORDS[modality] else ""


def join(words: Iterable[str]) -> str:
    return ", ".join(words) or "nothing"


def _is_complete(folders: Mapping[str, str]) -> bool:
    return "rgb" in folders and len(folders) > 1


def _folder_word(modality: str, folder: str) -> str:
    """The word of the modality in the name of a folder, beside neutral words only; or ''."""
    words = [word for word in _SEPARATOR.split(folder.lower()) if word]
    found = [word for word in words if word in WORDS[modality]]
    others = [word for word in words if word not in BESIDE and word not in found]
    return found[0] if len(found) == 1 and len(words) > 1 and not others else ""


def _without_word(folder: str, word: str) -> str:
    words = [each for each in _SEPARATOR.split(folder.lower()) if each]
    return "_".join(each for each in words if each not in (word, "8", "16", "bit"))


def _by_last_word(pictures: Sequence[str]) -> dict[str, str]:
    """The last words of pictures that are pairs, if there are any."""
    found: dict[str, dict[str, str]] = {}
    for name in pictures:
        path = PurePosixPath(name)
        for modality in FOLDERS:
            if stem := without_last_word(modality, path.stem):
                word = path.stem[len(stem) + 1 :].lstrip("_-. ")
                found.setdefault(str(path.parent / stem), {})[modality] = f"*_{word}"
    complete = [each for each in found.values() if _is_complete(each)]
    if not complete:
        return {}
    return {
        modality: next(each[modality] for each in complete if modality in each)
        for modality in FOLDERS
        if any(modality in each for each in complete)
    }
