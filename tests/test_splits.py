"""Which sample is in which split: no library and no refactor may deal old runs' samples anew."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from research.config import compose_config, resolved
from research.data.cifar_files import FAMILIES
from research.data.frames.annotations import read_frames
from research.data.warehouse.plan import assign_splits
from research.demos.capture_runs import CaptureDemo
from research.engine import build
from tests.conftest import Golden, picture
from tests.golden.configurations import DATA

FOLDS = [f"dataset.folds=4 dataset.fold={fold}" for fold in range(4)]
VARIANTS: dict[str, tuple[str, ...]] = {
    "folders": (
        "seed=0", "seed=1", "seed=0 dataset.val_fraction=0.3",
        "seed=2 dataset.max_train_images=17 dataset.max_val_images=4",
    ),
    "cifar10": (
        "seed=0", "seed=7 dataset.split_seed=1 dataset.val_images=50",
        "dataset.full_train=true dataset.max_train_images=30 dataset.max_val_images=20",
        "dataset.max_train_images=100 dataset.max_val_images=40 dataset.split_seed=3",
    ),
    "warehouse": ("seed=0", "dataset.max_train_images=9 dataset.max_val_images=3", *FOLDS),
    "coefficients": ("seed=0", "dataset.max_train_images=9"),
    "photos": (
        "seed=0", "seed=5 dataset.split_seed=1 dataset.test_fraction=0.3",
        "dataset.quick_experiment=0.5", "dataset.ties=drop dataset.min_agreement=0.6", *FOLDS,
    ),
    "votes": (
        "seed=0", "dataset.min_reviewers=4 dataset.min_agreement=0.55", "dataset.split_seed=4",
        "dataset.folds=3 dataset.fold=2",
    ),
    "rgbx": (
        "seed=0", "seed=5 dataset.split_seed=1", "dataset.group_by=null dataset.val_fraction=0.3",
        "dataset.max_train_images=5",
    ),
}  # fmt: skip


def folders(tmp: Path) -> list[str]:
    """Thirty, twenty and eleven images of three classes in two roots; the content says nothing."""
    image = tmp / "one.jpg"
    picture("bars", 0, (32, 32)).save(image)
    for label, count in {"ant": 30, "Bee": 20, "cat": 11}.items():
        for number in range(count):
            folder = tmp / f"root_{number % 2}" / label
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(image, folder / f"{label}_{number:02d}.jpg")
    return ["dataset=imagefolder", f"dataset.train_dirs=[{tmp}/root_0,{tmp}/root_1]"]


def cifar10(tmp: Path) -> list[str]:
    """The binary version at its full size: labels as they are known to alternate, black images."""
    family = FAMILIES[10]
    (tmp / family.binary).mkdir()
    for split, files in family.binary_files.items():
        for place, file in enumerate(files):
            count = family.images[split] // len(files)
            rows = np.zeros((count, 1 + 3 * 32 * 32), np.uint8)
            rows[:, 0] = np.random.default_rng(place).permutation(np.arange(count) % 10)
            rows.tofile(tmp / family.binary / file)
    return ["dataset=cifar10", f"dataset.root={tmp}", "model=fastnet"]


def warehouse(tmp: Path) -> list[str]:
    return ["model=bigdet", "dataset=warehouse", "dataset.manifest=stores/frames"]


def coefficients(tmp: Path) -> list[str]:
    return ["dataset=warehouse", "dataset.manifest=stores/coefficients"]


def photos(tmp: Path) -> list[str]:
    return ["model=siamese_e2e", "dataset=phototriage", "dataset.root=data/photos"]


def votes(tmp: Path) -> list[str]:
    """A table of votes on every pair of a series' photos."""
    found = sorted(file.stem for file in Path("data/photos").rglob("*.JPG"))
    rows = ["series_id,compareID1,compareID2,LEFT,RIGHT"]
    for place, one in enumerate(found):
        for two in found[place + 1 :]:
            series, first, second = one[:6], int(one[7:]), int(two[7:])
            if series == two[:6]:
                left = (7 * place + second) % 9
                rows.append(f"{int(series)},{first},{second},{left},{(3 * left + first) % 9}")
    (tmp / "votes.csv").write_text("\n".join(rows) + "\n")
    return [
        "model=siamese_e2e", "dataset=phototriage", "dataset.root=data/photos",
        "dataset.labels=votes", f"dataset.votes_file={tmp}/votes.csv",
    ]  # fmt: skip


def rgbx(tmp: Path) -> list[str]:
    return [
        "model=rgbx_mit_b0", "dataset=rgbx", "dataset.root=data/rgbx",
        "dataset.group_by='seq(\\d+)_'",
    ]  # fmt: skip


