"""Cross-validation folds: splits of a data set by whole groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from research.utils.errors import UserError


class FoldColumns(NamedTuple):
    """Titles of the table's columns for one type of run.

    Attributes:
        groups: number of groups, which are resampled whole.
        units: number of samples that have a value.
        metric: of the whole test split.
        values: mean of the run's values.
        baseline: mean of the baseline's values.
    """

    groups: str
    units: str
    metric: str
    values: str
    baseline: str


@dataclass(frozen=True)
class FoldResult:
    """Predictions for a test split beside a baseline, one value per sample.

    Attributes:
        columns: titles of the values.
        groups: [n] group of each sample.
        values: [n] of the model, 0…1.
        baseline: [n] of the baseline, 0…1.
    """

    columns: FoldColumns
    groups: list[str]
    values: NDArray[np.float64]
    baseline: NDArray[np.float64]


@runtime_checkable
class CrossValidated(Protocol):
    """A data module that compares the results on its test split with a baseline."""

    def fold_result(self, metrics: Any) -> FoldResult | None:
        """The result of a model on the test split; ``None`` if these data have no baseline.

        Args:
            metrics: of the task, over the whole split.
        """
        ...


def beside_baseline(data: Any, metrics: Any, run: object) -> FoldResult:
    """The result of a run on the test split of its data, beside the baseline.

    Args:
        data: of the run, a ``DataModule``.
        metrics: of the task, over the whole split.
        run: for the message.

    Raises:
        UserError: if the data have no baseline.
    """
    result = data.fold_result(metrics) if isinstance(data, CrossValidated) else None
    if result is None:
        raise no_baseline(data.name, run)
    return result


def no_baseline(name: str, run: object) -> UserError:
    """The error for a run on data that have no baseline."""
    return UserError(
        "RUN",
        f"{run}: its data set {name} has no baseline to compare with",
        "pass runs of detectors from a warehouse of frames, or rankings of photos",
    )


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
