from __future__ import annotations

import hashlib
import json
import logging
import pickle
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets
from torchvision.transforms import functional as TF

import research
from research.config import compose_config, resolved
from research.data import cifar_files
from research.data.cifar import Cifar
from research.data.cifar_files import FAMILIES, LabelledImages
from research.data.crops import PadCrop
from research.data.loader import EpochLoader, SampleKey
from research.data.resident import ResidentImages, ResidentSamples
from research.data.transforms import PixelTransform
from research.engine import build, checkpoint
from tests.conftest import TINY, evaluated, run, user_error

CPU = torch.device("cpu")
TRAIN, TEST = 200, 40
Damage = Callable[[Path], None]


def parts(classes: int) -> dict[str, LabelledImages]:
    """Few images of noise, a known number of each class."""
    rng = np.random.default_rng(classes)
    return {
        name: LabelledImages(
            rng.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8),
            rng.permutation(np.arange(count) % classes),
        )
        for name, count in (("train", TRAIN), ("test", TEST))
    }


def chunks(part: LabelledImages, count: int) -> list[LabelledImages]:
    pairs = zip(np.split(part.pixels, count), np.split(part.labels, count), strict=True)
    return [LabelledImages(*pair) for pair in pairs]


def write_pickled(root: Path, classes: int) -> Path:
    """As the published files, which torchvision reads; their checksums become the expected ones."""
    published: Any = datasets.CIFAR10 if classes == 10 else datasets.CIFAR100
    folder = root / published.base_folder
    folder.mkdir(parents=True)
    key = b"labels" if classes == 10 else b"fine_labels"
    made = parts(classes)

    def dump(name: str, content: Any) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return md5(folder / name)

    for listed, part in ((published.train_list, "train"), (published.test_list, "test")):
        for entry, chunk in zip(listed, chunks(made[part], len(listed)), strict=True):
            content = {"data": chunk.pixels.reshape(-1, 3072), key.decode(): list(chunk.labels)}
            entry[1] = dump(entry[0], content)
    names = list(FAMILIES[classes].classes)
    published.meta["md5"] = dump(published.meta["filename"], {published.meta["key"]: names})
    return folder


def write_archive(root: Path, classes: int) -> Path:
    published: Any = datasets.CIFAR10 if classes == 10 else datasets.CIFAR100
    folder = write_pickled(root / "made", classes)
    archive = root / published.filename
    with tarfile.open(archive, "w:gz") as content:
        content.add(folder, published.base_folder)
    shutil.rmtree(root / "made")
    published.tgz_md5 = md5(archive)
    return archive


def write_binary(root: Path, classes: int) -> Path:
    family = FAMILIES[classes]
    folder = root / family.binary
    folder.mkdir(parents=True)
    for name, part in parts(classes).items():
        files = family.binary_files[name]
        for file, chunk in zip(files, chunks(part, len(files)), strict=True):
            # CIFAR-100 has the coarse class first.
            labels = np.full((len(chunk.labels), family.label_bytes), 77, np.uint8)
            labels[:, -1] = chunk.labels
            pixels = chunk.pixels.reshape(-1, 3072)
            np.concatenate([labels, pixels], 1).tofile(folder / file)
    return folder


def write_png(root: Path, classes: int) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for name, part in parts(classes).items():
        files = FAMILIES[classes].png_files[name]
        for file, chunk in zip(files, chunks(part, len(files)), strict=True):
            rows = chunk.pixels.transpose(0, 2, 3, 1).reshape(len(chunk.labels), 1024, 3)
            Image.fromarray(rows).save(root / file)
        (root / cifar_files.PNG_LABELS[name]).write_text(json.dumps(part.labels.tolist()))
    return root


