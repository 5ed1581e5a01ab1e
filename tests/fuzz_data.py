"""Changed files of data sets, read by the commands and data sets that read them.

``python -m tests.fuzz_data PARSER FIRST COUNT`` prints what ``fuzz.campaign`` does.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import math
import os
import pickle
import random
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torchvision import datasets

import research
from research import inspect, prepare
from research.compression.selection import Selection
from research.config import compose_config
from research.data import cifar_files
from research.data.crops import CentreCrop
from research.data.frames import capture
from research.data.frames.annotations import read_frames
from research.data.frames.frame import FrameSet
from research.data.frames.limits import check_limits
from research.data.image_files import read_header, reading_tag
from research.data.loader import SampleKey
from research.data.readers import BitstreamReader, PixelReader
from research.data.warehouse.lint import lint
from research.data.warehouse.manifest import Manifest
from research.data.warehouse.store import Store
from research.engine import build
from research.utils.errors import DamagedImage
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


# -- frames with boxes ----------------------------------------------------------------------------


class Frames(Parser):
    """Of every format with boxes."""

    def readers(self) -> dict[str, Reader]:
        return {"read": self.read, "prepare": self.prepare}

    def read(self) -> None:
        frames = read_frames(Path("source"))
        check_limits(frames, {})
        self.check(frames)

    def prepare(self) -> None:
        options = prepare.FrameOptions(size=32, max_boxes=4096, shard_samples=2, workers=1)
        manifest = prepare.frames(Path("source"), Path("out"), options)
        report, _ = lint(manifest)
        # Boxes and labels in a store are valid, whatever was in the files.
        wrong = [line for line in report.errors if " box " in line]
        assert not wrong, wrong

    def check(self, frames: FrameSet) -> None:
        """Whatever is in the files, the frames are within their types and ranges."""
        for frame in frames.frames:
            assert frame.image.is_file()
            assert len(frame.boxes) == len(frame.labels)
            assert all(0 <= label < len(frames.classes) for label in frame.labels)
            for box in frame.boxes:
                assert 0 <= box[0] < box[2] <= 1, box
                assert 0 <= box[1] < box[3] <= 1, box
        assert all(isinstance(name, str) for name in frames.classes)


class Coco(Frames):
    loved = (".json",)

    def files(self) -> Tree:
        tree = {f"images/{name}.jpg": encoded(n) for n, name in enumerate("abcdef")}
        for split, names in {"train": "abcd", "val": "ef"}.items():
            images = [
                {"id": n, "file_name": f"{name}.jpg", "width": 40, "height": 36, "license": 1}
                for n, name in enumerate(names)
            ]
            segments: Any = [[1, 2, 11, 2, 11, 14]], {"counts": [5, 9, 1426], "size": [36, 40]}
            row = {"area": 120, "bbox": [1, 2, 10, 12.5], "iscrowd": 0, "ignore": 0}
            annotations = [
                {**row, "id": 9, "image_id": 0, "category_id": 1, "segmentation": segments[0]},
                {**row, "id": 8, "image_id": 0, "category_id": 7, "iscrowd": 1,
                 "segmentation": segments[1]},
                {**row, "id": 7, "image_id": 1, "category_id": 7},
            ]  # fmt: skip
            categories = [
                {"id": 1, "name": "cat", "supercategory": "animal"},
                {"id": 7, "name": "dog"},
            ]
            document = {
                "info": {"year": 2026}, "licenses": [], "images": images,
                "annotations": annotations, "categories": categories,
            }  # fmt: skip
            tree[f"annotations/instances_{split}.json"] = json.dumps(document).encode()
        return tree


class Voc(Frames):
    loved = (".xml", ".xml", ".txt")

    def files(self) -> Tree:
        tree = {}
        box = "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>20.5</xmax><ymax>30</ymax></bndbox>"
        for n, name in enumerate("abcde"):
            tree[f"JPEGImages/{name}.jpg"] = encoded(n)
            tree[f"Annotations/{name}.xml"] = (
                "<annotation><folder>x</folder><size><width>40</width><height>36</height>"
                f"<depth>3</depth></size><filename>{name}.jpg</filename><segmented>0</segmented>"
                "<object><name>cat</name><pose>Left</pose><truncated>0</truncated>"
                f"<difficult>{n % 2}</difficult>{box}<part><name>head</name>{box}</part></object>"
                f"<object><name>dog</name>{box}</object></annotation>"
            ).encode()
        tree["ImageSets/Main/train.txt"] = b"a\nb\nc\n"
        tree["ImageSets/Main/val.txt"] = b"d\ne\n"
        return tree


class Yolo(Frames):
    loved = (".txt", ".yaml")

    def files(self) -> Tree:
        tree = {"classes.txt": b"cat\ndog\n"}
        for n, name in enumerate("abcde"):
            split = "val" if n > 2 else "train"
            tree[f"images/{split}/{name}.jpg"] = encoded(n)
            rows = b"0 0.5 0.5 0.25 0.5\n1 0.3 0.4 0.2 0.2\n"
            tree[f"labels/{split}/{name}.txt"] = rows[: 21 * (n % 3)]
        names = b"nc: 2\nnames:\n  0: cat\n  1: dog\n"
        tree["data.yaml"] = b"path: .\ntrain: images/train\nval: images/val\n" + names
        return tree

    def changed(self, rng: random.Random) -> tuple[str, Tree]:
        """At times with splits in lists, or in darknet's files."""
        tree, kind = self.tree, rng.random()
        lists = {
            f"{split}.txt": "".join(f"{n}\n" for n in tree if n.startswith(f"images/{split}"))
            for split in ("train", "val")
        }
        other = {name: text.encode() for name, text in lists.items()}
        yaml = tree["data.yaml"]
        if kind < 0.2:
            other["data.yaml"] = b"train: train.txt\nval: [val.txt]\nnames: [cat, dog]\n"
        elif kind < 0.4:
            text = (
                b"classes = 2\ntrain = train.txt\nvalid = val.txt\nnames = obj.names\nbackup = b\n"
            )
            other |= {"obj.data": text, "obj.names": b"cat\ndog\n"}
            tree = {name: content for name, content in tree.items() if content != yaml}
        else:
            other = {}
        with mock.patch.object(self, "tree", {**tree, **other}):
            return super().changed(rng)


