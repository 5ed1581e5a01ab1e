"""Read the files of CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) in any of three layouts.

The pickled version is read by torchvision after the MD5 of every file was checked, so no other
pickles are loaded. The binary version and the PNG version contain numbers only.
"""

from __future__ import annotations

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

from research.data.cifar_rules import SIDE
from research.data.image_files import decode, read_header
from research.data.image_modes import to_rgb
from research.data.listing import passed_over_kind
from research.data.splits import format_names
from research.data.texts import BadText, read_json
from research.utils.errors import DamagedImage, UserError

log = logging.getLogger(__name__)

PIXELS = 3 * SIDE * SIDE
LARGEST_LABEL = 2**31
PNG_LABELS = {"train": "train_lables.json", "test": "test_lables.json"}
"""The published files are spelled like this."""


class LabelledImages(NamedTuple):
    """The training or the test images.

    Attributes:
        pixels: uint8 [N, 3, 32, 32] RGB.
        labels: int64 [N].
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Family:
    """The published files of one of the two data sets.

    Attributes:
        title: name in messages.
        published: name of torchvision's class, which has file names, checksums and the URL.
        binary: folder in the archive of the binary version.
        binary_files: files of the binary version, by part.
        png_files: files of the PNG version, by part; empty if there is none.
        label_bytes: label bytes before each image of the binary version; the last is the class.
        images: number of images, by part.
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
MAX_BYTES = 2**28
"""The largest of the published files has 170 MB; reading a larger one would take long."""
REPLACE = "remove it, and copy or download it again"
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


def read(root: Path, classes: int, *, download: bool) -> dict[str, LabelledImages]:
    """Read the parts ``train`` and ``test`` of CIFAR.

    The layouts are searched in this order, in ``root`` and in the folder of the published archive:
    the pickled version (or its archive, which is extracted), the binary version, the PNG version.

    Args:
        root: a folder; created for a download.
        classes: 10 or 100.
        download: download the pickled version if there is none.

    Raises:
        UserError: if the files are missing, incomplete, differ from the published ones (checksum,
            size, labels out of range), or cannot be downloaded.
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
            + ")",
            "set dataset.root=FOLDER or dataset.download=true",
        )
    return _read_pickled(_download(root, family), family)


def _published(family: Family) -> Any:
    """torchvision's class with the names, checksums and URL of the published files."""
    from torchvision import datasets

    return getattr(datasets, family.published)


def _pickled_folder(root: Path, family: Family) -> Path | None:
    published = _published(family)
    for folder in (root / published.base_folder, root):
        if folder.name == published.base_folder and folder.is_dir():
            return folder
    archive = root / published.filename
    return _extract(archive, published) if archive.is_file() else None


def _extract(archive: Path, published: Any) -> Path:
    """Extract an archive next to it, once and atomically; return the folder."""
    folder: Path = archive.with_name(published.base_folder)
    with FileLock(archive.with_name(f".{archive.name}.lock")):
        if not folder.is_dir():
            _check_md5(archive, published.tgz_md5)
            with tempfile.TemporaryDirectory(dir=archive.parent, prefix=".cifar.") as scratch:
                with tarfile.open(archive) as content:
                    content.extractall(scratch, filter="data")
                os.replace(Path(scratch) / published.base_folder, folder)
    return folder