WRITERS = {
    "pickled": write_pickled,
    "archive": write_archive,
    "binary": write_binary,
    "png": write_png,
}


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a few images, whose checksums the writers above make the expected ones."""
    for classes, family in list(FAMILIES.items()):
        small = replace(family, images={"train": TRAIN, "test": TEST})
        monkeypatch.setitem(FAMILIES, classes, small)
    for published in (datasets.CIFAR10, datasets.CIFAR100):
        for name in ("train_list", "test_list"):
            entries = [list(entry) for entry in getattr(published, name)]
            monkeypatch.setattr(published, name, entries)
        monkeypatch.setattr(published, "meta", dict(published.meta))
        monkeypatch.setattr(published, "tgz_md5", "")
        monkeypatch.setattr(published, "url", "file:///nowhere/cifar.tar.gz")


@pytest.mark.parametrize(
    ("layout", "classes"),
    [(layout, n) for layout in WRITERS for n in (10, 100) if (layout, n) != ("png", 100)],
)
def test_every_layout_has_the_same_content(layout: str, classes: int, tmp_path: Path) -> None:
    WRITERS[layout](tmp_path / "data", classes)
    result = cifar_files.read(tmp_path / "data", classes, download=False)
    for name, part in parts(classes).items():
        assert np.array_equal(result[name].pixels, part.pixels)
        assert np.array_equal(result[name].labels, part.labels)
        assert result[name].pixels.flags.c_contiguous
        assert result[name].labels.dtype == np.int64


@pytest.mark.parametrize("layout", ["pickled", "binary"])
def test_root_may_be_the_folder_itself(layout: str, tmp_path: Path) -> None:
    folder = WRITERS[layout](tmp_path, 10)
    assert len(cifar_files.read(folder, 10, download=False)["train"].labels) == TRAIN


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Where the folder ``there`` can be downloaded from."""
    (tmp_path / "there").mkdir()
    with HTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path / "there")) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_download_is_checked_and_extracted_once(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = write_archive(tmp_path / "there", 10)
    monkeypatch.setattr(datasets.CIFAR10, "url", f"{address}/{archive.name}")
    with monkeypatch.context() as wrong:
        wrong.setattr(datasets.CIFAR10, "tgz_md5", "0" * 32)
        with user_error("dataset.download"):
            cifar_files.read(tmp_path / "wrong", 10, download=True)
    assert not list((tmp_path / "wrong").glob("*.gz"))
    root = tmp_path / "runs" / "data"
    cifar_files.read(root, 10, download=True)
    names = {path.name for path in root.iterdir() if not path.name.startswith(".")}
    assert names == {datasets.CIFAR10.base_folder, datasets.CIFAR10.filename}
    assert not list(root.glob(".cifar.*"))
    (root / datasets.CIFAR10.filename).unlink()
    archive.unlink()
    assert len(cifar_files.read(root, 10, download=True)["test"].labels) == TEST


def test_nothing_is_downloaded_into_a_folder_of_other_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.CIFAR10, "url", "file:///nowhere")
    own = [f".{datasets.CIFAR10.filename}.download.lock", ".DS_Store", "Thumbs.db"]
    own += [datasets.CIFAR100.filename, datasets.CIFAR100.base_folder, "cifar-100-binary"]
    for name in own:  # of CIFAR-100 too, since both have the same folder unless it is set
        (tmp_path / name).touch()
    with user_error("dataset.download", "file:///nowhere"):
        cifar_files.read(tmp_path, 10, download=True)
    (tmp_path / "cats").mkdir()
    with user_error("dataset.root", tmp_path, "'cats'", f"dataset.root={tmp_path / 'cifar'}"):
        cifar_files.read(tmp_path, 10, download=True)
    with user_error("dataset.download", "file:///nowhere"):
        cifar_files.read(tmp_path / "cifar", 10, download=True)


def edit(name: str, change: Callable[[bytes], bytes]) -> Damage:
    def damage(root: Path) -> None:
        (file,) = root.rglob(name)
        file.write_bytes(change(file.read_bytes()))

    return damage


def remove(name: str) -> Damage:
    def damage(root: Path) -> None:
        (file,) = root.rglob(name)
        file.unlink()

    return damage


def png_of(name: str, size: tuple[int, int]) -> Damage:
    return lambda root: Image.new("RGB", size).save(root / name)


def flip_bit(content: bytes) -> bytes:
    return content[:100] + bytes([content[100] ^ 1]) + content[101:]