class Capture(Frames):
    loved = (".json",)

    def files(self) -> Tree:
        tree = {}
        for number, run in enumerate(("run_1", "run_2", "run_3")):
            manifest = {
                "schema_version": 1, "run_dir": f"D:\\x\\{run}", "seed": 4, "max_frames": 9,
                "started_at_unix": 1.7e9, "camera": {"fov": 60},
            }  # fmt: skip
            tree[f"{run}/run_manifest.json"] = json.dumps(manifest).encode()
            for n in range(2):
                label = {
                    "polyp_id": 1,
                    "bbox_px": [4, 6, 20, 18],
                    "bbox_norm": [4 / 40, 6 / 36, 20 / 40, 18 / 36],
                }
                document = {
                    "frame_id": n, "image": f"images/frame_0000{n}.jpg", "image_present": True,
                    "unix_time": 1.7e9, "label_seed": 1, "labels": [{**label, "source": "x"}],
                }  # fmt: skip
                if number == 1:
                    document |= {"polyp_labels": [label], "polyp_seed": document.pop("label_seed")}
                    del document["labels"]
                tree[f"{run}/images/frame_0000{n}.jpg"] = encoded(10 * number + n)
                tree[f"{run}/labels/frame_0000{n}.json"] = json.dumps(document).encode()
        return tree

    def readers(self) -> dict[str, Reader]:
        def prune() -> None:
            capture.prune(Path("source"), Path("out"), missing=True, invalid=True)

        return {**super().readers(), "prune": prune}


# -- stores ---------------------------------------------------------------------------------------


