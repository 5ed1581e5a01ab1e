"""CIFAR-10 and CIFAR-100 as they lie on a disk (Krizhevsky, 2009), in any of three layouts.

The pickled version is read by torchvision, which compares every file's MD5 before it unpickles;
the binary version and rows of PNG hold nothing but numbers.
"""

from __future__ import annotations

import json
import logging
import os
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from research.utils.errors import UserError

log = logging.getLogger(__name__)

SIDE = 32
PIXELS = 3 * SIDE * SIDE
PNG_LABELS = {"train": "train_lables.json", "test": "test_lables.json"}
"""Spelled as the published files are."""


class Part(NamedTuple):
    """The training or the test images.

    Attributes:
        pixels: uint8 [N, 3, 32, 32] RGB.
        labels: int64 [N].
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Family:
    """How one of the two data sets is published.

    Attributes:
        title: for messages.
        published: torchvision's class of that name, which knows names, checksums, the address.
        binary: folder that the archive of the binary version makes.
        binary_files: of each part.
        png_files: of each part; none where no such version is known.
        label_bytes: before each image of the binary version; the last of them is the class.
        images: in each part.
        classes: names in index order.
    """

    title: str
    published: str
    binary: str
    binary_files: dict[str, tuple[str, ...]]
    png_files: dict[str, tuple[str, ...]]
    label_bytes: int
    images: dict[str, int]
    classes: tuple[str, ...]


CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree
orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum
rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train
trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""

_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
_IMAGES = {"train": 50_000, "test": 10_000}
FAMILIES = {
    10: Family(
        "CIFAR-10",
        "CIFAR10",
        "cifar-10-batches-bin",
        {"train": tuple(f"{name}.bin" for name in _BATCHES), "test": ("test_batch.bin",)},
        {"train": tuple(f"{name}.png" for name in _BATCHES), "test": ("test_batch.png",)},
        1,
        _IMAGES,
        tuple(CIFAR10.split()),
    ),
    100: Family(
        "CIFAR-100",
        "CIFAR100",
        "cifar-100-binary",
        {"train": ("train.bin",), "test": ("test.bin",)},
        {},
        2,
        _IMAGES,
        tuple(CIFAR100.split()),
    ),
}


def read(root: Path, classes: int, *, download: bool) -> dict[str, Part]:
    """The parts ``train`` and ``test`` of CIFAR, in whichever layout lies under ``root``.

    Looked for in this order, in ``root`` or in the folder that the published archive makes:
    the pickled version (or its archive, which is unpacked), the binary version, rows of PNG.

    Args:
        root: a folder; made if there is something to download.
        classes: 10 or 100.
        download: fetch the pickled version when nothing is found.

    Raises:
        UserError: when nothing is found, cannot be downloaded, is incomplete, or is not what was
            published (checksum, size, labels out of range).
    """
    family = FAMILIES[classes]
    published = _published(family)
    for find, load in (
        (_pickled_folder, _read_pickled),
        (_binary_folder, _read_binary),
        (_png_folder, _read_png),
    ):
        folder = find(root, family)
        if folder is not None:
            return load(folder, family)
    if not download:
        raise UserError(
            "dataset.root",
            f"dataset.root: no {family.title} under {root} (looked for {published.base_folder}, "
            f"{published.filename}, {family.binary}"
            + (", data_batch_1.png" if family.png_files else "")
            + "); give its folder, or dataset.download=true",
        )
    return _read_pickled(_downloaded(root, family), family)


def _published(family: Family) -> Any:
    """Torchvision's record of the published files."""
    from torchvision import datasets

    return getattr(datasets, family.published)


def _pickled_folder(root: Path, family: Family) -> Path | None:
    published = _published(family)
    for folder in (root / published.base_folder, root):
        if folder.name == published.base_folder and folder.is_dir():
            return folder
    archive = root / published.filename
    return _unpacked(archive, published) if archive.is_file() else None


def _unpacked(archive: Path, published: Any) -> Path:
    """The folder in an archive, beside it, once and whole."""
    folder: Path = archive.with_name(published.base_folder)
    with FileLock(archive.with_name(f".{archive.name}.lock")):
        if not folder.is_dir():
            _check_md5(archive, published.tgz_md5)
            with tempfile.TemporaryDirectory(dir=archive.parent, prefix=".cifar.") as scratch:
                with tarfile.open(archive) as content:
                    content.extractall(scratch, filter="data")
                os.replace(Path(scratch) / published.base_folder, folder)
    return folder


