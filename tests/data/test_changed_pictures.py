"""A changed picture is never judged by what was measured on the old one.

All files keep their names, sizes and times of modification, as after a copy that keeps them.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from research.compression.selection import ALL_FREQUENCIES
from research.data.coefficients import CoefficientSpec
from research.data.datamodule import NetworkInput
from research.data.index import content_hash, index_folder
from research.data.pairs.feature_store import _digest
from research.data.pairs.sharpness import measure_sharpness
from research.data.rgbx.paired_folders import PairedFolders
from research.data.rgbx.sources import of_pictures, plan_channels, read_arrays
from research.data.rgbx.statistics import channel_statistics
from research.data.warehouse.build import build
from research.data.warehouse.store import Store
from research.utils import cache
from research.utils.cache import SETTLED, file_stamp
from tests.conftest import settle
from tests.data.test_listing import image_folders

GREY = CoefficientSpec(ALL_FREQUENCIES, "full", "pixels", True, 8)
SLOW = pytest.param(True, id="a moment later")
FAST = pytest.param(False, id="at once")


def write(path: Path, value: int | np.ndarray) -> Path:
    """A picture in a file of one size; ``value`` is its grey, or all its pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((32, 32, 3), value, np.uint8)
    before = path.stat() if path.exists() else None
    Image.fromarray(pixels).save(path)
    if before is not None:
        assert path.stat().st_size == before.st_size
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert path.stat().st_mtime_ns == before.st_mtime_ns
    return path


@pytest.mark.parametrize("later", [SLOW, FAST])
def test_dct_statistics(tmp_path: Path, later: bool) -> None:
    """Of the faults: the mean was 29 for pictures of 225."""
    for name in ("cat", "dog"):
        for number in range(3):
            write(tmp_path / "set" / name / f"{number}.bmp", 29)
    found, fingerprints = [], []
    for grey in (29, 225, 225):
        for path in (tmp_path / "set").rglob("*.bmp") if grey == 225 else ():
            write(path, grey)
        if later:
            settle()
        network = NetworkInput(32, (0.5,) * 3, (0.5,) * 3, 1.0, GREY)
        data = image_folders(tmp_path / "set", tmp_path / "cache", network)
        statistics = data._statistics(GREY)
        assert statistics is not None
        found.append(round(float(statistics.y_mean[0]) / 8 + 128))
        fingerprints.append(data.fingerprint())
    assert found == [29, 225, 225]
    assert len({*fingerprints}) == 1  # stored runs have it: names and sizes


def test_statistics_are_read_again_for_the_same_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the files were copied, renamed or touched."""
    write(tmp_path / "a" / "cat" / "0.bmp", 40)
    write(tmp_path / "a" / "cat" / "1.bmp", 60)
    network = NetworkInput(32, (0.5,) * 3, (0.5,) * 3, 1.0, GREY)
    first = image_folders(tmp_path / "a", tmp_path / "cache", network)._statistics(GREY)
    (tmp_path / "a").rename(tmp_path / "b")
    for path in (tmp_path / "b").rglob("*.bmp"):
        os.utime(path, ns=(1, 1))
    monkeypatch.setattr("research.compression.statistics.measure", None)
    again = image_folders(tmp_path / "b", tmp_path / "cache", network)._statistics(GREY)
    assert first is not None
    assert again is not None
    assert torch.equal(first.y_mean, again.y_mean)


@pytest.mark.parametrize("later", [SLOW, FAST])
def test_the_store_of_arrays(tmp_path: Path, later: bool) -> None:
    """One byte outside of what ``fingerprint`` looks at, and all bytes."""
    path, label = tmp_path / "set/images/a.npy", tmp_path / "set/labels/a.txt"
    for file in (path, label):
        file.parent.mkdir(parents=True)
    label.write_text("0 0.5 0.5 0.5 0.5")
    means = []
    array = np.full((64, 64, 4), 29, np.uint8)
    np.save(path, array)
    before = path.stat()
    for change in (None, np.s_[20:21], np.s_[:]):
        if change is not None:
            array[change] = 225
            np.save(path, array)
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        if later:
            settle()
        plan = plan_channels(read_arrays(tmp_path / "set", None, None, False), 32, {})
        store = Store(build(plan, tmp_path / "out", workers=1, cache=tmp_path / "cache"))
        means.append(channel_statistics(store, [0], 5).mean[0])
        assert means[-1] == pytest.approx(array[..., 0].mean() / 255)
    assert len({*means}) == 3


@pytest.mark.parametrize("later", [SLOW, FAST])
def test_the_index_of_headers(tmp_path: Path, later: bool) -> None:
    path = write(tmp_path / "set" / "a.bmp", 5)
    before, content = path.stat(), path.read_bytes()
    for damage, data in (("", content), ("not_an_image", b"x" * len(content)), ("", content)):
        path.write_bytes(data)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        if later:
            settle()
        assert index_folder(tmp_path / "set", tmp_path / "cache").entries["a.bmp"].damage == damage


@pytest.mark.parametrize("later", [SLOW, FAST])
def test_sharpness_and_features(tmp_path: Path, later: bool) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    digests = set()
    for value in (100, noise, 100):
        path = write(tmp_path / "a.bmp", value)
        if later:
            settle()
        sharp = measure_sharpness([path], tmp_path / "cache")[path]
        assert (sharp > 100) == (value is noise)
        digests.add(_digest(path))
    assert len(digests) == 2


def test_packed_arrays(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    (source / "labels").mkdir(parents=True)
    (source / "labels" / "1.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    for grey in (29, 225):
        for folder in ("rgb", "thermal"):
            write(source / folder / "1.bmp", grey)
        settle()
        folders = PairedFolders(source, {"rgb": "rgb", "thermal": "thermal"})
        plan = plan_channels(of_pictures(folders, folders.read(require_labels=False)), 32, {})
        store = Store(build(plan, out, workers=1, cache=tmp_path / "cache"))
        assert store.rows("images", 0).mean() == grey


def test_stamps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.bmp", 1)
    stat = path.stat()
    assert file_stamp(stat) != file_stamp(stat)  # it may be changed again in this moment
    settled = stat.st_ctime_ns + SETTLED + 1
    monkeypatch.setattr(cache.time, "time_ns", lambda: settled)
    assert (
        file_stamp(stat)
        == file_stamp(stat)
        == [
            stat.st_size,
            stat.st_mtime_ns,
            stat.st_ctime_ns,
        ]
    )


def test_files_that_cannot_be_read_have_a_hash(tmp_path: Path) -> None:
    path = write(tmp_path / "a.bmp", 1)
    both = [path, tmp_path / "missing.bmp"]
    first = content_hash(both, tmp_path / "cache")
    assert first == content_hash(both, tmp_path / "cache")
    assert first != content_hash(both[:1], tmp_path / "cache")
    assert first != content_hash(both[::-1], tmp_path / "cache")
