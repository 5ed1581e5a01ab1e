from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from research.utils.cache import cached, cached_by_file

KEY = {"data": "a", "size": [1, 2]}


def test_a_value_is_made_once_for_each_key(tmp_path: Path) -> None:
    made: list[Any] = []

    def make() -> Any:
        made.append({"mean": [0.1, 1 / 3], "nothing": float("nan")})
        return made[-1]

    first = cached(tmp_path / "c", KEY, make)
    assert first["mean"] == made[0]["mean"]
    again = cached(tmp_path / "c", {"size": (1, 2), "data": "a"}, make)
    assert json.dumps(again) == json.dumps(first)
    assert len(made) == 1
    cached(tmp_path / "c", KEY | {"size": 3}, make)
    assert len(made) == 2


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", "3", '{"key": 1}', '{"key": {"data": "b"}, "value": 1}', "\x00"],
)
def test_a_damaged_or_foreign_file_is_replaced(tmp_path: Path, content: str) -> None:
    cached(tmp_path, KEY, lambda: 1)
    (file,) = tmp_path.glob("*.json")
    file.write_text(content)
    assert cached(tmp_path, KEY, lambda: 2) == 2
    assert cached(tmp_path, KEY, lambda: 3) == 2
    cached_by_file(tmp_path, KEY | {"x": 1}, {"f": [1]}, lambda names: [4])
    (other,) = set(tmp_path.glob("*.json")) - {file}
    other.write_text(content)
    assert cached_by_file(tmp_path, KEY | {"x": 1}, {"f": [1]}, lambda names: [5]) == {"f": 5}


def test_what_a_killed_write_left_is_removed(tmp_path: Path) -> None:
    cached(tmp_path, KEY, lambda: 1)
    (file,) = tmp_path.glob("*.json")
    file.unlink()
    left, other = (tmp_path / f".{name}.a1b2c3d4" for name in (file.name, "0123.json"))
    left.touch()
    other.touch()  # perhaps of a process that writes another value
    cached(tmp_path, KEY, lambda: 1)
    assert (left.exists(), other.exists()) == (False, True)


def test_bytes_that_are_no_text_are_replaced(tmp_path: Path) -> None:
    cached(tmp_path, KEY, lambda: 1)
    (file,) = tmp_path.glob("*.json")
    file.write_bytes(b"\xff\xfe")
    assert cached(tmp_path, KEY, lambda: 2) == 2


def test_a_failure_leaves_no_value(tmp_path: Path) -> None:
    def fail(*_: object) -> Any:
        raise KeyError("x")

    with pytest.raises(KeyError):
        cached(tmp_path, KEY, fail)
    with pytest.raises(KeyError):
        cached_by_file(tmp_path, KEY, {"a": [1]}, fail)
    assert not list(tmp_path.glob("*.json"))
    assert cached(tmp_path, KEY, lambda: 1) == 1


def test_only_new_and_changed_files_are_made(tmp_path: Path) -> None:
    asked: list[list[str]] = []

    def make(names: list[str]) -> list[str]:
        asked.append(names)
        return [name.upper() for name in names]

    stamps = {"b": (1, 1), "a": (1, 1)}
    assert cached_by_file(tmp_path, KEY, stamps, make) == {"b": "B", "a": "A"}
    assert list(cached_by_file(tmp_path, KEY, stamps, make)) == ["b", "a"]
    assert asked == [["b", "a"]]
    changed = {"a": (1, 2), "c": (1, 1)}
    assert cached_by_file(tmp_path, KEY, changed, make) == {"a": "A", "c": "C"}
    assert asked[1:] == [["a", "c"]]
    assert cached_by_file(tmp_path, KEY, {**stamps, **changed}, make)["b"] == "B"
    assert cached_by_file(tmp_path, KEY, {}, make) == {}
    assert len(asked) == 2


def _append(folder: Path, start: Any, number: int) -> None:
    """One process of several that ask for the same values at the same time."""

    def make(names: list[str]) -> list[int]:
        with (folder / "made").open("a") as file:
            file.write(f"{number}\n")
        return [len(name) for name in names]

    start.wait()
    assert cached(folder, KEY, lambda: make(["abc"])) == [3]
    for count in range(1, 6):
        stamps = {"x" * length: [1] for length in range(1, count + 1)}
        assert cached_by_file(folder, KEY | {"x": 0}, stamps, make) == {n: len(n) for n in stamps}


def test_of_several_processes_one_makes_the_value(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start = context.Event()
    processes = [context.Process(target=_append, args=(tmp_path, start, n)) for n in range(3)]
    for process in processes:
        process.start()
    start.set()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len((tmp_path / "made").read_text().split()) == 6
