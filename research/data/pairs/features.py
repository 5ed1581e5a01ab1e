"""Features that stand for the photos of a data set: several side by side, on one scale."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from research.data.index import ProgressCallback
from research.data.pairs.extractors import extractor
from research.data.pairs.store import features_of
from research.data.readers import decode
from research.utils.errors import UserError

log = logging.getLogger(__name__)

__all__ = ["FeatureSet", "Normalised", "extractor", "normalised"]


class Normalised(NamedTuple):
    """Features of mean 0 and standard deviation 1 over the training photos.

    Attributes:
        features: [n, D].
        mean: [D], what was taken off.
        std: [D], what the rest was divided by; 1 where a feature never varies.
    """

    features: Tensor
    mean: Tensor
    std: Tensor


def normalised(features: Tensor, train_rows: Tensor | Sequence[int]) -> Normalised:
    """Every feature on one scale, so that none outweighs another by its unit.

    Args:
        features: [n, D]; rows of damaged photos may be NaN.
        train_rows: rows of the photos of the training split.

    Raises:
        UserError: when not one training photo has features.
    """
    train = features[torch.as_tensor(train_rows, dtype=torch.int64)].double()
    train = train[train.isfinite().all(1)]
    if not len(train):
        raise UserError(
            "dataset.features",
            "dataset.features: not one training photo can be read",
            "see dataset.root",
        )
    mean, std = train.mean(0), train.std(0, correction=0)
    # Rounding leaves a little spread in what is constant.
    std = torch.where(std > 1e-7 * mean.abs(), std, 1.0)
    return Normalised(((features.double() - mean) / std).float(), mean.float(), std.float())


class FeatureSet:
    """Several features of the photos of a data set.

    Args:
        specs: features by name, see ``research.data.pairs.extractors.extractor``.
        weights: a file for each of them that has weights (``timm:`` may be left out); null, or a
            name that is left out: random ones.
        cache: folder of everything that is kept.
        batch_size: photos a batch through a network.
        device: where networks run; null: a GPU where there is one.

    Attributes:
        damaged: files that cannot be read, by kind; known after ``prepare``.
        extracted: of each feature, how many photos the last ``prepare`` computed.
    """

    def __init__(
        self,
        specs: Sequence[str],
        weights: Mapping[str, str | None] | None,
        cache: Path,
        batch_size: int = 32,
        device: torch.device | None = None,
    ) -> None:
        names = [str(spec) for spec in specs]
        if not names or len(set(names)) < len(names):
            raise UserError(
                "dataset.features", f"dataset.features={names}: name at least one, and each once"
            )
        self.cache = Path(cache)
        self.batch_size = batch_size
        left = dict(weights or {})
        files = {name: left.pop(name, left.pop(name.removeprefix("timm:"), None)) for name in names}
        if left:
            raise UserError(
                "dataset.feature_weights",
                f"dataset.feature_weights: {next(iter(left))} is not asked for",
                f"dataset.features are {', '.join(names)}",
            )
        self.extractors = [extractor(name, files[name], device) for name in names]
        self.damaged: dict[Path, str] = {}
        self.extracted: dict[str, int] = {}
        self._files: list[Path] = []
        self._table = torch.empty(0, 0)

    @property
    def sizes(self) -> dict[str, int]:
        """Width of each feature, in the order of the columns."""
        return {each.name: each.size for each in self.extractors}

    @property
    def keys(self) -> dict[str, str]:
        """By what each was computed: a model can only read features of the same keys."""
        return {each.name: each.key for each in self.extractors}

    def prepare(self, files: Sequence[Path], progress: ProgressCallback | None = None) -> None:
        """Have the features of these files, by whose order ``rows`` goes."""
        self._files, self.damaged = [Path(file) for file in files], {}
        parts = []
        for each in self.extractors:
            found = features_of(self._files, each, self.cache, self.batch_size, progress)
            each.release()
            count = len(self._files) - len(found.damaged)
            log.info("feature %s: %d photos, %d computed now", each.name, count, found.extracted)
            self.damaged |= found.damaged
            self.extracted[each.name] = found.extracted
            parts.append(found.features)
        self._table = torch.cat(parts, 1)

    def rows(self, index: Tensor | Sequence[int]) -> Tensor:
        """[…, D] features of the files at these places […], as they were computed.

        Raises:
            UserError: for a file that could not be read.
        """
        places = torch.as_tensor(index, dtype=torch.int64)
        rows = self._table[places]
        lacking = places[rows.isnan().any(-1)]
        if len(lacking):
            file = self._files[int(lacking[0])]
            raise UserError(
                "dataset.features",
                f"{file}: {self.damaged[file]}, so it has no features",
                "leave it out",
            )
        return rows

    def read(self, paths: Sequence[Path]) -> Tensor:
        """[n, D] features of a user's files, which are not kept.

        Raises:
            DamagedImage: for a file that cannot be read.
        """
        photos = [decode(Path(path)) for path in paths]
        return torch.cat([each(photos) for each in self.extractors], 1)
