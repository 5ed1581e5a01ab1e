from __future__ import annotations

import os
from pathlib import Path

import pytest

from research.data import index
from research.data.image_files import inspect_header
from research.data.index import Entry
from tests.conftest import Update, make_folders, picture, settle


def index_folder(root: Path, cache: Path) -> dict[str, Entry]:
    """The entries of the index, of files that were not written just now."""
    settle()
    return index.index_folder(root, cache).entries


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose header is read, as they are read."""
    names: list[str] = []
    original = inspect_header

    def watch(path: Path) -> str:
        names.append(path.name)
        return original(path)

    monkeypatch.setattr(index, "inspect_header", watch)
    return names


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_folders(tmp_path / "tree", 2)


def test_every_header_is_read_once(tree: Path, tmp_path: Path, opened: list[str]) -> None:
    first = index_folder(tree, tmp_path / "cache")
    names = [f"{kind}/00{n}.jpg" for kind in ("bars", "field", "spots") for n in (0, 1)]
    assert list(first) == names
    assert {entry.damage for entry in first.values()} == {""}
    assert len(opened) == 6
    again = index_folder(tree, tmp_path / "cache")
    assert again == first
    assert list(again) == names
    assert len(opened) == 6
    stat = (tree / names[0]).stat()
    assert first[names[0]] == Entry(stat.st_size, "", stat.st_dev << 64 | stat.st_ino)


def test_only_new_and_changed_files_are_read_again(
    tree: Path, tmp_path: Path, opened: list[str]
) -> None:
    index_folder(tree, tmp_path / "cache")
    opened.clear()
    (tree / "bars" / "000.jpg").write_text("no picture any more")
    picture("bars", 5).save(tree / "bars" / "0000.jpg")
    touched = tree / "spots" / "001.jpg"
    os.utime(touched, ns=(0, touched.stat().st_mtime_ns + 1))
    (tree / "field" / "000.jpg").unlink()
    entries = index_folder(tree, tmp_path / "cache")
    assert sorted(opened) == ["000.jpg", "0000.jpg", "001.jpg"]
    assert entries["bars/000.jpg"].damage == "not_an_image"
    assert "field/000.jpg" not in entries
    assert list(entries) == sorted(entries)
    opened.clear()
    assert index_folder(tree, tmp_path / "cache") == entries
    assert opened == []


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"bars/000.jpg": 3}', '{"bars/000.jpg": [1, 2]}', "\x00"]
)
def test_a_damaged_cache_is_rebuilt(
    tree: Path, tmp_path: Path, opened: list[str], content: str
) -> None:
    good = index_folder(tree, tmp_path / "cache")
    (store,) = (tmp_path / "cache").glob("*.json")
    store.write_text(content)
    opened.clear()
    assert index_folder(tree, tmp_path / "cache") == good
    assert len(opened) == 6
    assert index_folder(tree, tmp_path / "cache") == good
    assert len(opened) == 6


def test_two_folders_do_not_share_a_cache(tree: Path, tmp_path: Path) -> None:
    other = make_folders(tmp_path / "other", 1, seed=3)
    for _ in range(2):
        assert len(index_folder(tree, tmp_path / "cache")) == 6
        assert len(index_folder(other, tmp_path / "cache")) == 3


def test_the_same_folder_by_another_path_is_the_same(
    tree: Path, tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    index_folder(tree, tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    assert len(index_folder(Path("tree"), tmp_path / "cache")) == 6
    assert len(opened) == 6


def test_other_extensions_are_ignored(tree: Path, tmp_path: Path, opened: list[str]) -> None:
    (tree / "bars" / "notes.txt").write_text("x")
    (tree / "bars" / "broken.jpg").symlink_to(tmp_path / "nowhere.jpg")
    picture("bars", 1).save(tree / "bars" / "UPPER.PNG")
    entries = index_folder(tree, tmp_path / "cache")
    assert len(entries) == 7
    assert entries["bars/UPPER.PNG"].damage == ""
    assert "notes.txt" not in opened


def test_progress_is_reported(tree: Path, tmp_path: Path, updates: list[Update]) -> None:
    index_folder(tree, tmp_path / "cache")
    works = (f"listing {tree.name}", f"reading headers in {tree.name}")
    assert updates == [(work, done, 6) for work in works for done in range(1, 7)]


def test_damage_that_a_header_shows(tmp_path: Path) -> None:
    whole = tmp_path / "whole.jpg"
    picture("bars", 0, (64, 48)).save(whole)
    data = whole.read_bytes()
    frame = data.index(b"\xff\xc0")
    contents = {
        "empty": b"",
        "not_an_image": b"not a picture\n" * 20,
        "oversized": data[: frame + 5] + b"\xff\xdc\xff\xdc" + data[frame + 9 :],
        "": data,
    }
    for kind, content in contents.items():
        (tmp_path / "a.jpg").write_bytes(content)
        assert inspect_header(tmp_path / "a.jpg") == kind
    for side, kind in ((7, "too_small"), (8, "")):
        picture("bars", 0, (30, side)).save(tmp_path / "a.jpg")
        assert inspect_header(tmp_path / "a.jpg") == kind