@pytest.mark.parametrize(
    ("layout", "damage", "words"),
    [
        (
            "archive",
            edit("*.gz", flip_bit),
            "cifar-10-python.tar.gz: wrong checksum (MD5 ",
        ),
        ("archive", edit("*.gz", lambda b: b[:-9]), "tar.gz: wrong checksum"),
        ("pickled", edit("data_batch_3", flip_bit), "data_batch_3: wrong checksum"),
        ("pickled", edit("test_batch", lambda b: b""), "test_batch: wrong checksum"),
        ("pickled", remove("data_batch_4"), "has no data_batch_4; "),
        ("pickled", remove("batches.meta"), "has no batches.meta; "),
        ("binary", remove("data_batch_1.bin"), "has no data_batch_1.bin; "),
        ("binary", remove("test_batch.bin"), "has no test_batch.bin; "),
        (
            "binary",
            edit("data_batch_2.bin", lambda b: b[:-1]),
            "data_batch_2.bin: 122,919 bytes, expected 122,920 (40 records of 3073)",
        ),
        (
            "binary",
            edit("test_batch.bin", lambda b: bytes([10]) + b[1:]),
            "test labels from 0 to 10, expected 0 to 9",
        ),
        ("png", remove("data_batch_5.png"), "has no data_batch_5.png; "),
        ("png", remove("test_lables.json"), "has no test_lables.json; "),
        (
            "png",
            png_of("data_batch_2.png", (1024, 39)),
            "data_batch_2.png: 1024×39 px, expected 1024×40",
        ),
        ("png", edit("test_batch.png", lambda b: b[:3000]), "test_batch.png: "),
        ("png", edit("test_batch.png", lambda b: b"text"), "test_batch.png: "),
        ("png", edit("train_lables.json", lambda b: b"[1, 2"), "train_lables.json: "),
        ("png", edit("train_lables.json", lambda b: b'["a"]'), "list of integers"),
        ("png", edit("train_lables.json", lambda b: b"[1, 2]"), "200 train images with 2 labels"),
        (
            "png",
            edit("test_lables.json", lambda b: b.replace(b"9", b"-1", 1)),
            "labels from -1 to 9",
        ),
    ],
)
def test_damaged_files_are_refused(layout: str, damage: Damage, words: str, tmp_path: Path) -> None:
    WRITERS[layout](tmp_path, 10)
    damage(tmp_path)
    with user_error("dataset.root", words):
        cifar_files.read(tmp_path, 10, download=True)


def test_missing_data_are_reported_with_the_searched_files(tmp_path: Path) -> None:
    files = ("cifar-10-batches-py", "cifar-10-python.tar.gz", "-bin", "data_batch_1.png")
    with user_error("dataset.root", "CIFAR-10", *files, "dataset.download=true"):
        cifar_files.read(tmp_path / "none", 10, download=False)
    assert not (tmp_path / "none").exists()
    with user_error("dataset.root", "CIFAR-100", "cifar-100-binary)"):
        cifar_files.read(tmp_path, 100, download=False)
    with user_error("dataset.download", "file:///nowhere", tmp_path / "new"):
        cifar_files.read(tmp_path / "new", 10, download=True)


def test_classes_are_the_published_ones() -> None:
    for count, family in FAMILIES.items():
        assert len(set(family.classes)) == count
        assert list(family.classes) == sorted(family.classes)


@cache
def composed() -> dict[str, Any]:
    base = [
        "model=resnet34",
        "model.name=resnet18",
        "dataset=cifar10",
        "dataset.root=data",
        "dataset.val_images=40",
        "batch_size=8",
    ]
    return resolved(compose_config(base)[0])


def opened(seed: int = 0, **changes: Any) -> Cifar:
    """The data set in the working directory, with changes to the keys of its YAML."""
    assert changes.keys() <= composed()["dataset"].keys()
    data = build.data_module({**composed(), "dataset": {**composed()["dataset"], **changes}})
    assert isinstance(data, Cifar)
    data.prepare(seed)
    return data


@pytest.fixture
def _data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_binary(tmp_path / "data", 10)


def batches(data: Cifar, split: str, *, seed: int = 0, train: bool = False, epoch: int = 1) -> Any:
    samples = data.dataset(split, seed=seed, train=train, device=CPU)
    return list(EpochLoader(samples, 16, seed=seed, train=train).epoch(epoch))


