"""Pairs of photos as a data set: lists or votes, splits by series, an audit before training."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from research.batch import PhotoBatch
from research.config.cli import choose
from research.data.index import ProgressCallback, index_folder
from research.data.loader import BatchSource
from research.data.pairs.audit import (
    Audit,
    audit_photos,
    audit_sharpness,
    audited,
)
from research.data.pairs.features import FeatureSet, normalised
from research.data.pairs.lists import PairSet, image_folder, photo_files
from research.data.pairs.samples import (
    Album,
    Canvas,
    FeatureLook,
    PairSamples,
    PhotoLook,
    read_photo,
)
from research.data.pairs.select import Rules, hold, placed, select, thinned, without
from research.data.pairs.sharpness import trivial
from research.data.pairs.transform import FeatureTransform, PairTransform
from research.data.source import Demo, NetworkInput
from research.data.transforms import DeviceTransform
from research.utils.errors import UserError

log = logging.getLogger(__name__)


class PhotoPairs:
    """Photo series in the layout of PhotoTriage, with pair lists or the table of votes.

    ``ROOT/train_val/train_val_imgs/SSSSSS-PP.JPG`` beside ``train_pairlist.txt`` and perhaps
    ``val_pairlist.txt``, of rows ``series photo1 photo2 preference rank1 rank2``. A series is in
    one split as a whole.

    Args:
        name: what the tracker calls the data set.
        root: the folder.
        labels: ``pairs``: the lists; ``votes``: a table of votes.
        votes_file: that table, CSV.
        ties: pairs without a winner: ``drop``, or ``soft``: kept with a preference of one half.
        min_agreement: 0…1, leave out pairs whose winner has a smaller share of the votes.
        min_reviewers: leave out pairs with fewer votes; of a table of votes.
        val_fraction: share of the series held out, where there is no list for validation.
        test_fraction: the same for testing, out of the training list; 0: none.
        split_seed: of these draws.
        folds: split all lists anew into so many parts, series whole, as even as they can be; null:
            the splits above.
        fold: this part is the test split, the next one validation.
        quick_experiment: 0…1, share of the series of each split that is used; null: all.
        image_size: side of the square network input in pixels; null: the network's own.
        fit: ``pad``: a photo's long side is ``image_size``, around it is the mean;
            ``crop``: its centred square.
        batch_size: pairs a batch, in training and validation.
        workers: loader processes; null chooses by device.
        pin_memory: page-locked batches; null chooses by device.
        swap: the other photo first in half of the training pairs.
        random_flip: mirror half of the training pairs.
        mean: RGB means on a 0…1 scale; null: the network's own.
        std: RGB standard deviations on a 0…1 scale; null: the network's own.
        features: what stands for the photos, see ``features``; null: their pixels.
        feature_weights: files of weights by feature; null: random networks.
        cache_dir: folder for headers, features, and measured sharpness.
        audit: what an audit finds is a warning (``warn``) or an end (``error``).
        max_train_images: keep at most so many training pairs, evenly spaced.
        max_val_images: the same for validation.
        demo: renders the folder first, when it is ours to make.
        network: what the network asks for.
    """

    def __init__(
        self,
        name: str,
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
        batch_size: int,
        workers: int | None,
        pin_memory: bool | None,
        swap: bool,
        random_flip: bool,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        features: Sequence[str] | None,
        feature_weights: Mapping[str, str | None] | None,
        cache_dir: str,
        audit: str,
        max_train_images: int | None,
        max_val_images: int | None,
        demo: Demo | None,
        network: NetworkInput,
    ) -> None:
        self.name = name
        self.root = Path(root)
        self.labels = choose("dataset.labels", labels, ("pairs", "votes"))
        self.votes_file = None if votes_file is None else Path(votes_file)
        self.rules = Rules(
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
        self.image_size = image_size or network.size
        self.fit = choose("dataset.fit", fit, ("pad", "crop"))
        self.batch_size = batch_size
        self.workers = workers
        self.pin_memory = pin_memory
        self.swap = swap
        self.random_flip = random_flip
        self.mean = list(mean or network.mean)
        self.std = list(std or network.std)
        self.cache = Path(cache_dir)
        self.strict = choose("dataset.audit", audit, ("warn", "error")) == "error"
        self.max_images = {"train": max_train_images, "val": max_val_images}
        self.demo = demo
        self.network = network
        self.features = None
        if features is not None:
            self.features = FeatureSet(features, feature_weights, self.cache)
        self.classes: list[str] = []
        self.splits: dict[str, PairSet] = {}
        self.left_out: dict[str, Counter[str]] = {}
        fill = [round(255 * share) for share in self.mean] if self.fit == "pad" else None
        self.canvas = Canvas(self.image_size, fill)
        self.album = Album(self.canvas)
        self.rows = torch.empty(0)  # [N, D] features of the photos
        self.audit = Audit()

    def prepare(self, seed: int, progress: ProgressCallback | None = None) -> None:
        if self.network.coefficients is not None:
            raise UserError(
                "dataset", f"dataset={self.name}: pairs are of pixels", "give compression=none"
            )
        if self.demo is not None:
            self.demo.render(progress)
        self.audit = Audit()
        lists = audited(
            self.labels,
            self.root,
            self.votes_file,
            self.rules.min_reviewers,
            self.rules.folds is not None,
            self.audit,
        )
        chosen = select(lists, self.rules)
        folder = image_folder(self.root)
        index = index_folder(folder, self.cache, progress)
        files = {photo: folder / name for photo, name in photo_files(folder, index).items()}
        damaged = {folder / name: entry.damage for name, entry in index.items() if entry.damage}
        self.left_out = chosen.left_out
        self.splits, lost = placed(self.root, chosen.rows, files, damaged, self.left_out)
        audit_photos(lost, {series for series, _ in files}, self.audit)
        hold(self.splits, chosen, self.root)
        known = self.pairs("train")
        self.album.photos, self.album.series = known.photos, known.series
        self._sanity(progress)
        if self.features is not None:
            self._extract(self.features, progress)
            hold(self.splits, chosen, self.root)
        for split, limit in self.max_images.items():
            self.splits[split] = thinned(self.splits[split], limit)

    def dataset(self, split: str, *, seed: int, train: bool, device: torch.device) -> BatchSource:
        pairs = self.pairs(split)
        left_out = self.left_out[split]
        if self.features is None:
            shape, look = (
                (3, self.image_size, self.image_size),
                PhotoLook(pairs.photos, self.canvas),
            )
            return PairSamples(pairs, look, shape, torch.uint8, left_out)
        width = sum(self.features.sizes.values())
        return PairSamples(pairs, FeatureLook(self.rows), (width,), torch.float32, left_out)

    def transform(
        self, *, measured: bool = True, progress: ProgressCallback | None = None
    ) -> DeviceTransform:
        if self.features is None:
            return PairTransform(self.mean, self.std, self.random_flip, self.swap, self.album)
        width = sum(self.features.sizes.values())
        if not measured:
            return FeatureTransform(torch.zeros(width), torch.ones(width), self.swap, self.album)
        train = {p for pair in self.pairs("train").pairs for p in (pair.first, pair.second)}
        found = normalised(self.rows, sorted(train))
        return FeatureTransform(found.mean, found.std, self.swap, self.album)

    def read(self, paths: Sequence[Path]) -> PhotoBatch:
        if self.features is None:
            inputs = torch.stack([self.canvas(path) for path in paths])
            return PhotoBatch(torch.arange(len(paths)), inputs)
        return PhotoBatch(torch.arange(len(paths)), self.features.read(paths))

    def load_image(self, path: Path) -> list[Image]:
        return [read_photo(path)]

    def known_classes(self) -> list[str] | None:
        return []

    def counts(self) -> dict[str, tuple[int, dict[str, int]]]:
        return {
            split: (len(pairs.pairs), dict(self.left_out[split]))
            for split, pairs in self.splits.items()
        }

    def metadata(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "classes": [],
            "transform": {"image_size": self.image_size, "fit": self.fit},
            "features": None if self.features is None else list(self.features.sizes),
            "feature_sizes": {} if self.features is None else self.features.sizes,
            "feature_keys": {} if self.features is None else self.features.keys,
        }

    def load_metadata(self, metadata: Mapping[str, Any]) -> None:
        reason = self.check_compatible(metadata)
        if reason:
            raise UserError("dataset", reason)

    def check_compatible(self, metadata: Mapping[str, Any]) -> str | None:
        own = self.metadata()
        theirs, ours = metadata.get("features"), own["features"]
        if theirs != ours:
            return (
                f"the model was trained on {_told(theirs)}, dataset.features asks for "
                f"{_told(ours)}; give the same"
            )
        for name, key in own["feature_keys"].items():
            if metadata["feature_keys"].get(name) != key:
                return (
                    f"the feature {name} is computed otherwise than where the model was trained; "
                    f"give the same weights in dataset.feature_weights.{name}"
                )
        return None

    def fingerprint(self) -> str:
        """Quick hash of the data: every pair's split and preference, every file's size."""
        digest = hashlib.sha256()
        for split, pairs in self.splits.items():
            digest.update(repr((split, pairs.pairs)).encode())
        for photo in self.pairs("train").photos:
            digest.update(f"{photo.name}:{photo.stat().st_size}\n".encode())
        return digest.hexdigest()[:16]

    def baseline(self) -> str | None:
        """Accuracy on validation of two who learn nothing: one place always, and the sharper."""
        return trivial(self.pairs("val"), self.cache)

    def pairs(self, split: str) -> PairSet:
        """A split's pairs.

        Raises:
            UserError: when the data set has no such split.
        """
        if split not in self.splits:
            raise UserError(
                "split",
                f"split={split}: {self.root} has {', '.join(self.splits)}",
                "give dataset.test_fraction=0.1 or folds=5 from training on",
            )
        return self.splits[split]

    def _sanity(self, progress: ProgressCallback | None) -> None:
        every = [pair for part in self.splits.values() for pair in part.pairs]
        whole = replace(self.splits["train"], pairs=every)
        audit_sharpness(whole, self.cache, self.rules.split_seed, progress, self.audit)
        warnings = self.audit.lines()
        if warnings and self.strict:
            more = f" (and {len(warnings) - 1} more findings)" if len(warnings) > 1 else ""
            raise UserError("dataset.audit", f"dataset.audit=error: {warnings[0]}{more}")
        for line in warnings:
            log.warning("audit: %s", line)
        log.info("audit: %s", self.audit.summary())

    def _extract(self, features: FeatureSet, progress: ProgressCallback | None) -> None:
        """Has every photo's features; pairs of photos that have none are left out."""
        photos = self.splits["train"].photos
        features.prepare(photos, progress)
        whole = [index for index, photo in enumerate(photos) if photo not in features.damaged]
        self.rows = torch.full((len(photos), sum(features.sizes.values())), torch.nan)
        if whole:
            self.rows[whole] = features.rows(whole)
        for split, part in self.splits.items():
            self.splits[split] = without(part, features.damaged, self.left_out[split])


def _told(features: Sequence[str] | None) -> str:
    return "pixels" if features is None else f"the features {', '.join(features)}"