class Frozen(Parser):
    """A store of frames; shards and records that are changed get the right checksums."""

    loved = ("manifest.json", "samples.jsonl", ".safetensors")
    words = ("model=tinydet",)

    def files(self) -> Tree:
        source = Path("frames")
        fuzz_files.write(source, Capture(self.folder).tree)
        options = prepare.FrameOptions(size=32, max_boxes=3, shard_samples=3, workers=1)
        return self.of(prepare.frames(source, Path("prepared"), options))

    def of(self, manifest: Manifest) -> Tree:
        return {path.name: path.read_bytes() for path in manifest.folder.iterdir()}

    def changed(self, rng: random.Random) -> tuple[str, Tree]:
        name = rng.choice([name for name in self.tree if name.endswith(self.loved)])
        content = self.tree[name]
        if name == "manifest.json":
            return name, {**self.tree, name: fuzz_files.json_text(content, rng)}
        manifest = json.loads(self.tree["manifest.json"])
        if name == "samples.jsonl":
            rows = content.splitlines()
            at = rng.randrange(len(rows))
            rows[at] = fuzz_files.json_text(rows[at], rng)
            content = b"\n".join(rows) + b"\n"
            manifest["index_sha256"] = hashlib.sha256(content).hexdigest()
        else:
            content = fuzz_files.shard(content, rng)
            entry = next(entry for entry in manifest["shards"] if entry["file"] == name)
            entry |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        text = self.tree["manifest.json"] if rng.random() < 0.1 else json.dumps(manifest).encode()
        return Path(name).suffix, {**self.tree, name: content, "manifest.json": text}

    def readers(self) -> dict[str, Reader]:
        words = ["dataset=warehouse", "dataset.manifest=source", "dataset.cache_dir=cache"]
        return {
            "rows": self.rows,
            "batches": lambda: batches([*self.words, *words]),
            "lint": lambda: self.lint(),
        }

    def rows(self) -> None:
        manifest = Manifest.load(Path("source"))
        manifest.records()
        store = Store(manifest, "always", Path("cache"))
        for name in manifest.tensors:
            store.gather(name, range(len(store)))
            store.whole(name)

    def lint(self) -> None:
        prepare.lint(Path("source"), Path("seen"))


class FrozenCoefficients(Frozen):
    words = ("model=resnet34_compressed", "model.name=resnet18", "compression.window=1")

    def files(self) -> Tree:
        tree = {
            f"{split}/{kind}/{n}.jpg": encoded(n + 10 * (split == "val"))
            for split in ("train", "val")
            for kind in ("cat", "dog")
            for n in range(2)
        }
        fuzz_files.write(Path("images"), tree)
        options = prepare.CoefficientOptions(image_size=32, shard_samples=3, workers=1)
        return self.of(prepare.coefficients(Path("images"), Path("prepared"), options))


# -- pairs and CIFAR ------------------------------------------------------------------------------


class Pairs(Parser):
    loved = (".txt", ".csv")

    def files(self) -> Tree:
        photos = {
            f"train_val/train_val_imgs/{series:06d}-{photo:02d}.jpg": encoded(10 * series + photo)
            for series in range(1, 6)
            for photo in (1, 2, 3)
        }
        rows = [
            f"{series} {first} {second} 0.{series}5 1 2\n"
            for series in range(1, 6)
            for first, second in ((1, 2), (2, 3), (1, 3))
        ]
        head = "series_id,compareID1,compareFile1,compareID2,compareFile2,LEFT,RIGHT,Total\n"
        votes = [
            f"{series},0,{series:06d}-01.JPG,1,{series:06d}-02.JPG,{series},4,9\n"
            for series in range(1, 6)
        ]
        return {
            **photos,
            "train_val/train_pairlist.txt": "".join(rows[:-3]).encode(),
            "train_val/val_pairlist.txt": "".join(rows[-3:]).encode(),
            "votes.csv": (head + "".join(votes)).encode(),
        }

    def readers(self) -> dict[str, Reader]:
        words = [
            "dataset=phototriage", "model=siamese_e2e", "dataset.root=source",
            "dataset.image_size=32", "dataset.cache_dir=cache", "dataset.test_fraction=0",
        ]  # fmt: skip
        votes = ["dataset.labels=votes", "dataset.votes_file=source/votes.csv"]
        return {
            "lists": lambda: batches(words),
            "folds": lambda: batches([*words, "dataset.folds=3"]),
            "votes": lambda: batches([*words, *votes, "dataset.min_reviewers=1"]),
        }

    def case(self, rng: random.Random) -> tuple[str, Reader]:
        name, read = super().case(rng)
        return (name, read) if rng.random() < 0.6 else ("table: votes", self.readers()["votes"])


