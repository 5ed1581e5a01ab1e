"""Every file below a source is read, passed over, or left out, and counted."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from research.config import compose_config, resolved
from research.data.augment import Augmentation
from research.data.datamodule import NetworkInput
from research.data.folder import ImageFolders
from research.data.frames.annotations import read_frames
from research.data.frames.media import Media
from research.data.image_files import EXTENSIONS
from research.data.index import index_folder
from research.data.listing import describe_files, list_files, list_folders
from research.data.rgbx.paired_folders import PairedFolders
from research.inspect import find_images
from tests.conftest import picture

NETWORK = NetworkInput(32, (0.5,) * 3, (0.5,) * 3, 0.9, None)


def write(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in EXTENSIONS:
            Image.new("RGB", (16, 16)).save(path, "PNG")
        else:
            path.write_text("x")


@cache
def composed() -> dict[str, Any]:
    words = ["model=resnet34", "dataset=imagefolder", "dataset.train_dirs=[a]"]
    config: dict[str, Any] = resolved(compose_config(words)[0])["dataset"]
    return config


def image_folders(root: Path, cache_dir: Path, network: NetworkInput = NETWORK) -> ImageFolders:
    config = composed()
    augmentation = {key: config["augmentation"][key] for key in Augmentation.__dataclass_fields__}
    changes: dict[str, Any] = {
        "train_dirs": [str(root)],
        "cache_dir": str(cache_dir),
        "augmentation": Augmentation(**augmentation),
    }
    values = {key: value for key, value in config.items() if key != "_target_"}
    data = ImageFolders(**{**values, **changes}, network=network)
    data.prepare(0)
    return data


def test_every_file_is_listed_or_counted(tmp_path: Path) -> None:
    write(tmp_path, "a/1.jpg", "a/2.PNG", "b/c/3.webp", "0.tif")
    write(tmp_path, ".git/config", ".hidden.jpg", "a/.ipynb_checkpoints/1.jpg", "a/._1.jpg")
    write(tmp_path, "__MACOSX/a/1.jpg", "a/Thumbs.db", "a/@eaDir/1.jpg/x.jpg", "b/DESKTOP.INI")
    write(tmp_path, "a/1.HEIC", "a/2.heic", "notes.txt", "a/README", "a/x.y z", "a/1.jpg~")
    os.mkfifo(tmp_path / "a" / "pipe.jpg")
    listing = list_files(tmp_path, EXTENSIONS)
    assert listing.names == ["0.tif", "a/1.jpg", "a/2.PNG", "b/c/3.webp"]
    assert listing.passed_over.counts == {
        "hidden": 4,
        "system": 4,
        "HEIC": 2,
        "TXT": 1,
        "other": 3,
        "no regular file": 1,
    }
    assert listing.passed_over.examples["hidden"] == ".hidden.jpg"
    assert listing.passed_over.examples["HEIC"] == "a/1.HEIC"
    assert describe_files(4, listing.passed_over) == (
        "4 pictures used, 15 passed over (4 hidden, 4 system, 3 other, 2 HEIC, 1 TXT, "
        "1 no regular file)"
    )
    assert list_folders(tmp_path) == ["a", "b"]


def test_names_count_below_the_folder_alone(tmp_path: Path) -> None:
    write(tmp_path, ".cache/__MACOSX/a/1.jpg")
    assert list_files(tmp_path / ".cache" / "__MACOSX", EXTENSIONS).names == ["a/1.jpg"]


def test_links_are_followed_once(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    write(root, "cat/1.jpg", "dog/2.jpg")
    write(outside, "3.jpg", "in/4.jpg")
    links = {
        "bird": outside,  # read, since nothing else leads there
        "bird_again": outside / "in",
        "cat/up": "..",
        "cat/self": "self",
        "cat/lost.jpg": "nowhere.jpg",
        "cat/same.jpg": "1.jpg",
        "dog/one.jpg": outside / "3.jpg",  # read as bird/3.jpg
        "dog/notes.txt": outside / "3.jpg",
        ".hidden": outside,
    }
    for name, target in links.items():
        (root / name).symlink_to(target)
    (outside / "back").symlink_to(root)
    listing = list_files(root, EXTENSIONS)
    assert listing.names == ["bird/3.jpg", "bird/in/4.jpg", "cat/1.jpg", "dog/2.jpg"]
    assert listing.passed_over.counts == {
        "linked again": 6,  # bird_again, cat/up, cat/same.jpg, dog/one.jpg, dog/notes.txt, back
        "broken link": 2,
        "hidden": 1,
    }


def test_a_link_outside_of_the_tree_is_read_where_it_is(tmp_path: Path) -> None:
    write(tmp_path, "pool/1.jpg", "pool/2.jpg")
    (tmp_path / "set" / "a").mkdir(parents=True)
    (tmp_path / "set" / "a" / "x.jpg").symlink_to(tmp_path / "pool" / "1.jpg")
    (tmp_path / "set" / "b").symlink_to(tmp_path / "pool")
    assert list_files(tmp_path / "set", EXTENSIONS).names == ["b/1.jpg", "b/2.jpg"]
    (tmp_path / "set" / "b").unlink()
    assert list_files(tmp_path / "set", EXTENSIONS).names == ["a/x.jpg"]


def test_a_closed_folder_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a/1.jpg", "b/2.jpg")
    original = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("/b"):
            raise PermissionError(13, "no permission", path)
        return original(path)

    monkeypatch.setattr(os, "scandir", scandir)
    listing = list_files(tmp_path, EXTENSIONS)
    assert listing.names == ["a/1.jpg"]
    assert str(listing.passed_over) == "1 passed over (1 unreadable folder)"


# -- readers --------------------------------------------------------------------------------------


def test_hidden_folders_are_no_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """``hidden_folders`` and ``passed_over`` of the faults, and system folders."""
    for number in range(6):
        write(tmp_path / "set", f"cat/{number}.jpg", f"dog/{number}.jpg")
    write(tmp_path / "set", ".ipynb_checkpoints/0.jpg", "cat/.ipynb_checkpoints/0.jpg")
    write(tmp_path / "set", "__MACOSX/cat/0.jpg", "@eaDir/dog/0.jpg", "cat/0.HEIC", "top.jpg")
    (tmp_path / "set" / "dog" / "empty.jpg").write_bytes(b"")
    with caplog.at_level(logging.INFO):
        data = image_folders(tmp_path / "set", tmp_path / "cache")
    assert data.classes == ["cat", "dog"]
    assert sum(count for count, _ in data.counts().values()) == 12
    assert data.counts()["train"][1] == {"empty": 1}
    assert (
        f"{tmp_path / 'set'}: 12 pictures used, 6 passed over (2 hidden, 2 system, 1 HEIC, "
        "1 outside a class folder), 1 left out (1 empty)"
    ) in caplog.messages
    assert f"left out: {tmp_path / 'set' / 'dog' / 'empty.jpg'}: empty" in caplog.messages
    assert data.known_classes() == ["cat", "dog"]


def test_a_loop_of_links_adds_no_picture(tmp_path: Path) -> None:
    """``loop`` of the faults: 656 samples of 16 files; and a link to another class."""
    for number in range(8):
        write(tmp_path / "set", f"cat/{number}.jpg", f"dog/{number}.jpg")
    (tmp_path / "set" / "cat" / "loop").symlink_to("..")
    (tmp_path / "set" / "zebra").symlink_to("cat")
    (tmp_path / "set" / "again").symlink_to(".")
    data = image_folders(tmp_path / "set", tmp_path / "cache")
    assert data.classes == ["cat", "dog"]
    assert sum(count for count, _ in data.counts().values()) == 16
    assert data.passed_over.counts == {"linked again": 3}


def test_copies_of_notebooks_are_no_frames(tmp_path: Path) -> None:
    """``hidden_yolo`` of the faults, and copies of labels."""
    for number in range(4):
        write(tmp_path, f"images/{number}.jpg")
        (tmp_path / "labels").mkdir(exist_ok=True)
        (tmp_path / "labels" / f"{number}.txt").write_text("0 0.5 0.5 0.25 0.5\n")
    write(tmp_path, "images/.ipynb_checkpoints/0-checkpoint.jpg", "images/@eaDir/0.jpg")
    write(tmp_path, "labels/.ipynb_checkpoints/0-checkpoint.txt", "images/0.heic")
    frames = read_frames(tmp_path)
    assert [frame.name for frame in frames.frames] == [
        f"images/{number}.jpg" for number in range(4)
    ]
    assert all(frame.boxes for frame in frames.frames)
    assert frames.problems == []
    assert frames.reading is not None
    assert frames.reading.passed_over.counts == {"hidden": 2, "system": 1, "HEIC": 1}
    assert frames.reading.passed_over.examples["HEIC"] == "images/0.heic"


def test_modalities_pass_over_the_same_files(tmp_path: Path) -> None:
    write(tmp_path, "labels/none.md")
    for folder in ("rgb", "thermal"):
        write(tmp_path, f"{folder}/1.png", f"{folder}/.ipynb_checkpoints/1.png", f"{folder}/x.txt")
    folders = PairedFolders(tmp_path, {"rgb": "rgb", "thermal": "thermal"})
    assert folders.paths["rgb"] == {"1": [tmp_path / "rgb" / "1.png"]}
    reading = folders.read(False).reading
    assert reading is not None
    assert reading.passed_over.counts == {"hidden": 2, "TXT": 2, "MD": 1}


def test_commands_pass_over_the_same_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "research")
    write(tmp_path, "a/1.jpg", "a/@eaDir/1.jpg", "a/.x.jpg", "a/1.heic")
    (tmp_path / "a" / "loop").symlink_to("..")
    media = Media([tmp_path])
    assert [still.file.name for batch in media.batches(9) for still in batch] == ["1.jpg"]
    kinds = {"hidden": 1, "system": 1, "HEIC": 1, "linked again": 1}
    assert media.passed_over.counts == kinds
    assert find_images([str(tmp_path)]) == [tmp_path / "a" / "1.jpg"]
    assert "1 picture used, 4 passed over" in caplog.text


# -- any tree -------------------------------------------------------------------------------------

PARTS = st.sampled_from(
    ["a", "b", "C", ".git", "__MACOSX", "@eaDir", ".ipynb_checkpoints", "é", "x y", "a.jpg"]
)
NAMES = st.sampled_from(
    [
        "1.jpg",
        "2.PNG",
        "1.heic",
        "1.txt",
        "labels",
        ".3.jpg",
        "._1.jpg",
        "Thumbs.db",
        "4.webp",
        "5.",
    ]
)
TREES = st.sets(
    st.tuples(st.lists(PARTS, max_size=3), NAMES).map(lambda t: "/".join([*t[0], t[1]]))
)


def listed(root: Path, _: Path) -> int:
    listing = list_files(root, EXTENSIONS)
    return len(listing.names) + listing.passed_over.counts.total()


def indexed(root: Path, cache_dir: Path) -> int:
    entries, passed_over = index_folder(root, cache_dir)
    return len(entries) + passed_over.counts.total()


def in_folders(root: Path, cache_dir: Path) -> int:
    for name in ("cat", "dog"):  # so that there is something to train on
        write(root, f"{name}/first.png", f"{name}/second.png")
    for folder in list_folders(root):
        write(root, f"{folder}/at_least_one.png")
    data = image_folders(root, cache_dir)
    used = sum(count for count, _ in data.counts().values())
    left_out = sum(sum(kinds.values()) for _, kinds in data.counts().values())
    return used + data.passed_over.counts.total() + left_out


COUNTERS: dict[str, Callable[[Path, Path], int]] = {
    "walk": listed,
    "index": indexed,
    "image folders": in_folders,
}
"""How many files a reader accounts for, as used, passed over or left out."""


@pytest.mark.parametrize("reader", COUNTERS)
def test_used_passed_over_and_left_out_are_all_files(
    tmp_path_factory: pytest.TempPathFactory, reader: str
) -> None:
    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(TREES, st.sets(st.integers(0, 30), max_size=4))
    def holds(names: set[str], broken: set[int]) -> None:
        root = tmp_path_factory.mktemp("tree")
        for number, name in enumerate(sorted(names)):
            path = root / name
            if path.exists() or any(part.is_file() for part in path.parents):
                continue
            write(root, name)
            if number in broken:
                path.write_bytes(b"broken")
        accounted = COUNTERS[reader](root, root.parent / f"{root.name}_cache")
        assert accounted == sum(path.is_file() for path in root.rglob("*"))

    holds()


def test_a_real_picture_is_needed(tmp_path: Path) -> None:
    picture("bars", 0).save(tmp_path / "a.jpg")
    assert list_files(tmp_path, EXTENSIONS).paths == [tmp_path / "a.jpg"]