def pixels_of(data: Cifar, split: str) -> set[bytes]:
    return {image.numpy().tobytes() for batch in batches(data, split) for image in batch.inputs}


@pytest.mark.usefixtures("_data")
def test_validation_is_balanced_and_independent_of_the_seed() -> None:
    data, other = opened(seed=0), opened(seed=1)
    assert data.counts() == {"train": (160, {}), "val": (40, {}), "test": (TEST, {})}
    val = torch.cat([batch.labels for batch in batches(data, "val")])
    assert torch.equal(torch.bincount(val), torch.full((10,), 4))
    split = {name: pixels_of(data, name) for name in ("train", "val", "test")}
    assert sum(map(len, split.values())) == len(set.union(*split.values())) == TRAIN + TEST
    assert split["val"] == pixels_of(other, "val")
    assert data.fingerprint() == other.fingerprint()
    reseeded = opened(split_seed=1)
    assert split["val"] != pixels_of(reseeded, "val")
    assert reseeded.fingerprint() != data.fingerprint()


@pytest.mark.usefixtures("_data")
def test_full_train_validates_on_the_test_set_and_logs_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        data = opened(full_train=True)
    assert "validation split is the test set" in caplog.text
    assert data.counts() == {"train": (TRAIN, {}), "val": (TEST, {}), "test": (TEST, {})}
    assert pixels_of(data, "val") == pixels_of(data, "test")


@pytest.mark.usefixtures("_data")
def test_fewer_images_are_balanced_over_the_classes() -> None:
    data = opened(max_train_images=30, max_val_images=20)
    assert [count for count, _ in data.counts().values()] == [30, 20, TEST]
    for split, each in (("train", 3), ("val", 2)):
        labels = torch.cat([batch.labels for batch in batches(data, split)])
        assert torch.equal(torch.bincount(labels), torch.full((10,), each))
    assert data.fingerprint() != opened(max_val_images=20).fingerprint()


@pytest.mark.usefixtures("_data")
@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ({"num_classes": 9}, "dataset.num_classes", (9, 10)),
        ({"val_images": 200}, "dataset.val_images", (200,)),
        ({"root": "nowhere"}, "dataset.download", ("nowhere",)),
    ],
)
def test_settings_that_do_not_match_the_data_are_refused(
    changes: dict[str, Any], key: str, words: tuple[object, ...]
) -> None:
    with user_error(key, *words):
        opened(**changes)


def test_there_are_ten_classes_or_a_hundred() -> None:
    with user_error("dataset.classes", 20, 10, 100):
        compose_config(["dataset=cifar10", "dataset.classes=20"])


@pytest.mark.usefixtures("_data")
def test_training_crops_are_torchvisions_and_differ_by_epoch() -> None:
    data, indices = opened(), [5, 150, 5, 0]

    def picked(epoch: int, train: bool, source: Cifar = data) -> Any:
        samples = source.dataset("train", seed=3, train=train, device=CPU)
        return samples.__getitems__([SampleKey(epoch, index) for index in indices])

    result, whole = picked(2, train=True), picked(2, train=False)
    corners = PadCrop(4).corners(3, 2, 160)[indices].tolist()
    for cut, image, (top, left) in zip(result.inputs, whole.inputs, corners, strict=True):
        padded = TF.pad(image, [4, 4, 4, 4])
        assert torch.equal(cut, TF.crop(padded, top, left, 32, 32))
    assert torch.equal(result.labels, whole.labels)
    assert result.index.tolist() == indices
    assert torch.equal(result.inputs, picked(2, train=True).inputs)
    assert not torch.equal(result.inputs, picked(3, train=True).inputs)
    whole_too = picked(2, train=True, source=opened(random_crop=False))
    assert torch.equal(whole_too.inputs, whole.inputs)


