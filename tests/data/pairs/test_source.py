from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from research.batch import PairBatch, PhotoBatch
from research.config import compose_config, resolved
from research.data.loader import EpochLoader, SampleKey
from research.data.pairs import samples as reading
from research.data.pairs.samples import PairSamples, read_photo
from research.data.pairs.source import PhotoPairs
from research.data.pairs.transform import FeatureTransform, PairTransform
from research.data.source import NetworkInput
from research.tasks.ranking_metrics import RankingMetrics
from research.utils.errors import DamagedImage, UserError
from tests.conftest import ROOT

CPU = torch.device("cpu")
NETWORK = NetworkInput(48, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), 1.0, None)
FILL = (128, 102, 76)
SERIES = 24
Make = Callable[..., PhotoPairs]


def write_photos(root: Path, lists: tuple[str, ...] = ("train", "val")) -> Path:
    """Series of three photos, each more speckled, and better, than the one before.

    In series of an odd number it is the other way round.
    """
    folder = root / "train_val" / "train_val_imgs"
    folder.mkdir(parents=True)
    rows: dict[str, list[str]] = {"train": [], "val": []}
    for series in range(1, SERIES + 1):
        rng = np.random.default_rng(series)
        size = ((40, 60), (60, 40), (50, 50))[series % 3]
        for photo in (1, 2, 3):
            speckles = 30 * (photo if series % 2 == 0 else 4 - photo)
            grey = 128 + speckles * rng.uniform(-1, 1, (*size, 3))
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
    found: dict[str, Any] = yaml.safe_load((ROOT / "conf" / "dataset" / f"{name}.yaml").read_text())
    return found


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def made(root: Path, **changed: Any) -> PhotoPairs:
        given = {key: value for key, value in settings().items() if key != "_target_"}
        given |= {"root": str(root), "image_size": None, "cache_dir": str(tmp_path / "cache")}
        given |= {"feature_weights": {}}
        return PhotoPairs(**{**given, **changed}, network=NETWORK)

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
    """[3, size, size]: the long side is the canvas, the mean around it."""
    image = Image.open(path)
    scale = size / max(image.size)
    inner = [round(side * scale) for side in image.size]
    canvas = Image.new("RGB", (size, size), FILL)
    resized = image.resize((inner[0], inner[1]), Image.Resampling.BILINEAR)
    canvas.paste(resized, ((size - inner[0]) // 2, (size - inner[1]) // 2))
    return np.asarray(canvas).transpose(2, 0, 1)


def test_the_yaml_says_what_the_data_set_takes() -> None:
    taken = set(inspect.signature(PhotoPairs).parameters) - {"network"}
    assert set(settings()) - {"_target_"} == taken
    assert set(settings("demo_photos")) - {"defaults"} < taken


def test_weights_of_any_feature_are_named_on_the_command_line() -> None:
    words = ["experiment=phototriage_folds", "dataset.feature_weights={clip: a, x.layer4: b}"]
    config = resolved(compose_config(words)[0])
    assert config["dataset"]["feature_weights"] == {"clip": "a", "x.layer4": "b"}
    usual = resolved(compose_config(words[:1])[0])
    assert usual["dataset"]["feature_weights"] is None


def test_a_batch_holds_the_photos_of_its_rows(make: Make, root: Path) -> None:
    data = prepared(make, root)
    assert data.counts() == {"train": (54, {}), "test": (6, {}), "val": (12, {})}
    batch = batch_of(data, "val")
    assert batch.inputs.dtype == torch.uint8
    assert batch.inputs.shape == (12, 2, 3, 48, 48)
    assert batch.preference.tolist() == pytest.approx([0.2, 0.1, 0.25] * 4)
    assert [data.pairs("val").series[s] for s in batch.series.tolist()[::3]] == [
        f"{series:06d}" for series in (6, 12, 18, 24)
    ]
    for place, (first, second) in enumerate(batch.photos.tolist()):
        for side, index in enumerate((first, second)):
            path = data.pairs("val").photos[index]
            assert (batch.inputs[place, side].numpy() == padded(path)).all()
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

    monkeypatch.setattr(reading, "read_photo", counted)
    batch_of(data, "val", 6)
    assert len(read) == len(set(read)) == 6


def test_large_jpegs_are_decoded_small_and_small_ones_whole(tmp_path: Path) -> None:
    pixels = np.kron(np.random.default_rng(0).uniform(60, 200, (12, 16)), np.ones((20, 20)))
    Image.fromarray(pixels.astype(np.uint8)).convert("RGB").save(tmp_path / "a.jpg", quality=95)
    small = read_photo(tmp_path / "a.jpg", lambda size: max(size) / 100)
    assert small.size == (160, 120)
    assert read_photo(tmp_path / "a.jpg", lambda size: max(size) / 400).size == (320, 240)
    whole = read_photo(tmp_path / "a.jpg").resize(small.size, Image.Resampling.BOX)
    assert np.abs(np.asarray(whole, float) - np.asarray(small, float)).mean() < 2


def test_the_centred_square(make: Make, root: Path) -> None:
    data = prepared(make, root, fit="crop")
    seen = batch_of(data, "val", 1).inputs[0, 0].numpy().transpose(1, 2, 0)
    image = Image.open(photo(root, 6, 1))  # 60 wide, 40 high
    square = image.resize((48, 48), Image.Resampling.BILINEAR, box=(10, 0, 50, 40))
    assert (seen == np.asarray(square)).all()


def test_files_of_a_user_look_as_in_validation(make: Make, root: Path) -> None:
    data = make(root)
    batch = data.read([photo(root, 1, 2), photo(root, 2, 1)])
    assert isinstance(batch, PhotoBatch)
    assert (batch.inputs[1].numpy() == padded(photo(root, 2, 1))).all()
    assert data.load_image(photo(root, 1, 2))[0].size == (40, 60)
    photo(root, 1, 1).write_bytes(b"no photo")
    with pytest.raises(DamagedImage, match="not an image file"):
        data.read([photo(root, 1, 1)])


def test_photos_that_cannot_be_used_are_counted_and_told(
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
    told = "\n".join(caplog.messages)
    assert "val_pairlist.txt row 1: series 000006 has no photo" in told
    assert "train_pairlist.txt row 4: no file 000002-01" in told
    assert "000001-01.JPG: empty, cannot be read" in told
    batch = batch_of(data, "val")  # what no header shows is found where it is read
    assert len(batch) == 7
    assert batch.skipped in ({"left_out/truncated": 2}, {"left_out/unreadable": 2})
    assert batch.index.tolist() == [2, *range(3, 9)]
    gone = data.dataset("val", seed=0, train=False, device=CPU).__getitems__([SampleKey(0, 0)])
    assert gone.inputs.shape == (0, 2, 3, 48, 48)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"^dataset.audit=error: .*\(and 2 more findings\)$"):
        prepared(make, root, audit="error")


def test_settings_that_leave_nothing(make: Make, root: Path) -> None:
    lists = root / "train_val"
    with pytest.raises(UserError, match=r"pairs is left in the train split") as e:
        prepared(make, root, min_agreement=0.95, test_fraction=0.3)
    assert "low_agreement); lower dataset.min_agreement" in str(e.value)
    with pytest.raises(UserError, match=r"min_reviewers=2: pair lists do not tell how many voted"):
        prepared(make, root, min_reviewers=2)
    with pytest.raises(UserError, match=r"dataset.labels=votes: give the table in"):
        prepared(make, root, labels="votes")
    with pytest.raises(UserError, match=r"split=test: .* has train, val; give dataset.test_frac"):
        batch_of(prepared(make, root, test_fraction=0.0), "test")
    (lists / "val_pairlist.txt").unlink()
    with pytest.raises(UserError, match=r"no pair in the val split; .* dataset.val_fraction"):
        prepared(make, root, val_fraction=0.0)
    (lists / "train_pairlist.txt").write_text("\n")
    with pytest.raises(UserError, match=r"train_pairlist.txt: no pair in it; a row is series"):
        prepared(make, root)


def test_a_list_of_the_wrong_column_is_refused(make: Make, root: Path) -> None:
    file = root / "train_val" / "train_pairlist.txt"
    rows = [line.split() for line in file.read_text().splitlines()]
    file.write_text("".join(f"{s} {a} {b} {r1} {p} {r2}\n" for s, a, b, p, r1, r2 in rows))
    with pytest.raises(UserError, match=r"train_pairlist.txt row 3: preference 2 is not in 0…1"):
        prepared(make, root)


def test_fewer_pairs_and_fewer_series(make: Make, root: Path) -> None:
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


def test_folds_split_all_lists_anew(make: Make, root: Path) -> None:
    lists = root / "train_val"
    # A series of both lists leaks nothing where both are split anew.
    leak = (lists / "val_pairlist.txt").read_text().splitlines()[0]
    with (lists / "train_pairlist.txt").open("a") as file:
        file.write(f"{leak}\n")
    tested, held = [], []
    for fold in range(4):
        data = prepared(make, root, folds=4, fold=fold, audit="error")
        assert data.counts() == {"train": (36, {}), "val": (18, {}), "test": (18, {})}
        series = {split: {p.series for p in data.pairs(split).pairs} for split in data.splits}
        assert sum(map(len, series.values())) == len(set().union(*series.values())) == SERIES
        tested.append(series["test"])
        held.append(series["val"])
    assert held == [*tested[1:], tested[0]]
    assert len(set().union(*tested)) == SERIES
    # What is asked of a pair moves no series, and a fold may be left with nothing.
    strict = prepared(make, root, folds=4, fold=3, min_agreement=0.85)
    assert {pair.series for pair in strict.pairs("test").pairs} == tested[3]
    with pytest.raises(UserError, match=r"none of 36 pairs is left in the train split"):
        prepared(make, root, folds=4, min_agreement=0.95)
    with pytest.raises(UserError, match=r"^dataset.folds=25: there are 24 series"):
        prepared(make, root, folds=25)


def test_floors(make: Make, root: Path) -> None:
    data = prepared(make, root)
    told = "pair accuracy 1.0000 of always the second photo, 1.0000 of the sharper photo"
    assert data.baseline() == told
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
    given = {"labels": "votes", "votes_file": str(table)}
    data = prepared(make, root, **given)
    assert {split: n for split, (n, _) in data.counts().items()} == {
        "train": 60,
        "test": 6,
        "val": 6,
    }
    assert batch_of(data, "val", 3).preference.tolist() == pytest.approx([3 / 11, 1 / 9, 5 / 13])
    assert data.pairs("val").pairs[0].weight == 11
    agreed = prepared(make, root, **given, min_agreement=0.65, min_reviewers=10)
    assert agreed.counts()["train"] == (20, {"few_reviewers": 20, "low_agreement": 20})
    write_photos(tmp_path / "both")
    caplog.set_level(logging.WARNING)
    turned = [line.split(",") for line in "".join(rows).split()]
    table.write_text(
        "series_id,compareID1,compareID2,LEFT,RIGHT\n"
        + "".join(
            f"{s},{2 - int(a)},{2 - int(b)},{left},{right}\n" for s, a, b, left, right in turned
        )
    )
    prepared(make, tmp_path / "both", **given)
    assert "its photos are numbered in another order than the files" in caplog.text


def test_choices(make: Make, root: Path) -> None:
    for key in ("labels", "ties", "fit", "audit"):
        with pytest.raises(UserError, match=rf"^dataset.{key}=nothing.* allowed: "):
            make(root, **{key: "nothing"})


def test_what_the_network_sees(make: Make, root: Path) -> None:
    data = prepared(make, root)
    batch = batch_of(data, "val")
    transform = data.transform().eval()
    assert isinstance(transform, PairTransform)
    seen = transform(batch, None)
    mean, std = (torch.tensor(part)[:, None, None] for part in (NETWORK.mean, NETWORK.std))
    torch.testing.assert_close(seen.inputs, (batch.inputs / 255 - mean) / std)
    assert torch.equal(seen.preference, batch.preference)
    first, second = transform.to_images(seen)
    assert torch.equal(first, batch.inputs[:, 0])
    assert torch.equal(second, batch.inputs[:, 1])
    user = transform(data.read([data.pairs("val").photos[i] for i in batch.photos[0]]), None)
    torch.testing.assert_close(user.inputs, seen.inputs[0])
    # Bars are the mean, to what a byte can hold of it.
    assert seen.inputs[0, 0, :, 0].abs().max() < 0.5 / 255 / 0.2 + 1e-5


def test_training_swaps_and_mirrors_half(make: Make, root: Path) -> None:
    data = prepared(make, root)
    batch = batch_of(data, "train")
    plain = data.transform().eval()(batch, None).inputs
    seen = data.transform().train()(batch, torch.Generator().manual_seed(3))
    turned = (seen.photos != batch.photos).all(1)
    assert 15 < int(turned.sum()) < 39
    assert torch.equal(
        seen.photos, torch.where(turned[:, None], batch.photos.flip(1), batch.photos)
    )
    expected = torch.where(turned, 1 - batch.preference, batch.preference)
    assert torch.equal(seen.preference, expected)
    back = torch.where(turned[:, None, None, None, None], seen.inputs.flip(1), seen.inputs)
    mirrored = (back != plain).flatten(1).any(1)
    assert 15 < int(mirrored.sum()) < 39
    assert torch.equal(back[mirrored], plain[mirrored].flip(-1))  # both photos of a pair
    assert 0 < int((mirrored & turned).sum()) < int(mirrored.sum())
    still = PairTransform(NETWORK.mean, NETWORK.std, False, False, data.album).train()
    assert torch.equal(still(batch, torch.Generator()).inputs, plain)


def test_measures_in_place_of_pixels(make: Make, root: Path) -> None:
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
    once = {
        int(i): row
        for i, row in zip(batch.photos.flatten(), batch.inputs.flatten(0, 1), strict=True)
    }
    rows = torch.stack(list(once.values()))
    torch.testing.assert_close(rows.mean(0), torch.zeros(width), atol=1e-4, rtol=0)
    varying = rows.std(0) > 1e-3
    assert varying.sum() > 4
    spread = rows.std(0, correction=0)[varying]
    torch.testing.assert_close(spread, torch.ones_like(spread), atol=1e-3, rtol=0)
    index = int(batch_of(data, "val", 1).photos[0, 1])
    user = data.read([data.pairs("val").photos[index]])
    torch.testing.assert_close(user.inputs[0], batch_of(data, "val", 1).inputs[0, 1])
    trained = transform.train()(batch_of(data, "train"), torch.Generator().manual_seed(0))
    turned = (trained.photos != batch.photos).all(1)
    assert torch.equal(trained.inputs[turned], batch.inputs[turned].flip(1))


def test_a_second_run_computes_no_feature(make: Make, root: Path) -> None:
    computed = []
    for changed in (False, False, True):
        if changed:
            photo(root, 1, 1).write_bytes(photo(root, 2, 1).read_bytes() + b"more")
        data = prepared(make, root, features=["quality"])
        assert data.features is not None
        computed.append(data.features.extracted["quality"])
    assert computed == [3 * SERIES, 0, 1]


@pytest.mark.parametrize("features", [None, ["quality"]])
def test_what_people_see_of_a_batch(make: Make, root: Path, features: list[str] | None) -> None:
    data = make(root, features=features)
    # As in evaluation: the transform is there before the data are.
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
    photo(root, 6, 2).write_bytes(b"")  # pictures end no run
    if features is not None:
        first, second = transform.to_images(batch)
        assert (second[0] == 255).all()
        assert torch.equal(second[1], pixels[1, 1])


def test_a_model_gets_the_features_that_it_was_trained_on(make: Make, root: Path) -> None:
    pixels, measures = make(root), make(root, features=["quality"])
    pixels.load_metadata(pixels.metadata())
    assert pixels.metadata()["transform"] == {"image_size": 48, "fit": "pad"}
    assert measures.check_compatible(measures.metadata()) is None
    with pytest.raises(UserError, match=r"trained on the features quality, .* asks for pixels"):
        pixels.load_metadata(measures.metadata())
    assert "trained on pixels" in str(measures.check_compatible(pixels.metadata()))
    other = measures.metadata() | {"feature_keys": {"quality": "another"}}
    assert "computed otherwise" in str(measures.check_compatible(other))


@pytest.mark.parametrize("workers", [0, 2])
def test_loaded_by_any_number_of_workers(make: Make, root: Path, workers: int) -> None:
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
