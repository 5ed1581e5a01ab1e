"""Data set of photo pairs with preferences, from pair lists or a table of votes."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from PIL.Image import Image

from research.batch import PhotoBatch
from research.config.cli import choose
from research.data.datamodule import Common, DataModule, Demo
from research.data.folds import FoldColumns, FoldResult
from research.data.index import index_folder
from research.data.listing import log_files, log_skipped
from research.data.loader import BatchSource
from research.data.pairs.audit import Audit, audit_photos, audit_sharpness, read_labels
from research.data.pairs.features import FeatureSet, feature_statistics
from research.data.pairs.lists import PairSet, find_photo_folder, photo_names
from research.data.pairs.samples import (
    PairSamples,
    PhotoIndex,
    SquareResize,
    load_feature,
    load_photo,
    read_photo,
)
from research.data.pairs.select import (
    SplitConfig,
    drop_damaged,
    require_nonempty,
    resolve_files,
    select_pairs,
    subsample,
)
from research.data.pairs.sharpness import describe_baselines, measure_sharpness
from research.data.pairs.transform import FeatureTransform, PairTransform
from research.data.splits import split_named
from research.data.transforms import DeviceTransform
from research.utils.errors import UserError

PAIRS = FoldColumns("series", "pairs", "constant_accuracy", "pair accuracy", "sharper photo")
log = logging.getLogger(__name__)


class PhotoPairs(DataModule):
    """Photo series in the layout of PhotoTriage, with pair lists or the table of votes.

    The photos are ``ROOT/train_val/train_val_imgs/SSSSSS-PP.JPG``, the lists
    ``ROOT/train_val/train_pairlist.txt`` and optionally ``val_pairlist.txt``, with rows
    ``series photo1 photo2 preference rank1 rank2``. All pairs of a series are in the same split.

    Args:
        root: the folder.
        labels: ``pairs`` for the pair lists, ``votes`` for the table of votes.
        votes_file: the table of votes, CSV.
        ties: ``drop``, or ``soft``: keep ties with a preference of 0.5.
        min_agreement: minimum fraction of the votes for the winner of a pair, in 0…1.
        min_reviewers: minimum number of votes of a pair; for the table of votes.
        val_fraction: fraction of the series for validation, if there is no validation list.
        test_fraction: fraction of the series for testing, from the training list; 0 for none.
        split_seed: seed of these draws.
        folds: divide the series of all lists into this number of folds, as even as possible;
            ``None`` for the splits above.
        fold: this fold is the test split, the next one the validation split.
        quick_experiment: fraction of the series of each split that is used; ``None`` for all.
        image_size: side of the square network input in pixels; ``None`` for the network's own.
        fit: ``pad`` resizes the long side to ``image_size`` and pads with the mean; ``crop`` uses
            the centred square.
        swap: swap the photos of half of the training pairs.
        random_flip: mirror half of the training pairs.
        mean: RGB means on a 0…1 scale; ``None`` for the network's own.
        std: RGB standard deviations on a 0…1 scale; ``None`` for the network's own.
        features: names of the features that replace the pixels, see ``build_extractor``; ``None``
            for pixels.
        feature_weights: feature name to file of weights; ``None`` for random weights.
        audit: findings of the audit are warnings (``warn``) or an error (``error``).
        demo: renders the photos first, if any.
        common: see ``Common``.
    """

    splits: dict[str, PairSet]
    unit = "pairs"

    def __init__(
        self,
        root: str,
        labels: str,
        votes_file: str | None,
        ties: str,
        min_agreement: float,
        min_reviewers: int,
        val_fraction: float,
        test_fraction: float,
        split_seed: int,
        folds: int | None,
        fold: int,
        quick_experiment: float | None,
        image_size: int | None,
        fit: str,
        swap: bool,
        random_flip: bool,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        features: Sequence[str] | None,
        feature_weights: Mapping[str, str | None] | None,
        audit: str,
        demo: Demo | None,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(**common)
        self.root = Path(root)
        self.labels = choose("dataset.labels", labels, ("pairs", "votes"))
        self.votes_file = None if votes_file is None else Path(votes_file)
        self.split_config = SplitConfig(
            choose("dataset.ties", ties, ("drop", "soft")),
            min_agreement,
            min_reviewers,
            val_fraction,
            test_fraction,
            split_seed,
            folds,
            fold,
            quick_experiment,
        )
        self.image_size = image_size or self.network.size
        self.fit = choose("dataset.fit", fit, ("pad", "crop"))
        self.swap = swap
        self.random_flip = random_flip
        self.mean = list(mean or self.network.mean)
        self.std = list(std or self.network.std)
        self.strict = choose("dataset.audit", audit, ("warn", "error")) == "error"
        self.demo = demo
        self.features = None
        if features is not None:
            self.features = FeatureSet(features, feature_weights, self.cache)
        self.skipped: dict[str, Counter[str]] = {}
        fill = [round(255 * mean) for mean in self.mean] if self.fit == "pad" else None
        self.resize = SquareResize(self.image_size, fill)
        self.photo_index = PhotoIndex(self.resize)
        self.feature_rows = torch.empty(0)  # [N, D] features of the photos
        self.audit = Audit()

    def prepare(self, seed: int) -> None:
        self.refuse_coefficients()
        if self.demo is not None:
            self.demo.render()
        self.audit = Audit()
        lists = read_labels(
            self.labels,
            self.root,
            self.votes_file,
            self.split_config.min_reviewers,
            self.split_config.folds is not None,
            self.audit,
        )
        selection = select_pairs(lists, self.split_config)
        folder = find_photo_folder(self.root)
        index, passed_over = index_folder(folder, self.cache)
        names = photo_names(folder, index)
        files = {photo: folder / name for photo, name in names.items()}
        for name in sorted(index.keys() - set(names.values())):
            passed_over.add("without a photo number", name)
        used = {name: index[name].damage for name in names.values()}
        log_files(folder, used, passed_over)
        damaged = {folder / name: entry.damage for name, entry in index.items() if entry.damage}
        self.skipped = selection.skipped
        self.splits, missing = resolve_files(selection.rows, files, damaged, self.skipped)
        audit_photos(missing, {series for series, _ in files}, self.audit)
        require_nonempty(self.splits, selection, self.root)
        train = self.pairs("train")
        self.photo_index.photos, self.photo_index.series = train.photos, train.series
        self.reading = f"{self.labels} of photos in {folder}{self._drawn(lists)}"
        self._finish_audit()
        if self.features is not None:
            self._extract(self.features)
            require_nonempty(self.splits, selection, self.root)
        for split, limit in self.max_images.items():
            self.splits[split] = subsample(self.splits[split], limit)

    def dataset(self, split: str, *, seed: int, train: bool, device: torch.device) -> BatchSource:
        pairs = self.pairs(split)
        skipped = self.skipped[split]
        if self.features is None:
            shape = (3, self.image_size, self.image_size)
            load = partial(load_photo, pairs.photos, self.resize)
            return PairSamples(pairs, load, shape, torch.uint8, skipped)
        size = sum(self.features.sizes.values())
        load = partial(load_feature, self.feature_rows)
        return PairSamples(pairs, load, (size,), torch.float32, skipped)

    def transform(self, *, measured: bool = True) -> DeviceTransform:
        if self.features is None:
            return PairTransform(self.mean, self.std, self.random_flip, self.swap, self.photo_index)
        if measured:
            train = {p for pair in self.pairs("train").pairs for p in (pair.first, pair.second)}
            mean, std = feature_statistics(self.feature_rows, sorted(train))
        else:
            size = sum(self.features.sizes.values())
            mean, std = torch.zeros(size), torch.ones(size)
        return FeatureTransform(mean, std, self.swap, self.photo_index)

    def read(self, paths: Sequence[Path]) -> PhotoBatch:
        if self.features is None:
            inputs = torch.stack([self.resize(path) for path in paths])
            return PhotoBatch(torch.arange(len(paths)), inputs)
        return PhotoBatch(torch.arange(len(paths)), self.features.read(paths))

    def load_image(self, path: Path) -> list[Image]:
        return [read_photo(path)]

    def expected_metadata(self, model: Mapping[str, Any], *, own_classes: bool) -> dict[str, Any]:
        return self.metadata()

    def fold_result(self, metrics: Any) -> FoldResult:
        """Accuracy on pairs with a winner; the baseline prefers the sharper photo.

        Args:
            metrics: of a ranking task, with ``pairs()``.
        """
        pairs, known = metrics.pairs(), self.pairs("test")
        files = {photo: known.photos[photo] for photo in np.unique(pairs.photos).tolist()}
        measured = measure_sharpness([*files.values()], self.cache)
        first, second = np.array(
            [[measured[files[photo]] for photo in both] for both in pairs.photos.tolist()]
        ).T
        sharper = replace(pairs, logits=first - second).correct
        valid = np.isfinite(sharper)  # no tie of votes, and the sharpness of both photos is known
        series = [known.series[number] for number in pairs.series[valid].tolist()]
        return FoldResult(PAIRS, series, pairs.correct[valid], sharper[valid])

    def skipped_samples(self, split: str) -> Mapping[str, int]:
        return self.skipped[split]

    def metadata(self) -> dict[str, Any]:
        return {
            **super().metadata(),
            "transform": {"image_size": self.image_size, "fit": self.fit},
            "features": None if self.features is None else list(self.features.sizes),
            "feature_sizes": {} if self.features is None else self.features.sizes,
            "feature_keys": {} if self.features is None else self.features.keys,
        }

    def load_metadata(self, metadata: Mapping[str, Any]) -> None:
        reason = self.check_compatible(metadata)
        if reason:
            raise UserError("dataset.features", reason)

    def check_compatible(self, metadata: Mapping[str, Any]) -> str | None:
        own = self.metadata()
        theirs, ours = metadata.get("features"), own["features"]
        if theirs != ours:
            return (
                f"the model was trained on {_describe(theirs)}, but the data set has "
                f"{_describe(ours)}; set dataset.features="
                f"{'null' if theirs is None else '[' + ','.join(theirs) + ']'}"
            )
        for name, key in own["feature_keys"].items():
            if metadata["feature_keys"].get(name) != key:
                return (
                    f"the feature {name} differs from the one that the model was trained on; "
                    f"set the same weights for {name} in dataset.feature_weights"
                )
        return None

    def fingerprint(self) -> str:
        """Quick hash of the data: split and preference of every pair, size of every file."""
        digest = hashlib.sha256()
        for split, pairs in self.splits.items():
            digest.update(repr((split, pairs.pairs)).encode())
        for photo in self.pairs("train").photos:
            digest.update(f"{photo.name}:{photo.stat().st_size}\n".encode())
        return digest.hexdigest()[:16]

    def baseline(self) -> str | None:
        """Validation accuracy of a constant baseline and of the sharper photo, in words."""
        return describe_baselines(self.pairs("val"), self.cache)

    def pairs(self, split: str) -> PairSet:
        """The pairs of a split.

        Raises:
            UserError: if the data set has no such split.
        """
        advice = "train with dataset.test_fraction=0.1 or dataset.folds=5"
        return split_named(self.splits, split, self.root, advice)

    def _drawn(self, lists: Collection[str]) -> str:
        """Which splits are drawn, in words; '' if none is.

        Args:
            lists: the splits that have a list of pairs.
        """
        config = self.split_config
        parts = {"val": config.val_fraction * ("val" not in lists), "test": config.test_fraction}
        drawn = [f"{split} is {fraction:g}" for split, fraction in parts.items() if fraction]
        if config.folds is not None or not drawn:
            return ""
        return f"; {' and '.join(drawn)} of the series, drawn by seed {config.split_seed}"

    def _finish_audit(self) -> None:
        """Audit sharpness, then log the findings or raise the first."""
        pairs = [pair for part in self.splits.values() for pair in part.pairs]
        union = replace(self.splits["train"], pairs=pairs)
        audit_sharpness(union, self.cache, self.split_config.split_seed, self.audit)
        warnings = self.audit.warnings
        if warnings and self.strict:
            more = f" (and {len(warnings) - 1} more findings)" if len(warnings) > 1 else ""
            raise UserError("dataset.audit", f"dataset.audit=error: {warnings[0]}{more}")
        for line in warnings:
            log.warning("audit: %s", line)
        log.info("audit: %s", self.audit.summary())

    def _extract(self, features: FeatureSet) -> None:
        """Compute the features of all photos, and drop the pairs of damaged photos."""
        self.feature_rows = features.prepare(self.splits["train"].photos)
        damaged = features.damaged.items()
        log_skipped([f"{file}: {kind.replace('_', ' ')}" for file, kind in damaged])
        for split, part in self.splits.items():
            self.splits[split] = drop_damaged(part, features.damaged, self.skipped[split])


def _describe(features: Sequence[str] | None) -> str:
    return "pixels" if features is None else f"the features {', '.join(features)}"
