from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from research.demos.render_once import render_once
from tests.conftest import user_error

RECORD = {"seed": 1, "sizes": [3, 4]}


def make(root: Path) -> None:
    root.mkdir()
    (root / "data").write_text("made")


def test_it_is_created_once_and_again_for_another_record(tmp_path: Path) -> None:
    root, made = tmp_path / "deep" / "root", []

    def counted(folder: Path) -> None:
        made.append(folder)
        make(folder)

    for record in (RECORD, RECORD, {**RECORD, "seed": 2}):
        assert (
            render_once(root, "dataset.root", "record.json", record, lambda _: True, counted)
            == root
        )
    assert len(made) == 2
    assert {path.name for path in root.iterdir()} == {"data", "record.json"}
    assert {path.name for path in root.parent.iterdir()} <= {"root", ".root.lock"}


def test_other_files_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "precious").touch()
    with user_error("dataset.root", tmp_path / "root"):
        render_once(tmp_path / "root", "dataset.root", "record.json", RECORD, lambda _: False, make)
    assert (tmp_path / "root" / "precious").exists()


def test_a_file_is_no_folder_to_replace(tmp_path: Path) -> None:
    (tmp_path / "root").write_text("mine")
    with user_error("dataset.root", tmp_path / "root"):
        render_once(tmp_path / "root", "dataset.root", "record.json", RECORD, lambda _: True, make)
    assert (tmp_path / "root").read_text() == "mine"


def test_a_link_to_another_disk_stays_one(tmp_path: Path) -> None:
    root, target = tmp_path / "root", tmp_path / "disk" / "demo"
    root.symlink_to(target)
    for record in (RECORD, {**RECORD, "seed": 2}):
        render_once(root, "dataset.root", "record.json", record, lambda _: True, make)
        assert root.readlink() == target
        assert {path.name for path in target.iterdir()} == {"data", "record.json"}


def test_a_failure_does_not_change_the_folder(tmp_path: Path) -> None:
    root = render_once(
        tmp_path / "root", "dataset.root", "record.json", RECORD, lambda _: True, make
    )

    def fail(folder: Path) -> None:
        make(folder)
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        render_once(root, "dataset.root", "record.json", {}, lambda _: True, fail)
    assert (root / "data").read_text() == "made"
    assert {path.name for path in tmp_path.iterdir()} <= {"root", ".root.lock"}


def test_other_threads_wait_for_the_first(tmp_path: Path) -> None:
    made = []

    def slow(folder: Path) -> None:
        time.sleep(0.05)
        make(folder)
        made.append(folder)

    def use() -> None:
        render_once(tmp_path / "root", "dataset.root", "record.json", RECORD, lambda _: True, slow)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
