"""Small sources, and stores built from them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from research.data.frames.frame import Frame, FrameSet, RunCounts
from research.data.warehouse.build import build
from research.data.warehouse.encoders import CoefficientEncoder, FrameEncoder
from research.data.warehouse.manifest import Manifest
from research.data.warehouse.plan import BuildPlan, plan_folders, plan_frames
from tests.conftest import CLASSES, make_folders, picture

ENCODER = FrameEncoder(image_size=32, max_boxes=3)
SPLITS = {"run_1": "train", "run_2": "val", "run_3": "train"}


def make_frames(root: Path, frames: int = 4) -> FrameSet:
    """Three runs of ``frames`` frames of mixed sizes with 0, 1, 2, 3, 0, … boxes."""
    all_frames, runs = [], []
    for number, run in enumerate(SPLITS):
        (root / run).mkdir(parents=True)
        counts = [index % 4 for index in range(frames)]
        for index, count in enumerate(counts):
            name = f"{run}/frame_{index:05d}.jpg"
            size = (40 + 8 * (index % 3), 36 + 4 * number)
            picture("spots", 100 * number + index, size).save(root / name, quality=90)
            boxes = tuple((0.1 + k / 8, 0.2, 0.6 + k / 8, 0.75) for k in range(count))
            labels = tuple(range(count))
            all_frames.append(Frame(name, root / name, run, boxes, tuple(n % 2 for n in labels)))
        empty = counts.count(0)
        runs.append(RunCounts(run, frames, frames - empty, empty, 0, 0, 0))
    return FrameSet(root, "capture", ["polyp", "ulcer"], all_frames, runs, [], {})


def plan_of(frame_set: FrameSet, **changes: Any) -> BuildPlan:
    return replace(plan_frames(frame_set, ENCODER, SPLITS, {}), **changes)


def make_images(root: Path, images: int = 4) -> tuple[Path, SimpleNamespace]:
    """Class folders, and a stand-in for prepared ``ImageFolders``."""
    splits = {}
    for seed, split in enumerate(("train", "val")):
        folder = make_folders(root / split, images, seed=seed)
        files = sorted(folder.rglob("*.jpg"))
        labels = [CLASSES.index(file.parent.name) for file in files]
        splits[split] = SimpleNamespace(files=files, labels=labels, skipped={})
    return root, SimpleNamespace(splits=splits, classes=list(CLASSES))


def plan_images(
    root: Path, folders: Any, size: int = 32, window: int = 8, source: str = "bitstream"
) -> BuildPlan:
    encoder = CoefficientEncoder(size, window, source)
    return plan_folders(folders, root, encoder)


def content(folder: Path) -> dict[str, str]:
    """Every file of a folder by name, as a hash of its bytes."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def rewrite(manifest: Manifest, shard: int, **tensors: NDArray[Any]) -> Manifest:
    """Write other rows into a shard, with matching checksums, as a faulty builder would."""
    entry = manifest.shards[shard]
    path = manifest.folder / entry.file
    save_file({**load_file(path), **tensors}, path)
    data = path.read_bytes()
    fresh = replace(entry, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    shards = [fresh if number == shard else old for number, old in enumerate(manifest.shards)]
    changed = replace(manifest, shards=shards)
    changed.save()
    return changed


def rows_of(manifest: Manifest, shard: int, name: str) -> NDArray[Any]:
    """A copy of one tensor of a shard, read with safetensors."""
    return np.array(load_file(manifest.folder / manifest.shards[shard].file)[name])


def rewrite_records(manifest: Manifest, records: list[dict[str, Any]]) -> Manifest:
    """Write other records with a matching hash."""
    text = "".join(f"{json.dumps(record)}\n" for record in records)
    (manifest.folder / "samples.jsonl").write_text(text)
    changed = replace(manifest, index_sha256=hashlib.sha256(text.encode()).hexdigest())
    changed.save()
    return changed


def flip_bit(path: Path, at: float = 0.7) -> None:
    """Change one bit at a fraction of the file's length."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 4
    path.write_bytes(data)


@pytest.fixture
def frame_store(tmp_path: Path) -> Manifest:
    """Twelve frames in three shards."""
    plan = plan_of(make_frames(tmp_path / "source"))
    return build(plan, tmp_path / "out", shard_samples=5, workers=1)


@pytest.fixture
def image_store(tmp_path: Path) -> Manifest:
    """24 images in three shards."""
    return build(
        plan_images(*make_images(tmp_path / "images")),
        tmp_path / "images_out",
        shard_samples=10,
        workers=1,
    )
