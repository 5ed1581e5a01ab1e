from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import ConfigDict, PositiveInt, with_config

from research.utils.documents import parse_typed, validate
from tests.conftest import user_error


@dataclass(frozen=True)
class Part:
    name: str
    sizes: tuple[PositiveInt, ...] = ()


@with_config(ConfigDict(strict=True, extra="forbid"))
@dataclass(frozen=True)
class Document:
    parts: list[Part]
    limit: float | None = None


def test_a_document_becomes_the_dataclass() -> None:
    document = {"parts": [{"name": "a", "sizes": [1, 2]}], "limit": 3}
    found = validate(Document, document, "file", Path("a.json"), "fix it")
    assert found == Document([Part("a", (1, 2))], 3.0)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (None, "the file is None: Input should be an object"),
        ({}, "the file has no 'parts'"),
        ({"parts": [{}]}, "parts[0] has no 'name'"),
        ({"parts": [{"name": 1}]}, "parts[0].name is 1: Input should be a valid string"),
        ({"parts": [{"name": "a", "sizes": [1, "2"]}]}, "parts[0].sizes[1] is '2': Input should"),
        ({"parts": [{"name": "a", "sizes": [True]}]}, "parts[0].sizes[0] is True"),
        ({"parts": [{"name": "a", "more": 1}]}, "parts[0].more is not known"),
        ({"parts": [], "more": 1}, "more is not known"),
        ({"parts": "x" * 99}, "parts is '" + "x" * 56 + "…: Input should be a valid array"),
        ({"parts": [{"name": "\ud800"}]}, "the file is"),
    ],
)
def test_the_first_problem_is_named(document: Any, words: str) -> None:
    with user_error("file", f"a.json: {words}", "; fix it"):
        validate(Document, document, "file", Path("a.json"), "fix it")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-05", 1e-5),
        ("1E5", 1e5),
        (".5e3", 500.0),
        ("[0.9,1e-3]", [0.9, 1e-3]),
        ("{a: 2e-3}", {"a": 2e-3}),
        ("e5", "e5"),
        ("3", 3),
        ("true", True),
        ("null", None),
        ("", None),
        ("2026-11-30", "2026-11-30"),
        ("2026-13-45", "2026-13-45"),
        ("/photos/Run #3", "/photos/Run #3"),
        ("'/photos/Run #3'", "/photos/Run #3"),
        ('"a, b"', "a, b"),
    ],
)
def test_a_typed_value(text: str, value: Any) -> None:
    found = parse_typed(text)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("text", ["[", "{a: 1, a: 2}", "0x_", "<<", "!!python/name:os.system"])
def test_a_typed_value_that_is_not_valid(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_typed(text)
