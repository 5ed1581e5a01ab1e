from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from research.batch import PairBatch, PhotoBatch
from research.compression.selection import Selection
from research.config import compose_config, resolved
from research.config.options import option_node
from research.data.coefficients import CoefficientSpec
from research.data.datamodule import NetworkInput
from research.data.loader import EpochLoader, SampleKey
from research.data.pairs import samples
from research.data.pairs.samples import PairSamples, read_photo
from research.data.pairs.source import PhotoPairs
from research.data.pairs.transform import FeatureTransform, PairTransform
from research.tasks.ranking_metrics import RankingMetrics
from research.utils.errors import DamagedImage
from tests.conftest import user_error

CPU = torch.device("cpu")
NETWORK = NetworkInput(48, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), 1.0, None)
FILL = (128, 102, 76)
SERIES = 24
DECLARED = {"_target_"}
"""Keys of the YAML file that are not arguments."""
Make = Callable[..., PhotoPairs]


def write_photos(root: Path, lists: tuple[str, ...] = ("train", "val")) -> Path:
    """Series of three photos with increasing noise and quality, decreasing in odd series."""
    folder = root / "train_val" / "train_val_imgs"
    folder.mkdir(parents=True)
    rows: dict[str, list[str]] = {"train": [], "val": []}
    for series in range(1, SERIES + 1):
        rng = np.random.default_rng(series)
        size = ((40, 60), (60, 40), (50, 50))[series % 3]
        for photo in (1, 2, 3):
            amplitude = 30 * (photo if series % 2 == 0 else 4 - photo)
            grey = 128 + amplitude * rng.uniform(-1, 1, (*size, 3))
            image = Image.fromarray(grey.astype(np.uint8))
            image.save(folder / f"{series:06d}-{photo:02d}.JPG", quality=95)
        pairs = ("1 2 0.2 3 2", "1 3 0.1 3 1", "2 3 0.25 2 1")
        if series % 2:
            pairs = ("1 2 0.8 1 2", "1 3 0.9 1 3", "2 3 0.75 2 3")
        split = "val" if "val" in lists and series % 6 == 0 else "train"
        rows[split].extend(f"{series} {pair}\n" for pair in pairs)
    for split in lists:
        (root / "train_val" / f"{split}_pairlist.txt").write_text("".join(rows[split]))
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "data")


def photo(root: Path, series: int, number: int) -> Path:
    return root / "train_val" / "train_val_imgs" / f"{series:06d}-{number:02d}.JPG"


def settings(name: str = "phototriage") -> dict[str, Any]:
    return option_node("dataset", name)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def made(root: Path, **changed: Any) -> PhotoPairs:
        values = {key: value for key, value in settings().items() if key not in DECLARED}
        values |= {"root": str(root), "image_size": None, "cache_dir": str(tmp_path / "cache")}
        values |= {"feature_weights": {}, "network": NETWORK}
        return PhotoPairs(**{**values, **changed})

    return made


def prepared(make: Make, root: Path, **changed: Any) -> PhotoPairs:
    data = make(root, **changed)
    data.prepare(0)
    return data


def batch_of(data: PhotoPairs, split: str, count: int | None = None) -> PairBatch:
    samples = data.dataset(split, seed=0, train=False, device=CPU)
    batch = samples.__getitems__([SampleKey(0, index) for index in range(count or len(samples))])
    assert isinstance(batch, PairBatch)
    return batch


