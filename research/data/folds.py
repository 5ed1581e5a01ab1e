"""Cross-validation folds: splits of a data set by whole groups."""

from __future__ import annotations

from collections.abc import Mapping

from research.utils.errors import UserError


def fold_splits(sizes: Mapping[str, int], folds: int, fold: int, what: str) -> dict[str, str]:
    """The split of each group: fold ``fold`` is the test split, the next one validation.

    Deterministic: groups are assigned in order of decreasing size, each to the fold that is
    smallest so far, so that folds have nearly equal sizes.

    Args:
        sizes: number of samples of each group, by name.
        folds: number of folds, at least 3.
        fold: index of the test fold, 0 <= fold < ``folds``.
        what: what the groups are, for the message.

    Raises:
        UserError: if there are fewer groups than folds.
    """
    if len(sizes) < folds:
        raise UserError(
            "dataset.folds",
            f"dataset.folds={folds}: there are {len(sizes)} {what}, which are not divided",
            f"set dataset.folds={len(sizes)} or fewer" if len(sizes) >= 3 else "use more data",
        )
    totals = [0] * folds
    names = {fold: "test", (fold + 1) % folds: "val"}
    splits = {}
    for group in sorted(sizes, key=lambda name: (-sizes[name], name)):
        smallest = totals.index(min(totals))
        totals[smallest] += sizes[group]
        splits[group] = names.get(smallest, "train")
    return splits