def _downloaded(root: Path, family: Family) -> Path:
    """The pickled version, fetched and unpacked."""
    from torchvision.datasets.utils import download_url

    published = _published(family)
    archive: Path = root / published.filename
    log.info("downloading %s to %s", published.url, root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{archive.name}.download.lock"):
            if not archive.exists():  # another process may have fetched it meanwhile
                with tempfile.TemporaryDirectory(dir=root, prefix=".cifar.") as scratch:
                    download_url(published.url, scratch, archive.name, published.tgz_md5)
                    os.replace(Path(scratch) / archive.name, archive)
        return _unpacked(archive, published)
    except (OSError, RuntimeError) as error:
        raise UserError(
            "dataset.download",
            f"dataset.download: {published.url} could not be fetched to {root} ({error})",
            f"put {archive.name} there by hand, or give dataset.root=FOLDER",
        ) from None


def _read_pickled(folder: Path, family: Family) -> dict[str, Part]:
    published = _published(family)
    meta = published.meta["filename"], published.meta["md5"]
    for name, md5 in (*published.train_list, *published.test_list, meta):
        _check_there(folder, name)
        _check_md5(folder / name, md5)
    parts = {}
    for split in ("train", "test"):
        found = published(folder.parent, train=split == "train")
        pixels = np.ascontiguousarray(found.data.transpose(0, 3, 1, 2))
        parts[split] = _checked(folder, family, split, pixels, np.array(found.targets))
    return parts


def _binary_folder(root: Path, family: Family) -> Path | None:
    return _first_with(family.binary_files, root / family.binary, root)


def _read_binary(folder: Path, family: Family) -> dict[str, Part]:
    """Records of label bytes and 3072 pixels: all red, all green, all blue, row by row."""
    record = family.label_bytes + PIXELS

    def rows(path: Path, images: int) -> NDArray[np.uint8]:
        size = path.stat().st_size
        if size != images * record:
            raise UserError(
                "dataset.root",
                f"{path}: {size:,} bytes, expected {images * record:,} ({images:,} records of "
                f"{record})",
                "copy or download it again",
            )
        return np.fromfile(path, np.uint8).reshape(images, record)

    parts = {}
    for split in family.binary_files:
        whole = np.concatenate(_files(folder, family, family.binary_files, split, rows))
        labels = whole[:, family.label_bytes - 1].astype(np.int64)
        pixels = whole[:, family.label_bytes :].reshape(-1, 3, SIDE, SIDE)
        parts[split] = _checked(folder, family, split, np.ascontiguousarray(pixels), labels)
    return parts


def _png_folder(root: Path, family: Family) -> Path | None:
    return _first_with(family.png_files, root)


def _read_png(folder: Path, family: Family) -> dict[str, Part]:
    """Pictures in which each row is an image: 1024 RGB pixels, row by row."""

    def rows(path: Path, images: int) -> NDArray[np.uint8]:
        try:
            with Image.open(path) as image:
                width, height = image.size
                if (width, height) != (SIDE * SIDE, images):
                    raise UserError(
                        "dataset.root",
                        f"{path}: {width}×{height} px, expected {SIDE * SIDE}×{images}, a row an "
                        "image",
                        "copy or download it again",
                    )
                return np.asarray(image.convert("RGB"))
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise UserError(
                "dataset.root", f"{path}: {error}", "copy or download it again"
            ) from None

    parts = {}
    for split in family.png_files:
        _check_there(folder, PNG_LABELS[split])
        labels = _json_labels(folder / PNG_LABELS[split])
        whole = np.concatenate(_files(folder, family, family.png_files, split, rows))
        pixels = whole.reshape(-1, SIDE, SIDE, 3).transpose(0, 3, 1, 2)
        parts[split] = _checked(folder, family, split, np.ascontiguousarray(pixels), labels)
    return parts


def _json_labels(path: Path) -> NDArray[np.int64]:
    try:
        labels = json.loads(path.read_text())
        if not isinstance(labels, list) or not all(type(label) is int for label in labels):
            raise ValueError("expected a list of whole numbers")
    except ValueError as error:
        raise UserError("dataset.root", f"{path}: {error}", "copy or download it again") from None
    return np.array(labels, np.int64)


def _first_with(files: dict[str, tuple[str, ...]], *folders: Path) -> Path | None:
    """The first folder that has any of the files."""
    names = [name for group in files.values() for name in group]
    found = (folder for folder in folders if any((folder / name).is_file() for name in names))
    return next(found, None)


def _files(
    folder: Path,
    family: Family,
    files: dict[str, tuple[str, ...]],
    split: str,
    rows: Callable[[Path, int], NDArray[np.uint8]],
) -> Sequence[NDArray[np.uint8]]:
    """What ``rows`` reads of each file of a part, which all hold as many images."""
    names = files[split]
    for name in names:
        _check_there(folder, name)
    with ThreadPoolExecutor(len(names)) as pool:
        images = family.images[split] // len(names)
        return list(pool.map(lambda name: rows(folder / name, images), names))


def _check_there(folder: Path, name: str) -> None:
    if not (folder / name).is_file():
        raise UserError(
            "dataset.root",
            f"dataset.root: {folder} has no {name}",
            "copy or download it again, whole",
        )


def _check_md5(path: Path, expected: str) -> None:
    from torchvision.datasets.utils import calculate_md5

    found = calculate_md5(path)
    if found != expected:
        raise UserError(
            "dataset.root",
            f"{path}: wrong checksum (MD5 {found}, expected {expected})",
            "remove it and download it again",
        )


def _checked(
    folder: Path,
    family: Family,
    split: str,
    pixels: NDArray[np.uint8],
    labels: NDArray[np.int64],
) -> Part:
    count = family.images[split]
    if len(labels) != count or len(pixels) != count:
        raise UserError(
            "dataset.root",
            f"{folder}: {len(pixels):,} {split} images with {len(labels):,} labels, expected "
            f"{count:,} of each",
            "copy or download it again",
        )
    if labels.min() < 0 or labels.max() >= len(family.classes):
        raise UserError(
            "dataset.root",
            f"{folder}: {split} labels from {labels.min()} to {labels.max()}, expected 0 to "
            f"{len(family.classes) - 1}",
            f"is this {family.title}?",
        )
    return Part(pixels, labels.astype(np.int64))
