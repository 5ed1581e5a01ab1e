from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from research.data.pairs import store
from research.data.pairs.extractors import Photo, QualityExtractor
from research.data.pairs.store import features_of
from research.utils.errors import UserError


class Means:
    """The mean of each channel; what it was asked for."""

    name = "means"
    size = 3

    def __init__(self, key: str = "a" * 32) -> None:
        self.key = key
        self.batches: list[int] = []

    def ready(self, photo: Photo) -> Tensor:
        return torch.from_numpy(np.asarray(photo).astype(np.float32))

    def embed(self, ready: Sequence[Tensor]) -> Tensor:
        self.batches.append(len(ready))
        return torch.stack([each.mean((0, 1)) for each in ready]) if ready else torch.empty(0, 3)

    def release(self) -> None:
        pass

    def __call__(self, photos: Sequence[Photo]) -> Tensor:
        return self.embed([self.ready(photo) for photo in photos])


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


def test_a_second_run_computes_nothing(tmp_path: Path) -> None:
    files, cache = saved(tmp_path / "photos", 11), tmp_path / "cache"
    first, told = Means(), []
    found = features_of(files, first, cache, 4, lambda *row: told.append(row))
    torch.testing.assert_close(found.features, expected(files))
    assert (found.damaged, found.extracted, first.batches) == ({}, 11, [4, 4, 3])
    assert told[-1] == ("computing means features", 11, 11)
    second = Means()
    again = features_of(files[::-1], second, cache, 4)
    assert (again.extracted, second.batches) == (0, [])
    assert torch.equal(again.features, found.features.flip(0))


def test_only_what_changed_is_computed_again(tmp_path: Path) -> None:
    files, cache = saved(tmp_path / "photos", 6), tmp_path / "cache"
    features_of(files, Means(), cache)
    saved(tmp_path / "other", 1, seed=7)[0].replace(files[2])
    renamed = files[3].rename(tmp_path / "photos" / "moved.png")
    files[3] = renamed
    found = features_of(files, Means(), cache)
    assert found.extracted == 1
    torch.testing.assert_close(found.features, expected(files))
    # Another network, other weights or another preprocessing is another key.
    assert features_of(files, Means("b" * 32), cache).extracted == 6
    assert features_of(files, Means(), cache).extracted == 0


def test_the_same_bytes_under_two_names_are_computed_once(tmp_path: Path) -> None:
    files = saved(tmp_path / "photos", 2)
    files.append(tmp_path / "copy.png")
    files[2].write_bytes(files[0].read_bytes())
    found = features_of([*files, files[1]], Means(), tmp_path / "cache")
    assert found.extracted == 2
    torch.testing.assert_close(found.features, expected([*files, files[1]]))


def test_damaged_files_are_told_and_never_zeros(tmp_path: Path) -> None:
    files = saved(tmp_path / "photos", 5)
    files[1].write_bytes(b"")
    files[2].write_bytes(files[0].read_bytes()[:60])
    files[4].unlink()
    for _ in range(2):
        found = features_of(files, Means(), tmp_path / "cache", 2)
        assert set(found.damaged) == {files[1], files[2], files[4]}
        assert found.damaged[files[1]] == "empty"
        assert found.damaged[files[4]] == "missing"
        assert found.features[[1, 2, 4]].isnan().all()
        torch.testing.assert_close(found.features[[0, 3]], expected([files[0], files[3]]))
    nothing = features_of(files[1:3], Means(), tmp_path / "empty")
    assert (nothing.extracted, len(nothing.damaged)) == (0, 2)
    assert not shards(tmp_path / "empty")
    assert features_of([], Means(), tmp_path / "cache").features.shape == (0, 3)


def test_shards_are_written_as_they_fill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "SHARD", 4)
    files, cache = saved(tmp_path / "photos", 10), tmp_path / "cache"

    def stop(what: str, done: int, total: int) -> None:
        if done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        features_of(files, Means(), cache, 3, stop)
    assert len(shards(cache)) == 2
    assert features_of(files, Means(), cache, 3).extracted == 2
    assert {path.suffix for path in cache.rglob("*.*")} == {".safetensors"}


@pytest.mark.parametrize("kind", ["torn", "flipped", "foreign", "another"])
def test_a_shard_that_is_not_whole_is_told_and_passed_over(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    files, cache = saved(tmp_path / "photos", 3), tmp_path / "cache"
    features_of(files, Means(), cache)
    (shard,) = shards(cache)
    content = bytearray(shard.read_bytes())
    if kind == "torn":
        shard.write_bytes(content[:-5])
    elif kind == "flipped":
        content[-1] ^= 64
        shard.write_bytes(content)
    elif kind == "foreign":
        save_file({"weight": torch.zeros(3)}, shard)
    else:  # whole, but of other weights, and put here by hand
        features_of(files, Means("b" * 32), cache)
        (other,) = shards(cache / "features" / ("b" * 32))
        other.replace(shard)
    with caplog.at_level(logging.WARNING):
        found = features_of(files, Means(), cache)
    assert f"{shard}: passed over" in caplog.text
    assert found.extracted == 3
    torch.testing.assert_close(found.features, expected(files))
    caplog.clear()
    # What was computed again has taken the damaged shard's place.
    assert features_of(files, Means(), cache).extracted == 0
    assert not caplog.records


def test_numbers_that_are_none_are_an_error_and_not_kept(tmp_path: Path) -> None:
    class Broken(Means):
        def embed(self, ready: Sequence[Tensor]) -> Tensor:
            return super().embed(ready) / 0

    files = saved(tmp_path / "photos", 2)
    with pytest.raises(UserError, match=r"means: not a finite number in the batch .*00\.png"):
        features_of(files, Broken(), tmp_path / "cache")
    assert not shards(tmp_path / "cache")


def test_a_file_that_changes_meanwhile_is_not_kept_under_its_old_bytes(tmp_path: Path) -> None:
    files = saved(tmp_path / "photos", 1)

    class Slow(Means):
        def ready(self, photo: Photo) -> Tensor:
            saved(tmp_path / "photos", 1, seed=3)
            return super().ready(photo)

    with pytest.raises(UserError, match=r"00\.png: changed while its features"):
        features_of(files, Slow(), tmp_path / "cache")
    assert not shards(tmp_path / "cache")


def _fill(files: list[Path], cache: Path, start: object) -> None:
    store.SHARD = 3  # type: ignore[misc]
    start.wait()  # type: ignore[attr-defined]
    features_of(files, QualityExtractor(), cache, 2)


def test_processes_that_fill_one_cache_leave_it_whole(tmp_path: Path) -> None:
    files, cache = saved(tmp_path / "photos", 12), tmp_path / "cache"
    context = multiprocessing.get_context("fork")
    start = context.Barrier(3)
    # Half of what each computes the others compute as well.
    parts = [files[:8], files[4:], files[::-1]]
    processes = [context.Process(target=_fill, args=(part, cache, start)) for part in parts]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    found = features_of(files, QualityExtractor(), cache)
    assert found.extracted == 0
    alone = features_of(files, QualityExtractor(), tmp_path / "alone")
    assert torch.equal(found.features, alone.features)
    for shard in shards(cache):
        assert set(load_file(shard)) == {"photos", "features"}
