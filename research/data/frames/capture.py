"""Capture runs: read and checked, pruned into a copy.

A run is a folder with ``run_manifest.json``, ``images/`` and ``labels/frame_00000.json``. Labels
come in two spellings: ``polyp_seed`` and ``polyp_labels``, and the later ``label_seed`` and
``labels`` whose entries also say where they are from.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from research.data.frames.frame import (
    NORMALISED_SLACK,
    PIXEL_SLACK,
    Box,
    Frame,
    FrameSet,
    LeftOut,
    Reading,
    image_size,
    inner_path,
    normalised,
    read_json,
)
from research.data.index import EXTENSIONS, ProgressCallback
from research.utils.errors import UserError

MANIFEST = "run_manifest.json"
SCHEMA_VERSION = 1
CLASS = "polyp"
LABEL_LISTS = ("labels", "polyp_labels")
REPORT = "prune_report.json"


@dataclass(frozen=True)
class LabelFile:
    """One label file and what became of it.

    Attributes:
        file: ``labels/frame_00000.json`` of a run.
        state: ``non_empty``, ``empty``, ``missing_image``, ``missing_file`` or ``invalid``.
        image: the image that it names, if there is such a file in the run.
        boxes: none unless ``non_empty``.
        problem: what is wrong and how to mend it, or ''.
    """

    file: Path
    state: str
    image: Path | None
    boxes: tuple[Box, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class Pruned:
    """What a pruned copy holds, and what it leaves behind; also in its ``prune_report.json``.

    Attributes:
        runs: frames kept, by run.
        runs_dropped: runs not asked for, or without a frame that is left.
        dropped: counts by state.
        files: label file, relative to the source, → why it was dropped.
    """

    runs: dict[str, int]
    runs_dropped: list[str]
    dropped: dict[str, int]
    files: dict[str, str]


def run_folders(source: Path) -> list[Path]:
    """The capture runs in ``source``, sorted; itself, if it is one."""
    if (source / MANIFEST).is_file():
        return [source]
    return sorted(path.parent for path in source.glob(f"[!.]*/{MANIFEST}"))


def read_capture(source: Path) -> FrameSet:
    """Every run of ``source``, checked.

    Raises:
        UserError: no run, a run manifest that is damaged or of a newer schema, no usable frame.
    """
    reading = Reading(source)
    for run in _some_runs(source):
        read_manifest(run)
        name = run_name(run, source)
        reading.part(name)
        labels = read_labels(run)
        for label in labels:
            where = reading.name(label.file)
            if label.problem or label.image is None:
                reading.leave(name, where, LeftOut(label.state, label.problem))
                continue
            image = reading.name(label.image)
            classes = (0,) * len(label.boxes)
            reading.take(name, where, Frame(image, label.image, name, label.boxes, classes))
        if unlabelled := _unlabelled(run, labels):
            reading.problems.append(
                f"{reading.name(run / 'images')}: images without a label file: {len(unlabelled)}, "
                f"the first {unlabelled[0]}: left out; write an empty list of labels for an image "
                "without objects"
            )
    for folder in sorted(source.glob("[!.]*/labels")):
        if not (folder.parent / MANIFEST).is_file() and not (source / MANIFEST).is_file():
            reading.problems.append(f"{folder.parent.name}: no {MANIFEST}: left out; restore it")
    return reading.frame_set("capture", [CLASS], {})


def run_name(run: Path, source: Path) -> str:
    """What a run is called: its folder's name, or its manifest's when it is the source itself.

    So that what is prepared from a single run does not depend on where it lies.
    """
    told = read_manifest(run).get("run_dir") if run == source else None
    own = re.split(r"[/\\]", told)[-1] if isinstance(told, str) else ""
    return own or run.resolve().name


def read_manifest(run: Path) -> dict[str, Any]:
    """A run's manifest.

    Raises:
        UserError: when it is damaged, or its schema is newer than ours.
    """
    path = run / MANIFEST
    remedy = f"or leave the run out with prepare prune not_runs={run.name}"
    try:
        manifest = read_json(path)
    except LeftOut as reason:
        raise UserError("source", f"{path}: {reason}, {remedy}") from None
    if not isinstance(manifest, dict):
        raise UserError("source", f"{path}: expected a JSON object: mend it, {remedy}")
    version = str(manifest.get("schema_version")).upper().removeprefix("V")
    if version.isdecimal() and int(version) > SCHEMA_VERSION:
        raise UserError(
            "source",
            f"{path}: schema_version {version} is newer than {SCHEMA_VERSION}, the newest known "
            "here: update Backbone Lab",
        )
    started, most, seed = (manifest.get(key) for key in ("started_at_unix", "max_frames", "seed"))
    wrong = [
        key
        for key, right in {
            "schema_version": version == str(SCHEMA_VERSION),
            "started_at_unix": started is None or (_real(started) and started >= 0),
            "max_frames": most is None or (_whole(most) and most > 0),
            "seed": seed is None or (_whole(seed) and seed >= 0),
        }.items()
        if not right
    ]
    if wrong:
        raise UserError(
            "source", f"{path}: {wrong[0]} is {manifest.get(wrong[0])!r}: mend it, {remedy}"
        )
    return manifest


def read_labels(run: Path) -> list[LabelFile]:
    """Every label file of a run, sorted by name."""
    taken: dict[Path, Path] = {}
    labels = []
    for file in sorted((run / "labels").glob("[!.]*.json")):
        image: Path | None = None
        try:
            if not re.fullmatch(r"frame_\d{5}\.json", file.name):
                raise LeftOut("invalid", "not named frame_00000.json, with five digits: rename it")
            document = read_json(file)
            image = _image(run, document)
            first = taken.setdefault(image, file)
            if first != file:
                raise LeftOut("invalid", f"names the image of {first.name}: drop one of the two")
            boxes = _boxes(document, *image_size(image))
            labels.append(LabelFile(file, "non_empty" if boxes else "empty", image, boxes))
        except LeftOut as reason:
            there = image if image is not None and image.is_file() else None
            labels.append(LabelFile(file, reason.kind, there, (), str(reason)))
    return labels


def _image(run: Path, document: object) -> Path:
    if not isinstance(document, dict):
        raise LeftOut("invalid", "expected a JSON object: mend or prune it")
    name = document.get("image")
    if not isinstance(name, str | None):
        raise LeftOut("invalid", f"image is {name!r}: give a path in the run")
    if not (name or "").strip() or document.get("image_present", True) is False:
        raise LeftOut("missing_image", "names no image: drop it with prepare prune missing=true")
    return run / inner_path(str(name))


def _boxes(document: dict[str, Any], width: int, height: int) -> tuple[Box, ...]:
    """A label's normalised boxes; an entry without any box is an object out of view.

    Where pixels and shares are both given, both are checked and the shares are taken: they still
    hold when the images have been resized.
    """
    key = next((key for key in LABEL_LISTS if key in document), None)
    entries = None if key is None else document[key]
    if not isinstance(entries, list):
        raise LeftOut("invalid", f"{key or 'labels'} is no list: mend or prune it")
    boxes = []
    for row, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise LeftOut("invalid", f"{key}[{row}] is no JSON object: mend or prune it")
        shares, pixels = entry.get("bbox_norm"), entry.get("bbox_px")
        box = None
        if pixels is not None:
            box = normalised(pixels, width, height, PIXEL_SLACK, f"{key}[{row}].bbox_px")
        if shares is not None:
            box = normalised(shares, 1, 1, NORMALISED_SLACK, f"{key}[{row}].bbox_norm")
        if box is not None:
            boxes.append(box)
    return tuple(boxes)


def prune(
    source: Path,
    out: Path,
    *,
    empty: bool = False,
    missing: bool = False,
    invalid: bool = False,
    runs: Sequence[str] = (),
    progress: ProgressCallback | None = None,
) -> Pruned:
    """Write a copy of a capture tree without what is not wanted.

    A kept frame is its label file, its image and its overlay, byte by byte and under the same
    names; ``OUT/prune_report.json`` says what was dropped. A run of which nothing is left is not
    copied, nor are images without a label file. The copy appears whole or not at all.

    Args:
        source: a run, or a folder of runs; the copy has the same form.
        out: must not exist yet.
        empty: drop frames without a box.
        missing: drop labels that name no image or whose image is not there.
        invalid: drop labels and images that cannot be read, and labels with a bad box.
        runs: keep only the runs named here; ``-NAME`` drops one.
        progress: told while runs are copied.

    Raises:
        UserError: no run, an unknown run, a damaged run manifest, nothing left, ``out`` exists or
            lies in the source, or writing fails.
    """
    if out.exists():
        raise UserError("out", f"{out} exists: name another folder for the pruned copy")
    if out.resolve().is_relative_to(source.resolve()):
        raise UserError("out", f"{out} lies in the source {source}: name a folder outside it")
    names = {run: run_name(run, source) for run in _some_runs(source)}
    drops = {"empty": empty, "missing_image": missing, "missing_file": missing, "invalid": invalid}
    kept: dict[Path, list[LabelFile]] = {}
    dropped: list[LabelFile] = []
    for run in _chosen(names, runs):
        read_manifest(run)
        for label in read_labels(run):
            (dropped if drops.get(label.state) else kept.setdefault(run, [])).append(label)
    if not kept:
        raise UserError("out", f"{source}: no frame is left, {len(dropped)} dropped", "drop less")
    report = Pruned(
        runs={names[run]: len(labels) for run, labels in kept.items()},
        runs_dropped=[name for run, name in names.items() if run not in kept],
        dropped=dict(sorted(Counter(label.state for label in dropped).items())),
        files={
            label.file.relative_to(source).as_posix(): label.problem or label.state
            for label in dropped
        },
    )
    try:
        _write_copy(source, out, kept, report, progress)
    except OSError as error:
        raise UserError(
            "out",
            f"{out}: {error.strerror or error} ({error.filename})",
            "nothing was written: free space or mend the source, then prune again",
        ) from None
    return report


def _chosen(names: dict[Path, str], runs: Sequence[str]) -> list[Path]:
    known = list(names.values())
    for word in runs:
        if (name := word.removeprefix("-")) not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError("runs", f"runs={word}: no run of that name{hint}")
    wanted = {word for word in runs if not word.startswith("-")} or set(known)
    wanted -= {word[1:] for word in runs if word.startswith("-")}
    return [run for run, name in names.items() if name in wanted]


def _write_copy(
    source: Path,
    out: Path,
    runs: dict[Path, list[LabelFile]],
    report: Pruned,
    progress: ProgressCallback | None,
) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        fresh = Path(scratch) / out.name
        for done, (run, labels) in enumerate(runs.items(), start=1):
            files = [run / MANIFEST, *(label.file for label in labels)]
            for label in labels:
                files += [] if label.image is None else [label.image]
                files += (run / "overlays").glob(f"{label.file.stem}.*")
            for file in files:
                copy = fresh / file.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)
            if progress is not None:
                progress("copying runs", done, len(runs))
        (fresh / REPORT).write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
        os.replace(fresh, out)


def _some_runs(source: Path) -> list[Path]:
    folders = run_folders(source)
    if not folders:
        raise UserError(
            "source", f"{source}: no capture run, that is no folder with {MANIFEST} in it"
        )
    return folders


def _unlabelled(run: Path, labels: Collection[LabelFile]) -> list[str]:
    """Names of images in ``images/`` of which no label file speaks."""
    named = {label.image for label in labels} | {
        run / "images" / f"{label.file.stem}{suffix}" for label in labels for suffix in EXTENSIONS
    }
    images = sorted((run / "images").glob("[!.]*"))
    return [path.name for path in images if path.suffix.lower() in EXTENSIONS and path not in named]


def _real(value: object) -> bool:
    # Seconds since 1970 exceed what is_number allows a coordinate.
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
