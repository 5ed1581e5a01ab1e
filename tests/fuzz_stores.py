"""Changed files of prepared stores, pairs of photos, and CIFAR."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import random
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image
from torchvision import datasets

from research import prepare
from research.data import cifar_files
from research.data.warehouse.manifest import Manifest
from research.data.warehouse.store import Store
from tests import fuzz, fuzz_files
from tests.fuzz import Reader
from tests.fuzz_files import Tree
from tests.fuzz_frames import Capture
from tests.fuzz_parser import Parser, batches, encoded


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
