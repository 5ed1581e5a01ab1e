from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from research import prepare
from research.data.frames.constant_box import best_constant_box, constant_iou
from research.data.loader import EpochLoader, SampleKey
from research.engine import build, checkpoint
from tests.conftest import evaluated, make_folders, prepared, run, user_error

Compose = Callable[..., dict[str, Any]]
CPU = torch.device("cpu")
COMPRESSED = ("compression=block_stem", "compression.window=3")


@pytest.fixture
def coefficients(folders: Path, tmp_path: Path) -> Path:
    """A store of 64 px at window 4 made from ``folders``."""
    words = ["image_size=64", "compression.window=4", "shard_samples=7", "workers=1"]
    prepare.main(["coefficients", str(folders), str(tmp_path / "store"), *words])
    return tmp_path / "store"


@pytest.fixture
def from_store(small: Compose, coefficients: Path) -> Compose:
    def compose(*overrides: str) -> dict[str, Any]:
        config = small(*COMPRESSED, "dataset.cache_dir=cache")
        return small_store(config, coefficients, *overrides)

    return compose


def small_store(config: dict[str, Any], manifest: Path, *overrides: str) -> dict[str, Any]:
    from research.config import compose_config, resolved

    base = [
        "model=resnet34_compressed",
        "model.name=resnet18",
        *COMPRESSED,
        "dataset=warehouse",
        f"dataset.manifest={manifest}",
        "dataset.image_size=32",
        "batch_size=8",
        f"dataset.cache_dir={config['dataset']['cache_dir']}",
        "epochs=1",
        "device=cpu",
        "logging=csv",
        "optimizer.lr=0.02",
    ]
    return resolved(compose_config([*base, *overrides])[0])


def epoch(config: dict[str, Any], split: str, number: int = 1) -> list[Any]:
    data = prepared(config)
    return list(build.loader(config, data, split, CPU, train=split == "train").epoch(number))


def test_store_and_files_give_identical_batches(small: Compose, from_store: Compose) -> None:
    files = small(*COMPRESSED, "compression.source=bitstream", "dataset.stored_size=64")
    for split in ("train", "val"):
        pairs = list(zip(epoch(files, split), epoch(from_store(), split), strict=True))
        assert len(pairs) == (3 if split == "train" else 2)
        for a, b in pairs:
            assert a.inputs.y.dtype == torch.int16
            for name in ("y", "cbcr"):
                assert torch.equal(getattr(a.inputs, name), getattr(b.inputs, name))
            assert torch.equal(a.index, b.index)
            assert torch.equal(a.labels, b.labels)


def test_store_and_files_train_alike(small: Compose, from_store: Compose) -> None:
    files = small(*COMPRESSED, "compression.source=bitstream", "dataset.stored_size=64", "epochs=2")
    histories = []
    for config in (files, from_store("epochs=2")):
        folder = run(config, config["dataset"]["name"])
        histories.append(checkpoint.load(checkpoint.find(folder, "last"))["state"]["history"])
    for a, b in zip(*histories, strict=True):
        for name in ("train/loss", "val/loss", "val/top1"):
            assert a[name] == pytest.approx(b[name], abs=1e-6)


def test_classes_that_a_split_of_a_store_lacks_are_remarked(
    small: Compose, coefficients: Path, tmp_path: Path, folders: Path
) -> None:
    config = small(*COMPRESSED, "dataset.cache_dir=cache")
    assert prepared(small_store(config, coefficients)).remarks == []
    shutil.rmtree(folders / "val" / "spots")
    words = ["image_size=64", "compression.window=4", "workers=1"]
    prepare.main(["coefficients", str(folders), str(tmp_path / "other"), *words])
    (remark,) = prepared(small_store(config, tmp_path / "other")).remarks
    assert remark.startswith("val has no image of 1 of 3 classes ('spots')")


def test_a_narrow_window_reads_less_and_sees_the_same(from_store: Compose) -> None:
    wide, narrow = (
        epoch(from_store(f"compression.window={k}", "dataset.random_crop=false"), "train")
        for k in (4, 2)
    )
    assert narrow[0].inputs.y.shape == (8, 4, 4, 4)
    for a, b in zip(wide, narrow, strict=True):
        assert torch.equal(a.inputs.y[..., :4], b.inputs.y)
        assert torch.equal(a.inputs.cbcr[..., :4], b.inputs.cbcr)


def test_zigzag_is_picked_out_on_the_device(from_store: Compose) -> None:
    order = ("compression.order=zigzag", "compression.window=2")
    config = from_store(*order, "dataset.random_flip=false", "dataset.random_crop=false")
    data = prepared(config)
    batch = data.dataset("train", seed=0, train=False, device=CPU).__getitems__([SampleKey(0, 3)])
    assert batch.inputs.y.shape[-1] == 9  # the smallest corner that holds 0, 1, 8 and 16
    transform = data.transform()
    transform.eval()
    kept = transform(batch, None).inputs.y[0]
    [raw] = transform.to_images(transform(batch, None))
    assert kept.shape == (4, 4, 4)
    assert raw.shape == (1, 3, 32, 32)
    stored = batch.inputs.y[0].permute(2, 0, 1).float()
    order_3 = [0, 1, 8, 9, 2, 10, 16, 17, 18]  # shells of the 3×3 corner
    picked = stored[[order_3.index(f) for f in (0, 1, 8, 16)]]
    plain = transform.decoder.to_range(picked[None], torch.zeros(1, 2, 4, 2, 2))[0]
    expected = (plain[0] - transform.y_mean) / transform.y_std
    torch.testing.assert_close(kept, expected)


