"""Texts that users give: encodings, line ends, limits, numbers, names."""

from __future__ import annotations

import json
import os
import tracemalloc
import unicodedata
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.data import texts
from research.data.texts import BadText


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_byte_order_mark_and_line_ends_are_no_content(
    tmp_path: Path, encoding: str, end: str
) -> None:
    content = end.join(["Zürich", "b\u2028c", "d\x0be"]).encode(encoding)
    path = write(tmp_path / "a.txt", content)
    assert texts.read_lines(path) == ["Zürich", "b\u2028c", "d\x0be"]


@pytest.mark.parametrize("mark", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_byte_orders(tmp_path: Path, mark: str) -> None:
    path = write(tmp_path / "a.json", '\ufeff{"a": "é"}'.encode(mark))
    assert texts.read_json(path) == {"a": "é"}
    path = write(tmp_path / "a.yaml", "\ufeffnames: [é]\r\n".encode(mark))
    assert texts.read_yaml(path) == {"names": ["é"]}
    path = write(tmp_path / "a.xml", "\ufeff<a><b>é</b></a>".encode(mark))
    assert texts.read_xml(path).findtext("b") == "é"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a\nb\xe9\n", "is not UTF-8 (line 2)"),
        (b"a\nb\x00\n", "NUL character (line 2)"),
        ("a".encode("utf-16-le"), "NUL"),
        (b"\xff\xfea", "is not UTF-16"),
        (b"a\n" + b"b" * 70_000, "line 2 has 70,000 characters"),
    ],
)
def test_bad_texts(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(BadText) as caught:
        texts.read_lines(write(tmp_path / "a.txt", content))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", b"[" * 100_000, "nested too deeply"),
        ("a.json", b'{"a": ' + b"9" * 5000 + b"}", "bad JSON"),
        ("a.json", b'{"a": 1,\n}', "bad JSON at line 2"),
        ("a.yaml", b"[" * 20_000, "nested too deeply"),
        ("a.yaml", b"a: " + b"9" * 5000, "bad YAML"),
        ("a.yaml", b"a: 2001-99-99", "bad YAML"),
        ("a.yaml", b"? [a]\n: b", "bad YAML"),
        ("a.yaml", b"a: !!python/object/apply:os.system [ls]", "bad YAML"),
        ("a.yaml", b"a: " + b"b" * 70_000, "70,003 bytes"),
        ("a.xml", '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'.encode("utf-16"), "DOCTYPE"),
        ("a.xml", b'<?xml version="1.0" encoding="bz2"?><a/>', "unknown encoding"),
        ("a.xml", b"<a>\x01</a>", "bad XML"),
    ],
)
def test_bad_documents(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    read = {".json": texts.read_json, ".yaml": texts.read_yaml, ".xml": texts.read_xml}
    path = write(tmp_path / name, content)
    with pytest.raises(BadText) as caught:
        read[path.suffix](path)
    assert words in str(caught.value)


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 2) | st.lists(st.integers(0, 2))))
def test_keys_that_are_repeated_in_json(values: dict[str, object]) -> None:
    """What is written twice is compared, at any depth."""
    pairs = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in values.items()]

    def read(pairs: list[str]) -> object:
        with TemporaryDirectory() as folder:
            text = f'[{{"in": {{{", ".join(pairs)}}}}}]'
            return texts.read_json(write(Path(folder) / "a.json", text.encode()))

    assert read(pairs + pairs) == [{"in": values}]
    for key in values:
        with pytest.raises(BadText, match="two values of"):
            read([*pairs, f"{json.dumps(key)}: null"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("names: [a]\nnc: 1\nnames: [b]\n", "'names' twice, line 1"),
        ("nc: 1\nnames:\n  0: a\n  1: b\n  0x1: c\n", "1 twice, line 3"),
        ("a: 1\na: 1\n", "'a' twice"),
    ],
)
def test_keys_that_are_repeated_in_yaml(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(BadText) as caught:
        texts.read_yaml(write(tmp_path / "a.yaml", text.encode()))
    assert words in str(caught.value)


def test_names_are_found_as_written_else_in_another_form() -> None:
    index = texts.NameIndex([("A", "A.png"), ("a", "a.png"), ("a", "a.jpg"), ("É", "É.png")])
    assert index.find(["A"]) == ["A.png"]
    assert index.find(["a"]) == ["a.png", "a.jpg"]
    assert index.find([unicodedata.normalize("NFD", "é")]) == ["É.png"]
    assert index.alike(["a", "A"]) == ["A.png", "a.png", "a.jpg"]
    assert index.find(["b"]) == []


def test_xml_has_the_encoding_that_it_declares(tmp_path: Path) -> None:
    content = '<?xml version="1.0" encoding="ISO-8859-1"?><a>é</a>'.encode("latin-1")
    assert texts.read_xml(write(tmp_path / "a.xml", content)).text == "é"


def test_yaml_that_refers_to_itself_stays_small(tmp_path: Path) -> None:
    rows = [f"k{n}: &k{n} [" + ", ".join([f"*k{n - 1}"] * 9) + "]" for n in range(1, 30)]
    path = write(tmp_path / "a.yaml", "\n".join(["k0: &k0 [a]", *rows]).encode())
    tracemalloc.start()
    texts.read_yaml(path)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_what_is_no_regular_file_or_too_large(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    with (tmp_path / "huge.txt").open("wb") as file:
        file.truncate(texts.MAX_TEXT + 1)
    for name, words in (
        ("pipe.txt", "not a regular file"),
        ("huge.txt", "67,108,865 bytes"),
        ("gone.txt", "No such file"),
    ):
        with pytest.raises(BadText) as caught:
            texts.read_text(tmp_path / name)
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "number"),
    [("0.5", 0.5), ("-1e-3", -0.001), (" 7 ", 7.0), (".5", 0.5), ("5.", 5.0), ("+2", 2.0)],
)
def test_numbers(text: str, number: float) -> None:
    assert texts.parse_number(text) == number


@pytest.mark.parametrize(
    "text", [None, "", "x", "nan", "inf", "-Infinity", "1_0", "١", "1e999", "9" * 200, "0x1", "1 2"]
)
def test_what_is_no_number(text: str | None) -> None:
    assert texts.parse_number(text) is None


@given(st.text(max_size=12))
def test_the_key_of_a_name_is_one_form(name: str) -> None:
    key = texts.name_key(name)
    assert texts.name_key(key) == key
    for form in ("NFC", "NFD"):
        assert texts.name_key(unicodedata.normalize(form, name)) == key


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("a/b.jpg", ""),
        ("ü" * 127, ""),
        ("ü" * 128, "longer"),
        ("a/" * 3000, "longer"),
        ("a\nb.jpg", "control"),
        ("a\0b.jpg", "control"),
        ("\ud800.jpg", "Unicode"),
        ("a\u00a0\u200d.jpg", ""),
    ],
)
def test_names_that_no_file_can_have(path: str, words: str) -> None:
    problem = texts.name_problem(path)
    assert words in problem
    assert bool(words) == bool(problem)
