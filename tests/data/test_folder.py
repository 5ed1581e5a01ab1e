from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from research.config import compose_config, resolved
from research.data.augment import Augmentation
from research.data.datamodule import NetworkInput
from research.data.folder import ImageFolders
from research.data.transforms import CoefficientTransform, PixelTransform
from research.engine import build
from tests.conftest import user_error

OWN = NetworkInput(48, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 0.95, None)


@cache
def composed() -> dict[str, Any]:
    line = ["model=resnet34", "dataset=imagefolder", "dataset.train_dirs=[a]"]
    return resolved(compose_config(line)[0])


@pytest.fixture
def open_folders(folders: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ImageFolders]:
    """Opens the folders of a test, with changes to the keys of the YAML, for a network."""
    monkeypatch.chdir(folders.parent)

    def make(network: NetworkInput = OWN, **changes: Any) -> ImageFolders:
        settings = {
            **composed()["dataset"],
            "train_dirs": ["data/train"],
            "val_dir": "data/val",
            "cache_dir": "cache",
            **changes,
        }
        settings["augmentation"] = Augmentation(
            **{key: settings["augmentation"][key] for key in Augmentation.__dataclass_fields__}
        )
        del settings["_target_"]
        data = ImageFolders(**settings, network=network)
        data.prepare(0)
        return data

    return make


Open = Callable[..., ImageFolders]


def side(data: ImageFolders) -> int:
    inputs = data.read([Path("data/val/bars/000.jpg")]).inputs
    assert isinstance(inputs, torch.Tensor)
    return inputs.shape[-1]


def test_defaults_are_the_networks_own(open_folders: Open) -> None:
    data = open_folders(crop_pct=None)
    assert side(data) == 48
    assert data.eval_crop.pct == 0.95
    transform = data.transform()
    assert isinstance(transform, PixelTransform)
    assert torch.equal(transform.mean.flatten(), torch.tensor(OWN.mean))
    assert torch.equal(transform.std.flatten(), torch.tensor(OWN.std))


def test_settings_override_the_networks_own(open_folders: Open) -> None:
    mean, std = [0.5, 0.6, 0.7], [0.2, 0.2, 0.3]
    data = open_folders(image_size=32, mean=mean, std=std, num_classes=3)
    assert side(data) == 32
    assert data.eval_crop.pct == 0.875
    transform = data.transform()
    assert isinstance(transform, PixelTransform)
    assert torch.equal(transform.mean.flatten(), torch.tensor(mean))
    assert torch.equal(transform.std.flatten(), torch.tensor(std))


@pytest.mark.parametrize("compression", ["none", "block_stem"])
def test_augmentation_reaches_the_device(folders: Path, compression: str) -> None:
    line = [
        f"model={'resnet34' if compression == 'none' else 'resnet34_compressed'}",
        f"compression={compression}",
        "dataset=imagefolder",
        f"dataset.train_dirs=[{folders / 'train'}]",
        f"dataset.cache_dir={folders / 'cache'}",
        "dataset.image_size=32",
        "dataset.augmentation.cutmix=0.7",
    ]
    data = build.data_module(resolved(compose_config(line)[0]))
    data.prepare(0)
    transform = data.transform(measured=False)
    assert isinstance(transform, PixelTransform | CoefficientTransform)
    assert transform.augment is not None
    assert transform.augment.augmentation.cutmix == 0.7