def padded(path: Path, size: int = 48) -> np.ndarray:
    """[3, size, size]: the long side fills the canvas, the rest is the mean."""
    image = Image.open(path)
    scale = size / max(image.size)
    inner = [round(side * scale) for side in image.size]
    canvas = Image.new("RGB", (size, size), FILL)
    resized = image.resize((inner[0], inner[1]), Image.Resampling.BILINEAR)
    canvas.paste(resized, ((size - inner[0]) // 2, (size - inner[1]) // 2))
    return np.asarray(canvas).transpose(2, 0, 1)


def test_weights_of_any_feature_on_the_command_line() -> None:
    words = ["experiment=phototriage_folds", "dataset.feature_weights={clip: a, x.layer4: b}"]
    config = resolved(compose_config(words)[0])
    assert config["dataset"]["feature_weights"] == {"clip": "a", "x.layer4": "b"}
    default = resolved(compose_config(words[:1])[0])
    assert default["dataset"]["feature_weights"] is None


def test_a_batch_contains_the_photos_of_its_pairs(make: Make, root: Path) -> None:
    data = prepared(make, root)
    assert data.counts() == {"train": (54, {}), "test": (6, {}), "val": (12, {})}
    batch = batch_of(data, "val")
    assert batch.inputs.dtype == torch.uint8
    assert batch.inputs.shape == (12, 2, 3, 48, 48)
    assert batch.preference.tolist() == pytest.approx([0.2, 0.1, 0.25] * 4)
    assert [data.pairs("val").series[s] for s in batch.series.tolist()[::3]] == [
        f"{series:06d}" for series in (6, 12, 18, 24)
    ]
    for row, photos in enumerate(batch.photos.tolist()):
        for side, index in enumerate(photos):
            path = data.pairs("val").photos[index]
            assert (batch.inputs[row, side].numpy() == padded(path)).all()
    assert batch.photos[0].tolist() != batch.photos[1].tolist()
    assert [p.name for p in (data.pairs("val").photos[i] for i in batch.photos[2])] == [
        "000006-02.JPG",
        "000006-03.JPG",
    ]


def test_a_photo_is_read_once_a_batch(
    make: Make, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = prepared(make, root)
    read: list[Path] = []

    def counted(path: Path, *rest: Any) -> Image.Image:
        read.append(path)
        return read_photo(path, *rest)

    monkeypatch.setattr(samples, "read_photo", counted)
    batch_of(data, "val", 6)
    assert len(read) == len(set(read)) == 6


def test_large_jpegs_are_decoded_at_a_reduced_size(tmp_path: Path) -> None:
    pixels = np.kron(np.random.default_rng(0).uniform(60, 200, (12, 16)), np.ones((20, 20)))
    Image.fromarray(pixels.astype(np.uint8)).convert("RGB").save(tmp_path / "a.jpg", quality=95)
    small = read_photo(tmp_path / "a.jpg", lambda size: max(size) / 100)
    assert small.size == (160, 120)
    assert read_photo(tmp_path / "a.jpg", lambda size: max(size) / 400).size == (320, 240)
    full = read_photo(tmp_path / "a.jpg").resize(small.size, Image.Resampling.BOX)
    assert np.abs(np.asarray(full, float) - np.asarray(small, float)).mean() < 2


def test_centre_crop(make: Make, root: Path) -> None:
    data = prepared(make, root, fit="crop")
    pixels = batch_of(data, "val", 1).inputs[0, 0].numpy().transpose(1, 2, 0)
    image = Image.open(photo(root, 6, 1))  # 60 wide, 40 high
    square = image.resize((48, 48), Image.Resampling.BILINEAR, box=(10, 0, 50, 40))
    assert (pixels == np.asarray(square)).all()


def test_files_are_read_as_in_validation(make: Make, root: Path) -> None:
    data = make(root)
    batch = data.read([photo(root, 1, 2), photo(root, 2, 1)])
    assert isinstance(batch, PhotoBatch)
    assert (batch.inputs[1].numpy() == padded(photo(root, 2, 1))).all()
    assert data.load_image(photo(root, 1, 2))[0].size == (40, 60)
    photo(root, 1, 1).write_bytes(b"no photo")
    with pytest.raises(DamagedImage, match="not an image file"):
        data.read([photo(root, 1, 1)])


def test_unusable_photos_are_counted_and_reported(
    make: Make, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photo(root, 1, 1).write_bytes(b"")
    photo(root, 2, 1).unlink()
    for number in (1, 2, 3):
        photo(root, 6, number).unlink()
    torn = photo(root, 12, 1)
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
    caplog.set_level(logging.WARNING)
    data = prepared(make, root, test_fraction=0.0)
    assert data.counts() == {
        "train": (56, {"empty": 2, "missing_image": 2}),
        "val": (9, {"unknown_series": 3}),
    }
    text = "\n".join(caplog.messages)
    assert "val_pairlist.txt row 1: series 000006 has no photo" in text
    assert "train_pairlist.txt row 4: no file 000002-01" in text
    assert "000001-01.JPG: empty, cannot be read" in text
    batch = batch_of(data, "val")  # damage that the header does not show
    assert len(batch) == 7
    assert batch.skipped in ({"left_out/truncated": 2}, {"left_out/unreadable": 2})
    assert batch.index.tolist() == [2, *range(3, 9)]
    empty = data.dataset("val", seed=0, train=False, device=CPU).__getitems__([SampleKey(0, 0)])
    assert empty.inputs.shape == (0, 2, 3, 48, 48)  # type: ignore[attr-defined]
    with user_error("dataset.audit", "dataset.audit=error: ", "(and 2 more findings)"):
        prepared(make, root, audit="error")


def test_settings_that_leave_no_pairs(make: Make, root: Path) -> None:
    lists = root / "train_val"
    with user_error("dataset.min_agreement", "train split", "low_agreement"):
        prepared(make, root, min_agreement=0.95, test_fraction=0.3)
    with user_error("dataset.min_reviewers", "dataset.min_reviewers=2", "dataset.labels=votes"):
        prepared(make, root, min_reviewers=2)
    with user_error("dataset.votes_file", "set dataset.votes_file=FILE.csv"):
        prepared(make, root, labels="votes")
    with user_error("split", "split=test", "train, val;", "dataset.test_fraction=0.1"):
        batch_of(prepared(make, root, test_fraction=0.0), "test")
    (lists / "val_pairlist.txt").unlink()
    with user_error("dataset.val_fraction", root, "val split"):
        prepared(make, root, val_fraction=0.0)
    (lists / "train_pairlist.txt").write_text("\n")
    with user_error("labels", "train_pairlist.txt", "no pairs"):
        prepared(make, root)


def test_a_list_with_swapped_columns(make: Make, root: Path) -> None:
    file = root / "train_val" / "train_pairlist.txt"
    rows = [line.split() for line in file.read_text().splitlines()]
    file.write_text("".join(f"{s} {a} {b} {r1} {p} {r2}\n" for s, a, b, p, r1, r2 in rows))
    with user_error("labels", f"{file} row 3", "preference 2"):
        prepared(make, root)


def test_limits_and_quick_experiments(make: Make, root: Path) -> None:
    few = prepared(make, root, max_train_images=10, max_val_images=1)
    assert {split: n for split, (n, _) in few.counts().items()} == {
        "train": 10,
        "test": 6,
        "val": 1,
    }
    quick = prepared(make, root, quick_experiment=0.25)
    assert {split: n for split, (n, _) in quick.counts().items()} == {
        "train": 12,
        "val": 3,
        "test": 3,
    }
    assert len(quick.pairs("val").photos) == 3 * 6
    assert len({few.fingerprint(), quick.fingerprint(), prepared(make, root).fingerprint()}) == 3
    assert prepared(make, root).fingerprint() == prepared(make, root).fingerprint()


def test_folds_of_all_lists(make: Make, root: Path) -> None:
    lists = root / "train_val"
    # Folds merge the lists, so that a series in both lists leaks nothing.
    leak = (lists / "val_pairlist.txt").read_text().splitlines()[0]
    with (lists / "train_pairlist.txt").open("a") as file:
        file.write(f"{leak}\n")
    tests, vals = [], []
    for fold in range(4):
        data = prepared(make, root, folds=4, fold=fold, audit="error")
        assert data.counts() == {"train": (36, {}), "val": (18, {}), "test": (18, {})}
        series = {split: {p.series for p in data.pairs(split).pairs} for split in data.splits}
        assert sum(map(len, series.values())) == len(set().union(*series.values())) == SERIES
        tests.append(series["test"])
        vals.append(series["val"])
    assert vals == [*tests[1:], tests[0]]
    assert len(set().union(*tests)) == SERIES
    # The filters move no series to another split, but may leave a split empty.
    strict = prepared(make, root, folds=4, fold=3, min_agreement=0.85)
    assert {pair.series for pair in strict.pairs("test").pairs} == tests[3]
    with user_error("dataset.min_agreement", "36 pairs", "train split"):
        prepared(make, root, folds=4, min_agreement=0.95)
    with user_error("dataset.folds", "25", "24 series"):
        prepared(make, root, folds=25)


def test_baselines(make: Make, root: Path) -> None:
    data = prepared(make, root)
    expected = (
        "pair accuracy 1.0000 (n=12 pairs) of always the second photo, "
        "1.0000 (n=12 pairs) of the sharper photo"
    )
    assert data.baseline() == expected
    metrics = RankingMetrics("soft", [0.5, 1.0])
    metrics.update(torch.zeros(12), batch_of(data, "val"))
    assert metrics.compute()["constant_accuracy"] == 1


def test_votes(make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_photos(tmp_path / "votes", ())
    table = tmp_path / "votes.csv"
    rows = [
        f"{s},{a},{b},{left},{right}\n{s},{b},{a},{right},{left + 1}\n"
        for s in range(1, SERIES + 1)
        for a, b, left, right in ((0, 1, 1, 4), (0, 2, 0, 4), (1, 2, 2, 4))
    ]
    table.write_text("series_id,compareID1,compareID2,LEFT,RIGHT\n" + "".join(rows))
    votes = {"labels": "votes", "votes_file": str(table)}
    data = prepared(make, root, **votes)
    assert {split: n for split, (n, _) in data.counts().items()} == {
        "train": 60,
        "test": 6,
        "val": 6,
    }
    assert batch_of(data, "val", 3).preference.tolist() == pytest.approx([3 / 11, 1 / 9, 5 / 13])
    assert data.pairs("val").pairs[0].weight == 11
    agreed = prepared(make, root, **votes, min_agreement=0.65, min_reviewers=10)
    assert agreed.counts()["train"] == (20, {"few_reviewers": 20, "low_agreement": 20})
    write_photos(tmp_path / "both")
    caplog.set_level(logging.WARNING)
    reordered = [line.split(",") for line in "".join(rows).split()]
    table.write_text(
        "series_id,compareID1,compareID2,LEFT,RIGHT\n"
        + "".join(
            f"{s},{2 - int(a)},{2 - int(b)},{left},{right}\n" for s, a, b, left, right in reordered
        )
    )
    prepared(make, tmp_path / "both", **votes)
    assert "the table numbers the photos in another order than the files" in caplog.text


@pytest.mark.parametrize("key", ["labels", "ties", "fit", "audit"])
def test_invalid_choices(make: Make, root: Path, key: str) -> None:
    with user_error(f"dataset.{key}", f"dataset.{key}=nothing", "allowed: "):
        make(root, **{key: "nothing"})


def test_pairs_have_no_coefficients(make: Make, root: Path) -> None:
    coefficients = CoefficientSpec(Selection((0, 1), (0,)), "pixels", "full", True, 8)
    with user_error("compression", "set compression=none"):
        prepared(make, root, network=replace(NETWORK, coefficients=coefficients))


def test_inputs_of_the_network(make: Make, root: Path) -> None:
    data = prepared(make, root)
    batch = batch_of(data, "val")
    transform = data.transform().eval()
    assert isinstance(transform, PairTransform)
    normalised = transform(batch, None)
    mean, std = (torch.tensor(part)[:, None, None] for part in (NETWORK.mean, NETWORK.std))
    torch.testing.assert_close(normalised.inputs, (batch.inputs / 255 - mean) / std)
    assert torch.equal(normalised.preference, batch.preference)
    first, second = transform.to_images(normalised)
    assert torch.equal(first, batch.inputs[:, 0])
    assert torch.equal(second, batch.inputs[:, 1])
    user = transform(data.read([data.pairs("val").photos[i] for i in batch.photos[0]]), None)
    torch.testing.assert_close(user.inputs, normalised.inputs[0])
    # Padding is the mean, rounded to 8 bits.
    assert normalised.inputs[0, 0, :, 0].abs().max() < 0.5 / 255 / 0.2 + 1e-5


def test_training_swaps_and_mirrors_half_of_the_pairs(make: Make, root: Path) -> None:
    data = prepared(make, root)
    batch = batch_of(data, "train")
    plain = data.transform().eval()(batch, None).inputs
    augmented = data.transform().train()(batch, torch.Generator().manual_seed(3))
    swapped = (augmented.photos != batch.photos).all(1)
    assert 15 < int(swapped.sum()) < 39
    assert torch.equal(
        augmented.photos, torch.where(swapped[:, None], batch.photos.flip(1), batch.photos)
    )
    expected = torch.where(swapped, 1 - batch.preference, batch.preference)
    assert torch.equal(augmented.preference, expected)
    back = torch.where(
        swapped[:, None, None, None, None], augmented.inputs.flip(1), augmented.inputs
    )
    mirrored = (back != plain).flatten(1).any(1)
    assert 15 < int(mirrored.sum()) < 39
    assert torch.equal(back[mirrored], plain[mirrored].flip(-1))  # both photos of a pair
    assert 0 < int((mirrored & swapped).sum()) < int(mirrored.sum())
    fixed = PairTransform(NETWORK.mean, NETWORK.std, False, False, data.photo_index).train()
    assert torch.equal(fixed(batch, torch.Generator()).inputs, plain)


def test_features_instead_of_pixels(make: Make, root: Path) -> None:
    torn = photo(root, 6, 1)
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
    data = prepared(make, root, features=["quality"])
    metadata = data.metadata()
    assert metadata["features"] == ["quality"]
    width = metadata["feature_sizes"]["quality"]
    count, kinds = data.counts()["val"]
    assert (count, sum(kinds.values())) == (10, 2)
    transform = data.transform()
    assert isinstance(transform, FeatureTransform)
    batch = transform.eval()(batch_of(data, "train"), None)
    assert batch.inputs.shape == (54, 2, width)
    by_photo = {
        int(i): row
        for i, row in zip(batch.photos.flatten(), batch.inputs.flatten(0, 1), strict=True)
    }
    rows = torch.stack(list(by_photo.values()))
    torch.testing.assert_close(rows.mean(0), torch.zeros(width), atol=1e-4, rtol=0)
    varying = rows.std(0) > 1e-3
    assert varying.sum() > 4
    std = rows.std(0, correction=0)[varying]
    torch.testing.assert_close(std, torch.ones_like(std), atol=1e-3, rtol=0)
    index = int(batch_of(data, "val", 1).photos[0, 1])
    user = data.read([data.pairs("val").photos[index]])
    torch.testing.assert_close(user.inputs[0], batch_of(data, "val", 1).inputs[0, 1])
    trained = transform.train()(batch_of(data, "train"), torch.Generator().manual_seed(0))
    swapped = (trained.photos != batch.photos).all(1)
    assert torch.equal(trained.inputs[swapped], batch.inputs[swapped].flip(1))


def test_a_second_run_computes_only_changed_photos(make: Make, root: Path) -> None:
    computed = []
    for changed in (False, False, True):
        if changed:
            photo(root, 1, 1).write_bytes(photo(root, 2, 1).read_bytes() + b"more")
        data = prepared(make, root, features=["quality"])
        assert data.features is not None
        computed.append(data.features.extracted["quality"])
    assert computed == [3 * SERIES, 0, 1]


@pytest.mark.parametrize("features", [None, ["quality"]])
def test_names_and_images_of_a_batch(make: Make, root: Path, features: list[str] | None) -> None:
    data = make(root, features=features)
    # As in evaluation: the transform is built before the data set is prepared.
    transform = data.transform(measured=False).eval()
    data.prepare(0)
    batch = transform(batch_of(data, "val", 3), None)
    assert transform.names(batch) == {
        "series": ["000006"] * 3,
        "first": ["000006-01.JPG", "000006-01.JPG", "000006-02.JPG"],
        "second": ["000006-02.JPG", "000006-03.JPG", "000006-03.JPG"],
    }
    pixels = batch_of(prepared(make, root), "val", 3).inputs
    first, second = transform.to_images(batch)
    assert torch.equal(first, pixels[:, 0])
    assert torch.equal(second, pixels[:, 1])
    photo(root, 6, 2).write_bytes(b"")  # a missing picture must not end the run
    if features is not None:
        first, second = transform.to_images(batch)
        assert (second[0] == 255).all()
        assert torch.equal(second[1], pixels[1, 1])


def test_a_model_needs_the_features_that_it_was_trained_on(make: Make, root: Path) -> None:
    pixels, quality = make(root), make(root, features=["quality"])
    pixels.load_metadata(pixels.metadata())
    assert pixels.metadata()["transform"] == {"image_size": 48, "fit": "pad"}
    assert quality.check_compatible(quality.metadata()) is None
    with user_error("dataset.features", "features quality", "set dataset.features=[quality]"):
        pixels.load_metadata(quality.metadata())
    assert "set dataset.features=null" in str(quality.check_compatible(pixels.metadata()))
    other = quality.metadata() | {"feature_keys": {"quality": "another"}}
    assert "dataset.feature_weights" in str(quality.check_compatible(other))


@pytest.mark.parametrize("workers", [0, 2])
def test_any_number_of_workers(make: Make, root: Path, workers: int) -> None:
    data = prepared(make, root)
    samples = data.dataset("train", seed=1, train=True, device=CPU)
    assert isinstance(samples, PairSamples)
    loader = EpochLoader(samples, 16, seed=1, train=True, workers=workers)
    first = next(iter(loader.epoch(2)))
    assert first.index.tolist() == _order(54)[:16]
    assert len(loader) == 3


def _order(count: int) -> list[int]:
    order = np.arange(count)
    np.random.default_rng((1, 2)).shuffle(order)
    return order.tolist()
