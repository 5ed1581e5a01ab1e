"""Who prefers which photo: the official pair lists, and the table of votes."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from research.data.index import Entry
from research.utils.errors import UserError

COLUMNS = "series photo1 photo2 preference rank1 rank2"
VOTE_COLUMNS = ("series_id", "compareID1", "compareID2", "LEFT", "RIGHT")
LISTS = {"train": "train_pairlist.txt", "val": "val_pairlist.txt"}
IMAGES = ("train_val/train_val_imgs", "train_val_imgs", "train_val", ".")
"""Where the photos may be, below the root."""
NAME = re.compile(r"(\d+)-(\d+)\.\w+")
TIE = 0.5


class Row(NamedTuple):
    """One line of a list.

    Attributes:
        where: file and line, for people.
        series: its number.
        first: number of a photo in the series, from 1.
        second: number of another.
        preference: 0…1, share of the votes for the first.
        votes: how many; 0 where the list does not tell.
        ranks: of the two in their series, 1 is best; null where the list does not tell.
    """

    where: str
    series: int
    first: int
    second: int
    preference: float
    votes: int
    ranks: tuple[float, float] | None

    @property
    def pair(self) -> tuple[int, int, int]:
        """Series and photos, in whichever order the row has them."""
        return self.series, min(self.first, self.second), max(self.first, self.second)

    @property
    def photos(self) -> tuple[int, int]:
        return self.first, self.second

    @property
    def preference_of_lower(self) -> float:
        """Of the photo with the lower number."""
        return self.preference if self.first < self.second else 1 - self.preference

    @property
    def agreement(self) -> float:
        """0.5…1, share of the votes for the winner."""
        return max(self.preference, 1 - self.preference)


@dataclass(frozen=True)
class Pair:
    """Two photos that were compared.

    Attributes:
        series: index of their series.
        first: index of a photo.
        second: index of another.
        preference: 0…1, share of the votes for the first.
        weight: how many votes; 1 where nobody knows.
    """

    series: int
    first: int
    second: int
    preference: float
    weight: float


@dataclass(frozen=True)
class PairSet:
    """Pairs of one split, by index into what all splits share.

    Attributes:
        root: the data set's folder.
        photos: files.
        pairs: of this split.
        series: names.
    """

    root: Path
    photos: Sequence[Path]
    pairs: Sequence[Pair]
    series: Sequence[str]


def series_name(number: int) -> str:
    return f"{number:06d}"


def has_lists(root: Path) -> bool:
    """True if there is a pair list to train on."""
    return any((folder / LISTS["train"]).is_file() for folder in (root / "train_val", root))


def find_lists(root: Path) -> dict[str, Path]:
    """The pair lists of a folder or of its ``train_val``, by split.

    Raises:
        UserError: when there is none to train on.
    """
    for folder in (root / "train_val", root):
        found = {split: folder / name for split, name in LISTS.items()}
        if found["train"].is_file():
            return {split: file for split, file in found.items() if file.is_file()}
    raise UserError(
        "dataset.root",
        f"dataset.root: {root} holds no {LISTS['train']}, nor does its train_val/",
        "give the folder of PhotoTriage, or dataset.labels=votes dataset.votes_file=FILE.csv",
    )


def read_list(file: Path) -> list[Row]:
    """Rows of a pair list: ``series photo1 photo2 preference rank1 rank2``, separated by blanks.

    Raises:
        UserError: for a row that is none.
    """
    lines = [(n, line.split()) for n, line in enumerate(_text(file).splitlines(), 1)]
    rows = [_row(f"{file} row {number}", cells) for number, cells in lines if cells]
    if not rows:
        raise UserError("labels", f"{file}: no pair in it", f"a row is {COLUMNS}")
    beyond = [row for row in rows if not 0 <= row.preference <= 1]
    if beyond:
        row = beyond[0]
        whole = all(row.preference.is_integer() for row in rows)
        hint = (
            "whole numbers there are most likely ranks; the share of votes is column 4 of the "
            "dataset's own lists"
            if whole
            else "give the share of votes for photo1"
        )
        raise UserError(
            "labels", f"{row.where}: preference {row.preference:g} is not in 0…1", f"{hint}"
        )
    return rows


def read_votes(file: Path) -> list[Row]:
    """Rows of the table of votes; photos are numbered from 0 in it.

    Raises:
        UserError: for columns that lack, or a row that makes no sense.
    """
    reader = csv.DictReader(_text(file).splitlines())
    missing = [name for name in VOTE_COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise UserError(
            "labels",
            f"{file} row 1: no column {', '.join(missing)}",
            f"a table of votes has {', '.join(VOTE_COLUMNS)}",
        )
    rows = [_vote(f"{file} row {reader.line_num}", cells) for cells in reader]
    if not rows:
        raise UserError("labels", f"{file}: no vote in it", f"a row is {', '.join(VOTE_COLUMNS)}")
    return rows


def pooled(rows: Iterable[Row]) -> list[Row]:
    """One row a pair, as the first one has it: votes of both orders and of repeats together.

    Where there are no votes, preferences are averaged. Rows whose votes are none stay as they are.
    """
    groups: dict[tuple[int, int, int], list[Row]] = {}
    for row in rows:
        groups.setdefault(row.pair, []).append(row)
    return [_pool(group) for group in groups.values()]


def photo_files(root: Path, index: Mapping[str, Entry]) -> dict[tuple[int, int], str]:
    """Names in an index by series and number of the photo.

    Args:
        root: of the index.
        index: see ``index_folder``.

    Raises:
        UserError: when two files are the same photo.
    """
    found: dict[tuple[int, int], str] = {}
    for name in index:
        match = NAME.fullmatch(Path(name).name)
        if match is None:
            continue
        photo = int(match[1]), int(match[2])
        if photo in found:
            raise UserError(
                "labels",
                f"{root}: {found[photo]} and {name} are both photo {photo[1]} of series "
                f"{series_name(photo[0])}",
                "keep one of them",
            )
        found[photo] = name
    return found


def image_folder(root: Path) -> Path:
    """The folder of ``SSSSSS-PP.JPG`` files.

    Raises:
        UserError: when there is none.
    """
    for folder in (root / name for name in IMAGES):
        if folder.is_dir() and any(NAME.fullmatch(file.name) for file in folder.iterdir()):
            return folder
    raise UserError(
        "dataset.root",
        f"dataset.root: {root} holds no photos SSSSSS-PP.JPG in train_val/train_val_imgs/",
        "give the folder of PhotoTriage",
    )


def _row(where: str, cells: Sequence[str]) -> Row:
    if len(cells) != len(COLUMNS.split()):
        raise UserError("labels", f"{where}: {len(cells)} columns", f"expected {COLUMNS}")
    names = COLUMNS.split()
    *numbers, preference, rank1, rank2 = _numbers(where, cells, names)
    series, first, second = (
        _whole(where, name, value) for name, value in zip(names[:3], numbers, strict=True)
    )
    if not first or not second:
        raise UserError("labels", f"{where}: a photo is 0", "photos are numbered from 1")
    _different(where, first, second)
    return Row(where, series, first, second, preference, 0, (rank1, rank2))


def _vote(where: str, cells: Mapping[str, str]) -> Row:
    numbers = _numbers(where, [cells[name] or "" for name in VOTE_COLUMNS], VOTE_COLUMNS)
    series, one, two, left, right = (
        _whole(where, name, value) for name, value in zip(VOTE_COLUMNS, numbers, strict=True)
    )
    first, second = one + 1, two + 1
    for key, number in (("compareFile1", first), ("compareFile2", second)):
        match = NAME.fullmatch(cells.get(key) or "")
        if match is not None and (int(match[1]), int(match[2])) != (series, number):
            raise UserError(
                "labels",
                f"{where}: {key}={cells[key]}, but the numbers say photo {number} of series "
                f"{series}",
                "one of them is wrong",
            )
    _different(where, first, second)
    votes = left + right
    return Row(where, series, first, second, left / votes if votes else TIE, votes, None)


def _pool(group: Sequence[Row]) -> Row:
    kept = group[0]
    if len(group) == 1:
        return kept
    shares = [row.preference if row.first == kept.first else 1 - row.preference for row in group]
    votes = sum(row.votes for row in group)
    weights = [row.votes if votes else 1 for row in group]
    preference = sum(map(float.__mul__, shares, map(float, weights))) / sum(weights)
    return kept._replace(preference=preference, votes=votes)


def _numbers(where: str, cells: Sequence[str], names: Sequence[str]) -> list[float]:
    return list(_each_number(where, cells, names))


def _each_number(where: str, cells: Sequence[str], names: Sequence[str]) -> Iterator[float]:
    for name, cell in zip(names, cells, strict=True):
        try:
            value = float(cell)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise UserError("labels", f"{where}: {name} is {cell!r}", "expected a number")
        yield value


def _whole(where: str, name: str, value: float) -> int:
    if not value.is_integer() or value < 0:
        raise UserError("labels", f"{where}: {name} is {value:g}", "expected a whole number")
    return int(value)


def _different(where: str, first: int, second: int) -> None:
    if first == second:
        raise UserError(
            "labels", f"{where}: photo {first} is compared with itself", "remove the row"
        )


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("labels", f"{file}: cannot be read ({error})", "give a text file") from None