def _download(root: Path, family: Family) -> Path:
    """Download and extract the pickled version; return the folder."""
    from torchvision.datasets.utils import download_url

    published = _published(family)
    archive: Path = root / published.filename
    _check_download_folder(root)
    log.info("downloading %s to %s", published.url, root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{archive.name}.download.lock"):
            if not archive.exists():  # another process may have downloaded it in the meantime
                with tempfile.TemporaryDirectory(dir=root, prefix=".cifar.") as scratch:
                    download_url(published.url, scratch, archive.name, published.tgz_md5)
                    os.replace(Path(scratch) / archive.name, archive)
        return _extract(archive, published)
    except (OSError, RuntimeError) as error:
        raise UserError(
            "dataset.download",
            f"dataset.download: cannot download {published.url} to {root} ({error})",
            f"copy {archive.name} to {root}, or set dataset.root=FOLDER",
        ) from None


def _check_download_folder(root: Path) -> None:
    """Refuse to download into a folder with files of others, which is often one of pictures.

    Raises:
        UserError: if there are any.
    """
    own = {_published(family).filename for family in FAMILIES.values()}
    own |= {_published(family).base_folder for family in FAMILIES.values()}
    own |= {family.binary for family in FAMILIES.values()}
    names = (path.name for path in root.iterdir()) if root.is_dir() else ()
    others = sorted(name for name in names if name not in own and not passed_over_kind(name))
    if others:
        raise UserError(
            "dataset.root",
            f"dataset.root: {root} has none of the published files, but others "
            f"({format_names(others)}); nothing is downloaded to it",
            f"set dataset.root={root / 'cifar'}, or train on folders of your own images with "
            "dataset=imagefolder",
        )


def _read_pickled(folder: Path, family: Family) -> dict[str, LabelledImages]:
    published = _published(family)
    meta = published.meta["filename"], published.meta["md5"]
    for name, md5 in (*published.train_list, *published.test_list, meta):
        _require_file(folder, name)
        _check_md5(folder / name, md5)
    parts = {}
    for split in ("train", "test"):
        dataset = published(folder.parent, train=split == "train")
        pixels = np.ascontiguousarray(dataset.data.transpose(0, 3, 1, 2))
        parts[split] = _checked(folder, family, split, pixels, np.array(dataset.targets))
    return parts


def _binary_folder(root: Path, family: Family) -> Path | None:
    return _first_with(family.binary_files, root / family.binary, root)


def _read_binary(folder: Path, family: Family) -> dict[str, LabelledImages]:
    """Records of label bytes and 3072 pixel bytes: the red, green and blue plane, row-major."""
    record = family.label_bytes + PIXELS

    def rows(path: Path, images: int) -> NDArray[np.uint8]:
        size = path.stat().st_size
        if size != images * record:
            raise UserError(
                "dataset.root",
                f"{path}: {size:,} bytes, expected {images * record:,} ({images:,} records of "
                f"{record})",
                REPLACE,
            )
        return np.fromfile(path, np.uint8).reshape(images, record)

    parts = {}
    for split in family.binary_files:
        records = np.concatenate(_read_files(folder, family, family.binary_files, split, rows))
        labels = records[:, family.label_bytes - 1].astype(np.int64)
        pixels = records[:, family.label_bytes :].reshape(-1, 3, SIDE, SIDE)
        parts[split] = _checked(folder, family, split, np.ascontiguousarray(pixels), labels)
    return parts


def _png_folder(root: Path, family: Family) -> Path | None:
    return _first_with(family.png_files, root)


def _read_png(folder: Path, family: Family) -> dict[str, LabelledImages]:
    """PNG files in which each row is an image of 1024 RGB pixels, row-major."""

    def rows(path: Path, images: int) -> NDArray[np.uint8]:
        try:
            header = read_header(path)
            if (header.width, header.height) != (SIDE * SIDE, images):
                raise UserError(
                    "dataset.root",
                    f"{path}: {header.width}×{header.height} px, expected {SIDE * SIDE}×{images}, "
                    "one image per row",
                    REPLACE,
                )
            return np.asarray(to_rgb(decode(path)))
        except DamagedImage as error:
            raise UserError("dataset.root", str(error), REPLACE) from None

    parts = {}
    for split in family.png_files:
        _require_file(folder, PNG_LABELS[split])
        labels = _json_labels(folder / PNG_LABELS[split])
        records = np.concatenate(_read_files(folder, family, family.png_files, split, rows))
        pixels = records.reshape(-1, SIDE, SIDE, 3).transpose(0, 3, 1, 2)
        parts[split] = _checked(folder, family, split, np.ascontiguousarray(pixels), labels)
    return parts


def _json_labels(path: Path) -> NDArray[np.int64]:
    try:
        labels = read_json(path)
    except BadText as error:
        raise UserError("dataset.root", f"{path}: {error}", REPLACE) from None
    if not isinstance(labels, list) or not all(
        type(label) is int and abs(label) < LARGEST_LABEL for label in labels
    ):
        raise UserError("dataset.root", f"{path}: expected a list of integers", REPLACE)
    return np.array(labels, np.int64)


def _first_with(files: dict[str, tuple[str, ...]], *folders: Path) -> Path | None:
    """The first folder that contains any of the files."""
    names = [name for group in files.values() for name in group]
    matches = (folder for folder in folders if any((folder / name).is_file() for name in names))
    return next(matches, None)


def _read_files(
    folder: Path,
    family: Family,
    files: dict[str, tuple[str, ...]],
    split: str,
    rows: Callable[[Path, int], NDArray[np.uint8]],
) -> Sequence[NDArray[np.uint8]]:
    """Apply ``rows`` to each file of a part; all files have the same number of images."""
    names = files[split]
    for name in names:
        _require_file(folder, name)
    with ThreadPoolExecutor(len(names)) as pool:
        images = family.images[split] // len(names)
        return list(pool.map(lambda name: rows(folder / name, images), names))


def _require_file(folder: Path, name: str) -> None:
    if not (folder / name).is_file():
        raise UserError("dataset.root", f"dataset.root: {folder} has no {name}", REPLACE)


def _check_md5(path: Path, expected: str) -> None:
    from torchvision.datasets.utils import calculate_md5

    if (size := path.stat().st_size) > MAX_BYTES:
        raise UserError("dataset.root", f"{path}: {size:,} bytes, expected fewer", REPLACE)
    actual = calculate_md5(path)
    if actual != expected:
        raise UserError(
            "dataset.root", f"{path}: wrong checksum (MD5 {actual}, expected {expected})", REPLACE
        )


def _checked(
    folder: Path,
    family: Family,
    split: str,
    pixels: NDArray[np.uint8],
    labels: NDArray[np.int64],
) -> LabelledImages:
    count = family.images[split]
    if len(labels) != count or len(pixels) != count:
        raise UserError(
            "dataset.root",
            f"{folder}: {len(pixels):,} {split} images with {len(labels):,} labels, expected "
            f"{count:,} of each",
            REPLACE,
        )
    if labels.min() < 0 or labels.max() >= len(family.classes):
        raise UserError(
            "dataset.root",
            f"{folder}: {split} labels from {labels.min()} to {labels.max()}, expected 0 to "
            f"{len(family.classes) - 1}",
            f"is this {family.title}?",
        )
    return LabelledImages(pixels, labels.astype(np.int64))
