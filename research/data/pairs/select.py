"""Which rows of the lists become pairs, and in which split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from research.data.folds import fold_splits
from research.data.pairs.audit import Lost, leaks
from research.data.pairs.lists import TIE, Pair, PairSet, Row, pooled, series_name
from research.data.warehouse.plan import assign_splits
from research.utils.errors import UserError


@dataclass(frozen=True)
class Rules:
    """What is asked of a pair.

    Attributes:
        ties: ``drop``, or ``soft``: kept with a preference of one half.
        min_agreement: 0…1, share of the votes for the winner.
        min_reviewers: votes.
        val_fraction: share of the series drawn for validation, where there is no list of it.
        test_fraction: the same for testing, out of the training list; 0 for none.
        split_seed: of these draws.
        folds: deal the series into so many parts instead; null: the splits above.
        fold: this part is the test split, the next one validation.
        quick: share of the series of each split that is kept; null: all.
    """

    ties: str
    min_agreement: float
    min_reviewers: int
    val_fraction: float
    test_fraction: float
    split_seed: int
    folds: int | None
    fold: int
    quick: float | None


@dataclass
class Selected:
    """Rows by split, and how many fell to which rule, likewise.

    Attributes:
        rows: one a pair.
        left_out: by kind.
        read: pairs before anything was left out.
    """

    rows: dict[str, list[Row]] = field(default_factory=dict)
    left_out: dict[str, Counter[str]] = field(default_factory=dict)
    read: Counter[str] = field(default_factory=Counter)


def select(lists: Mapping[str, Sequence[Row]], rules: Rules) -> Selected:
    """Splits by series, then what is asked of a pair.

    A series' split depends on the lists and on how they are to be split, not on what is asked of
    a pair.

    Args:
        lists: rows of ``train`` and perhaps ``val``; of ``train`` alone for folds.
        rules: the user's.

    Raises:
        UserError: when the shares leave nothing to train on, or for more folds than series.
    """
    leaking = leaks(lists)
    pairs = {name: pooled(rows) for name, rows in lists.items()}
    splits = _splits(pairs, rules)
    kept = _quick(splits, rules)
    found = Selected()
    for name, rows in pairs.items():
        for row in rows:
            split = splits[series_name(row.series)]
            if series_name(row.series) not in kept:
                continue
            reason = "leaking_series" if name == "train" and row.series in leaking else ""
            split = name if reason else split
            reason = reason or _reason(row, rules)
            found.read[split] += 1
            found.left_out.setdefault(split, Counter())
            found.rows.setdefault(split, [])
            if reason:
                found.left_out[split][reason] += 1
            else:
                found.rows[split].append(row)
    return found


def placed(
    root: Path,
    rows: Mapping[str, Iterable[Row]],
    files: Mapping[tuple[int, int], Path],
    damaged: Mapping[Path, str],
    left_out: Mapping[str, Counter[str]],
) -> tuple[dict[str, PairSet], Lost]:
    """Rows as pairs of files.

    Args:
        root: the data set's folder.
        rows: by split.
        files: by series and number of the photo.
        damaged: files that cannot be opened, and why.
        left_out: pairs by split and kind; those are added whose photo is missing or damaged.

    Returns:
        Pairs by split, and what they lack.
    """
    lost = Lost([], {})
    whole: dict[str, list[Row]] = {}
    series_with_photos = {series for series, _ in files}
    for split, part in rows.items():
        whole[split] = []
        for row in part:
            photos = [(row.series, number) for number in (row.first, row.second)]
            gone = [photo for photo in photos if photo not in files]
            bad = [files[p] for p in photos if p in files and files[p] in damaged]
            lost.damaged.update((file, damaged[file]) for file in bad)
            if gone:
                lost.absent.extend((row, number) for _, number in gone)
                known = row.series in series_with_photos
                left_out[split]["missing_image" if known else "unknown_series"] += 1
            elif bad:
                left_out[split][damaged[bad[0]]] += 1
            else:
                whole[split].append(row)
    every = [row for part in whole.values() for row in part]
    numbers = sorted({row.series for row in every})
    used = sorted({(row.series, number) for row in every for number in (row.first, row.second)})
    photo_at = {photo: index for index, photo in enumerate(used)}
    series_at = {number: index for index, number in enumerate(numbers)}
    shared = [files[photo] for photo in used], [series_name(number) for number in numbers]
    splits = {
        split: PairSet(
            root,
            shared[0],
            [
                Pair(
                    series_at[row.series],
                    photo_at[row.series, row.first],
                    photo_at[row.series, row.second],
                    row.preference,
                    float(row.votes or 1),
                )
                for row in part
            ],
            shared[1],
        )
        for split, part in whole.items()
    }
    return splits, lost


def without(part: PairSet, damaged: Mapping[Path, str], left_out: Counter[str]) -> PairSet:
    """The pairs whose photos are whole; the others are counted in ``left_out``."""
    kept = []
    for pair in part.pairs:
        both = part.photos[pair.first], part.photos[pair.second]
        kinds = [damaged[photo] for photo in both if photo in damaged]
        if kinds:
            left_out[kinds[0]] += 1
        else:
            kept.append(pair)
    return replace(part, pairs=kept)


def thinned(part: PairSet, limit: int | None) -> PairSet:
    """At most so many of the pairs, evenly spaced."""
    if limit is None or limit >= len(part.pairs):
        return part
    places = np.linspace(0, len(part.pairs) - 1, limit).round().astype(int)
    return replace(part, pairs=[part.pairs[place] for place in places])


def hold(splits: Mapping[str, PairSet], chosen: Selected, root: Path) -> None:
    """Refuse a data set with nothing to train on, or nothing to judge by.

    Raises:
        UserError: for a split without a pair, with what became of them.
    """
    for split in ("train", "val", *splits):
        if split in splits and splits[split].pairs:
            continue
        counts = sorted(chosen.left_out.get(split, {}).items())
        if not counts:
            raise UserError(
                "dataset",
                f"{root}: no pair in the {split} split",
                f"add some to its list, or give a larger dataset.{split}_fraction",
            )
        kinds = ", ".join(f"{count} {kind}" for kind, count in counts)
        raise UserError(
            "dataset",
            f"{root}: none of {chosen.read[split]} pairs is left in the {split} split ({kinds})",
            "lower dataset.min_agreement and min_reviewers, or mend the files",
        )


def _splits(pairs: Mapping[str, Sequence[Row]], rules: Rules) -> dict[str, str]:
    """The split of each series, by its name."""
    sizes = Counter(series_name(row.series) for rows in pairs.values() for row in rows)
    if rules.folds is not None:
        return fold_splits(sizes, rules.folds, rules.fold, "series")
    own = {series_name(row.series): "val" for row in pairs.get("val", ())}
    try:
        return assign_splits(
            sizes,
            own,
            val=rules.val_fraction,
            test=rules.test_fraction,
            seed=rules.split_seed,
            named={},
        )
    except UserError:
        raise UserError(
            "dataset.val_fraction",
            f"validation and testing leave none of {len(sizes)} series for training",
            "give smaller dataset.val_fraction and test_fraction",
        ) from None


def _quick(splits: Mapping[str, str], rules: Rules) -> set[str]:
    """Series that a quick experiment keeps: the first of a drawn order, at least one a split."""
    if rules.quick is None:
        return set(splits)
    kept: set[str] = set()
    for number, split in enumerate(("train", "val", "test")):
        names = sorted(name for name, where in splits.items() if where == split)
        order = np.random.default_rng((rules.split_seed, 4, number)).permutation(len(names))
        count = max(1, round(len(names) * rules.quick))
        kept.update(names[place] for place in order[:count])
    return kept


def _reason(row: Row, rules: Rules) -> str:
    """Why a pair is left out, or ''."""
    if rules.min_reviewers > row.votes:
        return "few_reviewers"
    if row.preference == TIE and rules.ties == "drop":
        return "tie"
    return "low_agreement" if row.agreement < rules.min_agreement else ""
