"""What the parsers of data files have in common: intact files, changes to them, readers."""

from __future__ import annotations

import copy
import io
import math
import random
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import torch

from research.config import compose_config
from research.data.loader import SampleKey
from research.engine import build
from tests import fuzz, fuzz_files
from tests.conftest import picture
from tests.fuzz import Reader
from tests.fuzz_files import Tree

ASSETS = Path(__file__).parent / "assets" / "runs_v1"
CPU = torch.device("cpu")
DISTURBED = 0.08
"""Fraction of the inputs in which a file becomes something else than a file of that name."""


def encoded(seed: int, form: str = "JPEG", mode: str = "RGB", **options: Any) -> bytes:
    """A picture of 40 × 36 px in a file."""
    out = io.BytesIO()
    picture("spots", seed, (40, 36)).convert(mode).save(out, form, **options)
    return out.getvalue()


class Parser:
    """Files that a reader accepts, changes to them, and their readers.

    Args:
        folder: an empty folder, which must be the working directory.
    """

    loved: tuple[str, ...] = ()
    """Suffixes of the files that are changed most."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tree = self.files()

    def files(self) -> Tree:
        """The intact files."""
        raise NotImplementedError

    def readers(self) -> dict[str, Reader]:
        """Of the files in ``source``; the first is used most."""
        raise NotImplementedError

    def change(self, name: str, content: bytes, rng: random.Random) -> bytes:
        """Other content of a file."""
        suffix = Path(name).suffix
        if suffix in (".json", ".jsonl"):
            return fuzz_files.json_text(content, rng)
        if suffix in (".yaml", ".yml"):
            return fuzz_files.yaml_text(content, rng)
        if suffix == ".xml":
            return fuzz_files.xml_text(content, rng)
        if suffix == ".jpg":
            jpegs = {n: c for n, c in self.tree.items() if n.endswith(".jpg")}
            return fuzz_files.jpeg(content, rng, jpegs)
        if suffix == ".png":
            return fuzz_files.png(content, rng)
        if suffix in (".txt", ".csv", ".names", ".data") and rng.random() < 0.85:
            separator = "," if suffix == ".csv" else None
            return fuzz_files.encoded(fuzz_files.lines(content.decode(), rng, separator), rng)
        return fuzz.octets(content, rng)

    def changed(self, rng: random.Random) -> tuple[str, Tree]:
        """The files with a change, and the name of what was changed."""
        loved = [name for name in self.tree if name.endswith(self.loved)]
        name = rng.choice(loved if loved and rng.random() < 0.85 else list(self.tree))
        return Path(name).suffix, {**self.tree, name: self.change(name, self.tree[name], rng)}

    def write(self, tree: Tree) -> None:
        for name in ("source", "out", "cache", "seen"):
            shutil.rmtree(name, ignore_errors=True)
        fuzz_files.write(Path("source"), tree)

    first = 0.8
    """Fraction of the inputs that the first reader reads."""

    def case(self, rng: random.Random) -> tuple[str, Reader]:
        """Write a changed input; its name and a reader."""
        if rng.random() < DISTURBED:
            self.write(self.tree)
            what = fuzz_files.disturb(Path("source"), rng)
        else:
            what, tree = self.changed(rng)
            self.write(tree)
        readers = self.readers()
        first, *others = readers
        chosen = first if rng.random() < self.first else rng.choice(others)
        return f"{what}: {chosen}", readers[chosen]

    def intact(self) -> dict[str, float]:
        """Seconds of every reader for the intact files, which it must accept."""
        seconds = {}
        for name, read in self.readers().items():
            self.write(self.tree)
            verdict = fuzz.judged(read, math.inf)
            assert verdict.outcome == "accepted", (name, verdict)
            seconds[name] = round(verdict.seconds, 3)
        return seconds


@cache
def composed(words: tuple[str, ...]) -> dict[str, Any]:
    """The configuration that a command line of these words has."""
    return compose_config(list(words)).config


def batches(words: list[str]) -> None:
    """Compose a data set, and read all its samples in training and validation."""
    data = build.data_module(copy.deepcopy(composed(tuple(words))))
    data.prepare(0)
    transform = data.transform()
    for split in ("train", "val"):
        samples = data.dataset(split, seed=0, train=split == "train", device=CPU)
        keys = [SampleKey(0, index) for index in range(len(samples))]
        batch = samples.__getitems__(keys)
        if len(batch.index):
            transform(batch, torch.Generator().manual_seed(0))
    data.counts(), data.metadata(), data.fingerprint()
