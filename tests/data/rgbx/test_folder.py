from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from research import prepare
from research.batch import DetectionBatch
from research.compression.selection import ALL_FREQUENCIES
from research.config import compose_config, resolved
from research.data import listing
from research.data.coefficients import CoefficientSpec
from research.data.datamodule import NetworkInput
from research.data.loader import EpochLoader, SampleKey
from research.data.rgbx.arrays import RANGES, letterbox
from research.data.rgbx.folder import RgbxFolder
from research.data.rgbx.transform import RgbxAugmentation
from research.data.warehouse.build import build as build_store
from research.data.warehouse.kinds import FrameKind
from research.engine import build
from research.utils.errors import DamagedImage
from tests.conftest import settle, user_error
from tests.data.warehouse.conftest import flip_bit, make_frames, plan_of

CPU = torch.device("cpu")
NETWORK = NetworkInput(96, (0.5,) * 3, (0.5,) * 3, 1.0, None)
KEPT = CoefficientSpec(ALL_FREQUENCIES, "pixels", "full", True, 8)
SHAPES = ((48, 64), (60, 64), (64, 50))


def pixels(number: int, dtype: str = "uint8", channels: int = 5) -> NDArray[np.generic]:
    """Patches of 8×8 pixels; the thermal channel has a narrow range in uint16."""
    rng = np.random.default_rng(number)
    height, width = SHAPES[number % len(SHAPES)]
    patches = rng.uniform(0.1, 0.9, (-(-height // 8), -(-width // 8), channels))
    array = (
        patches.repeat(8, 0).repeat(8, 1)[:height, :width] * [0.9, 0.8, 0.7, *[0.6] * 13][:channels]
    )
    if dtype == "uint16":
        array[..., 3] = 0.11 + 0.01 * array[..., 3]
    array[..., 4:][rng.random(array[..., 4:].shape) < 0.8] = 0  # sparse events
    return np.rint(array * RANGES[dtype]).astype(dtype)


def write_set(
    root: Path,
    names: list[str],
    *,
    dtype: str = "uint8",
    channels: int = 5,
    label: str = "0 0.5 0.5 0.25 0.5\n1 0.25 0.25 0.2 0.2\n",
) -> Path:
    """Arrays and labels; every fourth frame is a negative, alternately with and without a file."""
    for number, name in enumerate(names):
        image, text = root / "images" / f"{name}.npy", root / "labels" / f"{name}.txt"
        image.parent.mkdir(parents=True, exist_ok=True)
        text.parent.mkdir(parents=True, exist_ok=True)
        np.save(image, pixels(number, dtype, channels))
        if number % 8 != 7:
            text.write_text("" if number % 8 == 3 else label)
    return root


SEQUENCES = [f"s{number // 4}_{number % 4}" for number in range(24)]
Make = Callable[..., RgbxFolder]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def made(root: Path, **changed: Any) -> RgbxFolder:
        settings: dict[str, Any] = {
            "name": "own",
            "x": None,
            "class_names": None,
            "image_size": 64,
            "val_fraction": 0.2,
            "test_fraction": 0.2,
            "split_seed": 0,
            "group_by": r"s(\d+)_",
            "missing_labels": "negative",
            "mean": None,
            "std": None,
            "statistics_images": 1000,
            "augmentation": RgbxAugmentation(True, False, (0.8, 1.2), 0.1, 0.1, 0.0, 0.0),
            "max_train_images": None,
            "max_val_images": None,
            "cache_dir": str(tmp_path / "cache"),
            "demo": None,
            "network": NETWORK,
        }
        return RgbxFolder(root=str(root), **{**settings, **changed})

    return made


def prepared(make: Make, root: Path, **changed: Any) -> RgbxFolder:
    data = make(root, **changed)
    data.prepare(0)
    return data


def files(data: RgbxFolder, split: str) -> list[Path]:
    """The arrays of a split, in order."""
    return [data.root / name for name in data.members()[split]]


def batch_of(data: RgbxFolder, split: str, count: int | None = None) -> DetectionBatch:
    samples = data.dataset(split, seed=0, train=False, device=CPU)
    batch = samples.__getitems__([SampleKey(0, index) for index in range(count or len(samples))])
    assert isinstance(batch, DetectionBatch)
    return batch


@pytest.mark.parametrize(
    ("dtype", "counts"), [("uint8", False), ("uint16", False), ("uint16", True)]
)
def test_inputs_have_mean_0_and_std_1(make: Make, tmp_path: Path, dtype: str, counts: bool) -> None:
    """Also with event counts, which are a few levels of 65535."""
    root = write_set(tmp_path / "set", SEQUENCES, dtype=dtype)
    for number, path in enumerate(sorted(root.rglob("*.npy")) * counts):
        array = np.load(path)
        array[..., 4] = np.random.default_rng(number).poisson(0.5, array.shape[:2])
        np.save(path, array)
    data = prepared(make, root)
    transform = data.transform()
    source = data.dataset("train", seed=0, train=True, device=CPU)
    for batch in EpochLoader(source, len(source), seed=0, train=True).epoch(0):
        assert batch.inputs.dtype == getattr(torch, dtype)
        assert batch.inputs.shape == (len(source), 5, 64, 64)
        for mode in (True, False):
            inputs = transform.train(mode)(batch, torch.Generator().manual_seed(0)).inputs
            assert inputs.dtype == torch.float32
            assert inputs.mean((0, 2, 3)).abs().max() < 0.5
            std = inputs.std((0, 2, 3))
            assert std.min() > 0.5
            assert std.max() < 2


def test_statistics_are_those_of_the_training_files(make: Make, tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", SEQUENCES, dtype="uint16")
    data = prepared(make, root)
    own = files(data, "train")
    every = np.concatenate([np.load(file).reshape(-1, 5) for file in own]) / 65535
    transform = data.transform()
    np.testing.assert_allclose(transform.mean.flatten(), every.mean(0), rtol=1e-6)
    np.testing.assert_allclose(transform.std.flatten(), every.std(0), rtol=1e-6)
    few = prepared(make, root, statistics_images=3).transform()
    assert not torch.equal(few.mean, transform.mean)
    # Other pixels with the same name, size and modification time.
    before = own[0].stat()
    changed = np.load(own[0])
    changed[..., 2] = 65535
    np.save(own[0], changed)
    os.utime(own[0], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert prepared(make, root).transform().mean[2] > transform.mean[2] + 0.01


def test_statistics_in_the_configuration(make: Make, tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", SEQUENCES)
    mean = [0.1, 0.2, 0.3, 0.4, 0.5]
    transform = prepared(make, root, mean=mean).transform()
    np.testing.assert_allclose(transform.mean.flatten(), mean)
    assert torch.equal(transform.std, prepared(make, root).transform().std)
    short = prepared(make, root, std=[0.1, 0.1, 0.1])
    with user_error("dataset.std", "3 numbers for 5 channels", "red, green, blue"):
        short.transform()


def test_a_checkpoint_needs_no_data(make: Make, tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", SEQUENCES, dtype="uint16")
    data = prepared(make, root)
    saved, metadata = data.transform().state_dict(), data.metadata()
    assert metadata == {
        "name": "own",
        "classes": ["0", "1"],
        "channels": ["red", "green", "blue", "thermal", "event"],
        "dtype": "uint16",
        "transform": {"image_size": 64},
    }
    bare = make(tmp_path / "gone")
    bare.load_metadata(json.loads(json.dumps(metadata)))
    transform = bare.transform(measured=False)
    transform.load_state_dict(saved)
    own = [root / "images" / f"{name}.npy" for name in SEQUENCES[:3]]
    batch = bare.read(own)
    assert batch.sizes.tolist() == [list(shape) for shape in SHAPES]
    assert not batch.mask.any()
    assert batch.mask.shape == (3, 1)
    trained = data.transform().eval()(batch, None).inputs
    assert torch.equal(transform.eval()(batch, None).inputs, trained)
    pictures = bare.load_image(own[1])
    assert [picture.size for picture in pictures] == [(64, 60)] * 3
    assert all(isinstance(picture, Image.Image) for picture in pictures)
    with pytest.raises(DamagedImage, match="5 channels of uint8, expected 5 channels of uint16"):
        bare.read([write_set(tmp_path / "b", ["x"]) / "images" / "x.npy"])


def test_a_model_trained_on_8_bits_reads_files_of_16(make: Make, tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", SEQUENCES)
    trained = prepared(make, root)
    transform = trained.transform().eval()
    expected = transform(batch_of(trained, "val"), None).inputs
    for path in root.rglob("*.npy"):
        np.save(path, np.load(path).astype(np.uint16) * 257)
    data = make(root)
    data.load_metadata(trained.metadata())
    restored = data.transform(measured=False).eval()
    restored.load_state_dict(transform.state_dict())
    data.prepare(0)
    batch = batch_of(data, "val")
    assert batch.inputs.dtype == torch.uint16
    # Resizing rounds to 16 instead of 8 bits.
    found = restored(batch, None).inputs
    torch.testing.assert_close(found, expected, atol=0.5 / 255 / float(transform.std.min()), rtol=0)


def test_workers_read_the_same_batches(make: Make, tmp_path: Path) -> None:
    data = prepared(make, write_set(tmp_path / "set", SEQUENCES))
    source = data.dataset("train", seed=0, train=True, device=CPU)
    own, others = (
        list(EpochLoader(source, 4, seed=5, train=True, workers=workers).epoch(1))
        for workers in (0, 1)
    )
    for one, other in zip(own, others, strict=True):
        assert isinstance(one, DetectionBatch)
        assert isinstance(other, DetectionBatch)
        for name in ("index", "inputs", "boxes", "mask", "labels", "sizes"):
            assert torch.equal(getattr(one, name), getattr(other, name))


def test_boxes_belong_to_their_frames(make: Make, tmp_path: Path) -> None:
    """Against boxes computed by hand, for 60×64 pixels in 64²."""
    data = prepared(make, write_set(tmp_path / "set", SEQUENCES))
    batch = batch_of(data, "train")
    negatives = [not data.frames[name].boxes for name in data.members()["train"]]
    assert (~batch.mask.any(1)).tolist() == negatives
    assert any(negatives)
    assert not batch.boxes[~batch.mask].any()
    index = next(n for n, size in enumerate(batch.sizes.tolist()) if size == [60, 64])
    expected = [[24, 17, 40, 47], [9.6, 11, 22.4, 23]]
    np.testing.assert_allclose(batch.boxes[index] * 64, expected, atol=1e-5)
    assert batch.labels[index].tolist() == [0, 1]


def test_a_set_of_negatives_has_an_empty_slot(make: Make, tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", SEQUENCES, label="")
    batch = batch_of(prepared(make, root, class_names=["a"]), "train", 1)
    assert batch.boxes.shape == (1, 1, 4)
    assert not batch.mask.any()


def test_missing_label_files_are_negatives_or_an_error(make: Make, tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", SEQUENCES)
    assert sum(count for count, _ in prepared(make, root).counts().values()) == 24
    with user_error("labels", "s1_3.npy", "s1_3.txt"):
        prepared(make, root, missing_labels="error")


def test_sequences_are_not_divided(make: Make, tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", SEQUENCES)
    splits = prepared(make, root).members()
    seen = {split: {Path(f).name.split("_")[0] for f in names} for split, names in splits.items()}
    assert [len(seen[split]) for split in ("train", "val", "test")] == [4, 1, 1]
    assert len(set.union(*seen.values())) == 6
    others = [prepared(make, root, split_seed=seed).members()["val"] for seed in range(1, 5)]
    assert any(names != splits["val"] for names in others)
    assert prepared(make, root, group_by=r"s\d+").members() == splits
    assert "test" not in prepared(make, root, test_fraction=0.0).splits
    few = prepared(make, root, max_train_images=5, max_val_images=2)
    assert [len(few.splits[split]) for split in ("train", "val", "test")] == [5, 2, 4]


@pytest.mark.parametrize(
    ("group_by", "key", "words"),
    [
        (r"FLIR_(\d\d)", "dataset.group_by", ("FLIR_", "match s0_0.npy")),
        (r"s()", "dataset.val_fraction", ("1 sequences", "dataset.test_fraction")),
    ],
)
def test_unusable_groupings(
    make: Make, tmp_path: Path, group_by: str, key: str, words: tuple[str, ...]
) -> None:
    root = write_set(tmp_path / "set", SEQUENCES)
    with user_error(key, *words):
        prepared(make, root, group_by=group_by)


def test_splits_of_the_folder_are_kept(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "set"
    write_set(root / "train", SEQUENCES[:10])
    write_set(root / "val", SEQUENCES[10:16])
    data = prepared(make, root)
    assert {split: len(frames) for split, frames in data.splits.items()} == {"train": 10, "val": 6}
    assert "its own splits share 1 sequence (2)" in caplog.text
    with user_error("split", "split=test", "train, val;", "test/", "dataset.test_fraction=0.1"):
        data.dataset("test", seed=0, train=False, device=CPU)
    write_set(root / "test", SEQUENCES[16:])
    splits = prepared(make, root, group_by=None).splits
    assert [len(splits[split]) for split in ("train", "val", "test")] == [10, 6, 8]


@pytest.mark.parametrize("layout", ["{}/images", "images/{}"])
def test_validation_is_drawn_from_training_if_only_the_test_split_has_a_folder(
    make: Make, tmp_path: Path, layout: str
) -> None:
    """The folders are named after splits, and are not sequences."""
    for number, name in enumerate(SEQUENCES):
        folder = tmp_path / layout.format("test" if number >= 18 else "train")
        text = Path(str(folder).replace("images", "labels")) / f"{name}.txt"
        for parent in (folder, text.parent):
            parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{name}.npy", pixels(number))
        text.write_text("0 0.5 0.5 0.25 0.5\n")
    splits = prepared(make, tmp_path, group_by=None).members()
    assert {split: len(frames) for split, frames in splits.items()} == {
        "train": 13,
        "val": 5,
        "test": 6,
    }
    assert all("test" in name for name in splits["test"])


def test_names_of_channels_and_classes(make: Make, tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", SEQUENCES)
    assert prepared(make, root).channels[3:] == ["thermal", "event"]
    assert prepared(make, root, x=["a", "b"]).channels[3:] == ["a", "b"]
    assert prepared(make, root, class_names=["p", "v", "w"]).classes == ["p", "v", "w"]
    (root / "rgbx.json").write_text('{"channels": ["red", "green", "blue", "lwir", "nir"]}')
    (root / "classes.txt").write_text("person\ncar\n")
    data = prepared(make, root)
    assert (data.channels[3:], data.classes) == (["lwir", "nir"], ["person", "car"])
    (root / "classes.txt").write_text("person\n")  # too few, but overridden
    named = prepared(make, root, class_names=["p", "v"])
    assert (named.classes, named.skipped) == (["p", "v"], {})
    assert prepared(make, root, x=["a", "b"]).channels[3:] == ["a", "b"]
    four = write_set(tmp_path / "four", SEQUENCES, channels=4)
    assert prepared(make, four).channels[3:] == ["thermal"]
    seven = write_set(tmp_path / "seven", SEQUENCES, channels=7)
    with user_error("dataset.x", "7 channels of uint8", "or set dataset.x=[thermal,event,…]"):
        prepared(make, seven)
    assert prepared(make, seven, x=list("abcd")).transform().mean.shape == (7, 1, 1)


@pytest.mark.parametrize(
    ("changed", "key", "words"),
    [
        ({"x": ["thermal"]}, "dataset.x", ("thermal", "5 channels of uint8", "2 different")),
        ({"x": ["heat", "heat"]}, "dataset.x", ("heat, heat",)),
        ({"x": ["heat", "red"]}, "dataset.x", ("heat, red",)),
        (
            {"network": replace(NETWORK, coefficients=KEPT)},
            "compression",
            ("set compression=none",),
        ),
    ],
)
def test_settings_that_do_not_fit_the_files(
    make: Make, tmp_path: Path, changed: dict[str, Any], key: str, words: tuple[str, ...]
) -> None:
    root = write_set(tmp_path / "set", SEQUENCES)
    with user_error(key, *words):
        prepared(make, root, **changed)


@pytest.mark.parametrize("record", ["{", "[]", '{"channels": ["thermal"]}', '{"channels": 3}'])
def test_descriptions_without_channels(make: Make, tmp_path: Path, record: str) -> None:
    root = write_set(tmp_path / "set", SEQUENCES)
    (root / "rgbx.json").write_text(record)
    with user_error("dataset.x", root / "rgbx.json", '"channels"'):
        prepared(make, root)
    assert prepared(make, root, x=["thermal", "event"]).channels[3:] == ["thermal", "event"]


def test_an_incompletely_prepared_folder(make: Make, tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", SEQUENCES)
    (root / ".prepared.jsonl").write_text("{}\n")
    with user_error("dataset.root", root, "python -m research.prepare rgbx"):
        prepared(make, root)
    (root / "rgbx.json").write_text('{"channels": ["red", "green", "blue", "thermal", "event"]}')
    prepared(make, root)


def test_folders_without_images_or_boxes(make: Make, tmp_path: Path) -> None:
    with user_error("dataset.root", tmp_path, "images/", "labels/"):
        prepared(make, tmp_path)
    root = write_set(tmp_path / "set", SEQUENCES, label="")
    with user_error("dataset.class_names", root, "or set dataset.class_names=[a,b]"):
        prepared(make, root)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("0 0.5 0.5 1.2 0.2", "row 2 [-0.1, 0.4, 1.1, 0.6] exceeds the image"),
        ("0 0.5 0.5 0 0.2", "row 2 [0.5, 0.4, 0.5, 0.6] is inverted or empty"),
        ("0 0.5 0.5 -0.1 0.2", "row 2 [0.55, 0.4, 0.45, 0.6] is inverted or empty"),
        ("0 0.5 nan 0.1 0.2", "row 2"),
        ("0 0.5 0.5 0.2", "row 2 is '0 0.5 0.5 0.2': expected class cx cy w h"),
        ("2 0.5 0.5 0.2 0.2", "row 2: class 2 of 2: name or fix it"),
        ("3 0.5 0.5 0.2 0.2", "row 2: class 3 of 3: name or fix it"),
    ],
)
def test_invalid_labels_are_logged_with_their_row(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture, row: str, reason: str
) -> None:
    root = write_set(tmp_path / "set", SEQUENCES)
    (root / "classes.txt").write_text("person\ncar\n")
    (root / "labels" / "s0_1.txt").write_text(f"0 0.5 0.5 0.2 0.2\n{row}\n")
    data = prepared(make, root, class_names=list("abc") if "of 3" in reason else None)
    assert f"left out: labels/s0_1.txt: {reason}" in caplog.text
    assert data.counts()["train"][1] == {"invalid": 1}
    assert sum(count for count, _ in data.counts().values()) == 23
    source = data.dataset("train", seed=0, train=True, device=CPU)
    assert EpochLoader(source, 2, seed=0, train=True).skipped == {"left_out/invalid": 1}


def test_files_that_are_not_frames_are_counted_and_the_first_are_logged(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "MAX_LOGGED", 10)
    caplog.set_level(logging.INFO)
    root = write_set(tmp_path / "set", SEQUENCES)
    floats = pixels(0).astype(np.float32)
    floats[5, 6, 4] = np.nan
    for name in SEQUENCES[:12]:
        np.save(root / "images" / f"{name}.npy", floats)
    (root / "images" / f"{SEQUENCES[12]}.npy").unlink()
    data = prepared(make, root, val_fraction=0.3, test_fraction=0.0)
    assert data.counts()["train"][1] == {"invalid": 12, "missing_file": 1}
    assert (
        "s0_0.txt: its array s0_0.npy: float32, 1 NaN, the first at row 5 column 6" in caplog.text
    )
    assert caplog.text.count(": its array s") == 10
    assert "left out: … and 3 more" in caplog.text


@pytest.mark.parametrize(
    ("changed", "spec"),
    [({"dtype": "uint16"}, "5 channels of uint16"), ({"channels": 4}, "4 channels of uint8")],
)
def test_files_with_different_channels_or_types(
    make: Make, tmp_path: Path, changed: dict[str, Any], spec: str
) -> None:
    root = write_set(tmp_path / "set", SEQUENCES)
    np.save(root / "images" / "s2_1.npy", pixels(0, **changed))
    with user_error("dataset.root", f"s2_1.npy: {spec}", "23 other files"):
        prepared(make, root)


def test_arrays_are_read_once(make: Make, tmp_path: Path) -> None:
    """And again when one changes, or another size is asked for."""
    root = write_set(tmp_path / "set", SEQUENCES)
    settle()
    data = prepared(make, root)
    before = batch_of(data, "val")
    versions = {data.manifest.folder.name}
    assert prepared(make, root).manifest == data.manifest
    own = files(data, "val")
    own[1].write_bytes(own[1].read_bytes()[:-9])
    again = batch_of(data, "val")  # of the store, whatever becomes of the arrays
    assert torch.equal(again.inputs, before.inputs)
    changed = prepared(make, root)
    assert changed.skipped == {"invalid": 1}
    versions |= {
        changed.manifest.folder.name,
        prepared(make, root, image_size=32).manifest.folder.name,
    }
    assert len(versions) == 3
    # Its header is that of a frame, its pixels cannot be read.
    np.save(own[2], pixels(0))
    with own[2].open("r+b") as file:
        file.truncate(own[2].stat().st_size - 9)
    assert sum(prepared(make, root).skipped.values()) == 2


def test_a_damaged_store_of_arrays_is_written_again(make: Make, tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", SEQUENCES)
    data = prepared(make, root)
    before = batch_of(data, "train")
    flip_bit(data.manifest.folder / data.manifest.shards[0].file)
    assert torch.equal(batch_of(prepared(make, root), "train").inputs, before.inputs)


@pytest.mark.parametrize(("dtype", "channels"), [("uint8", 4), ("uint8", 5), ("uint16", 7)])
def test_a_store_gives_the_batches_of_its_arrays(
    make: Make, tmp_path: Path, dtype: str, channels: int
) -> None:
    """Splits, groups, statistics and values; against arrays that are letterboxed one by one."""
    root = write_set(tmp_path / "set", SEQUENCES, dtype=dtype, channels=channels)
    x = [f"x{number}" for number in range(channels - 3)]
    (root / "rgbx.json").write_text(json.dumps({"channels": ["red", "green", "blue", *x]}))
    data = prepared(make, root)
    moved = prepare.rgbx(root, tmp_path / "moved", prepare.RgbxOptions(size=64, workers=1))
    for path in (moved.folder, moved.path, tmp_path / "moved"):
        own = prepared(make, path)
        assert (own.channels[3:], own.dtype, own.classes) == (x, dtype, data.classes)
        assert own.members() == data.members()
    for split in data.splits:
        batch = batch_of(own, split)
        assert batch.inputs.dtype == getattr(torch, dtype)
        for name, pixel in zip(data.members()[split], batch.inputs, strict=True):
            expected = letterbox(np.load(root / name), 64)
            np.testing.assert_array_equal(pixel, expected)
        known = batch_of(data, split)
        for name in ("inputs", "boxes", "mask", "labels", "sizes"):
            assert torch.equal(getattr(batch, name), getattr(known, name))
    assert torch.equal(own.transform().mean, data.transform().mean)
    assert prepared(make, moved.folder, x=["t", *x[1:]]).channels[3] == "t"
    for changed, key, words in (
        ({"image_size": 32}, "dataset.image_size", ("prepared with 64", "size=32")),
        ({"class_names": ["a"]}, "dataset.class_names", ("1 names", "0, 1")),
        ({"x": ["a"] * channels}, "dataset.x", (f"set {channels - 3} different",)),
    ):
        with user_error(key, *words):
            prepared(make, moved.folder, **changed)


def test_stores_of_other_kinds(make: Make, tmp_path: Path) -> None:
    frame_store = build_store(plan_of(make_frames(tmp_path / "source")), tmp_path / "out")
    with user_error("dataset.root", frame_store.path, "frames of RGB", "research.prepare rgbx"):
        prepared(make, frame_store.folder)
    kind = FrameKind(None, None, None)
    with user_error("dataset.manifest", "red, green, blue, heat", "dataset=rgbx"):
        kind.configure({"channels": ["red", "green", "blue", "heat"]})


def test_models_with_other_channels_or_fewer_classes(make: Make, tmp_path: Path) -> None:
    data = prepared(make, write_set(tmp_path / "set", SEQUENCES))
    metadata = data.metadata()
    assert data.check_compatible(metadata) is None
    assert data.check_compatible({**metadata, "classes": ["0", "1", "2"]}) is None
    assert "has 2; use labels" in str(data.check_compatible({**metadata, "classes": ["0"]}))
    theirs = {**metadata, "channels": metadata["channels"][:4]}
    assert "trained on red, green, blue, thermal, but" in str(data.check_compatible(theirs))
    data.load_metadata(theirs)
    with user_error("dataset.root", "red, green, blue, thermal, but"):
        data.prepare(0)


def test_the_fingerprint_depends_on_pixels_boxes_and_splits(make: Make, tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", SEQUENCES)
    first = prepared(make, root).fingerprint()
    assert first == prepared(make, root).fingerprint()
    assert first != prepared(make, root, split_seed=4).fingerprint()
    path = root / "images" / "s3_2.npy"
    original = path.read_bytes()
    for rows in (np.s_[:6], np.s_[29:35], np.s_[-6:]):  # of 60 or more
        array = np.load(path)
        array[rows] ^= 1
        np.save(path, array)
        assert first != prepared(make, root).fingerprint()
        path.write_bytes(original)
    assert first == prepared(make, root).fingerprint()
    (root / "labels" / "s0_0.txt").write_text("0 0.5 0.5 0.25 0.25\n")
    assert first != prepared(make, root).fingerprint()


def test_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = ["model=rgbx_mit_b0", "dataset=demo_rgbx", "dataset.demo.images=36"]
    config = resolved(compose_config([*overrides, "dataset.demo.size=64"])[0])
    data = build.data_module(config)
    data.prepare(0)
    assert isinstance(data, RgbxFolder)
    assert data.classes == ["pedestrian", "vehicle"]
    assert data.channels == ["red", "green", "blue", "thermal", "event"]
    assert sum(count for count, _ in data.counts().values()) == 36
    groups = {s: {name[7:13] for name in names} for s, names in data.members().items()}
    assert not groups["train"] & groups["val"]
    batch = next(build.loader(config, data, "train", CPU, train=True).epoch(0))
    inputs = data.transform().train()(batch, torch.Generator().manual_seed(0)).inputs
    assert inputs.shape[1:] == (5, 128, 128)
