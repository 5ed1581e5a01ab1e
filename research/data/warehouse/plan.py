"""Build plans: which samples a store gets, in which splits, and the hash that names its version."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from research.config.cli import choose
from research.data.folder import ImageFolders
from research.data.frames.frame import Frame, FrameSet
from research.data.frames.reading import SourceSummary
from research.data.image_files import reading_tag
from research.data.warehouse.checksums import sha256_of
from research.data.warehouse.encoders import (
    OPTIONAL,
    CoefficientEncoder,
    FrameEncoder,
    SampleEncoder,
    SampleSpec,
)
from research.data.warehouse.manifest import SCHEMA
from research.utils.cache import cached_by_file, file_stamp
from research.utils.errors import UserError
from research.utils.threads import map_threads


@dataclass(frozen=True)
class BuildPlan:
    """Everything that determines a version.

    Attributes:
        encoder: how files are encoded.
        classes: class names in index order.
        samples: the samples in order; those of a group are adjacent.
        splits: group to split, in the order of the samples.
        reports: group to counts of samples skipped so far.
        runs: counts of each run of the source, for the manifest.
        skipped: samples skipped so far, by kind.
        thresholds: the limits that the source was checked against.
        may_be_empty: whether a split without a readable sample is accepted.
        reading: how the source was read, if it has frames.
    """

    encoder: SampleEncoder
    classes: list[str]
    samples: list[SampleSpec]
    splits: dict[str, str]
    reports: dict[str, dict[str, int]] = field(default_factory=dict)
    runs: dict[str, dict[str, int]] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    thresholds: dict[str, float] = field(default_factory=dict)
    may_be_empty: bool = False
    reading: SourceSummary | None = None


class FileStamp(NamedTuple):
    """Hash of the files of a sample, and what shows cheaply whether they have changed since.

    Attributes:
        sha256: of the content; of several files, of their hashes.
        stats: of each file its size, time of modification, and time of change, which programs
            cannot set.
        reading: see ``reading_tag``.
    """

    sha256: str
    stats: tuple[tuple[int, int, int], ...]
    reading: str

    @classmethod
    def of(cls, stats: Sequence[os.stat_result], hashes: Sequence[Sequence[str]]) -> Self:
        """The stamp of files with these hashes and readings, see ``_hash``."""
        sha256s, readings = zip(*hashes, strict=True)
        whole = sha256("".join(sha256s).encode()).hexdigest() if len(sha256s) > 1 else sha256s[0]
        times = tuple((stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for stat in stats)
        return cls(whole, times, ",".join(readings).strip(","))


def version_of(plan: BuildPlan, stamps: Sequence[FileStamp]) -> str:
    """Hash of data and transform; independent of the location and dates of the files."""
    splits: dict[str, list[str]] = {}
    for group, split in plan.splits.items():
        splits.setdefault(split, []).append(group)
    content = {
        "schema": SCHEMA,
        "kind": plan.encoder.kind,
        "transform": plan.encoder.transform(),
        "classes": plan.classes,
        "splits": splits,
        "reports": plan.reports,
        "runs": plan.runs,
        "damage": plan.skipped,
    }
    digest = sha256(_canonical(content))
    for sample, stamp in zip(plan.samples, stamps, strict=True):
        reading = [stamp.reading] if stamp.reading else []
        record = [sample.name, sample.group, stamp.sha256, sample.target, *reading]
        digest.update(_canonical(record))
    return digest.hexdigest()[:16]


def _canonical(content: object) -> bytes:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f"{text}\n".encode()


def stamp_files(
    samples: Sequence[SampleSpec],
    workers: int,
    cache: Path | None = None,
) -> list[FileStamp]:
    """Hash the files of every sample.

    Args:
        samples: the samples.
        workers: threads, times two.
        cache: folder where hashes of unchanged files are kept; ``None`` to read all files.

    Raises:
        UserError: for a file that cannot be read.
    """
    files = {str(file): file for sample in samples for file in sample.files}

    def hashes(names: Sequence[str]) -> Iterator[tuple[str, str]]:
        chosen = [files[name] for name in names]
        return map_threads(_hash, chosen, min(16, 2 * workers), "hashing files")

    stats = {name: _stat(file) for name, file in files.items()}
    if cache is None:
        known: dict[str, Any] = dict(zip(files, hashes([*files]), strict=True))
    else:
        stamps = {name: file_stamp(stat) for name, stat in stats.items()}
        key = {"prepared": sorted({str(file.parent.resolve()) for file in files.values()})}
        known = cached_by_file(cache / "contents", key, stamps, hashes)
    names = [[str(file) for file in sample.files] for sample in samples]
    return [FileStamp.of([stats[n] for n in own], [known[n] for n in own]) for own in names]


def _stat(file: Path) -> os.stat_result:
    try:
        return file.stat()
    except OSError as error:
        raise _unreadable(file, error) from None


def _hash(file: Path) -> tuple[str, str]:
    """SHA-256 of a file, and its ``reading_tag``."""
    try:
        return sha256_of(file), reading_tag(file)
    except OSError as error:
        raise _unreadable(file, error) from None


def _unreadable(file: Path, error: OSError) -> UserError:
    return UserError(
        "SOURCE",
        f"{file}: {error.strerror or error}",
        "restore the file or remove its label",
    )


def plan_frames(
    frame_set: FrameSet,
    encoder: FrameEncoder,
    splits: Mapping[str, str],
    thresholds: Mapping[str, float],
) -> BuildPlan:
    """Plan a store of frames, in the order of their groups.

    Args:
        frame_set: a source with at least one usable frame.
        encoder: how frames are stored.
        splits: split of every group that has a usable frame.
        thresholds: the limits that the source was checked against.

    Raises:
        UserError: for a frame with more boxes than the encoder has slots, or no class.
    """
    if not frame_set.classes:
        raise UserError(
            "labels",
            f"{frame_set.root}: no label has a box, and no file names the classes",
            "add labels, or name the classes (YOLO: in classes.txt) if all frames are negatives",
        )
    frames = sorted(frame_set.frames, key=lambda frame: (frame.group, frame.name))
    fullest = max(frames, key=lambda frame: len(frame.boxes))
    if len(fullest.boxes) > encoder.max_boxes:
        raise UserError(
            "max_boxes",
            f"{fullest.image}: {len(fullest.boxes)} boxes for {encoder.max_boxes} slots",
            f"set max_boxes={len(fullest.boxes)} (no frame has more)",
        )
    samples = [
        SampleSpec(frame.name, frame.group, frame.image, _target_of(frame)) for frame in frames
    ]
    needed = {name for sample in samples for name in sample.target}
    encoder = replace(encoder, optional=tuple(name for name in OPTIONAL if name in needed))
    runs = {}
    for run in frame_set.runs:
        counts = asdict(run)
        runs[counts.pop("name")] = counts
    return BuildPlan(
        encoder,
        frame_set.classes,
        samples,
        {group: splits[group] for group in sorted(splits)},
        runs=runs,
        thresholds=dict(thresholds),
        reading=frame_set.reading,
    )


def _target_of(frame: Frame) -> dict[str, list[Any]]:
    """What is stored of the boxes of a frame; part of the version, so nothing without content."""
    target: dict[str, list[Any]] = {
        "boxes": [list(box) for box in frame.boxes],
        "labels": list(frame.labels),
    }
    if any(frame.ignored):
        target["ignored"] = list(frame.ignored)
    if frame.areas:
        target["areas"] = list(frame.areas)
    return target


def plan_folders(folders: ImageFolders, source: Path, encoder: CoefficientEncoder) -> BuildPlan:
    """Plan a store of labelled images, in the order of their splits; each split is one group.

    Args:
        folders: prepared image folders, whose splits and classes are used.
        source: the folder that sample names are relative to.
        encoder: how images are stored.
    """
    samples, reports, skipped = [], {}, Counter[str]()
    for split, files in folders.splits.items():
        for file, label in zip(files.files, files.labels, strict=True):
            samples.append(SampleSpec(file.relative_to(source).as_posix(), split, file, label))
        skipped.update(files.skipped)
        reports[split] = {f"left_out/{kind}": n for kind, n in sorted(files.skipped.items())}
    splits = {split: split for split in folders.splits}
    return BuildPlan(
        encoder, folders.classes, samples, splits, reports, skipped=dict(sorted(skipped.items()))
    )


def assign_splits(
    groups: Collection[str],
    own: Mapping[str, str],
    *,
    val: float,
    test: float,
    seed: int,
    named: Mapping[str, Sequence[str]],
) -> dict[str, str]:
    """Assign every group to a split.

    Groups named by the user come first, then the source's own split; a split that neither defines
    is drawn from the remaining groups.

    Args:
        groups: names of the groups.
        own: the source's own split, group to split; groups not in it are training data.
        val: fraction of the groups drawn for validation, at least one group; 0 for none.
        test: the same for the test split.
        seed: seed of the draw.
        named: split to the groups that the user named for it.

    Raises:
        UserError: for an unknown group, a group in two splits, or no group left for training.
    """
    groups = sorted(groups)
    splits = {group: own.get(group, "train") for group in groups}
    asked = {split: list(names) for split, names in named.items() if names}
    if asked and own:
        key = f"{next(iter(asked))}_runs"
        raise UserError(key, f"{key}: the source defines its own split", f"leave {key} out")
    for split, names in asked.items():
        key = f"{split}_runs"
        for name in names:
            choose(key, name, groups)
            if splits[name] != "train":
                raise UserError(key, f"{key}={name}: {name} is in {splits[name]} already")
            splits[name] = split
    rng = np.random.default_rng((seed, 3))
    for split, fraction in (("test", test), ("val", val)):
        if fraction and split not in splits.values():
            rest = [group for group in groups if splits[group] == "train"]
            count = max(1, round(len(groups) * fraction))
            for name in rng.permutation(rest)[: min(count, len(rest))]:
                splits[str(name)] = split
    if "train" not in splits.values():
        raise UserError(
            "val",
            f"validation and test take all of {len(groups)} groups and leave none for training",
            "name or draw fewer, or hold nothing out with val=0 test=0",
        )
    return splits
