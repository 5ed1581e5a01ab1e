"""Capture runs: reading, validation, and pruned copies.

A run is a folder with ``run_manifest.json``, ``images/`` and ``labels/frame_00000.json``. Label
files have one of two schemas: the earlier with the keys ``polyp_seed`` and ``polyp_labels``, the
later with ``label_seed`` and ``labels``, whose entries also have a source.
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
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from research.data.frames.builder import FrameSetBuilder
from research.data.frames.capture_boxes import read_boxes
from research.data.frames.declared_size import SCALED
from research.data.frames.frame import (
    BoxXYXY,
    Frame,
    FrameSet,
    SkipFrame,
    image_size,
    read_json,
    safe_relative_path,
    shorten,
)
from research.data.frames.picture_index import UNNAMED
from research.data.image_files import EXTENSIONS
from research.data.listing import list_files, list_folders
from research.utils.documents import validate
from research.utils.errors import UserError
from research.utils.progress import track

MANIFEST = "run_manifest.json"
SCHEMA_VERSION = 1
CLASS = "polyp"
REPORT = "prune_report.json"
NAME = re.compile(r"frame_\d{5}", re.ASCII)


@dataclass(frozen=True)
class RunManifest:
    """``run_manifest.json``; what is not read may hold anything.

    Attributes:
        schema_version: of the run; written as ``1`` or ``"V1"``.
        run_dir: folder in which the run was recorded.
        started_at_unix: seconds.
        max_frames: limit of the recording.
        seed: of the recording.
    """

    schema_version: Annotated[
        int,
        BeforeValidator(lambda value: int(str(value).upper().removeprefix("V"))),
        Field(ge=SCHEMA_VERSION, le=SCHEMA_VERSION),
    ]
    run_dir: Any = None
    started_at_unix: Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)] | None = None
    max_frames: Annotated[int, Field(strict=True, gt=0)] | None = None
    seed: Annotated[int, Field(strict=True, ge=0)] | None = None


@dataclass(frozen=True)
class LabelFile:
    """One label file and its state.

    Attributes:
        file: ``labels/frame_00000.json`` of a run.
        state: ``non_empty``, ``empty``, ``missing_image``, ``missing_file`` or ``invalid``.
        image: the image that it names, if the run has such a file.
        boxes: empty unless ``non_empty``.
        problem: what is wrong and how to fix it, or ''.
        is_scaled: whether its boxes in pixels are those of another size than the image has.
    """

    file: Path
    state: str
    image: Path | None
    boxes: tuple[BoxXYXY, ...] = ()
    problem: str = ""
    is_scaled: bool = False


@dataclass(frozen=True)
class PruneReport:
    """What a pruned copy contains and omits; the content of its ``prune_report.json``.

    Attributes:
        runs: number of frames copied, by run.
        runs_dropped: runs that were not selected, or have no frame left.
        dropped: number of frames dropped, by state.
        files: dropped label file, relative to the source, → reason.
    """

    runs: dict[str, int]
    runs_dropped: list[str]
    dropped: dict[str, int]
    files: dict[str, str]


def run_folders(source: Path) -> list[Path]:
    """The capture runs in ``source``, sorted; ``source`` itself if it is a run."""
    if (source / MANIFEST).is_file():
        return [source]
    folders = [source / name for name in list_folders(source)]
    return [folder for folder in folders if (folder / MANIFEST).is_file()]


def read_capture(source: Path, scale_boxes: bool = False) -> FrameSet:
    """Read and validate all runs of ``source``.

    Args:
        source: a run, or a folder of runs.
        scale_boxes: see ``read_labels``.

    Raises:
        UserError: for a source without runs, a run manifest that is damaged or of a newer schema,
            or no usable frame.
    """
    builder = FrameSetBuilder(source)
    remarks = builder.remarks
    remarks.names = "the format"
    unread = {name for name in builder.listing.names if _is_image(name)}
    runs = _require_runs(source)
    for run in track(runs, "reading labels", unit="runs"):
        read_manifest(run)
        name = run_name(run, source)
        builder.ensure_part(name)
        labels = read_labels(run, scale_boxes)
        remarks.labels.add(builder.relative(run / MANIFEST))
        for label in labels:
            where = builder.relative(label.file)
            # The image of a damaged label is left out with it.
            described = [label.image] if label.image else _own_images(run, label)
            unread -= set(map(builder.relative, described))
            remarks.labels.add(where)
            if label.is_scaled:
                builder.note(SCALED, where)
            if label.problem or label.image is None:
                builder.skip(name, where, SkipFrame(label.state, label.problem), label.image)
                continue
            image = builder.relative(label.image)
            classes = (0,) * len(label.boxes)
            builder.add(name, where, Frame(image, label.image, name, label.boxes, classes))
        if unlabelled := _unlabelled(run, labels):
            images = builder.relative(run / "images")
            builder.problems.append(
                f"{images}: images without a label file: {len(unlabelled)}, the first "
                f"{unlabelled[0]}: left out; write an empty list of labels for an image without "
                "objects"
            )
    for folder in [source / name for name in list_folders(source)] if runs != [source] else []:
        if (folder / "labels").is_dir() and folder not in runs:
            builder.problems.append(f"{folder.name}: no {MANIFEST}: left out; restore it")
    for name in unread:
        is_overlay = PurePosixPath(name).parent.name == "overlays"
        remarks.passed_over[name] = "overlay" if is_overlay else UNNAMED
    return builder.build("capture", [CLASS], {})


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in EXTENSIONS


def run_name(run: Path, source: Path) -> str:
    """The name of a run: its folder, or ``run_dir`` of its manifest if it is the source itself.

    The data prepared from a single run thus do not depend on the name of its folder.
    """
    run_dir = read_manifest(run).run_dir if run == source else None
    name = re.split(r"[/\\]", run_dir)[-1] if isinstance(run_dir, str) else ""
    return name or run.resolve().name


def read_manifest(run: Path) -> RunManifest:
    """Read and validate the manifest of a run.

    Raises:
        UserError: if it is damaged, or its schema is not supported yet.
    """
    path = run / MANIFEST
    remedy = (
        "fix it, update Backbone Lab if its schema is newer, or leave the run out with prepare "
        f"prune not_runs={run.name}"
    )
    try:
        document = read_json(path)
    except SkipFrame as reason:
        raise UserError("SOURCE", f"{path}: {reason}", remedy) from None
    return validate(RunManifest, document, "SOURCE", path, remedy)


def read_labels(run: Path, scale_boxes: bool = False) -> list[LabelFile]:
    """Read and validate all label files of a run, sorted by name.

    Args:
        run: its folder.
        scale_boxes: accept boxes whose pixels and fractions fit to another size of the image.
    """
    first_labels: dict[Path, Path] = {}
    labels = []
    folder = run / "labels"
    names = list_files(folder, {".json"}).names if folder.is_dir() else []
    for file in [folder / name for name in names if "/" not in name]:
        image: Path | None = None
        try:
            if not NAME.fullmatch(file.stem) or file.suffix != ".json":
                raise SkipFrame(
                    "invalid", "not named frame_00000.json, with five digits: rename it"
                )
            document = read_json(file)
            image = _image(run, document)
            size = image_size(image)
            if NAME.fullmatch(image.stem) and image.stem != file.stem:
                raise SkipFrame(
                    "invalid", f"names the image of {image.stem}.json: correct image or drop it"
                )
            first = first_labels.setdefault(image, file)
            if first != file:
                raise SkipFrame("invalid", f"names the image of {first.name}: drop one of the two")
            boxes, is_scaled = read_boxes(document, size, scale_boxes)
            state = "non_empty" if boxes else "empty"
            labels.append(LabelFile(file, state, image, boxes, is_scaled=is_scaled))
        except SkipFrame as reason:
            existing = image if image is not None and os.path.isfile(image) else None
            labels.append(LabelFile(file, reason.kind, existing, (), str(reason)))
    return labels


def _image(run: Path, document: object) -> Path:
    if not isinstance(document, dict):
        raise SkipFrame("invalid", "expected a JSON object: fix or prune it")
    name = document.get("image")
    if not isinstance(name, str | None):
        raise SkipFrame("invalid", f"image is {shorten(name)}: expected a path in the run")
    if not (name or "").strip() or document.get("image_present", True) is False:
        raise SkipFrame("missing_image", "names no image: drop it with prepare prune missing=true")
    return run / safe_relative_path(str(name))


def prune(
    source: Path,
    out: Path,
    *,
    empty: bool = False,
    missing: bool = False,
    invalid: bool = False,
    runs: Sequence[str] = (),
) -> PruneReport:
    """Copy capture runs without unwanted frames.

    Label file, image and overlay of each remaining frame are copied unchanged, under the same
    names; ``OUT/prune_report.json`` lists what was dropped. Runs without a remaining frame and
    images without a label file are not copied. The copy is created atomically.

    Args:
        source: a run, or a folder of runs; the copy has the same structure.
        out: folder of the copy; must not exist.
        empty: drop frames without a box.
        missing: drop labels that name no image or whose image does not exist.
        invalid: drop labels and images that cannot be read, and labels with a bad box.
        runs: names of the runs to keep, all by default; ``-NAME`` drops one.

    Raises:
        UserError: for a source without runs, an unknown run, a damaged run manifest, no frame
            left, an ``out`` that exists or is inside the source, or a failed write.
    """
    if out.exists():
        raise UserError("OUT", f"{out} exists", "pass another folder for the copy")
    if out.resolve().is_relative_to(source.resolve()):
        raise UserError("OUT", f"{out} is inside the source {source}", "pass a folder outside it")
    names = {run: run_name(run, source) for run in _require_runs(source)}
    drops = {"empty": empty, "missing_image": missing, "missing_file": missing, "invalid": invalid}
    remaining: dict[Path, list[LabelFile]] = {}
    dropped: list[LabelFile] = []
    for run in track(_select(names, runs), "reading labels", unit="runs"):
        read_manifest(run)
        for label in read_labels(run):
            (dropped if drops.get(label.state) else remaining.setdefault(run, [])).append(label)
    if not remaining:
        raise UserError("runs", f"{source}: no frame is left, {len(dropped)} dropped", "drop less")
    report = PruneReport(
        runs={names[run]: len(labels) for run, labels in remaining.items()},
        runs_dropped=[name for run, name in names.items() if run not in remaining],
        dropped=dict(sorted(Counter(label.state for label in dropped).items())),
        files={
            label.file.relative_to(source).as_posix(): label.problem or label.state
            for label in dropped
        },
    )
    try:
        _write_copy(source, out, remaining, report)
    except OSError as error:
        raise UserError(
            "OUT",
            f"{out}: {error.strerror or error} ({error.filename})",
            "nothing was written: free space or fix the source, then prune again",
        ) from None
    return report


def _select(names: dict[Path, str], runs: Sequence[str]) -> list[Path]:
    known = list(names.values())
    for word in runs:
        key, name = ("not_runs" if word.startswith("-") else "runs"), word.removeprefix("-")
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else ""
            raise UserError(key, f"{key}={name}: no run of that name", hint)
    selected = {word for word in runs if not word.startswith("-")} or set(known)
    selected -= {word[1:] for word in runs if word.startswith("-")}
    return [run for run, name in names.items() if name in selected]


def _write_copy(
    source: Path,
    out: Path,
    runs: dict[Path, list[LabelFile]],
    report: PruneReport,
) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        fresh = Path(scratch) / out.name
        for run, labels in track(runs.items(), "copying runs", unit="runs"):
            files = [run / MANIFEST, *(label.file for label in labels)]
            for label in labels:
                files += [] if label.image is None else [label.image]
                files += (run / "overlays").glob(f"{label.file.stem}.*")
            for file in files:
                copy = fresh / file.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)
        (fresh / REPORT).write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
        os.replace(fresh, out)


def _require_runs(source: Path) -> list[Path]:
    folders = run_folders(source)
    if not folders:
        raise UserError(
            "SOURCE", f"{source}: no capture run, that is no folder with {MANIFEST} in it"
        )
    return folders


def _unlabelled(run: Path, labels: Collection[LabelFile]) -> list[str]:
    """Names of the images in ``images/`` without a label file."""
    labelled = {label.image for label in labels}
    labelled |= {image for label in labels for image in _own_images(run, label)}
    if not (run / "images").is_dir():
        return []
    images = list_files(run / "images", EXTENSIONS)
    return [name for name in images.names if images.root / name not in labelled]


def _own_images(run: Path, label: LabelFile) -> list[Path]:
    """The paths of images of the same name as a label file."""
    return [run / "images" / f"{label.file.stem}{suffix}" for suffix in EXTENSIONS]