def test_other_classes_than_in_training_are_reported(
    open_folders: Open, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree("data/val/spots")
    with caplog.at_level(logging.WARNING):
        data = open_folders()
    assert caplog.messages == data.remarks
    assert "val has no image of 1 of 3 classes ('spots')" in data.remarks[0]
    # Labels are those of the names in training, although the last class has no image here.
    assert data.classes == ["bars", "field", "spots"]
    assert set(data.splits["val"].labels) == {0, 1}
    shutil.copytree("data/val/bars", "data/val/stripes")
    with user_error("dataset.val_dir", "data/val", "'stripes'", "lacks 'spots'"):
        open_folders()
    shutil.copytree("data/val/bars", "data/train/spots/bars")  # a folder in a class is no class
    shutil.rmtree("data/val/stripes")
    for number in range(5):
        shutil.copytree("data/val/bars", f"data/test/n{number}")
    with user_error("dataset.test_dir", "data/test", "'n0', 'n1', 'n2' and 2 more"):
        open_folders(test_dir="data/test")


def linked(source: Path, out: Path, link: Callable[[Path, Path], object]) -> None:
    """A folder of the same names as ``source``, each linked to its file."""
    for file in source.rglob("*.jpg"):
        (out / file.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
        link(file, out / file.relative_to(source))


@pytest.mark.parametrize(
    ("other", "shared"),
    [
        (lambda: Path("data/train"), 24),
        (lambda: Path("data/../data/train"), 24),
        (lambda: Path("other").symlink_to("data/train"), 24),
        (lambda: linked(Path("data/train"), Path("other"), os.link), 24),
        (lambda: linked(Path("data/train").absolute(), Path("other"), os.symlink), 24),
        (lambda: linked(Path("data/train/bars"), Path("other/bars"), os.link), 8),
        (lambda: shutil.copytree("data/train", "other"), 0),
        (lambda: Path("data/val"), 0),
    ],
)
@pytest.mark.parametrize("key", ["train_dirs", "val_dir", "test_dir"])
def test_files_in_two_folders_are_remarked_by_whatever_name(
    open_folders: Open,
    caplog: pytest.LogCaptureFixture,
    key: str,
    other: Callable[[], object],
    shared: int,
) -> None:
    made = other()
    folder = str(made) if isinstance(made, Path) and made.exists() else "other"
    if (folder == "data/val" and key != "val_dir") or (shared == 8 and key == "train_dirs"):
        return  # shared with the val_dir of all cases; or refused: other classes
    given = ["data/train", folder] if key == "train_dirs" else folder
    data = open_folders(**{key: given})
    remarks = [line for line in data.remarks if "too" in line]
    assert len(remarks) == (shared > 0)
    assert all(line in caplog.messages for line in remarks)
    if shared:
        assert remarks[0].startswith(f"dataset.{key}: {shared} of the ")
        assert "dataset.train_dirs" in remarks[0]


@pytest.mark.parametrize("limits", [{}, {"max_train_images": 9, "max_val_images": 4}])
def test_a_seed_of_the_split_is_that_of_the_run_unless_it_is_set(
    open_folders: Open, limits: dict[str, int]
) -> None:
    def drawn(seed: int, split_seed: int | None) -> list[list[Path]]:
        data = open_folders(val_dir=None, val_fraction=0.3, split_seed=split_seed, **limits)
        data.prepare(seed)
        assert f"held out by seed {seed if split_seed is None else split_seed}" in data.reading
        return [split.files for split in data.splits.values()]

    of_runs = [drawn(seed, None) for seed in range(3)]
    assert of_runs[0] != of_runs[1] != of_runs[2]
    for seed in range(3):
        assert [drawn(run, seed) for run in (0, 1, 7)] == [of_runs[seed]] * 3


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_classes_without_an_image_are_remarked_for_each_split(
    open_folders: Open, split: str
) -> None:
    Path("data/test").symlink_to("val")
    for name in ("field", "spots"):
        for file in Path("data", split, name).iterdir():
            file.write_bytes(b"")
    data = open_folders(test_dir="data/test")
    missing = {
        line.split()[0] for line in data.remarks if "2 of 3 classes ('field', 'spots')" in line
    }
    assert missing == ({"val", "test"} if split != "train" else {"train"})


def test_a_class_of_one_image_is_remarked_if_it_cannot_be_held_out(open_folders: Open) -> None:
    for file in sorted(Path("data/train/bars").iterdir())[1:]:
        file.unlink()
    data = open_folders(val_dir=None)
    assert [line.partition(", which")[0] for line in data.remarks] == [
        "val has no image of 1 of 3 classes ('bars')"
    ]
    assert data.splits["train"].labels.count(0) == 1


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_class_folder_without_images_is_refused(open_folders: Open, split: str) -> None:
    Path("data", split, ".hidden").mkdir()
    open_folders()
    Path("data", split, "cats").mkdir()
    Path("data", split, "cats", "notes.txt").write_text("none yet")
    key = {"train": "train_dirs", "val": "val_dir"}[split]
    with user_error(f"dataset.{key}", f"data/{split}", "'cats'"):
        open_folders()


def test_a_folder_of_splits_is_no_folder_of_classes(open_folders: Open, folders: Path) -> None:
    expected = ("data has the splits 'train', 'val'", "dataset.train_dirs=[data/train] dataset.val")
    with user_error("dataset.train_dirs", *expected):
        open_folders(train_dirs=["data"], val_dir=None)
    (folders / "unlabelled").mkdir()
    for name in ("unlabelled", "train"):  # whatever is beside them
        shutil.copy(folders / "val/bars/000.jpg", folders / name)
        with user_error("dataset.train_dirs", *expected):
            open_folders(train_dirs=["data"], val_dir=None)
    shutil.rmtree(folders / "unlabelled")
    shutil.copy(folders / "val/bars/000.jpg", folders / "val")
    # Classes of images directly in them.
    assert open_folders(train_dirs=["data"], val_dir=None).classes == ["train", "val"]


def test_class_folders_that_differ_only_in_spelling(open_folders: Open, folders: Path) -> None:
    shutil.copytree(folders / "train/bars", folders / "train/Bars")
    assert open_folders().remarks[0].startswith("the class folders 'Bars' and 'bars' differ only")
    shutil.rmtree(folders / "train/Bars")
    os.rename(folders / "val/bars", folders / "val/BARS")
    with user_error("dataset.val_dir", "'BARS', which differs from 'bars' of training in letter"):
        open_folders()


def test_num_classes_must_be_that_of_the_data(open_folders: Open) -> None:
    with user_error("dataset.num_classes", 4, "data/train", "dataset.num_classes=3"):
        open_folders(num_classes=4)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_a_readable_image_is_refused(open_folders: Open, split: str) -> None:
    for path in Path("data", split).rglob("*.jpg"):
        path.write_bytes(b"")
    with user_error(f"dataset.{split}_dir" + ("s" if split == "train" else ""), split, "empty"):
        open_folders()
