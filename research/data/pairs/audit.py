"""Checks of preference labels and photos before training.

Labels that belong to other photos raise no error: the loss falls, and validation accuracy stays at
chance. The audit therefore compares labels with each other, with the ranks in the same list, and
with the sharpness of the photos, since the sharper of two photos tends to be preferred.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from research.data.pairs.lists import (
    LISTS,
    TIE,
    PairRow,
    PairSet,
    find_pair_lists,
    pool_rows,
    read_pair_list,
    read_votes,
    series_name,
)
from research.data.pairs.sharpness import sharper_wins
from research.utils.errors import UserError

CONFIDENT: Final = 0.7
"""Fraction of the votes from which the winner of a pair counts as clear."""
MIN_PAIRS: Final = 50
"""Fewer pairs are not tested against chance."""
SIGNIFICANCE: Final = 0.01
MAX_RANK_FAULTS: Final = 0.1
"""Fraction of the rows whose preference may contradict the ranks; votes and ranks do differ."""
MAX_POSITION_BIAS: Final = 0.6
"""Fraction of the pairs that one position may win."""
MAX_SAMPLE: Final = 600
"""Pairs whose sharpness is measured."""


@dataclass
class Audit:
    """Findings.

    Attributes:
        numbers: counts, and fractions in 0…1, by name.
        warnings: one line each.
    """

    numbers: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """The nonzero numbers in one line."""
        nonzero = ((name.replace("_", " "), value) for name, value in self.numbers.items() if value)
        return ", ".join(f"{name} {value:.4g}" for name, value in nonzero)


def read_labels(
    labels: str,
    root: Path,
    votes_file: Path | None,
    min_reviewers: int,
    merge_lists: bool,
    audit: Audit,
) -> dict[str, list[PairRow]]:
    """Read and audit the labels of a data set.

    Args:
        labels: ``pairs`` or ``votes``.
        root: folder of the data set; votes are compared with its pair lists, if there are any.
        votes_file: table of votes.
        min_reviewers: minimum number of votes of a pair.
        merge_lists: merge all lists into one training list, for folds.
        audit: findings are added to it.

    Returns:
        rows by list (``train``, ``val``); votes are all in ``train``.

    Raises:
        UserError: for a missing setting, or a file that cannot be read.
    """
    files = find_pair_lists(root)
    if labels == "votes":
        if votes_file is None:
            raise UserError(
                "dataset.votes_file",
                "dataset.labels=votes needs the table of votes",
                "set dataset.votes_file=FILE.csv",
            )
        lists = {"train": read_votes(votes_file)}
        listed = [row for file in files.values() for row in read_pair_list(file)]
        audit_votes(pool_rows(lists["train"]), listed, audit)
    else:
        if min_reviewers:
            raise UserError(
                "dataset.min_reviewers",
                f"dataset.min_reviewers={min_reviewers}: pair lists contain no numbers of votes",
                "set it to 0, or set dataset.labels=votes dataset.votes_file=FILE.csv",
            )
        if not files:
            raise UserError(
                "dataset.root",
                f"dataset.root: {root} contains no {LISTS['train']}, nor does its train_val/",
                "set the folder of PhotoTriage, or dataset.labels=votes "
                "dataset.votes_file=FILE.csv",
            )
        lists = {split: read_pair_list(file) for split, file in files.items()}
    if merge_lists:
        lists = {"train": [row for rows in lists.values() for row in rows]}
    audit_rows(lists, audit)
    return lists


def audit_rows(lists: Mapping[str, Sequence[PairRow]], audit: Audit) -> None:
    """Compare labels with each other.

    Args:
        lists: rows by list, as read.
        audit: findings are added to it.
    """
    rows = [row for part in lists.values() for row in part]
    audit.numbers["rows"] = len(rows)
    audit.numbers["ties"] = sum(row.preference == TIE for row in rows)
    _audit_repeats(rows, audit)
    _audit_ranks(rows, audit)
    _audit_positions(rows, audit)
    leaking = leaking_series(lists)
    audit.numbers["leaking_series"] = len(leaking)
    if leaking:
        audit.warnings.append(
            f"{len(leaking)} series are in both lists, the first is {series_name(min(leaking))}; "
            "their rows of the training list are left out, because validation would not be on new "
            "photos"
        )


def leaking_series(lists: Mapping[str, Iterable[PairRow]]) -> set[int]:
    """Series that are in more than one list."""
    groups = [{row.series for row in part} for part in lists.values()]
    return {number for number in set().union(*groups) if sum(number in g for g in groups) > 1}


class MissingFiles(NamedTuple):
    """Photos of pairs that cannot be used.

    Attributes:
        absent: rows, and the number of the photo that does not exist.
        damaged: unreadable files, with the kind of damage.
    """

    absent: list[tuple[PairRow, int]]
    damaged: dict[Path, str]


def audit_photos(missing: MissingFiles, known: set[int], audit: Audit) -> None:
    """Report photos that are missing or damaged.

    Args:
        missing: photos of pairs that cannot be used.
        known: series that have photos.
        audit: findings are added to it.
    """
    unknown = [row for row, _ in missing.absent if row.series not in known]
    series = {row.series for row in unknown}
    absent = [(row, photo) for row, photo in missing.absent if row.series in known]
    photos = {(row.series, photo) for row, photo in absent}
    audit.numbers["unknown_series"] = len(series)
    audit.numbers["missing_images"] = len(photos)
    audit.numbers["damaged_images"] = len(missing.damaged)
    if unknown:
        audit.warnings.append(
            f"{unknown[0].location}: series {series_name(unknown[0].series)} has no photo"
            f"{_and_more(len(series), 'series')}; its pairs are left out; add the photos"
        )
    if absent:
        row, photo = absent[0]
        audit.warnings.append(
            f"{row.location}: no file {series_name(row.series)}-{photo:02d}"
            f"{_and_more(len(photos), 'photos')}; its pairs are left out; add it, or remove the row"
        )
    if missing.damaged:
        file, kind = next(iter(missing.damaged.items()))
        audit.warnings.append(
            f"{file}: {kind}, cannot be read{_and_more(len(missing.damaged), 'photos')}; its pairs "
            "are left out; replace it"
        )


def audit_votes(votes: Sequence[PairRow], listed: Sequence[PairRow], audit: Audit) -> None:
    """Compare a table of votes with the pair lists of the same series.

    Args:
        votes: pooled rows of the table.
        listed: rows of the pair lists.
        audit: findings are added to it.
    """
    leads = {row.pair: row.preference_of_lower - TIE for row in listed}
    both = [(row.preference_of_lower - TIE, leads[row.pair]) for row in votes if row.pair in leads]
    agree = [vote * lead > 0 for vote, lead in both if vote and lead]
    if len(agree) < MIN_PAIRS:
        return
    audit.numbers["votes_like_lists"] = fraction = sum(agree) / len(agree)
    if not _above_chance(sum(agree), len(agree)):
        audit.warnings.append(
            f"of {len(agree)} pairs that are in the table of votes and in the pair lists, only "
            f"{fraction:.1%} have the same winner: the table numbers the photos in another order "
            "than the files; use dataset.labels=pairs"
        )


def audit_sharpness(pair_set: PairSet, cache: Path, seed: int, audit: Audit) -> None:
    """Test whether the sharper photo of a clear pair wins more often than by chance.

    Args:
        pair_set: pairs of all splits.
        cache: cache folder for measured sharpness.
        seed: seed of the sample.
        audit: findings are added to it.
    """
    clear = [p for p in pair_set.pairs if max(p.preference, 1 - p.preference) >= CONFIDENT]
    audit.numbers["confident_pairs"] = len(clear)
    if len(clear) > MAX_SAMPLE:
        order = np.random.default_rng((seed, 5)).permutation(len(clear))[:MAX_SAMPLE]
        clear = [clear[index] for index in sorted(order)]
    if len(clear) < MIN_PAIRS:
        return
    wins, compared = sharper_wins(pair_set.photos, clear, cache)
    if compared < MIN_PAIRS:
        return
    audit.numbers["sharper_wins"] = fraction = wins / compared
    if _above_chance(wins, compared):
        return
    if _above_chance(compared - wins, compared):
        audit.warnings.append(
            f"the sharper photo loses {1 - fraction:.1%} of {compared} clear pairs: the preference "
            "may be that of the second photo; it must be that of the first"
        )
        return
    audit.warnings.append(
        f"the sharper photo wins {fraction:.1%} of {compared} clear pairs, which is chance: the "
        "labels may not belong to these photos; look at some pairs, and check how files are "
        "numbered"
    )


def _audit_repeats(rows: Sequence[PairRow], audit: Audit) -> None:
    groups: dict[tuple[int, int, int], list[PairRow]] = {}
    for row in rows:
        groups.setdefault(row.pair, []).append(row)
    repeated = [group for group in groups.values() if len(group) > 1]
    contradicting = [
        group for group in repeated if len({_winner(row) for row in group if _winner(row)}) > 1
    ]
    audit.numbers["pairs"] = len(groups)
    audit.numbers["repeated_pairs"] = len(repeated)
    audit.numbers["contradicting_pairs"] = len(contradicting)
    if contradicting:
        one = contradicting[0][0]
        two = next(row for row in contradicting[0] if _winner(row) not in (0, _winner(one)))
        audit.warnings.append(
            f"{len(contradicting)} of {len(repeated)} pairs that are listed more than once "
            f"contradict themselves (the first: {one.location} and "
            f"{two.location.rpartition(' row ')[2]}); their votes are pooled"
        )


def _audit_ranks(rows: Sequence[PairRow], audit: Audit) -> None:
    ranked = [(r, r.ranks[1] - r.ranks[0]) for r in rows if r.ranks and r.preference != TIE]
    ranked = [(row, lead) for row, lead in ranked if lead]
    faults = [row for row, lead in ranked if (row.preference > TIE) != (lead > 0)]
    audit.numbers["rank_faults"] = len(faults)
    if faults and len(faults) > MAX_RANK_FAULTS * len(ranked):
        audit.warnings.append(
            f"{faults[0].location}: the preferred photo has the worse rank, as in {len(faults)} of "
            f"{len(ranked)} rows: column 4 may not be the preference, but computed from the ranks"
        )


def _audit_positions(rows: Sequence[PairRow], audit: Audit) -> None:
    first_wins = [row.preference > TIE for row in rows if row.preference != TIE]
    if not first_wins:
        return
    audit.numbers["first_wins"] = fraction = sum(first_wins) / len(first_wins)
    if len(first_wins) >= MIN_PAIRS and not 1 - MAX_POSITION_BIAS <= fraction <= MAX_POSITION_BIAS:
        position = "first" if fraction > TIE else "second"
        audit.warnings.append(
            f"the {position} photo is preferred in {max(fraction, 1 - fraction):.1%} of the rows, "
            f"so that always predicting {position} is a strong baseline; if the order of the "
            "photos is random, column 4 is not the preference"
        )


def _winner(row: PairRow) -> int:
    """1 if the photo with the lower number wins, -1 if the other does, 0 for a tie."""
    lead = row.preference_of_lower - TIE
    return (lead > 0) - (lead < 0)


def _above_chance(wins: float, compared: int) -> bool:
    """True if a fair coin would hardly win this often."""
    from scipy.stats import binomtest

    wins = math.floor(wins)
    return 2 * wins > compared and binomtest(wins, compared).pvalue <= SIGNIFICANCE


def _and_more(count: int, what: str) -> str:
    return f" (and {count - 1} more {what})" if count > 1 else ""
