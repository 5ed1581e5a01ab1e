"""``manifest.json``: the description of one version of a store."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt, with_config

from research.config import stored
from research.data.texts import MAX_JSON, BadText, read_bytes
from research.utils.documents import parse_json, validate
from research.utils.errors import UserError
from research.utils.files import write_text

SCHEMA = 1
"""Format version of the files of a store."""

MANIFEST = "manifest.json"
SAMPLES = "samples.jsonl"
SPLITS = ("train", "val", "test")
DTYPES = ("uint8", "uint16", "int16", "int32", "int64", "float16", "float32")
KINDS = {
    "frames": (("image_size", "max_boxes"), ("images", "boxes", "mask", "labels", "sizes")),
    "coefficients": (("image_size", "window", "source"), ("y", "cbcr", "labels")),
    "features": (("feature", "key"), ("photos", "features")),
}
"""By kind of store: entries of ``transform``, and tensors, that it must have."""
REMEDY = "prepare it again"
MAX_ROW = 2**20
"""Bytes of a line of ``samples.jsonl``, on average."""

SplitName = Annotated[str, Field(pattern=f"^({'|'.join(SPLITS)})$")]
TensorType = Annotated[str, Field(pattern=f"^({'|'.join(DTYPES)})$")]


@dataclass(frozen=True)
class Shard:
    """One file of tensors.

    Attributes:
        file: name in the folder of the version.
        samples: number of rows of each of its tensors.
        bytes: size of the file.
        sha256: hash of the file, hexadecimal.
    """

    file: str
    samples: PositiveInt
    bytes: PositiveInt
    sha256: str


@dataclass(frozen=True)
class SampleGroup:
    """Samples that stay in one split, such as those of a run or a folder.

    Attributes:
        name: unique in the store.
        start: position of its first sample.
        stop: position after its last sample.
        split: ``train``, ``val`` or ``test``.
        report: counts under ``left_out/KIND`` and ``fallback/KIND``.
    """

    name: str
    start: NonNegativeInt
    stop: NonNegativeInt
    split: SplitName
    report: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class TensorSpec:
    """Type of a tensor, and its shape for one sample."""

    dtype: TensorType
    shape: tuple[PositiveInt, ...]

    @property
    def bytes(self) -> int:
        """Size for one sample."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@with_config(ConfigDict(strict=True, extra="forbid"))
