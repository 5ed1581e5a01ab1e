from __future__ import annotations

import hashlib
import logging
import multiprocessing
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from research.data.pairs import feature_store
from research.data.pairs.extractors import Photo, QualityExtractor
from research.data.pairs.feature_store import FORMAT, extract_features
from research.data.warehouse.lint import lint
from research.data.warehouse.manifest import Manifest
from research.data.warehouse.pictures import draw
from tests.conftest import Update, at_update, user_error
from tests.data.warehouse.conftest import rewrite, rows_of


class Means:
    """An extractor of the channel means, which records its batch sizes."""

    name = "means"
    size = 3
    specification: ClassVar[dict[str, str]] = {"network": "mean", "weights": "none"}

    def __init__(self, key: str = "a" * 32) -> None:
        self.key = key
        self.batches: list[int] = []

    def preprocess(self, photo: Photo) -> Tensor:
        return torch.from_numpy(np.asarray(photo).astype(np.float32))

    def embed(self, inputs: Sequence[Tensor]) -> Tensor:
        self.batches.append(len(inputs))
        return torch.stack([x.mean((0, 1)) for x in inputs]) if inputs else torch.empty(0, 3)

    def release(self) -> None:
        pass

    def __call__(self, photos: Sequence[Photo]) -> Tensor:
        return self.embed([self.preprocess(photo) for photo in photos])


def saved(folder: Path, count: int, seed: int = 0) -> list[Path]:
    rng = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    files = [folder / f"{number:02}.png" for number in range(count)]
    for file in files:
        Image.fromarray(rng.integers(0, 256, (9, 12, 3)).astype(np.uint8)).save(file)
    return files


def expected(files: Sequence[Path]) -> Tensor:
    means = [np.asarray(Image.open(file), np.float64).mean((0, 1)) for file in files]
    return torch.tensor(np.array(means), dtype=torch.float32)


