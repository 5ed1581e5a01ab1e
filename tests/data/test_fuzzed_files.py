"""Changed files of data sets end in one line, soon, and in little memory; or they are read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from research.compression.jpeg import read_planes
from research.data.image_files import decode, read_header
from research.data.listing import list_files, list_folders
from research.data.readers import BitstreamReader
from tests import fuzz, fuzz_data, fuzz_stores
from tests.conftest import user_error
from tests.fuzz_data import PARSERS
from tests.fuzz_files import MADE, Tree, segments
from tests.fuzz_stores import harmful_archive, harmful_pickle

Change = Callable[[Tree], Tree]

FEW = 100
"""Changed files of each parser in every run of the tests."""


@pytest.mark.parametrize("parser", [name for name in PARSERS if name != "coefficients"])
def test_a_hundred_changed_files(
    parser: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fuzz_data.Jpeg, "first", 1.0)  # the others take half a second
    monkeypatch.setattr(fuzz_stores.Frozen, "first", 1.0)
    made = PARSERS[parser](tmp_path)
    first = next(iter(made.readers().values()))
    made.write(made.tree)
    usual = fuzz.judged(first, 30).seconds
    failed = []
    with fuzz.limited_memory():
        for seed, rng in fuzz.seeds(0, FEW):
            name, read = made.case(rng)
            verdict = fuzz.judged(read, usual)
            if verdict.failed:
                failed.append((seed, name, verdict))
    assert not failed, "\n".join(map(str, failed))


@pytest.mark.whole
@pytest.mark.parametrize("parser", PARSERS)
def test_ten_thousand_changed_files(parser: str) -> None:
    last, failed = fuzz.run("tests.fuzz_data", parser, "0", "10000")
    print(parser, last)
    assert not failed, failed
    assert last["inputs"] == 10_000
    assert last["memory"] < 512


# -- inputs on which a parser failed --------------------------------------------------------------


def text(parser: str, name: str, old: bytes, new: bytes) -> tuple[str, Change]:
    """Other words in a file."""

    def change(tree: Tree) -> Tree:
        assert old in tree[name]
        return {**tree, name: tree[name].replace(old, new, 1)}

    return parser, change


def second_frame_header(tree: Tree) -> Tree:
    name = next(iter(tree))
    parts = segments(tree[name])
    header = next(part for part in parts if part[1] == 0xC0)
    return {**tree, name: b"".join([*parts[:-1], header, parts[-1]])}


def row_of(content: bytes) -> Change:
    """A store whose first record is another, with the right checksum."""

    def change(tree: Tree) -> Tree:
        rows = [content, *tree["samples.jsonl"].splitlines()[1:]]
        index = b"\n".join(rows) + b"\n"
        manifest = json.loads(tree["manifest.json"])
        manifest["index_sha256"] = hashlib.sha256(index).hexdigest()
        return {**tree, "samples.jsonl": index, "manifest.json": json.dumps(manifest).encode()}

    return change


LONG = b"x" * 5000
TRAIN = "annotations/instances_train.json"
LABEL = "labels/train/b.txt"
SEEDS: dict[str, tuple[str, Change]] = {
    "an infinite id": text("coco", TRAIN, b'"id": 1, "name"', b'"id": 1e999, "name"'),
    "an unhashable id": text("coco", TRAIN, b'"category_id": 1', b'"category_id": [[1]]'),
    "an image with a list as id": text("coco", TRAIN, b'"image_id": 0', b'"image_id": {"a": 1}'),
    "a long name in COCO": text("coco", TRAIN, b"a.jpg", LONG + b".jpg"),
    "NUL in a name in COCO": text("coco", TRAIN, b"a.jpg", rb"a\u0000.jpg"),
    "half a character in COCO": text("coco", TRAIN, b"a.jpg", rb"\ud800.jpg"),
    "an id of many digits": text(
        "coco", TRAIN, b'"id": 1, "name"', b'"id": 1%s, "name"' % (b"0" * 400)
    ),
    "a dot in a list of VOC": text("voc", "ImageSets/Main/train.txt", b"a\n", b"a\n.\n"),
    "a long name in VOC": text("voc", "Annotations/a.xml", b"a.jpg", LONG),
    "a long name in a capture run": text(
        "capture", "run_1/labels/frame_00000.json", b"images/frame_00000.jpg", LONG
    ),
    "deep YAML": text("yolo", "data.yaml", b"names:", b"names: " + b"[" * 3000),
    "YAML that holds itself": text("yolo", "data.yaml", b"nc: 2", b"names: &n [*n]\nx:"),
    "a class of many digits": text("yolo", LABEL, b"0 ", b"9" * 5000 + b" "),
    "an infinite class": text("yolo", LABEL, b"0 ", b"inf "),
    "a number as the name of a shard": text(
        "store", "manifest.json", b'"file": "', b'"file": 1e3, "x": "'
    ),
    "a deep record": ("store", row_of(b"[" * 3000)),
    "a record that is no text": ("store", row_of(b'{"name": "\xf1"}')),
    "a number as a record": ("store", row_of(b"1")),
    "a number as the name of a sample": (
        "store",
        row_of(b'{"name": 1, "group": "run_1", "sha256": "0"}'),
    ),
    "deep labels": text("cifar", "png/train_lables.json", b"[", b"[" * 3000),
    "large labels": text("cifar", "png/train_lables.json", b"[0", b"[1" + b"0" * 30),
    "a second frame header": ("jpeg", second_frame_header),
}
"""Parser, and the change."""


@pytest.mark.parametrize("seed", SEEDS)
def test_inputs_on_which_a_parser_failed(
    seed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    parser, change = SEEDS[seed]
    made = PARSERS[parser](tmp_path)
    tree = change(made.tree)
    for name, read in made.readers().items():
        if name in ("inspect", "lint", "prepare"):  # half a second
            continue
        made.write(tree)
        verdict = fuzz.judged(read, 5)
        assert not verdict.failed, (name, verdict)


@pytest.mark.parametrize("how", MADE)
def test_a_picture_that_is_no_file(how: str, tmp_path: Path) -> None:
    """Each would block, or fill the memory, if it was opened."""
    path = tmp_path / "a.jpg"
    MADE[how](path)
    for read in (read_header, decode, read_planes, BitstreamReader._planes):
        with fuzz.limited_memory():
            verdict = fuzz.judged(lambda: read(path))  # noqa: B023 - at once
        kinds = ("DamagedImage", "UnsupportedJpeg", "FileNotFound", "OSError")
        assert verdict.outcome.startswith(kinds), verdict


def test_names_that_are_no_text_are_passed_over(tmp_path: Path) -> None:
    """They cannot be written to a table, an index or a log."""
    for name in (b"a.jpg", b"\xff.jpg", b"\xfe/b.jpg", "é\n.jpg".encode()):
        path = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))
        path.parent.mkdir(exist_ok=True)
        path.touch()
    listing = list_files(tmp_path, {".jpg"})
    assert listing.names == ["a.jpg", "é\n.jpg"]
    assert listing.passed_over.counts == {"unreadable name": 2}
    assert listing.passed_over.details().isprintable()
    assert list_folders(tmp_path) == []


@pytest.mark.parametrize("layout", ["py", "tar"])
def test_changed_pickles_and_archives_of_cifar_are_not_opened(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their checksums are compared first: no code in them runs, and no file leaves the folder."""
    monkeypatch.chdir(tmp_path)
    made = PARSERS["cifar"](tmp_path)
    make = harmful_pickle if layout == "py" else harmful_archive
    for name in [name for name in made.tree if name.startswith(layout)]:
        for seed, rng in fuzz.seeds(0, 3):
            made.write({**made.tree, name: make(rng)})
            with user_error("dataset.root", name, "wrong checksum"):
                made.readers()[layout]()
            assert not list(tmp_path.rglob("*harm*")), seed
