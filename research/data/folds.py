"""Folds: the groups of a data set dealt anew into parts, for cross-validation."""

from __future__ import annotations

from collections.abc import Mapping

from research.utils.errors import UserError


def fold_splits(sizes: Mapping[str, int], folds: int, fold: int, what: str) -> dict[str, str]:
    """The split of each group: part ``fold`` is for testing, the next for validation.

    Nothing is drawn: the largest group comes first, each to the part that is smallest so far, so
    that parts are as even as whole groups let them be.

    Args:
        sizes: samples of each group, by its name.
        folds: parts, at least 3.
        fold: 0 <= fold < ``folds``.
        what: the groups are, and of what data, for the message.

    Raises:
        UserError: when there are fewer groups than parts.
    """
    if len(sizes) < folds:
        raise UserError(
            "dataset.folds",
            f"dataset.folds={folds}: there are {len(sizes)} {what}, which are not cut up",
            "give fewer folds",
        )
    filled = [0] * folds
    names = {fold: "test", (fold + 1) % folds: "val"}
    splits = {}
    for group in sorted(sizes, key=lambda name: (-sizes[name], name)):
        smallest = filled.index(min(filled))
        filled[smallest] += sizes[group]
        splits[group] = names.get(smallest, "train")
    return splits