@dataclass(frozen=True)
class Manifest:
    """One version of a store. The fields have the names of the entries of the file.

    Attributes:
        folder: folder of the version; not written.
        schema: format version, see ``SCHEMA``.
        kind: a key of ``KINDS``.
        version: hash of data and transform, 16 hexadecimal digits.
        transform: settings of the encoder, such as ``image_size``.
        classes: class names in index order.
        samples: total number of samples.
        tensors: type and shape of each tensor, by name.
        shards: in the order of the samples.
        groups: in the order of the samples, without gaps.
        runs: counts of each run of the source, or of each other part where it has no runs:
            ``total``, ``non_empty``, ``empty``, ``missing_image``, ``missing_file``, ``invalid``.
        damage: number of samples skipped while the store was prepared, by kind.
        left_out: skipped samples whose files were found damaged when they were encoded, name to
            kind.
        thresholds: limits that the source was checked against.
        index_sha256: hash of ``samples.jsonl``.
        reading: how the source was read; empty in stores of earlier versions.
    """

    folder: Path
    schema: int
    kind: str
    version: str
    transform: dict[str, Any]
    classes: list[str]
    samples: int
    tensors: dict[str, TensorSpec]
    shards: list[Shard]
    groups: list[SampleGroup]
    runs: dict[str, dict[str, int]]
    damage: dict[str, int]
    left_out: dict[str, str]
    thresholds: dict[str, float]
    index_sha256: str
    reading: str = ""

    @property
    def path(self) -> Path:
        return self.folder / MANIFEST

    @property
    def splits(self) -> dict[str, list[tuple[int, int]]]:
        """Ranges [start, stop) of positions for each split that has samples."""
        ranges: dict[str, list[tuple[int, int]]] = {}
        for name in SPLITS:
            for group in self.groups:
                if group.split != name or group.start == group.stop:
                    continue
                merged = ranges.setdefault(name, [])
                start = merged.pop()[0] if merged and merged[-1][1] == group.start else group.start
                merged.append((start, group.stop))
        return ranges

    def split(self, name: str) -> NDArray[np.int64]:
        """Positions of the samples of one split, in order.

        Raises:
            UserError: if there is no such split.
        """
        ranges = self.splits
        if name not in ranges:
            raise UserError("split", f"split={name}: {self.path} has {', '.join(ranges)}")
        return np.concatenate([np.arange(start, stop) for start, stop in ranges[name]])

    def records(self) -> list[dict[str, Any]]:
        """The lines of ``samples.jsonl``: name, group, sha256 of the file, boxes or label.

        Also ``reading``, if a file was not read by its stored pixels alone (see ``reading_tag``).

        Raises:
            UserError: if the file is missing or damaged.
        """
        path = self.folder / SAMPLES
        try:
            data = read_bytes(path, self.samples * MAX_ROW)
        except BadText as error:
            raise _unread(path, error) from None
        if hashlib.sha256(data).hexdigest() != self.index_sha256:
            raise UserError("manifest", f"{path}: damaged (SHA-256)", REMEDY)
        records = [_record(path, row, line) for row, line in enumerate(data.splitlines(), 1)]
        if len(records) != self.samples:
            raise UserError(
                "manifest",
                f"{path}: {len(records)} lines for {self.samples} samples",
                REMEDY,
            )
        return records

    def save(self) -> None:
        content = asdict(self)
        del content["folder"]
        if not self.reading:
            del content["reading"]
        write_text(self.path, json.dumps(content, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read and validate a manifest; shards are not opened.

        Args:
            path: a ``manifest.json``, the folder of a version, or a folder of versions, of which
                the one that was prepared last is used.

        Raises:
            UserError: if there is no manifest, or it is not valid.
        """
        file = _find(path)
        try:
            content = parse_json(read_bytes(file, MAX_JSON))
        except BadText as error:
            raise _unread(file, error) from None
        except (ValueError, RecursionError) as error:
            raise UserError("manifest", f"{file}: {_reason(error)}", REMEDY) from None
        if not isinstance(content, Mapping) or not isinstance(content.get("schema"), int):
            raise UserError("manifest", f"{file}: not the manifest of a warehouse", REMEDY)
        if content["schema"] > SCHEMA:
            raise UserError(
                "manifest",
                f"{file}: schema {content['schema']}, this version reads up to {SCHEMA}",
                "update Backbone Lab",
            )
        transform = stored.transform(content.get("transform", {}), str(file))
        document = {**content, "folder": str(file.parent), "transform": transform}
        manifest = validate(cls, document, "manifest", file, REMEDY)
        if problem := manifest._problem():
            raise UserError("manifest", f"{file}: {problem}", REMEDY)
        return manifest

    def _problem(self) -> str:
        """The first inconsistency, or ''."""
        for shard in self.shards:
            parts = PurePosixPath(shard.file).parts
            climbs = ".." in parts or len(parts) != 1 or PureWindowsPath(shard.file).anchor
            if climbs or "\\" in shard.file:
                return f"shard {shard.file!r} is outside the store"
        total = sum(shard.samples for shard in self.shards)
        if self.samples != total:
            return f"samples is {self.samples!r}, the shards hold {total}"
        position = 0
        for group in self.groups:
            if group.start != position or group.stop < position:
                return f"group {group.name}: starts at {group.start}, expected {position}"
            position = group.stop
        if position != self.samples:
            return f"the groups hold {position} samples, the shards {self.samples}"
        if self.kind not in KINDS:
            return f"kind is {self.kind[:50]!r}, expected {', '.join(KINDS)}"
        settings, tensors = KINDS[self.kind]
        if "channels" in self.transform:
            tensors = *tensors, "sums"
        for where, known, needed in (
            ("transform", self.transform, settings),
            ("tensors", self.tensors, tensors),
        ):
            if missing := [key for key in needed if key not in known]:
                return f"{where} has no {missing[0]}"
        for name, shape in _shapes(self.kind, self.transform).items():
            stored = self.tensors[name].shape if name in self.tensors else shape
            if stored != shape:
                return f"tensor {name} is {list(stored)}, its transform gives {list(shape)}"
        for name, tensor in self.tensors.items():
            if math.prod(tensor.shape) >= 2**40:
                return f"tensor {name}: {list(tensor.shape)} is not supported"
        return ""


def _shapes(kind: str, transform: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of tensors that follow from the transform, whether a store has them or not."""
    if kind == "frames":
        side, slots = transform["image_size"], transform["max_boxes"]
        channels = len(transform.get("channels") or "RGB")
        of_slots = dict.fromkeys(("mask", "labels", "ignored", "areas"), (slots,))
        return of_slots | {
            "images": (side, side, channels),
            "boxes": (slots, 4),
            "sizes": (2,),
            "sums": (2, channels),
        }
    if kind == "coefficients":
        grid, kept = transform["image_size"] // 8, transform["window"] ** 2
        return {"y": (grid, grid, kept), "cbcr": (2, grid // 2, grid // 2, kept), "labels": ()}
    return {"photos": (32,)}


def is_store(path: Path) -> bool:
    """Whether a path is a manifest, the folder of a version, or a folder of versions."""
    patterns = (MANIFEST, f"v*/{MANIFEST}", ".building-*")
    return path.is_file() or any(True for pattern in patterns for _ in path.glob(pattern))


def _record(path: Path, row: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError("manifest", f"{path} row {row}: {_reason(error)}", REMEDY) from None
    if not isinstance(record, dict):
        raise UserError("manifest", f"{path} row {row}: expected an object", REMEDY)
    for key in ("name", "group", "sha256"):
        if not isinstance(record.get(key), str):
            raise UserError("manifest", f"{path} row {row}: has no text {key!r}", REMEDY)
    return record


def _find(path: Path) -> Path:
    if path.is_file():
        return path
    if (path / MANIFEST).is_file():
        return path / MANIFEST
    versions = {file: file.stat().st_mtime_ns for file in path.glob(f"v*/{MANIFEST}")}
    if not versions:
        unfinished = any(path.glob(".building-*"))
        raise UserError(
            "manifest",
            f"{path}: {'only an unfinished store' if unfinished else 'no warehouse'}",
            "run the command that prepares it again"
            if unfinished
            else "pass the manifest.json that python -m research.prepare wrote",
        )
    newest = max(versions.values())
    latest = [file for file, written in versions.items() if written == newest]
    if len(latest) > 1:
        names = ", ".join(sorted(str(file) for file in latest))
        raise UserError(
            "manifest", f"{path}: several versions of the same age", f"pass one of {names}"
        )
    return latest[0]


def _unread(path: Path, error: BadText) -> UserError:
    return UserError("manifest", f"{path}: {str(error).removesuffix(': fix it')}", REMEDY)


def _reason(error: ValueError | RecursionError) -> str:
    return f"damaged ({error})"
