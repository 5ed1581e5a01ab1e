"""Selection of pairs from the lists, and their splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from research.data.folds import fold_splits
from research.data.pairs.audit import MissingFiles, leaking_series
from research.data.pairs.lists import (
    DECIMALS,
    TIE,
    Pair,
    PairRow,
    PairSet,
    pool_rows,
    series_name,
)
from research.data.splits import evenly_spaced
from research.data.warehouse.plan import assign_splits
from research.utils.counts import by_kind
from research.utils.errors import UserError

REMEDIES = {
    "few_reviewers": ("dataset.min_reviewers", "lower dataset.min_reviewers"),
    "low_agreement": ("dataset.min_agreement", "lower dataset.min_agreement"),
    "tie": ("dataset.ties", "set dataset.ties=soft"),
}
"""Configuration key and hint for each filter that skips pairs."""


@dataclass(frozen=True)
class SplitConfig:
    """Filters and splits of pairs.

    Attributes:
        ties: ``drop``, or ``soft``: keep ties with a preference of 0.5.
        min_agreement: minimum fraction of the votes for the winner, in 0…1.
        min_reviewers: minimum number of votes.
        val_fraction: fraction of the series for validation, if there is no validation list.
        test_fraction: fraction of the series for testing, from the training list; 0 for none.
        split_seed: seed of these draws.
        folds: number of folds that the series are divided into; ``None`` for the splits above.
        fold: this fold is the test split, the next one the validation split.
        quick: fraction of the series of each split that is used; ``None`` for all.
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
class PairSelection:
    """Selected rows, with counts of the skipped ones.

    Attributes:
        rows: split to rows, one for each pair.
        skipped: split to number of skipped pairs by reason.
        total: split to number of pairs before filtering.
    """

    rows: dict[str, list[PairRow]] = field(default_factory=dict)
    skipped: dict[str, Counter[str]] = field(default_factory=dict)
    total: Counter[str] = field(default_factory=Counter)


def select_pairs(lists: Mapping[str, Sequence[PairRow]], config: SplitConfig) -> PairSelection:
    """Split pairs by series, then filter them.

    The split of a series depends on the lists and the split settings, not on the filters.

    Args:
        lists: rows of ``train`` and perhaps ``val``; of ``train`` alone for folds.
        config: filters and splits.

    Raises:
        UserError: if no series is left for training, or there are more folds than series.
    """
    leaking = leaking_series(lists)
    pairs = {name: pool_rows(rows) for name, rows in lists.items()}
    splits = _split_series(pairs, config)
    used = _quick_series(splits, config)
    selection = PairSelection()
    for name, rows in pairs.items():
        for row in rows:
            series = series_name(row.series)
            if series not in used:
                continue
            leaks = name == "train" and row.series in leaking
            split = name if leaks else splits[series]
            reason = "leaking_series" if leaks else _skip_reason(row, config)
            selection.total[split] += 1
            selection.skipped.setdefault(split, Counter())
            selection.rows.setdefault(split, [])
            if reason:
                selection.skipped[split][reason] += 1
            else:
                selection.rows[split].append(row)
    return selection


def resolve_files(
    rows: Mapping[str, Iterable[PairRow]],
    files: Mapping[tuple[int, int], Path],
    damaged: Mapping[Path, str],
    skipped: Mapping[str, Counter[str]],
) -> tuple[dict[str, PairSet], MissingFiles]:
    """Replace the photo numbers of rows by files.

    Args:
        rows: rows by split.
        files: files by (series, photo).
        damaged: unreadable files, with the kind of damage.
        skipped: split to number of skipped pairs by reason; updated for missing or damaged photos.

    Returns:
        pairs by split, and the photos that cannot be used.
    """
    missing = MissingFiles([], {})
    usable: dict[str, list[PairRow]] = {}
    series_with_photos = {series for series, _ in files}
    for split, part in rows.items():
        usable[split] = []
        for row in part:
            photos = [(row.series, number) for number in row.photos]
            absent = [photo for photo in photos if photo not in files]
            bad = [files[p] for p in photos if p in files and files[p] in damaged]
            missing.damaged.update((file, damaged[file]) for file in bad)
            if absent:
                missing.absent.extend((row, number) for _, number in absent)
                known = row.series in series_with_photos
                skipped[split]["missing_image" if known else "unknown_series"] += 1
            elif bad:
                skipped[split][damaged[bad[0]]] += 1
            else:
                usable[split].append(row)
    remaining = [row for part in usable.values() for row in part]
    series = sorted({row.series for row in remaining})
    photos = sorted({(row.series, number) for row in remaining for number in row.photos})
    series_index = {number: index for index, number in enumerate(series)}
    photo_index = {photo: index for index, photo in enumerate(photos)}
    photo_files, series_names = [files[photo] for photo in photos], [*map(series_name, series)]

    def to_pair(row: PairRow) -> Pair:
        first, second = (photo_index[row.series, number] for number in row.photos)
        weight = float(row.votes or 1)
        return Pair(series_index[row.series], first, second, row.preference, weight)

    splits = {
        split: PairSet(photo_files, [to_pair(row) for row in part], series_names)
        for split, part in usable.items()
    }
    return splits, missing