def test_kept_on_the_device_gives_the_same(from_store: Compose) -> None:
    mapped = epoch(from_store(), "train")
    kept = epoch(from_store("dataset.on_device=true", "workers=2"), "train")
    for a, b in zip(mapped, kept, strict=True):
        assert torch.equal(a.inputs.y, b.inputs.y)
        assert torch.equal(a.inputs.cbcr, b.inputs.cbcr)
        assert torch.equal(a.labels, b.labels)


def test_workers_do_not_matter(from_store: Compose) -> None:
    alone, helped = (epoch(from_store(f"workers={n}"), "train", 2) for n in (0, 2))
    for a, b in zip(alone, helped, strict=True):
        assert torch.equal(a.inputs.y, b.inputs.y)


def test_a_run_from_a_store_is_evaluated_again_and_predicts_without_it(
    from_store: Compose, folders: Path, coefficients: Path
) -> None:
    import research

    folder = run(from_store())
    result = evaluated(folder, "val", "last")
    assert result.metrics == result.logged
    coefficients.rename(coefficients.with_name("gone"))
    model = research.load(folder, device="cpu")
    files = sorted((folders / "val").rglob("*.jpg"))[:2]
    assert model(files).shape == (2, 3)
    with user_error("manifest", "no warehouse"):
        evaluated(folder, "val", "last")


@pytest.mark.parametrize(
    ("overrides", "key", "words"),
    [
        (("compression.window=5",), "compression.window", "a window of 4"),
        (("dataset.image_size=128",), "dataset.image_size", "64"),
        (
            ("compression=none", "model=tinydet", "dataset=warehouse"),
            "dataset.manifest",
            "holds coefficients",
        ),
        (("dataset.folds=3",), "dataset.folds", "2 groups"),
    ],
)
def test_settings_that_the_store_cannot_serve(
    from_store: Compose, coefficients: Path, overrides: tuple[str, ...], key: str, words: str
) -> None:
    if "model=tinydet" in overrides:
        from research.config import compose_config, resolved

        settings = [*overrides, f"dataset.manifest={coefficients}", "logging=csv"]
        config = resolved(compose_config(settings)[0])
    else:
        config = from_store(*overrides)
    with user_error(key, words):
        prepared(config)


def test_another_image_size_is_refused(
    small: Compose, from_store: Compose, folders: Path, tmp_path: Path
) -> None:
    folder = run(from_store())
    words = ["image_size=48", "compression.window=4", "workers=1"]
    prepare.main(["coefficients", str(folders), str(tmp_path / "other"), *words])
    with user_error("dataset.manifest", "image_size=64", "image_size=48"):
        evaluated(folder, "val", "last", f"dataset.manifest={tmp_path / 'other'}")
    config = small_store(from_store(), tmp_path / "other", f"init_from={folder}")
    with user_error("init_from", "image_size=64"):
        build.experiment(config)


def test_files_read_for_prediction_are_as_the_store_has_them(
    from_store: Compose, folders: Path
) -> None:
    data = prepared(from_store("dataset.random_crop=false"))
    batch = data.dataset("val", seed=0, train=False, device=CPU).__getitems__(
        [SampleKey(0, index) for index in range(12)]
    )
    read = data.read(sorted((folders / "val").rglob("*.jpg")))
    assert torch.equal(batch.inputs.y, read.inputs.y)
    assert torch.equal(batch.inputs.cbcr, read.inputs.cbcr)


def test_a_held_out_fraction_when_there_is_no_val_folder(tmp_path: Path) -> None:
    make_folders(tmp_path / "classes", 10)
    words = ["image_size=32", "compression.window=2", "val=0.2", "workers=1"]
    prepare.main(["coefficients", str(tmp_path / "classes"), str(tmp_path / "out"), *words])
    config = small_store({"dataset": {"cache_dir": str(tmp_path)}}, tmp_path / "out")
    data = prepared({**config, "compression": {**config["compression"], "window": 2}})
    assert {split: count for split, (count, _) in data.counts().items()} == {"train": 24, "val": 6}


def test_the_best_constant_box_is_no_worse_than_any_on_a_grid() -> None:
    rng = np.random.default_rng(0)
    corner = rng.uniform(0.1, 0.5, (40, 2, 2))
    boxes = torch.from_numpy(
        np.concatenate([corner, corner + rng.uniform(0.1, 0.4, (40, 2, 2))], 2)
    )
    mask = torch.from_numpy(rng.random((40, 2)) < 0.7)
    best = constant_iou(best_constant_box(boxes, mask), boxes, mask)[mask.any(1)].mean()
    steps = torch.linspace(0, 1, 7, dtype=torch.float64)
    for left in steps[:-1]:
        for top in steps[:-1]:
            for right in steps[steps > left]:
                for bottom in steps[steps > top]:
                    box = torch.stack([left, top, right, bottom])
                    assert constant_iou(box, boxes, mask)[mask.any(1)].mean() <= best + 5e-3


def test_a_loader_of_a_store_can_be_drawn_from_twice_at_once(from_store: Compose) -> None:
    data = prepared(from_store())
    samples = data.dataset("train", seed=0, train=True, device=CPU)
    loader = EpochLoader(samples, 8, seed=0, train=True)
    first, second = iter(loader.epoch(1)), iter(loader.epoch(1))
    for _ in range(3):
        assert torch.equal(next(first).inputs.y, next(second).inputs.y)