class Cifar(Parser):
    """The three layouts, with few images; the checksums are those of the intact files."""

    loved = ("",)

    def files(self) -> Tree:
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, (8, 3072), np.uint8)
        self.md5: dict[str, str] = {}
        tree = {}
        for name in [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]:
            tree[f"binary/{name}.bin"] = b"".join(b"\3" + row.tobytes() for row in pixels)
            out = io.BytesIO()
            Image.fromarray(pixels.reshape(8, 1024, 3)).save(out, "PNG")
            tree[f"png/{name}.png"] = out.getvalue()
            tree[f"py/{name}"] = pickle.dumps({"data": pixels, "labels": [*range(8)]})
        tree["png/train_lables.json"] = json.dumps([*range(10)] * 4).encode()
        tree["png/test_lables.json"] = b"[0, 1, 2, 3, 4, 5, 6, 7]"
        names = list(cifar_files.FAMILIES[10].classes)
        tree["py/batches.meta"] = pickle.dumps({"label_names": names})
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w:gz") as content:
            for name, data in tree.items():
                if name.startswith("py/"):
                    info = tarfile.TarInfo(f"cifar-10-batches-py/{Path(name).name}")
                    info.size = len(data)
                    content.addfile(info, io.BytesIO(data))
        tree["tar/cifar-10-python.tar.gz"] = archive.getvalue()
        self.md5 = {Path(n).name: hashlib.md5(c).hexdigest() for n, c in tree.items()}
        places = {
            "binary": "cifar-10-batches-bin",
            "py": "cifar-10-batches-py",
            "png": "",
            "tar": "",
        }
        return {
            str(Path(top, places[top], rest)): content
            for name, content in tree.items()
            for top, _, rest in [name.partition("/")]
        }

    @contextmanager
    def small(self) -> Iterator[None]:
        """Eight images a file, with the checksums of the intact files."""
        published: Any = datasets.CIFAR10
        family = replace(cifar_files.FAMILIES[10], images={"train": 40, "test": 8})
        with ExitStack() as stack:
            enter = stack.enter_context
            enter(mock.patch.dict(cifar_files.FAMILIES, {10: family}))
            for key in ("train_list", "test_list"):
                entries = [[name, self.md5[name]] for name, _ in getattr(published, key)]
                enter(mock.patch.object(published, key, entries))
            meta = {**published.meta, "md5": self.md5["batches.meta"]}
            enter(mock.patch.object(published, "meta", meta))
            archive = self.md5["cifar-10-python.tar.gz"]
            enter(mock.patch.object(published, "tgz_md5", archive))
            yield

    def readers(self) -> dict[str, Reader]:
        def read(top: str) -> None:
            with self.small():
                for part in cifar_files.read(Path("source", top), 10, download=False).values():
                    assert part.pixels.shape[1:] == (3, 32, 32)
                    assert 0 <= part.labels.min() <= part.labels.max() < 10

        return {top: (lambda top=top: read(top)) for top in ("binary", "png", "py", "tar")}  # type: ignore[misc]

    def change(self, name: str, content: bytes, rng: random.Random) -> bytes:
        if name.startswith("py"):
            return harmful_pickle(rng) if rng.random() < 0.5 else fuzz.octets(content, rng)
        if name.startswith("tar"):
            return harmful_archive(rng) if rng.random() < 0.5 else fuzz.octets(content, rng)
        return super().change(name, content, rng)

    def case(self, rng: random.Random) -> tuple[str, Reader]:
        name, read = super().case(rng)
        for top in self.readers():
            if any(
                (Path("source") / n).read_bytes() != c
                for n, c in self.tree.items()
                if n.startswith(f"{top}/") and (Path("source") / n).is_file()
                if (Path("source") / n).stat().st_size < 2**20
            ):
                return f"{name.partition(':')[0]}: {top}", self.readers()[top]
        return name, read


def harmful_pickle(rng: random.Random) -> bytes:
    """A pickle that would make a file ``harm`` if it were read."""
    command = rng.choice((b"cos\nsystem\n(X\4\0\0\0", b"cposix\nsystem\n(X\4\0\0\0"))
    return b"\x80\x02" + command + b">harmtR."