@pytest.mark.usefixtures("_data")
def test_other_sizes_are_resized_as_in_torchvision() -> None:
    data, large = opened(), opened(image_size=80)
    small = batches(data, "val")[0].inputs
    result = batches(large, "val")[0].inputs
    assert result.shape == (16, 3, 80, 80)
    assert result.dtype == torch.uint8
    expected = TF.resize(small, [80, 80], antialias=True)
    assert (result.int() - expected.int()).abs().max() <= 1
    Image.fromarray(small[0].permute(1, 2, 0).numpy()).save("a.png")
    assert torch.equal(large.read([Path("a.png")]).inputs[0], result[0])


@pytest.mark.usefixtures("_data")
def test_statistics_are_those_of_the_published_images() -> None:
    transform = opened().transform()
    assert isinstance(transform, PixelTransform)
    assert torch.equal(transform.mean.flatten(), torch.tensor([0.4914, 0.4822, 0.4465]))
    assert torch.equal(transform.std.flatten(), torch.tensor([0.2470, 0.2435, 0.2616]))
    own = opened(mean=None, std=None).transform()
    assert isinstance(own, PixelTransform)
    assert torch.equal(own.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))


@pytest.mark.usefixtures("_data")
@pytest.mark.parametrize(
    ("on_device", "budget", "stays"),
    [(None, 1.0, True), (None, 1e-6, False), (True, 1e-6, True), (False, 1.0, False)],
)
def test_images_stay_on_the_device_within_the_budget(
    on_device: bool | None, budget: float, stays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = []

    def to(self: ResidentImages, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        devices.append(device)
        return self.images, self.labels

    monkeypatch.setattr(ResidentImages, "to", to)
    data = opened(on_device=on_device, device_budget=budget)
    gpu = torch.device("cuda")
    data.dataset("train", seed=0, train=True, device=gpu)
    assert devices == [gpu]
    assert data.parts["train"].stays_on(gpu) is stays
    assert data.loading(gpu, 2, None) == ((0, False) if stays else (2, True))
    assert data.loading(gpu, None, True) == (0, not stays)
    assert data.parts["train"].stays_on(CPU)


@pytest.mark.usefixtures("_data")
def test_nothing_is_copied_on_the_cpu() -> None:
    data = opened()
    samples = data.dataset("train", seed=0, train=True, device=CPU)
    assert isinstance(samples, ResidentSamples)
    assert samples.images.data_ptr() == data.parts["train"].images.data_ptr()
    assert data.loading(CPU, None, None) == (0, False)
    assert data.loading(CPU, 2, True) == (2, False)
    images = data.parts["test"].images.numpy()
    resident = ResidentImages(images, np.zeros(TEST, np.int64), on_device=False)
    assert resident.to(torch.device("cuda"))[0].device == CPU


@pytest.mark.usefixtures("_data")
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(
            (
                "dataset.augmentation.policy=trivialaugment",
                "dataset.augmentation.mixup=0.2",
                "dataset.augmentation.cutmix=1",
            ),
            marks=pytest.mark.long,
        ),
        (*TINY, "dataset.augmentation.erasing=0.5", "dataset.augmentation.cutmix=1"),
    ],
)
def test_it_trains_evaluates_and_predicts_without_the_data(
    settings: tuple[str, ...],
) -> None:
    base = [
        "model=resnet34",
        "model.name=resnet10t",
        *settings,
        "dataset=cifar10",
        "dataset.root=data",
        "dataset.val_images=40",
        "batch_size=8",
        "epochs=1",
        "device=cpu",
        "logging=csv",
        "optimizer.lr=0.02",
        "max_train_batches=3",
        "max_val_batches=2",
    ]
    config = resolved(compose_config(base)[0])
    folder = run(config)
    history = checkpoint.load(checkpoint.find(folder, "last"))["state"]["history"]
    assert np.isfinite(history[0]["train/loss"])
    scores = evaluated(folder, "test", "last")
    assert np.isfinite(scores.metrics["loss"])
    batch = batches(opened(), "test")[0]
    Image.fromarray(batch.inputs[0].permute(1, 2, 0).numpy()).save("a.png")
    shutil.rmtree("data")
    predictor = research.load(folder)
    assert predictor.classes == list(FAMILIES[10].classes)
    torch.testing.assert_close(predictor([Path("a.png")])[0], predictor.infer(batch)[0])