def shards(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.safetensors"))


def versions(cache: Path, key: str = "a" * 32) -> list[Manifest]:
    return [Manifest.load(file) for file in sorted((cache / "features" / key).glob("v*"))]


def test_a_second_run_computes_nothing(tmp_path: Path, updates: list[Update]) -> None:
    files, cache = saved(tmp_path / "photos", 11), tmp_path / "cache"
    first = Means()
    result = extract_features(files, first, cache, 4)
    torch.testing.assert_close(result.features, expected(files))
    assert (result.damaged, result.extracted, first.batches) == ({}, 11, [4, 4, 3])
    counted = [(done, total) for name, done, total in updates if name == "shard_00000"]
    assert counted == [(done, 11) for done in range(1, 12)]
    second = Means()
    again = extract_features(files[::-1], second, cache, 4)
    assert (again.extracted, second.batches) == (0, [])
    assert torch.equal(again.features, result.features.flip(0))


def test_only_what_changed_is_computed_again(tmp_path: Path) -> None:
    files, cache = saved(tmp_path / "photos", 6), tmp_path / "cache"
    extract_features(files, Means(), cache)
    saved(tmp_path / "other", 1, seed=7)[0].replace(files[2])
    renamed = files[3].rename(tmp_path / "photos" / "moved.png")
    files[3] = renamed
    result = extract_features(files, Means(), cache)
    assert result.extracted == 1
    assert [manifest.samples for manifest in versions(cache)] in ([6, 1], [1, 6])
    torch.testing.assert_close(result.features, expected(files))
    # Another network, other weights or another preprocessing is another key.
    assert extract_features(files, Means("b" * 32), cache).extracted == 6
    assert extract_features(files, Means(), cache).extracted == 0


def test_the_same_bytes_under_two_names_are_computed_once(tmp_path: Path) -> None:
    files = saved(tmp_path / "photos", 2)
    files.append(tmp_path / "copy.png")
    files[2].write_bytes(files[0].read_bytes())
    result = extract_features([*files, files[1]], Means(), tmp_path / "cache")
    assert result.extracted == 2
    torch.testing.assert_close(result.features, expected([*files, files[1]]))


def test_damaged_files_are_reported_and_their_features_are_nan(tmp_path: Path) -> None:
    files = saved(tmp_path / "photos", 5)
    files[1].write_bytes(b"")
    files[2].write_bytes(files[0].read_bytes()[:60])
    files[4].unlink()
    for run in range(2):
        extractor = Means()
        result = extract_features(files, extractor, tmp_path / "cache", 2)
        assert extractor.batches == ([] if run else [1, 1])
        assert set(result.damaged) == {files[1], files[2], files[4]}
        assert result.damaged[files[1]] == "empty"
        assert result.damaged[files[4]] == "missing"
        assert result.features[[1, 2, 4]].isnan().all()
        torch.testing.assert_close(result.features[[0, 3]], expected([files[0], files[3]]))
    for _ in range(2):
        empty = extract_features(files[1:3], Means(), tmp_path / "empty")
        assert (empty.extracted, len(empty.damaged)) == (0, 2)
    assert not shards(tmp_path / "empty")
    assert extract_features([], Means(), tmp_path / "cache").features.shape == (0, 3)


def test_shards_are_written_as_they_fill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_store, "SHARD", 4)
    files, cache = saved(tmp_path / "photos", 10), tmp_path / "cache"

    def stop(what: str, done: int, total: int | None) -> None:
        if (what, done) == ("shard_00002", 1):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        at_update(patch, stop)
        with pytest.raises(KeyboardInterrupt):
            extract_features(files, Means(), cache, 3)
    assert len(shards(cache)) == 2
    again = Means()
    assert extract_features(files, again, cache, 3).extracted == 10
    assert again.batches == [2]
    (manifest,) = versions(cache)
    assert manifest.transform == {"feature": "means", "key": "a" * 32, **Means.specification}
    assert (manifest.kind, [shard.samples for shard in manifest.shards]) == ("features", [4, 4, 2])


