"""Checks a prepared store for damage, leaks between splits, and invalid content."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from research.data.warehouse.checksums import damaged_shards
from research.data.warehouse.lint_labels import (
    duplicate_boxes,
    image_areas,
    unlike_splits,
    unusable_classes,
    whole_picture_boxes,
)
from research.data.warehouse.lint_pictures import near_duplicates, readings
from research.data.warehouse.manifest import MANIFEST, REMEDY, SAMPLES, SPLITS, Manifest
from research.data.warehouse.samples import Samples, class_counts
from research.utils.counts import by_kind, counted
from research.utils.errors import UserError
from research.utils.threads import map_threads

TINY = 4.0
"""In pixels of the canvas; boxes with a smaller side are hard to detect."""

ABSURD_ASPECT = 20.0
MAX_LINES = 20
"""Findings of one kind that are listed; the others are counted."""

COMPARED = {"frames": ("images",), "coefficients": ("y", "cbcr"), "features": ("features",)}
"""Tensors whose equality makes two samples duplicates, by kind of store."""
PICTURES = ("frames", "coefficients")
"""Kinds whose samples can be seen."""


@dataclass
class LintReport:
    """Findings, one line each.

    Attributes:
        errors: problems that make results wrong, with the shard or sample.
        warnings: problems that may be intended.
        notes: a summary of the store.
    """

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def lint(manifest: Manifest) -> tuple[LintReport, Samples]:
    """Check everything in a store.

    Args:
        manifest: manifest of the store.
    """
    report = LintReport()
    damaged = {shard.file: text for shard, text in damaged_shards(manifest, manifest.shards)}
    report.errors += (f"{text}; {REMEDY}" for text in damaged.values())
    _check_files(manifest, report)
    try:
        records = manifest.records()
    except UserError as error:
        report.errors.append(str(error))
        records = _placeholder_records(manifest)
    samples = Samples(manifest, records, set(damaged))
    _check_groups(samples, report)
    _check_duplicates(samples, report)
    if manifest.kind in PICTURES:
        _extend(report.warnings, near_duplicates(samples))
    if manifest.kind == "frames":
        _check_boxes(samples, report)
        _extend(report.warnings, duplicate_boxes(samples))
        _extend(report.warnings, whole_picture_boxes(samples))
    if "sums" in manifest.tensors:
        _check_channels(samples, report)
    if manifest.kind == "features":
        _check_features(samples, report)
    else:
        _check_classes(samples, report)
        if not damaged:  # otherwise classes may be where nothing can be read
            _extend(report.warnings, unusable_classes(samples))
            _extend(report.warnings, unlike_splits(samples))
    _summarize(samples, report)
    return report, samples


def _extend(lines: list[str], findings: Iterable[str]) -> None:
    """Add findings of one kind, at most ``MAX_LINES`` of them in full."""
    texts = list(findings)
    lines += texts[:MAX_LINES]
    if len(texts) > MAX_LINES:
        lines.append(f"… and {len(texts) - MAX_LINES} more like it")


def _placeholder_records(manifest: Manifest) -> list[dict[str, Any]]:
    """Records without content, used if the real ones cannot be read."""
    return [
        {"name": "name unknown", "group": group.name, "sha256": str(position)}
        for group in manifest.groups
        for position in range(group.start, group.stop)
    ]


def _check_files(manifest: Manifest, report: LintReport) -> None:
    expected = {MANIFEST, SAMPLES, *(shard.file for shard in manifest.shards)}
    orphans = sorted({path.name for path in manifest.folder.iterdir()} - expected)
    _extend(
        report.warnings,
        (f"{manifest.folder / name}: orphan, not part of the store" for name in orphans),
    )


def _check_groups(samples: Samples, report: LintReport) -> None:
    manifest = samples.manifest
    splits: dict[str, set[str]] = defaultdict(set)
    for group in manifest.groups:
        splits[group.name].add(group.split)
        for position in range(group.start, group.stop):
            splits[samples.records[position]["group"]].add(group.split)
    _extend(
        report.errors,
        (
            f"group {name} is in {' and '.join(sorted(several))}: its samples leak from one split "
            "into the other"
            for name, several in splits.items()
            if len(several) > 1
        ),
    )


def _check_duplicates(samples: Samples, report: LintReport) -> None:
    """Find identical files, and identical stored images from different files."""
    by_file: dict[str, list[int]] = defaultdict(list)
    for position, record in enumerate(samples.records):
        by_file[record["sha256"]].append(position)
    by_rows: dict[str, list[int]] = defaultdict(list)
    digests = _digests(samples)
    for position, digest in zip(samples.positions.tolist(), digests, strict=True):
        by_rows[digest].append(position)
    across: list[str] = []
    within: list[str] = []
    reported = set()
    stored = "stored features" if samples.manifest.kind == "features" else "stored image"
    for what, duplicates in (("file", by_file), (stored, by_rows)):
        for positions in duplicates.values():
            if len(positions) == 1 or tuple(positions) in reported:
                continue
            reported.add(tuple(positions))
            first, *others = positions
            for other in others:
                splits = [SPLITS[samples.splits[position]] for position in (first, other)]
                text = f"{samples.where(other)}: same {what} as {samples.where(first)}"
                if splits[0] == splits[1]:
                    within.append(f"{text}, both in {splits[0]}")
                else:
                    across.append(f"{text}, which is in {splits[0]}, this one in {splits[1]}")
    _extend(report.errors, across)
    _extend(report.warnings, within)


def _digests(samples: Samples) -> list[str]:
    names = COMPARED.get(samples.manifest.kind, ())

    def digest(position: int) -> str:
        hasher = hashlib.blake2b(digest_size=16)
        for name in names:
            hasher.update(samples.store.rows(name, position).data)
        return hasher.hexdigest()

    positions = samples.positions.tolist()
    return list(map_threads(digest, positions, None, "comparing samples", "samples"))


def _check_boxes(samples: Samples, report: LintReport) -> None:
    side = samples.manifest.transform["image_size"]
    boxes, mask, labels = (samples.all(name) for name in ("boxes", "mask", "labels"))
    filled = mask > 0
    empty = ~filled
    prefix = np.sort(filled, axis=1)[:, ::-1]
    odd = (mask > 1) | (filled != prefix) | (empty & ((boxes != 0).any(-1) | (labels != 0)))
    odd |= empty & samples.ignored
    if "areas" in samples.manifest.tensors:
        areas = samples.all("areas")
        odd |= np.where(filled, ~(np.isfinite(areas) & (areas >= 0)), areas != 0)
    numbers = np.nan_to_num(boxes.astype(np.float64), posinf=0, neginf=0)
    x0, y0, x1, y1 = np.moveaxis(numbers, -1, 0)
    width, height = x1 - x0, y1 - y0
    finite = np.isfinite(boxes).all(-1)
    ordered = (width > 0) & (height > 0)
    inside = (np.minimum(x0, y0) >= 0) & (np.maximum(x1, y1) <= 1)
    valid = filled & finite & ordered & inside
    with np.errstate(divide="ignore", invalid="ignore"):
        aspect = np.maximum(width / height, height / width)
    checks = [
        (odd, "slots are not filled from the first on, or an empty slot is not zero", True),
        (filled & ~finite, "a coordinate is not a number", True),
        (filled & finite & ~ordered, "inverted or empty", True),
        (filled & finite & ~inside, "exceeds the frame", True),
        (
            valid & ~_on_image(samples, numbers, side),
            "exceeds the image, into the padding of the letterbox",
            True,
        ),
        (
            filled & ((labels < 0) | (labels >= len(samples.manifest.classes))),
            "its label is not a class",
            True,
        ),
        (valid & (np.minimum(width, height) * side < TINY), f"a side under {TINY:g} px", False),
        (valid & (aspect > ABSURD_ASPECT), f"one side over {ABSURD_ASPECT:g} × the other", False),
    ]
    for wrong, text, is_error in checks:
        indices, slots = np.nonzero(wrong)
        _extend(
            report.errors if is_error else report.warnings,
            (
                f"{samples.where(samples.positions[index])} box {slot}: {text}: "
                f"{np.array2string(boxes[index, slot], precision=4)}, label {labels[index, slot]}"
                for index, slot in zip(indices.tolist(), slots.tolist(), strict=True)
            ),
        )


def _on_image(samples: Samples, boxes: NDArray[Any], side: int) -> NDArray[np.bool_]:
    """[N, M] True for boxes inside their image (to a pixel), not in the padding beside it."""
    areas = image_areas(samples)[:, None] + [-1, -1, 1, 1]
    pixels = boxes * side
    low, high = pixels[..., :2] >= areas[..., :2], pixels[..., 2:] <= areas[..., 2:]
    return np.asarray((low & high).all(-1))


def _check_channels(samples: Samples, report: LintReport) -> None:
    """Find channels that are constant, and those that several frames share."""
    names = samples.manifest.transform["channels"]
    pixels = samples.all("sizes").astype(np.int64).prod(1)[:, None]
    sums, squares = np.moveaxis(samples.all("sums"), 1, 0)
    level = sums // pixels
    constant = (level * pixels == sums) & (level * level * pixels == squares)
    for channel, name in enumerate(names):
        indices = np.flatnonzero(constant[:, channel]).tolist()
        if len(indices) == len(constant) > 1:
            report.errors.append(f"channel {name}: the same value in all pixels of each frame")
            continue
        _extend(
            report.warnings,
            (
                f"{samples.where(samples.positions[index])}: {name} is {level[index, channel]} in "
                "all pixels"
                for index in indices
            ),
        )
    first: dict[tuple[int, bytes], int] = {}
    stuck: list[str] = []
    for index, position in enumerate(samples.positions.tolist()):
        image = samples.store.rows("images", position)
        same = {}
        for channel in np.flatnonzero(~constant[index]).tolist():
            content = np.ascontiguousarray(image[..., channel]).data
            key = channel, hashlib.blake2b(content, digest_size=16).digest()
            if (other := first.setdefault(key, position)) != position:
                same[names[channel]] = other
        if same and len(same) < len(names):  # otherwise the frames are duplicates
            other = next(iter(same.values()))
            stuck.append(
                f"{samples.where(position)}: same {' and '.join(same)} as {samples.where(other)}: "
                "the sensor did not go on"
            )
    _extend(report.warnings, stuck)


def _check_features(samples: Samples, report: LintReport) -> None:
    features = samples.all("features")
    for wrong, text, lines in (
        (~np.isfinite(features).all(1), "a feature is not finite", report.errors),
        (~features.any(1), "all features are 0", report.warnings),
    ):
        found = samples.positions[np.flatnonzero(wrong)].tolist()
        _extend(lines, (f"{samples.where(position)}: {text}" for position in found))


def _check_classes(samples: Samples, report: LintReport) -> None:
    counts = class_counts(samples)
    if "train" not in counts:
        report.errors.append(f"{samples.manifest.path}: no training samples")
        return
    unseen = []
    for label, name in enumerate(samples.manifest.classes):
        if counts["train"][label]:
            continue
        others = [split for split, by_class in counts.items() if by_class[label]]
        unseen.append(
            f"class {name}: none in train" + (f", some in {' and '.join(others)}" if others else "")
        )
    _extend(report.warnings, unseen)


def _summarize(samples: Samples, report: LintReport) -> None:
    manifest = samples.manifest
    report.notes.append(
        f"{manifest.kind}, version {manifest.version}: {counted(manifest.samples, 'samples')} of "
        f"{counted(len(manifest.groups), 'groups')}, {counted(len(manifest.classes), 'classes')}, "
        f"{counted(len(manifest.shards), 'shards')}, "
        f"{sum(s.bytes for s in manifest.shards) / 2**20:.1f} MiB"
    )
    counts = class_counts(samples) if manifest.classes else {}
    unit = "boxes" if manifest.kind == "frames" else "samples"
    for split, ranges in manifest.splits.items():
        groups = sum(g.split == split and g.stop > g.start for g in manifest.groups)
        count = counted(sum(stop - start for start, stop in ranges), "samples")
        note = f"{split}: {count} of {counted(groups, 'groups')}"
        if counts:
            by_class = counts[split]
            note += (
                f"; {unit} per class: fewest {by_class.min()} "
                f"({manifest.classes[by_class.argmin()]}), most {by_class.max()} "
                f"({manifest.classes[by_class.argmax()]}), total {by_class.sum()}"
            )
        report.notes.append(note)
    if manifest.kind == "frames":
        objects, boxes = samples.objects, samples.boxes()
        per_frame = Counter(objects.sum(1).tolist())
        report.notes.append(
            f"boxes per frame: at most {max(per_frame, default=0)} of {objects.shape[1]} slots; "
            + ", ".join(f"{n} with {count}" for count, n in sorted(per_frame.items()))
        )
        if regions := int(samples.ignored.sum()):
            frames = counted(int(samples.ignored.any(1).sum()), "frames")
            report.notes.append(f"ignore regions: {regions} in {frames}")
        if len(boxes):
            sides = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1).clip(0))
            low, middle, high = np.quantile(sides, [0.05, 0.5, 0.95])
            report.notes.append(
                f"box side (square root of the area), fraction of the frame: median {middle:.3f}, "
                f"5 % under {low:.3f}, 5 % over {high:.3f}"
            )
    report.notes += readings(samples)
    if skipped := by_kind(manifest.damage):
        report.notes.append(f"left out while the store was prepared: {skipped}")
