"""What is wrong with labels and photos before anything is trained on them.

A model learns as well from labels that belong to other photos, until it is tried: nothing fails,
and accuracy stays at chance. So labels are held against each other, against the ranks beside them,
and against what anybody sees in a photo: of two, the sharper one tends to be preferred.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from scipy.stats import binomtest

from research.data.index import ProgressCallback
from research.data.pairs.lists import (
    TIE,
    PairSet,
    Row,
    find_lists,
    has_lists,
    pooled,
    read_list,
    read_votes,
    series_name,
)
from research.data.pairs.sharpness import sharper_wins
from research.utils.errors import UserError

CONFIDENT: Final = 0.7
"""Share of the votes from which the winner of a pair counts as clear."""
LEAST: Final = 50
"""Pairs of which chance can be told from a tendency."""
SIGNIFICANT: Final = 0.01
MOST_RANK_FAULTS: Final = 0.1
"""Share of the rows that may prefer the photo of the lower rank: votes and ranks do differ."""
LOPSIDED: Final = 0.6
"""Share of the pairs that one place may win."""
SAMPLED: Final = 600
"""Pairs of which sharpness is measured."""


@dataclass
class Audit:
    """Findings.

    Attributes:
        numbers: for the record, whole numbers and shares in 0…1.
        warnings: one line each.
    """

    numbers: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """What a user should look at, one line each; empty when nothing is wrong."""
        return list(self.warnings)

    def summary(self) -> str:
        """The numbers that are not 0, in one line."""
        told = ((name.replace("_", " "), value) for name, value in self.numbers.items() if value)
        return ", ".join(f"{name} {value:.4g}" for name, value in told)


def audited(
    labels: str,
    root: Path,
    table: Path | None,
    min_reviewers: int,
    together: bool,
    audit: Audit,
) -> dict[str, list[Row]]:
    """Rows of a data set by list; those of a table of votes are all for training.

    Args:
        labels: ``pairs`` or ``votes``.
        root: the data set's folder; a table is held against its lists, if it has some.
        table: of votes.
        min_reviewers: that pairs must have.
        together: rows of all lists as one, of which no series can leak.
        audit: findings are added to it.

    Raises:
        UserError: for settings that lack something, or a file that is none.
    """
    if labels == "votes":
        if table is None:
            raise UserError(
                "dataset.labels",
                "dataset.labels=votes: give the table in dataset.votes_file=FILE.csv",
            )
        lists = {"train": read_votes(table)}
        if has_lists(root):
            listed = [row for file in find_lists(root).values() for row in read_list(file)]
            audit_votes(pooled(lists["train"]), listed, audit)
    else:
        if min_reviewers:
            raise UserError(
                "dataset.min_reviewers",
                f"dataset.min_reviewers={min_reviewers}: pair lists do not tell how many voted",
                "leave it out, or give dataset.labels=votes",
            )
        lists = {split: read_list(file) for split, file in find_lists(root).items()}
    if together:
        lists = {"train": [row for rows in lists.values() for row in rows]}
    audit_rows(lists, audit)
    return lists


def audit_rows(rows: Mapping[str, Sequence[Row]], audit: Audit) -> None:
    """Hold labels against each other.

    Args:
        rows: by the list that they stand in, as they were read.
        audit: findings are added to it.
    """
    every = [row for part in rows.values() for row in part]
    audit.numbers["rows"] = len(every)
    audit.numbers["ties"] = sum(row.preference == TIE for row in every)
    _repeats(every, audit)
    _ranks(every, audit)
    _places(every, audit)
    leaking = leaks(rows)
    audit.numbers["leaking_series"] = len(leaking)
    if leaking:
        audit.warnings.append(
            f"{len(leaking)} series are in both lists, {series_name(min(leaking))} first; their "
            "rows of the training list are left out, or validation would know the photos"
        )


def leaks(rows: Mapping[str, Iterable[Row]]) -> set[int]:
    """Series that more than one list has."""
    groups = [{row.series for row in part} for part in rows.values()]
    return {number for number in set().union(*groups) if sum(number in g for g in groups) > 1}


class Lost(NamedTuple):
    """Photos that pairs ask for in vain.

    Attributes:
        absent: rows and the number of the photo that they lack.
        damaged: files that cannot be opened, and why.
    """

    absent: list[tuple[Row, int]]
    damaged: dict[Path, str]


def audit_photos(lost: Lost, known: set[int], audit: Audit) -> None:
    """Tell of photos that are not there.

    Args:
        lost: what pairs lack.
        known: series of which there are photos.
        audit: findings are added to it.
    """
    absent, unread = lost
    strange = [row for row, _ in absent if row.series not in known]
    series = {row.series for row in strange}
    missing = [(row, photo) for row, photo in absent if row.series in known]
    photos = {(row.series, photo) for row, photo in missing}
    audit.numbers["unknown_series"] = len(series)
    audit.numbers["missing_images"] = len(photos)
    audit.numbers["damaged_images"] = len(unread)
    if strange:
        audit.warnings.append(
            f"{strange[0].where}: series {series_name(strange[0].series)} has no photo"
            f"{_more(len(series), 'series')}; its pairs are left out; add the photos"
        )
    if missing:
        row, photo = missing[0]
        audit.warnings.append(
            f"{row.where}: no file {series_name(row.series)}-{photo:02d}"
            f"{_more(len(photos), 'photos')}; its pairs are left out; add it, or remove the row"
        )
    if unread:
        name, kind = next(iter(unread.items()))
        audit.warnings.append(
            f"{name}: {kind}, cannot be read{_more(len(unread), 'photos')}; its pairs are left "
            "out; replace it"
        )


def audit_votes(votes: Sequence[Row], listed: Sequence[Row], audit: Audit) -> None:
    """Hold a table of votes against the pair lists of the same series.

    Args:
        votes: pooled.
        listed: of the pair lists.
        audit: findings are added to it.
    """
    known = {row.pair: row.preference_of_lower - TIE for row in listed}
    both = [(row.preference_of_lower - TIE, known[row.pair]) for row in votes if row.pair in known]
    clear = [mine * theirs > 0 for mine, theirs in both if mine and theirs]
    if len(clear) < LEAST:
        return
    audit.numbers["votes_like_lists"] = share = sum(clear) / len(clear)
    if not _above_chance(sum(clear), len(clear)):
        audit.warnings.append(
            f"of {len(clear)} pairs that the table of votes shares with the pair lists, only "
            f"{share:.1%} have the same winner: its photos are numbered in another order than the "
            "files; use dataset.labels=pairs"
        )


def audit_sharpness(
    pairs: PairSet, cache: Path, seed: int, progress: ProgressCallback | None, audit: Audit
) -> None:
    """The sanity ranker: does the sharper photo of a clear pair win more often than by chance?

    Args:
        pairs: of all splits.
        cache: folder for measured sharpness.
        seed: of the sample.
        progress: told while photos are measured.
        audit: findings are added to it.
    """
    clear = [p for p in pairs.pairs if max(p.preference, 1 - p.preference) >= CONFIDENT]
    audit.numbers["confident_pairs"] = len(clear)
    if len(clear) > SAMPLED:
        order = np.random.default_rng((seed, 5)).permutation(len(clear))[:SAMPLED]
        clear = [clear[place] for place in sorted(order)]
    if len(clear) < LEAST:
        return
    wins, of = sharper_wins(pairs.photos, clear, cache, progress)
    if of < LEAST:
        return
    audit.numbers["sharper_wins"] = share = wins / of
    if _above_chance(wins, of):
        return
    if _above_chance(of - wins, of):
        audit.warnings.append(
            f"the sharper photo loses {1 - share:.1%} of {of} clear pairs: the preference may be "
            "that of the second photo; it has to be the first one's"
        )
        return
    audit.warnings.append(
        f"the sharper photo wins {share:.1%} of {of} clear pairs, which is chance: the labels may "
        "not belong to these photos; look at some pairs, and check how files are numbered"
    )


def _repeats(rows: Sequence[Row], audit: Audit) -> None:
    first: dict[tuple[int, int, int], list[Row]] = {}
    for row in rows:
        first.setdefault(row.pair, []).append(row)
    repeated = [group for group in first.values() if len(group) > 1]
    against = [group for group in repeated if len({_winner(r) for r in group if _winner(r)}) > 1]
    audit.numbers["pairs"] = len(first)
    audit.numbers["repeated_pairs"] = len(repeated)
    audit.numbers["contradicting_pairs"] = len(against)
    if against:
        one = against[0][0]
        two = next(row for row in against[0] if _winner(row) not in (0, _winner(one)))
        audit.warnings.append(
            f"{len(against)} of {len(repeated)} pairs that are listed more than once contradict "
            f"themselves ({one.where}, {two.where.rpartition(' row ')[2]} first); they are pooled"
        )


def _ranks(rows: Sequence[Row], audit: Audit) -> None:
    ranked = [(r, r.ranks[1] - r.ranks[0]) for r in rows if r.ranks and r.preference != TIE]
    ranked = [(row, lead) for row, lead in ranked if lead]
    faults = [row for row, lead in ranked if (row.preference > TIE) != (lead > 0)]
    audit.numbers["rank_faults"] = len(faults)
    if faults and len(faults) > MOST_RANK_FAULTS * len(ranked):
        audit.warnings.append(
            f"{faults[0].where}: the preferred photo has the worse rank, as in {len(faults)} of "
            f"{len(ranked)} rows: column 4 may not be the preference, but made of the ranks"
        )


def _places(rows: Sequence[Row], audit: Audit) -> None:
    decided = [row.preference > TIE for row in rows if row.preference != TIE]
    if not decided:
        return
    audit.numbers["first_wins"] = share = sum(decided) / len(decided)
    if len(decided) >= LEAST and not 1 - LOPSIDED <= share <= LOPSIDED:
        place = "first" if share > TIE else "second"
        audit.warnings.append(
            f"the {place} photo is preferred in {max(share, 1 - share):.1%} of the rows, so always "
            f"saying {place} is a baseline to beat; where photos stand by chance, column 4 is "
            "something else than the preference"
        )


def _winner(row: Row) -> int:
    """1 where the photo of the lower number wins, -1 where the other does, 0 for a tie."""
    lead = row.preference_of_lower - TIE
    return (lead > 0) - (lead < 0)


def _above_chance(hits: float, of: int) -> bool:
    """True if so many hits are too many for a coin."""
    hits = math.floor(hits)
    return 2 * hits > of and binomtest(hits, of).pvalue <= SIGNIFICANT


def _more(count: int, what: str) -> str:
    return f" (and {count - 1} more {what})" if count > 1 else ""
