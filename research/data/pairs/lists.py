"""Readers of preference labels: the official pair lists and the table of votes."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from research.data.index import Entry
from research.data.texts import BadText, parse_number, read_lines
from research.utils.errors import UserError

COLUMNS = ("series", "photo1", "photo2", "preference", "rank1", "rank2")
VOTE_COLUMNS = ("series_id", "compareID1", "compareID2", "LEFT", "RIGHT")
LISTS = {"train": "train_pairlist.txt", "val": "val_pairlist.txt"}
"""File name of the pair list of each split."""
PHOTO_FOLDERS = ("train_val/train_val_imgs", "train_val_imgs", "train_val", ".")
"""Folders below the root that may contain the photos."""
PHOTO_NAME = re.compile(r"(\d+)-(\d+)\.\w+")
TIE = 0.5
DECIMALS: Final = 6
"""Decimals of preferences; smaller differences are rounding errors of single precision."""


class PairRow(NamedTuple):
    """One row of a pair list or of the table of votes.

    Attributes:
        location: file and row, for messages.
        series: number of the series.
        first: number of a photo in the series, from 1.
        second: number of another photo in the series.
        preference: fraction of the votes for the first photo, in 0…1.
        votes: number of votes; 0 in pair lists, which do not contain it.
        ranks: ranks of the two photos in their series, 1 is best; ``None`` for the table of votes.
    """

    location: str
    series: int
    first: int
    second: int
    preference: float
    votes: int
    ranks: tuple[float, float] | None

    @property
    def pair(self) -> tuple[int, int, int]:
        """(series, lower photo, higher photo): the same for both orders of the photos."""
        return self.series, min(self.first, self.second), max(self.first, self.second)

    @property
    def photos(self) -> tuple[int, int]:
        return self.first, self.second

    @property
    def preference_of_lower(self) -> float:
        """Fraction of the votes for the photo with the lower number, in 0…1."""
        return self.preference if self.first < self.second else 1 - self.preference

    @property
    def agreement(self) -> float:
        """Fraction of the votes for the winner, in 0.5…1; the same whichever photo it is."""
        return round(max(self.preference, 1 - self.preference), DECIMALS)


@dataclass(frozen=True)
class Pair:
    """Two photos that were compared.

    The fingerprint of the data set hashes the ``repr``: renaming a field changes it.

    Attributes:
        series: index of the series.
        first: index of a photo.
        second: index of another photo.
        preference: fraction of the votes for the first photo, in 0…1.
        weight: number of votes; 1 if it is unknown.
    """

    series: int
    first: int
    second: int
    preference: float
    weight: float


@dataclass(frozen=True)
class PairSet:
    """Pairs of one split, as indices into ``photos`` and ``series``, which all splits share.

    Attributes:
        photos: photo files.
        pairs: pairs of the split.
        series: names of the series.
    """

    photos: Sequence[Path]
    pairs: Sequence[Pair]
    series: Sequence[str]

    def __len__(self) -> int:
        return len(self.pairs)


def series_name(number: int) -> str:
    return f"{number:06d}"


def find_pair_lists(root: Path) -> dict[str, Path]:
    """Pair lists of a folder or of its ``train_val``, by split; empty if there are none."""
    for folder in (root / "train_val", root):
        files = {split: folder / name for split, name in LISTS.items()}
        if files["train"].is_file():
            return {split: file for split, file in files.items() if file.is_file()}
    return {}


def read_pair_list(file: Path) -> list[PairRow]:
    """Read a pair list: ``series photo1 photo2 preference rank1 rank2``, separated by whitespace.

    Raises:
        UserError: for an unreadable or empty file, or an invalid row.
    """
    lines = [(number, line.split()) for number, line in enumerate(_read_lines(file, "labels"), 1)]
    rows = [_parse_row(f"{file} row {number}", cells) for number, cells in lines if cells]
    if not rows:
        raise UserError("labels", f"{file}: contains no pairs", f"a row is {' '.join(COLUMNS)}")
    invalid = next((row for row in rows if not 0 <= row.preference <= 1), None)
    if invalid is not None:
        integers = all(row.preference.is_integer() for row in rows)
        raise UserError(
            "labels",
            f"{invalid.location}: preference {invalid.preference:g} is not in 0…1",
            "whole numbers are probably ranks: use column 4 of the official lists, the fraction "
            "of votes for photo1"
            if integers
            else "use the fraction of votes for photo1",
        )
    return rows


def read_votes(file: Path) -> list[PairRow]:
    """Read the table of votes (CSV), which numbers photos from 0.

    Raises:
        UserError: for an unreadable or empty file, missing columns, or an invalid row.
    """
    reader = csv.DictReader(_read_lines(file, "dataset.votes_file"))
    missing = [name for name in VOTE_COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise UserError(
            "labels",
            f"{file} row 1: no column {', '.join(missing)}",
            f"a table of votes has {', '.join(VOTE_COLUMNS)}",
        )
    try:
        rows = [_parse_votes(f"{file} row {reader.line_num}", cells) for cells in reader]
    except csv.Error as error:
        raise UserError("labels", f"{file} row {reader.line_num}: {error}", "fix it") from None
    if not rows:
        raise UserError(
            "labels", f"{file}: contains no votes", f"a row is {', '.join(VOTE_COLUMNS)}"
        )
    return rows


def pool_rows(rows: Iterable[PairRow]) -> list[PairRow]:
    """Merge the rows of each pair into one, in the photo order of its first row.

    Votes are summed over both orders and repeats. Rows without votes are averaged.
    """
    groups: dict[tuple[int, int, int], list[PairRow]] = {}
    for row in rows:
        groups.setdefault(row.pair, []).append(row)
    return [_pool(group) for group in groups.values()]


def photo_names(root: Path, index: Mapping[str, Entry]) -> dict[tuple[int, int], str]:
    """File name of each photo, by (series, photo).

    Args:
        root: folder of the index.
        index: see ``index_folder``.

    Raises:
        UserError: if two files are the same photo.
    """
    names: dict[tuple[int, int], str] = {}
    for name in index:
        match = PHOTO_NAME.fullmatch(Path(name).name)
        if match is None:
            continue
        photo = int(match[1]), int(match[2])
        if photo in names:
            raise UserError(
                "dataset.root",
                f"{root}: {names[photo]} and {name} are both photo {photo[1]} of series "
                f"{series_name(photo[0])}",
                "remove one of them",
            )
        names[photo] = name
    return names


def find_photo_folder(root: Path) -> Path:
    """The folder of ``SSSSSS-PP.JPG`` files.

    Raises:
        UserError: if there is none.
    """
    for folder in (root / name for name in PHOTO_FOLDERS):
        if folder.is_dir() and any(PHOTO_NAME.fullmatch(file.name) for file in folder.iterdir()):
            return folder
    raise UserError(
        "dataset.root",
        f"dataset.root: {root} contains no photos SSSSSS-PP.JPG in train_val/train_val_imgs/",
        "set the folder of PhotoTriage",
    )


def _parse_row(location: str, cells: Sequence[str]) -> PairRow:
    if len(cells) != len(COLUMNS):
        raise UserError(
            "labels", f"{location}: {len(cells)} columns", f"expected {' '.join(COLUMNS)}"
        )
    numbers = _parse_numbers(location, COLUMNS, cells)
    series, first, second = _integers(location, COLUMNS[:3], numbers[:3])
    preference, rank1, rank2 = numbers[3:]
    if not first or not second:
        raise UserError("labels", f"{location}: a photo is 0", "photos are numbered from 1")
    _check_different(location, first, second)
    return PairRow(location, series, first, second, preference, 0, (rank1, rank2))


def _parse_votes(location: str, cells: Mapping[str, str]) -> PairRow:
    numbers = _parse_numbers(location, VOTE_COLUMNS, [cells[name] or "" for name in VOTE_COLUMNS])
    series, id1, id2, left, right = _integers(location, VOTE_COLUMNS, numbers)
    first, second = id1 + 1, id2 + 1
    for column, photo in (("compareFile1", first), ("compareFile2", second)):
        match = PHOTO_NAME.fullmatch(cells.get(column) or "")
        if match is not None and (int(match[1]), int(match[2])) != (series, photo):
            raise UserError(
                "labels",
                f"{location}: {column}={cells[column]}, but its numbers are photo {photo} of "
                f"series {series}",
                "fix one of them",
            )
    _check_different(location, first, second)
    votes = left + right
    return PairRow(location, series, first, second, left / votes if votes else TIE, votes, None)


def _pool(group: Sequence[PairRow]) -> PairRow:
    first = group[0]
    if len(group) == 1:
        return first
    votes = sum(row.votes for row in group)
    weights = [row.votes if votes else 1 for row in group]
    total = sum(
        (row.preference if row.first == first.first else 1 - row.preference) * weight
        for row, weight in zip(group, weights, strict=True)
    )
    preference = total / sum(weights)
    if round(preference, DECIMALS) == TIE:  # 0:1 and 10:9 are no win by a rounding error
        preference = TIE
    return first._replace(preference=preference, votes=votes)


def _parse_numbers(location: str, names: Sequence[str], cells: Sequence[str]) -> list[float]:
    values = []
    for name, cell in zip(names, cells, strict=True):
        value = parse_number(cell)
        if value is None:
            raise UserError("labels", f"{location}: {name} is {cell!r}", "expected a number")
        values.append(value)
    return values


def _integers(location: str, names: Sequence[str], values: Sequence[float]) -> list[int]:
    for name, value in zip(names, values, strict=True):
        if not value.is_integer() or not 0 <= value < 2**53:
            raise UserError("labels", f"{location}: {name} is {value:g}", "expected a whole number")
    return [int(value) for value in values]


def _check_different(location: str, first: int, second: int) -> None:
    if first == second:
        raise UserError(
            "labels", f"{location}: photo {first} is compared with itself", "remove the row"
        )


def _read_lines(file: Path, key: str) -> list[str]:
    try:
        return read_lines(file)
    except BadText as error:
        raise UserError(key, f"{file}: {error}") from None