def members(data: Any, split: str) -> list[str]:
    """What identifies each sample of a split, in order."""
    if hasattr(data, "manifest"):
        return [data.manifest.records()[at]["name"] for at in data.positions(split)]
    found = data.splits[split]
    if hasattr(found, "pairs"):
        photo = [file.stem for file in found.photos]
        return [f"{photo[pair.first]} {photo[pair.second]}" for pair in found.pairs]
    if hasattr(found, "files"):
        return [f"{file.parent.name}/{file.stem}" for file in found.files]
    if isinstance(found, tuple):
        part, places = found
        return [f"{part} {place}" for place in places.tolist()]
    return [frame.name for frame in found]


@pytest.mark.parametrize("source", [folders, cifar10, warehouse, coefficients, photos, votes, rgbx])
def test_assignments(
    source: Callable[[Path], list[str]],
    golden: Golden,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(DATA)
    shared = [*source(tmp_path), f"dataset.cache_dir={tmp_path}/cache"]
    found: dict[str, dict[str, list[str] | str]] = {}
    for variant in VARIANTS[source.__name__]:
        config = resolved(compose_config([*shared, *variant.split()])[0])
        data = build.data_module(config)
        data.prepare(config["seed"])
        found[variant] = {name: shortened(members(data, name)) for name in data.splits}
    golden(f"splits/{source.__name__}", found)


def shortened(names: Sequence[str]) -> dict[str, Any]:
    """All names of a small split; of a large one the first, and what all are together."""
    digest = sha256("\n".join(names).encode()).hexdigest()
    return {"samples": len(names), "sha256": digest, "first": " ".join(names[:80])}


def yolo(root: Path, image: Path) -> None:
    """A pool of images in two folders, and a split that the source names."""
    for folder, count in {"images/a": 7, "images/b": 5, "images/c": 2, "images/d": 3}.items():
        place(root / folder, image, count)
    (root / "labels").mkdir()


def yolo_split(root: Path, image: Path) -> None:
    for split, count in {"train": 9, "valid": 3, "test": 2}.items():
        place(root / split / "images", image, count)
        (root / split / "labels").mkdir()


def coco(root: Path, image: Path) -> None:
    for split, count in {"instances_train2017": 9, "instances_val2017": 3}.items():
        images = [
            {"id": number, "file_name": file.name, "width": 32, "height": 32}
            for number, file in enumerate(place(root / "images", image, count, split))
        ]
        (root / "annotations").mkdir(exist_ok=True)
        content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "ant"}]}
        (root / f"annotations/{split}.json").write_text(json.dumps(content))


def voc(root: Path, image: Path) -> None:
    """With lists of what is trained and validated on."""
    files = place(root / "JPEGImages", image, 12)
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for file in files:
        text = f"<annotation><filename>{file.name}</filename></annotation>"
        (root / "Annotations" / f"{file.stem}.xml").write_text(text)
    for split, part in {"train": files[:8], "val": files[8:]}.items():
        listed = "".join(f"{file.stem}\n" for file in part)
        (root / "ImageSets/Main" / f"{split}.txt").write_text(listed)


def place(folder: Path, image: Path, count: int, prefix: str = "frame") -> list[Path]:
    """Copies of an image."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{prefix}_{number:02d}.jpg" for number in range(count)]
    for file in files:
        shutil.copy(image, file)
    return files


def capture(root: Path, image: Path) -> None:
    CaptureDemo(str(root / "runs"), 9, 5, 1).render()


@pytest.mark.parametrize("source", [yolo, yolo_split, coco, voc, capture])
def test_frames(source: Callable[[Path, Path], None], golden: Golden, tmp_path: Path) -> None:
    """The group of every frame, and what ``research.prepare frames`` makes of the groups."""
    image = tmp_path / "one.jpg"
    picture("bars", 0, (32, 32)).save(image)
    root = tmp_path / "source"
    root.mkdir()
    source(root, image)
    found = read_frames(root / "runs" if source is capture else root)
    groups = {frame.name: frame.group for frame in found.frames}
    nobody: dict[str, list[str]] = {"val": [], "test": []}
    splits = assign_splits({*groups.values()}, found.split, val=0.2, test=0.1, seed=0, named=nobody)
    dealt = {name: f"{group}: {splits[group]}" for name, group in groups.items()}
    golden(f"splits/frames_{source.__name__}", dealt)


def test_groups(golden: Golden) -> None:
    """What ``research.prepare`` deals of runs, folders and sequences."""
    names = {f"run_{number:03d}" for number in range(60)}
    given = dict.fromkeys(sorted(names)[:5], "test")
    found: dict[str, Mapping[str, str]] = {}
    for seed, val, test in ((0, 0.2, 0.0), (0, 0.2, 0.2), (3, 0.15, 0.15), (7, 0.05, 0.5)):
        for fixed in ({}, given):
            nobody: dict[str, list[str]] = {"val": [], "test": []}
            dealt = assign_splits(names, fixed, val=val, test=test, seed=seed, named=nobody)
            found[f"seed {seed}, val {val}, test {test}, {len(fixed)} given"] = {
                split: " ".join(sorted(n for n in names if dealt[n] == split))
                for split in ("train", "val", "test")
            }
    golden("splits/groups", found)
