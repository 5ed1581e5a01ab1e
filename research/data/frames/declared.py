"""What files of a YOLO source declare: class names and splits.

``data.yaml`` (or another YAML file) has ``names``, ``nc``, ``path``, ``train``, ``val`` and
``test``: each a folder, a list file, or several of them. ``obj.data`` of darknet has ``names``,
``classes``, ``train`` and ``valid``. ``classes.txt`` and ``obj.names`` have names alone,
``train.txt`` and ``val.txt`` beside them splits alone. What is declared twice is compared. Names of
these files may have any letter case.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final

from research.data import texts
from research.data.frames.builder import FrameSetBuilder
from research.data.frames.frame import is_number, shorten
from research.data.frames.layout import SPLITS
from research.data.frames.reading import and_join
from research.data.frames.split_lists import NONE, Description, ListReader
from research.data.listing import list_files
from research.data.texts import BadText
from research.utils.errors import UserError

NAME_FILES: Final = ("classes.txt", "obj.names")
LIST_FILES: Final = ("train.txt", "val.txt", "valid.txt", "test.txt")
FIRST: Final = ("data.yaml", "data.yml")


@dataclass
class Declared:
    """What a source declares.

    Attributes:
        names: class names; empty if none are declared.
        names_from: the file.
        count: number of classes, if that is declared without their names; otherwise 0.
        splits: image → splits that contain it; empty if none are declared.
        split_from: the files, in words.
        files: files that were read.
        chosen: whether the user named the file, so that it is not compared with others.
        keypoints: see ``Description``.
    """

    names: list[str] = field(default_factory=list)
    names_from: str = ""
    count: int = 0
    splits: dict[str, set[str]] = field(default_factory=dict)
    split_from: str = ""
    files: set[str] = field(default_factory=set)
    chosen: bool = False
    keypoints: int = 0


def read_declared(
    builder: FrameSetBuilder, data_yaml: str, images: frozenset[str], class_names: bool = True
) -> Declared:
    """Read what the files of a source declare.

    Args:
        builder: of the source; lines of lists without an image are counted in it.
        data_yaml: the file to use, relative to the source; ``none`` for no YAML file and no
            ``obj.data``; '' for all, which are compared.
        images: suffixes of images, in lower case.
        class_names: whether class names are read.

    Raises:
        UserError: for a file that cannot be read or is not valid, or two that disagree.
    """
    names = builder.listing.names
    declared = Declared(chosen=bool(data_yaml))
    descriptions = _descriptions(builder.root, names, data_yaml)
    if class_names:
        _read_names_of(builder.root, names, descriptions, declared)
    declared.keypoints = next((each.keypoints for each in descriptions if each.keypoints), 0)
    finder = ListReader(builder, images)
    found = [(each, finder.read(each)) for each in descriptions if each.entries]
    for each, splits in found[1:]:
        if splits != found[0][1]:
            raise UserError(
                "data_yaml",
                f"{builder.root}: {found[0][0].file} and {each.file} declare different splits",
                f"choose {_choices(found[0][0].file, each.file, NONE)}",
            )
    if found:
        description, declared.splits = found[0]
        declared.split_from = _describe_entries(description)
        declared.files |= {each.file for each, _ in found}
    elif listed := [name for name in names if _is_split_list(name) and finder.is_list(name)]:
        listed.sort(key=lambda name: LIST_FILES.index(name.lower()))
        lists: dict[str, list[str]] = {}
        for name in listed:
            lists.setdefault(SPLITS[name.lower().removesuffix(".txt")], []).append(name)
        declared.splits = finder.read(Description("", [], "", lists))
        declared.split_from = and_join(listed)
    declared.files |= finder.files
    finder.count_missing()
    return declared


def read_class_names(source: Path) -> list[str]:
    """The class names that the files of a source declare; empty if there are none.

    Raises:
        UserError: for a file that cannot be read, names that are not numbered 0, 1, …, or two
            files that disagree.
    """
    names = list_files(source, None).names
    declared = Declared()
    _read_names_of(source, names, _descriptions(source, names, ""), declared)
    return declared.names


def _read_names_of(
    source: Path, names: Sequence[str], descriptions: Sequence[Description], declared: Declared
) -> None:
    """Set the class names to those of the descriptions and text files, which are compared."""
    found = [(each.file, each.names) for each in descriptions if each.names]
    if not (found and declared.chosen):
        files = [name for name in names if is_name_file(name)]
        found += [(name, classes) for name in files if (classes := _read_names(source / name))]
    _compare_names(found)
    if found:
        declared.names_from, declared.names = found[0]
        declared.files |= {file for file, _ in found}
    for each in descriptions:
        if each.count is None:
            continue
        expected = len(declared.names) or declared.count or each.count
        if each.count != expected:
            key = "classes" if each.file.lower().endswith(".data") else "nc"
            other = f"{declared.names_from} has {expected} names" if found else f"also {expected}"
            raise _invalid(source / each.file, f"{key} is {each.count}, but {other}")
        if not found:
            declared.count = each.count
            declared.files.add(each.file)


def is_name_file(name: str) -> bool:
    """Whether a file holds class names alone."""
    return PurePosixPath(name).name.lower() in NAME_FILES


def _is_split_list(name: str) -> bool:
    return name.lower() in LIST_FILES


def is_description(name: str) -> bool:
    """Whether a file may declare the names and splits of a source."""
    path = PurePosixPath(name)
    if len(path.parts) == 1:
        return path.suffix.lower() in (".yaml", ".yml", ".data")
    return path.suffix.lower() == ".data" and str(path.parent).lower() == "data"


def _descriptions(source: Path, names: Sequence[str], data_yaml: str) -> list[Description]:
    if data_yaml == NONE:
        return []
    if data_yaml:
        if data_yaml not in names:
            raise UserError(
                "data_yaml", f"data_yaml={data_yaml}: no such file in {source}", "name one in it"
            )
        files = [data_yaml]
    else:
        files = [name for name in names if is_description(name)]
        files.sort(key=lambda name: (name.lower() not in FIRST, name))
    read = [_read_description(source / name, name) for name in files]
    return [
        each
        for each in read
        # The YAML file of a network has its number of classes too.
        if each and (each.names or each.entries or (each.count and each.file.lower() in FIRST))
    ]


def _read_description(path: Path, name: str) -> Description | None:
    try:
        if path.suffix.lower() == ".data":
            return _read_darknet(path, name)
        document = texts.read_yaml(path)
    except BadText as error:
        raise _invalid(path, str(error).removesuffix(": fix it")) from None
    if not isinstance(document, dict):
        return None
    entries: dict[str, list[str]] = {}
    for key, split in SPLITS.items():
        value = document.get(key)
        if value is None or value == "":
            continue
        listed = value if isinstance(value, list) else [value]
        if not all(isinstance(each, str) for each in listed):
            raise _invalid(path, f"{key}: expected a path or a list of paths")
        if paths := [each.strip() for each in listed if each.strip()]:
            entries[split] = entries.get(split, []) + paths
    names = _yaml_names(path, document)
    where = document.get("path")
    where = where if isinstance(where, str) else ""
    count = _count(path, "nc", document.get("nc"))
    return Description(name, names, where, entries, _keypoints(document), count)


def _yaml_names(path: Path, document: dict[Any, Any]) -> list[str]:
    names = document.get("names")
    if names is None:
        return []
    if isinstance(names, dict):
        numbered = {str(number): name for number, name in names.items()}
        if sorted(numbered) != sorted(map(str, range(len(names)))):
            raise _invalid(path, f"names must number the classes 0 to {len(names) - 1}")
        names = [numbered[str(number)] for number in range(len(names))]
    if not isinstance(names, list) or not all(
        isinstance(name, str | int | float) and str(name).strip() for name in names
    ):
        raise _invalid(path, "names: expected a list of words")
    for number, name in enumerate(names):
        if isinstance(name, bool):  # YAML's on, off, yes, no, true and false
            raise _invalid(path, f"names: class {number} is the truth value {name}: quote the word")
    return [str(name).strip() for name in names]


def _count(path: Path, key: str, value: object) -> int | None:
    """A declared number of classes."""
    if value is None:
        return None
    number: Any = value
    if not is_number(value) or number < 1 or number != int(number):
        raise _invalid(path, f"{key} is {shorten(value)}: expected a whole number from 1")
    return int(number)


def _invalid(path: Path, problem: str) -> UserError:
    return UserError(
        "data_yaml", f"{path}: {problem}", f"fix it, or read without it: data_yaml={NONE}"
    )


def _keypoints(document: dict[Any, Any]) -> int:
    """Numbers after the box, of ``kpt_shape: [points, numbers of each]``."""
    shape = document.get("kpt_shape")
    if isinstance(shape, list) and len(shape) == 2 and all(type(each) is int for each in shape):
        return max(0, shape[0]) * max(0, shape[1])
    return 0


def _read_darknet(path: Path, name: str) -> Description | None:
    """Read ``obj.data``: lines ``key = value``."""
    values = {}
    for line in texts.read_lines(path):
        key, equals, value = line.partition("#")[0].partition("=")
        if equals:
            values[key.strip().lower()] = value.strip()
    entries = {SPLITS[key]: [value] for key, value in values.items() if key in SPLITS and value}
    names: list[str] = []
    if file := values.get("names"):
        folders = [path.parent, path.parent.parent]
        parts = PurePosixPath(file.replace("\\", "/"))
        tried = [folder / parts for folder in folders] + [path.parent / parts.name]
        if not texts.name_problem(file):
            found = next((each for each in tried if each.is_file()), None)
            names = _read_names(found) if found else []
    word = values.get("classes") or None
    count = _count(path, "classes", word if word is None else texts.parse_number(word) or word)
    return Description(name, names, "", entries, count=count)


def _read_names(path: Path) -> list[str]:
    """The names in the lines of a file; only blank lines at its end count for no class."""
    try:
        names = [line.strip() for line in texts.read_lines(path)]
    except BadText as error:
        raise UserError("labels", f"{path}: {error}") from None
    while names and not names[-1]:
        names.pop()
    if "" in names:
        blank = names.index("")
        raise UserError(
            "labels",
            f"{path}: line {blank + 1} is blank, that of class {blank}",
            "name the class, or remove the line if it is none",
        )
    return names


def _compare_names(found: Sequence[tuple[str, list[str]]]) -> None:
    for file, names in found[1:]:
        first, expected = found[0]
        if names == expected:
            continue
        differ = next(
            (n for n, pair in enumerate(zip(expected, names, strict=False)) if pair[0] != pair[1]),
            min(len(names), len(expected)),
        )
        one, other = (
            repr(each[differ]) if differ < len(each) else "not named" for each in (expected, names)
        )
        raise UserError(
            "data_yaml",
            f"class {differ} is {one} in {first}, and {other} in {file}",
            f"fix or remove one of them, or choose {_choices(first, file)}"
            if is_description(first)
            else "fix or remove one of them",
        )


def _choices(*files: str) -> str:
    words = [file if is_description(file) else NONE for file in files]
    return " or ".join(f"data_yaml={word}" for word in dict.fromkeys(words))


def _describe_entries(description: Description) -> str:
    entries = description.entries
    flat = [entry for paths in entries.values() for entry in paths]
    if all(entry.lower().endswith(".txt") for entry in flat):
        return f"{and_join(flat)} of {description.file}"
    splits = ", ".join(f"{split}: {and_join(paths)}" for split, paths in entries.items())
    return f"{description.file} ({splits})"
