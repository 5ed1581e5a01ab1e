"""Features of the photos of a data set: several, concatenated and standardised."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from research.data.image_files import decode
from research.data.pairs.extractors import build_extractor
from research.data.pairs.feature_store import extract_features
from research.utils.counts import counted
from research.utils.errors import UserError

log = logging.getLogger(__name__)


def feature_statistics(
    features: Tensor, train_rows: Tensor | Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each feature over the training photos.

    Args:
        features: [n, D]; rows of damaged photos may be NaN.
        train_rows: rows of the photos of the training split.

    Returns:
        [D] means and [D] standard deviations, 1 for constant features.

    Raises:
        UserError: if no training photo has features.
    """
    train = features[torch.as_tensor(train_rows, dtype=torch.int64)].double()
    train = train[train.isfinite().all(1)]
    if not len(train):
        raise UserError(
            "dataset.root",
            "dataset.features: no training photo can be read",
            "fix the photos in dataset.root",
        )
    mean, std = train.mean(0), train.std(0, correction=0)
    # Rounding errors make the standard deviation of a constant slightly larger than 0.
    std = torch.where(std > 1e-7 * mean.abs(), std, 1.0)
    return mean.float(), std.float()


class FeatureSet:
    """Several features of the photos of a data set, concatenated.

    Args:
        names: names of the features, see ``research.data.pairs.extractors.build_extractor``.
        weights: feature name (without ``timm:`` if you like) to file of weights; random weights
            for names that are not in it.
        cache: cache folder.
        batch_size: photos in a batch through a network.
        device: device of the networks; ``None`` for a GPU if there is one.

    Attributes:
        damaged: unreadable files, with the kind of damage; set by ``prepare``.
        extracted: feature name to number of photos that the last ``prepare`` computed.
    """

    def __init__(
        self,
        names: Sequence[str],
        weights: Mapping[str, str | None] | None,
        cache: Path,
        batch_size: int = 32,
        device: torch.device | None = None,
    ) -> None:
        names = [str(name) for name in names]
        if not names or len(set(names)) < len(names):
            raise UserError(
                "dataset.features", f"dataset.features={names}: name at least one, and each once"
            )
        self.cache = Path(cache)
        self.batch_size = batch_size
        rest = dict(weights or {})
        files = {name: rest.pop(name, rest.pop(name.removeprefix("timm:"), None)) for name in names}
        if rest:
            raise UserError(
                "dataset.feature_weights",
                f"dataset.feature_weights: {next(iter(rest))} is not in dataset.features="
                f"[{','.join(names)}]",
                "remove it, or add it to dataset.features",
            )
        self.extractors = [build_extractor(name, files[name], device) for name in names]
        self.damaged: dict[Path, str] = {}
        self.extracted: dict[str, int] = {}

    @property
    def sizes(self) -> dict[str, int]:
        """Size of each feature, in the order of the columns."""
        return {extractor.name: extractor.size for extractor in self.extractors}

    @property
    def keys(self) -> dict[str, str]:
        """Cache key of each feature: a model can use only features of the same keys."""
        return {extractor.name: extractor.key for extractor in self.extractors}

    def prepare(self, files: Sequence[Path]) -> Tensor:
        """Features [n, D] of these files, computed or loaded; NaN in the rows of damaged files."""
        self.damaged = {}
        parts = []
        for extractor in self.extractors:
            name = extractor.name
            result = extract_features(files, extractor, self.cache, self.batch_size)
            extractor.release()
            count = len(files) - len(result.damaged)
            photos = counted(count, "photos")
            log.info("feature %s: %s, %d computed now", name, photos, result.extracted)
            self.damaged |= result.damaged
            self.extracted[name] = result.extracted
            parts.append(result.features)
        return torch.cat(parts, 1)

    def read(self, paths: Sequence[Path]) -> Tensor:
        """Features [n, D] of files, without the cache.

        Raises:
            DamagedImage: for a file that cannot be read.
        """
        photos = [decode(Path(path)) for path in paths]
        return torch.cat([extractor(photos) for extractor in self.extractors], 1)