@pytest.mark.parametrize("kind", ["torn", "flipped", "foreign", "another"])
def test_damaged_stores_are_logged_and_written_again(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    files, cache = saved(tmp_path / "photos", 3), tmp_path / "cache"
    extract_features(files, Means(), cache)
    (shard,) = shards(cache)
    content = bytearray(shard.read_bytes())
    if kind == "torn":
        shard.write_bytes(content[:-5])
    elif kind == "flipped":
        content[-1] ^= 64
        shard.write_bytes(content)
    elif kind == "foreign":
        save_file({"weight": torch.zeros(3)}, shard)
    else:  # intact, but of other weights, and copied here by hand
        extract_features(files, Means("b" * 32), cache)
        shutil.rmtree(shard.parent)
        shutil.copytree(versions(cache, "b" * 32)[0].folder, shard.parent)
    with caplog.at_level(logging.WARNING):
        result = extract_features(files, Means(), cache)
    assert f"{shard.parent}: ignored" in caplog.text
    assert result.extracted == 3
    torch.testing.assert_close(result.features, expected(files))
    caplog.clear()
    assert extract_features(files, Means(), cache).extracted == 0
    assert kind == "another" or not caplog.records


@pytest.mark.parametrize("damage", [None, -1, 9])
def test_shards_of_earlier_versions_are_read(
    tmp_path: Path, damage: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    files, cache = saved(tmp_path / "photos", 3), tmp_path / "cache"
    digests = b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)
    photos = torch.frombuffer(bytearray(digests), dtype=torch.uint8).reshape(-1, 32)
    features = expected(files)
    sha256 = hashlib.sha256(digests + features.numpy().tobytes()).hexdigest()
    metadata = {"format": FORMAT, "extractor": "a" * 32, "sha256": sha256}
    shard = cache / "features" / ("a" * 32) / "ab.safetensors"
    shard.parent.mkdir(parents=True)
    save_file({"photos": photos, "features": features}, shard, metadata)
    if damage is not None:
        content = bytearray(shard.read_bytes())
        content[damage] ^= 64
        shard.write_bytes(content)
    result = extract_features(files, Means(), cache)
    assert result.extracted == (0 if damage is None else 3)
    assert (f"{shard}: ignored" in caplog.text) == (damage is not None)
    torch.testing.assert_close(result.features, features)


def test_a_shard_of_a_type_that_numpy_does_not_have(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files, cache = saved(tmp_path / "photos", 2), tmp_path / "cache"
    shard = cache / "features" / ("a" * 32) / "ab.safetensors"
    shard.parent.mkdir(parents=True)
    photos = torch.zeros(2, 32, dtype=torch.uint8)
    save_file({"photos": photos, "features": expected(files).to(torch.float8_e4m3fn)}, shard)
    assert extract_features(files, Means(), cache).extracted == 2
    assert f"{shard}: ignored" in caplog.text


def test_lint(tmp_path: Path) -> None:
    files, cache = saved(tmp_path / "photos", 4), tmp_path / "cache"
    Image.new("RGB", (9, 9)).save(files[1])
    Image.new("RGB", (8, 9), (9, 9, 9)).save(files[2])
    Image.new("RGB", (9, 8), (9, 9, 9)).save(files[3])
    extract_features(files, Means(), cache)
    (manifest,) = versions(cache)
    report, samples = lint(manifest)
    assert not report.errors
    assert len(report.warnings) == 2
    assert "(03.png): same stored features as shard_00000" in report.warnings[0]
    assert "(01.png): all features are 0" in report.warnings[1]
    assert draw(samples) == {}
    features = rows_of(manifest, 0, "features")
    features[0, 1] = np.nan
    report, _ = lint(rewrite(manifest, 0, features=features))
    assert report.errors == ["shard_00000.safetensors row 0 (00.png): a feature is not finite"]


def test_features_that_are_not_finite_are_not_cached(tmp_path: Path) -> None:
    class Broken(Means):
        def embed(self, inputs: Sequence[Tensor]) -> Tensor:
            return super().embed(inputs) / 0

    files = saved(tmp_path / "photos", 2)
    with user_error("dataset.feature_weights", "means", "not finite", files[0]):
        extract_features(files, Broken(), tmp_path / "cache")
    assert not shards(tmp_path / "cache")


def test_a_file_that_changes_meanwhile_is_not_cached(tmp_path: Path) -> None:
    files = saved(tmp_path / "photos", 1)

    class Slow(Means):
        def preprocess(self, photo: Photo) -> Tensor:
            saved(tmp_path / "photos", 1, seed=3)
            return super().preprocess(photo)

    with user_error("dataset.root", files[0], "changed"):
        extract_features(files, Slow(), tmp_path / "cache")
    assert not shards(tmp_path / "cache")


def _fill(files: list[Path], cache: Path, start: object) -> None:
    feature_store.SHARD = 3  # type: ignore[misc]
    start.wait()  # type: ignore[attr-defined]
    extract_features(files, QualityExtractor(), cache, 2)


def test_processes_can_fill_one_cache_together(tmp_path: Path) -> None:
    files, cache = saved(tmp_path / "photos", 12), tmp_path / "cache"
    context = multiprocessing.get_context("fork")
    start = context.Barrier(3)
    # Each computes photos that the others compute as well.
    parts = [files[:8], files[4:], files[::-1]]
    processes = [context.Process(target=_fill, args=(part, cache, start)) for part in parts]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    result = extract_features(files, QualityExtractor(), cache)
    assert result.extracted == 0
    alone = extract_features(files, QualityExtractor(), tmp_path / "alone")
    assert torch.equal(result.features, alone.features)
    for shard in shards(cache):
        assert set(load_file(shard)) == {"photos", "features"}