def harmful_archive(rng: random.Random) -> bytes:
    """An archive with names outside of its folder, links, devices, or very large files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as content:
        for _ in range(3):
            info = tarfile.TarInfo(rng.choice(("../harm", "/tmp/harm", "cifar-10-batches-py/x")))
            info.type = rng.choice(
                (tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE)
            )
            info.linkname = rng.choice(("/etc/passwd", "..", "../../harm"))
            info.size = 10**6 if info.type == tarfile.REGTYPE else 0
            content.addfile(info, io.BytesIO(bytes(10**6)))
    return out.getvalue()


# -- pictures -------------------------------------------------------------------------------------


class Jpeg(Parser):
    """One picture of a class is changed; training goes on without it, and it is counted."""

    first = 0.9

    def files(self) -> Tree:
        self.kinds = self.pictures()
        first = next(iter(self.kinds))
        plain = {f"{s}/{c}/{n}.jpg": encoded(n) for s in ("train", "val") for c in ("cat", "dog")
                 for n in (1, 2)}  # fmt: skip
        return {f"train/cat/{first}": self.kinds[first], **plain}

    def pictures(self) -> Tree:
        exif = Image.Exif()
        exif[0x0112] = 6
        return {
            "0.jpg": encoded(0), "444.jpg": encoded(1, subsampling=0, optimize=True),
            "progressive.jpg": encoded(2, progressive=True), "grey.jpg": encoded(3, mode="L"),
            "cmyk.jpg": encoded(4, mode="CMYK"), "turned.jpg": encoded(5, exif=exif.tobytes()),
            "restart.jpg": encoded(6, restart_marker_blocks=2),
        }  # fmt: skip

    def changed(self, rng: random.Random) -> tuple[str, Tree]:
        name = rng.choice(list(self.kinds))
        with mock.patch.object(self, "tree", {**self.tree, **self.kinds}):
            content = self.change(name, self.kinds[name], rng)
        self.seen = Path("source/train/cat") / name
        rest = {key: value for key, value in self.tree.items() if key != next(iter(self.tree))}
        return name, {f"train/cat/{name}": content, **rest}

    def readers(self) -> dict[str, Reader]:
        source = Path("source/train/cat")
        return {
            "file": self.file,
            "batches": self.batches,
            "prepare": self.prepare,
            "inspect": lambda: inspect.main([str(source), "out=seen", "dataset.image_size=64"]),
            "predict": lambda: self.predict(source),
        }

    def file(self) -> None:
        """The changed picture alone: its header, pixels and coefficients."""
        blocks = BitstreamReader(32, Selection((0, 1), (0,)))
        crop, rng = CentreCrop(1.0), np.random.default_rng(0)
        for path in Path("source/train/cat").iterdir():
            if path.name[:2] not in ("1.", "2."):
                for read in (read_header, reading_tag):
                    with suppress(DamagedImage):
                        read(path)
                for reader in (PixelReader(32), blocks):
                    with suppress(DamagedImage):
                        reader.read(path, crop, rng)

    def batches(self) -> None:
        """Of coefficients and of pixels."""
        words = [
            "dataset=imagefolder", "dataset.train_dirs=[source/train]", "dataset.crop_pct=1",
            "dataset.val_dir=source/val", "dataset.image_size=32", "dataset.cache_dir=cache",
        ]  # fmt: skip
        blocks = ["model=resnet34_compressed", "model.name=resnet18", "compression.window=2"]
        batches([*words, *blocks, "compression.source=bitstream"])
        batches([*words, "model.name=resnet18"])

    def prepare(self) -> None:
        options = prepare.CoefficientOptions(image_size=32, shard_samples=2, workers=1)
        prepare.coefficients(Path("source"), Path("out"), options)

    def predict(self, source: Path) -> None:
        predictor = research.load(ASSETS / "runs/classification", device="cpu")
        for path in sorted(source.iterdir()):
            with suppress(DamagedImage):
                predictor([path])


class Pictures(Jpeg):
    """Of the other formats."""

    def pictures(self) -> Tree:
        deep = io.BytesIO()
        rng = np.random.default_rng(0)
        Image.fromarray(rng.integers(0, 65_535, (36, 40), np.uint16)).save(deep, "PNG")
        wide = io.BytesIO()
        Image.fromarray(rng.random((36, 40), np.float32)).save(wide, "TIFF")
        return {
            "0.png": encoded(0, "PNG"), "alpha.png": encoded(1, "PNG", "RGBA"),
            "palette.png": encoded(2, "PNG", "P"), "deep.png": deep.getvalue(),
            "0.tif": encoded(3, "TIFF"), "packed.tif": encoded(4, "TIFF", compression="tiff_lzw"),
            "float.tif": wide.getvalue(), "0.gif": encoded(5, "GIF", "P"),
            "0.webp": encoded(6, "WEBP"), "0.bmp": encoded(7, "BMP"), "0.ppm": encoded(8, "PPM"),
            "3.pgm": encoded(9, "PPM", "L"), "lossless.webp": encoded(10, "WEBP", lossless=True),
        }  # fmt: skip


PARSERS: dict[str, Callable[[Path], Parser]] = {
    "coco": Coco, "voc": Voc, "yolo": Yolo, "capture": Capture, "store": Frozen,
    "coefficients": FrozenCoefficients, "pairs": Pairs, "cifar": Cifar, "jpeg": Jpeg,
    "pictures": Pictures,
}  # fmt: skip


def main(parser: str, first: int, count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        made = PARSERS[parser](Path(folder))
        fuzz.campaign(made.case, made.intact, first, count)
        os.chdir("/")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