def drop_damaged(pair_set: PairSet, damaged: Mapping[Path, str], skipped: Counter[str]) -> PairSet:
    """Drop the pairs with a damaged photo, and count them in ``skipped``."""
    intact = []
    for pair in pair_set.pairs:
        both = pair_set.photos[pair.first], pair_set.photos[pair.second]
        kinds = [damaged[photo] for photo in both if photo in damaged]
        if kinds:
            skipped[kinds[0]] += 1
        else:
            intact.append(pair)
    return replace(pair_set, pairs=intact)


def subsample(pair_set: PairSet, limit: int | None) -> PairSet:
    """At most ``limit`` of the pairs, evenly spaced."""
    indices = evenly_spaced(len(pair_set.pairs), limit)
    return replace(pair_set, pairs=[pair_set.pairs[index] for index in indices])


def require_nonempty(splits: Mapping[str, PairSet], selection: PairSelection, root: Path) -> None:
    """Check that every split has pairs, training and validation among them.

    Raises:
        UserError: for an empty split, with the number of skipped pairs by reason.
    """
    for split in ("train", "val", *splits):
        if split in splits and splits[split].pairs:
            continue
        skipped = selection.skipped.get(split)
        if not skipped:
            key = "dataset.root" if split == "train" else f"dataset.{split}_fraction"
            raise UserError(
                key,
                f"{root}: no pair in the {split} split",
                f"add pairs to its list{'' if split == 'train' else f', or raise {key}'}",
            )
        reason = skipped.most_common(1)[0][0]
        key, hint = REMEDIES.get(reason, ("dataset.root", "fix the lists or the photos"))
        raise UserError(
            key,
            f"{root}: none of {selection.total[split]} pairs is left in the {split} split "
            f"({by_kind(skipped)})",
            hint,
        )


def _split_series(pairs: Mapping[str, Sequence[PairRow]], config: SplitConfig) -> dict[str, str]:
    """The split of each series, by its name."""
    sizes = Counter(series_name(row.series) for rows in pairs.values() for row in rows)
    if config.folds is not None:
        return fold_splits(sizes, config.folds, config.fold, "series")
    own = {series_name(row.series): "val" for row in pairs.get("val", ())}
    try:
        return assign_splits(
            sizes,
            own,
            val=config.val_fraction,
            test=config.test_fraction,
            seed=config.split_seed,
            named={},
        )
    except UserError:
        raise UserError(
            "dataset.val_fraction",
            f"validation and test take all of {len(sizes)} series and leave none for training",
            "lower dataset.val_fraction or dataset.test_fraction",
        ) from None


def _quick_series(splits: Mapping[str, str], config: SplitConfig) -> set[str]:
    """Series of a quick experiment: a random subset of each split, at least one series."""
    if config.quick is None:
        return set(splits)
    used: set[str] = set()
    for number, split in enumerate(("train", "val", "test")):
        names = sorted(name for name, own in splits.items() if own == split)
        order = np.random.default_rng((config.split_seed, 4, number)).permutation(len(names))
        count = max(1, round(len(names) * config.quick))
        used.update(names[index] for index in order[:count])
    return used


def _skip_reason(row: PairRow, config: SplitConfig) -> str:
    """Why the filters skip a pair; empty if they keep it."""
    if config.min_reviewers > row.votes:
        return "few_reviewers"
    if row.ranks is None and not row.votes:  # 0.5 would be no tie of votes, but invented
        return "no_votes"
    if row.preference == TIE and config.ties == "drop":
        return "tie"
    return "low_agreement" if row.agreement < round(config.min_agreement, DECIMALS) else ""
