"""Changed files of frames with boxes: COCO, VOC, YOLO, capture runs."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any
from unittest import mock

from research import prepare
from research.data.frames import capture
from research.data.frames.annotations import read_frames
from research.data.frames.frame import FrameSet
from research.data.frames.limits import check_limits
from research.data.warehouse.lint import lint
from tests.fuzz import Reader
from tests.fuzz_files import Tree
from tests.fuzz_parser import Parser, encoded


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
