"""What may be wrong with a prepared store, found before a network learns it."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from research.data.frames.letterbox import Letterbox
from research.data.index import ProgressCallback
from research.data.warehouse.checksums import damaged_shards
from research.data.warehouse.manifest import MANIFEST, SAMPLES, SPLITS, Manifest
from research.data.warehouse.samples import Samples, class_counts
from research.utils.errors import UserError

TINY = 4.0
"""Pixels of the canvas: a box with a smaller side is hardly to be found."""

ABSURD_ASPECT = 20.0
MOST_LINES = 20
"""Findings of one sort that are written out; the rest is counted."""

HASHED_AT_ONCE = 256
ROWS = {"frames": ("images",), "coefficients": ("y", "cbcr")}
"""What of a sample must not be there twice."""


@dataclass
class Report:
    """What came out.

    Attributes:
        errors: findings that make results wrong, one line each, naming shard or sample.
        warnings: findings to look at.
        notes: what the store holds, in words.
    """

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def lint(manifest: Manifest, progress: ProgressCallback | None = None) -> tuple[Report, Samples]:
    """Look at everything in a store.

    Args:
        manifest: of the store.
        progress: told while samples are read.
    """
    report = Report()
    damaged = {}
    for shard, problem in damaged_shards(manifest, manifest.shards):
        damaged[shard.file] = problem
    report.errors += damaged.values()
    _files(manifest, report)
    try:
        lines = manifest.lines()
    except UserError as error:
        report.errors.append(str(error))
        lines = _stand_ins(manifest)
    samples = Samples(manifest, lines, set(damaged))
    _groups(samples, report)
    _duplicates(samples, report, progress)
    if manifest.kind == "frames":
        _boxes(samples, report)
    _classes(samples, report)
    _facts(samples, report)
    return report, samples


def _tell(lines: list[str], found: Iterable[str]) -> None:
    """Add findings of one sort, the first ones in full."""
    texts = list(found)
    lines += texts[:MOST_LINES]
    if len(texts) > MOST_LINES:
        lines.append(f"… and {len(texts) - MOST_LINES} more like it")


def _stand_ins(manifest: Manifest) -> list[dict[str, Any]]:
    """Records that say nothing, for when the real ones are lost."""
    return [
        {"name": "its name is lost", "group": group.name, "sha256": str(position)}
        for group in manifest.groups
        for position in range(group.start, group.stop)
    ]


def _files(manifest: Manifest, report: Report) -> None:
    named = {MANIFEST, SAMPLES, *(shard.file for shard in manifest.shards)}
    found = sorted(path.name for path in manifest.folder.iterdir())
    orphans = (f"{manifest.folder / name}: orphan, no part of the store" for name in found)
    _tell(
        report.warnings,
        (text for text, name in zip(orphans, found, strict=True) if name not in named),
    )


def _groups(samples: Samples, report: Report) -> None:
    manifest = samples.manifest
    splits: dict[str, set[str]] = defaultdict(set)
    for group in manifest.groups:
        splits[group.name].add(group.split)
        for position in range(group.start, group.stop):
            splits[samples.lines[position]["group"]].add(group.split)
    _tell(
        report.errors,
        (
            f"group {name} is in {' and '.join(sorted(among))}: its samples leak from one split "
            "into the other"
            for name, among in splits.items()
            if len(among) > 1
        ),
    )


def _duplicates(samples: Samples, report: Report, progress: ProgressCallback | None) -> None:
    """The same file, or the same rows from other bytes, twice."""
    by_file: dict[str, list[int]] = defaultdict(list)
    for position, line in enumerate(samples.lines):
        by_file[line["sha256"]].append(position)
    by_rows: dict[str, list[int]] = defaultdict(list)
    found_rows = zip(samples.positions.tolist(), _digests(samples, progress), strict=True)
    for position, digest in found_rows:
        by_rows[digest].append(position)
    across: list[str] = []
    within: list[str] = []
    told = set()
    for what, found in (("file", by_file), ("stored image", by_rows)):
        for positions in found.values():
            if len(positions) == 1 or tuple(positions) in told:
                continue
            told.add(tuple(positions))
            first, *others = positions
            for other in others:
                splits = [SPLITS[samples.splits[position]] for position in (first, other)]
                text = f"{samples.where(other)}: same {what} as {samples.where(first)}"
                if splits[0] == splits[1]:
                    within.append(f"{text}, both in {splits[0]}")
                else:
                    across.append(f"{text}, which is in {splits[0]}, this one in {splits[1]}")
    _tell(report.errors, across)
    _tell(report.warnings, within)


def _digests(samples: Samples, progress: ProgressCallback | None) -> list[str]:
    names = ROWS.get(samples.manifest.kind, ())

    def digest(position: int) -> str:
        found = hashlib.blake2b(digest_size=16)
        for name in names:
            found.update(samples.store.rows(name, position).data)
        return found.hexdigest()

    positions = samples.positions.tolist()
    digests: list[str] = []
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(positions), HASHED_AT_ONCE):
            digests += pool.map(digest, positions[start : start + HASHED_AT_ONCE])
            if progress is not None:
                progress("comparing samples", len(digests), len(positions))
    return digests


def _boxes(samples: Samples, report: Report) -> None:
    side = samples.manifest.transform["image_size"]
    boxes, mask, labels = (samples.all(name) for name in ("boxes", "mask", "labels"))
    filled = mask > 0
    empty = ~filled
    prefix = np.sort(filled, axis=1)[:, ::-1]
    odd = (mask > 1) | (filled != prefix) | (empty & ((boxes != 0).any(-1) | (labels != 0)))
    numbers = np.nan_to_num(boxes.astype(np.float64), posinf=0, neginf=0)
    x0, y0, x1, y1 = np.moveaxis(numbers, -1, 0)
    width, height = x1 - x0, y1 - y0
    finite = np.isfinite(boxes).all(-1)
    ordered = (width > 0) & (height > 0)
    inside = (np.minimum(x0, y0) >= 0) & (np.maximum(x1, y1) <= 1)
    sound = filled & finite & ordered & inside
    with np.errstate(divide="ignore", invalid="ignore"):
        aspect = np.maximum(width / height, height / width)
    checks = [
        (odd, "slots are not filled from the first on, or an empty one holds something", True),
        (filled & ~finite, "a coordinate is not a number", True),
        (filled & finite & ~ordered, "inverted or empty", True),
        (filled & finite & ~inside, "reaches out of the frame", True),
        (
            sound & ~_on_image(samples, numbers, side),
            "reaches into the black of the letterbox",
            True,
        ),
        (
            filled & ((labels < 0) | (labels >= len(samples.manifest.classes))),
            "its label is no class",
            True,
        ),
        (sound & (np.minimum(width, height) * side < TINY), f"a side under {TINY:g} px", False),
        (sound & (aspect > ABSURD_ASPECT), f"one side over {ABSURD_ASPECT:g} × the other", False),
    ]
    for wrong, text, serious in checks:
        places, slots = np.nonzero(wrong)
        _tell(
            report.errors if serious else report.warnings,
            (
                f"{samples.where(samples.positions[place])} box {slot}: {text}: "
                f"{np.array2string(boxes[place, slot], precision=4)}, label {labels[place, slot]}"
                for place, slot in zip(places.tolist(), slots.tolist(), strict=True)
            ),
        )


def _on_image(samples: Samples, boxes: NDArray[Any], side: int) -> NDArray[np.bool_]:
    """[N, M] whether a box lies on its image, to a pixel, and not on the bars beside it."""
    areas = np.zeros((len(boxes), 1, 4))
    for place, (height, width) in enumerate(samples.all("sizes").tolist()):
        box = Letterbox.of(max(1, height), max(1, width), side)
        left, top = box.pad_x - 1, box.pad_y - 1
        areas[place, 0] = (left, top, left + box.width + 2, top + box.height + 2)
    pixels = boxes * side
    low, high = pixels[..., :2] >= areas[..., :2], pixels[..., 2:] <= areas[..., 2:]
    return np.asarray((low & high).all(-1))


def _classes(samples: Samples, report: Report) -> None:
    counts = class_counts(samples)
    if "train" not in counts:
        report.errors.append(f"{samples.manifest.path}: no training samples")
        return
    unseen = []
    for label, name in enumerate(samples.manifest.classes):
        if counts["train"][label]:
            continue
        others = [split for split, found in counts.items() if found[label]]
        unseen.append(
            f"class {name}: none in train" + (f", some in {' and '.join(others)}" if others else "")
        )
    _tell(report.warnings, unseen)


def _facts(samples: Samples, report: Report) -> None:
    manifest = samples.manifest
    report.notes.append(
        f"{manifest.kind}, version {manifest.version}: {manifest.samples} samples of "
        f"{len(manifest.groups)} groups, {len(manifest.classes)} classes, "
        f"{len(manifest.shards)} shards, {sum(s.bytes for s in manifest.shards) / 2**20:.1f} MiB"
    )
    counts = class_counts(samples)
    unit = "boxes" if manifest.kind == "frames" else "samples"
    for split, ranges in manifest.splits.items():
        found = counts[split]
        groups = sum(g.split == split and g.stop > g.start for g in manifest.groups)
        report.notes.append(
            f"{split}: {sum(stop - start for start, stop in ranges)} samples of {groups} groups; "
            f"{unit} a class: fewest {found.min()} ({manifest.classes[found.argmin()]}), "
            f"most {found.max()} ({manifest.classes[found.argmax()]}), in all {found.sum()}"
        )
    if manifest.kind == "frames":
        mask, boxes = samples.all("mask") > 0, samples.boxes()
        per_frame = Counter(mask.sum(1).tolist())
        report.notes.append(
            f"boxes a frame: at most {max(per_frame, default=0)} of {mask.shape[1]} slots; "
            + ", ".join(f"{n} with {count}" for count, n in sorted(per_frame.items()))
        )
        if len(boxes):
            sides = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1).clip(0))
            low, middle, high = np.quantile(sides, [0.05, 0.5, 0.95])
            report.notes.append(
                f"box side (root of its area) as a share of the frame: median {middle:.3f}, "
                f"5 % under {low:.3f}, 5 % over {high:.3f}"
            )
    left_out = ", ".join(f"{count} {kind}" for kind, count in manifest.damage.items())
    if left_out:
        report.notes.append(f"left out while it was prepared: {left_out}")
