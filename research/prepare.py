"""Prepares data ahead of training: ``python -m research.prepare KIND SOURCE OUT``."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.config import cli, outputs
from research.config.overrides import train_command
from research.data.prepare_options import (
    BoxOptions,
    CoefficientOptions,
    FrameOptions,
    LabelOptions,
    LimitOptions,
    LintOptions,
    PruneOptions,
    RgbxOptions,
    StoreOptions,
    WorkerOptions,
)
from research.utils.counts import by_kind, counted
from research.utils.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from research.data.warehouse.manifest import Manifest
    from research.data.warehouse.plan import BuildPlan

log = logging.getLogger("research.prepare")  # as a command, this module is called __main__


OPTIONS: dict[str, type[DataclassInstance]] = {
    "frames": FrameOptions,
    "coefficients": CoefficientOptions,
    "rgbx": RgbxOptions,
    "prune": PruneOptions,
    "lint": LintOptions,
}
"""Dataclass of options by KIND."""

USAGE = cli.usage(
    "python -m research.prepare KIND SOURCE OUT [key=value …]",
    """
KIND
  frames         SOURCE holds frames with boxes: capture runs, or a VOC, COCO or YOLO folder
  coefficients   SOURCE holds CLASS/image folders, or train, val and test folders of them
  rgbx           SOURCE holds a folder of pictures for each modality, and VOC, COCO or YOLO labels;
                 or arrays in images/*.npy, and labels/*.txt
  prune          copy the capture runs of SOURCE to OUT without unusable frames
  lint           prepare lint MANIFEST: check a prepared store
OUT gets a folder v<version>: a hash of data and settings.
A command that was interrupted resumes when it is run again.
""",
    {
        "\nframes": FrameOptions,
        "coefficients": CoefficientOptions,
        "rgbx": RgbxOptions,
        "frames and rgbx": LabelOptions,
        "limits of frames and rgbx": LimitOptions,
        "boxes of frames and rgbx": BoxOptions,
        "frames and coefficients": StoreOptions,
        "frames, coefficients and rgbx": WorkerOptions,
        "prune": PruneOptions,
        "lint": LintOptions,
    },
)


def frames(source: Path, out: Path, options: FrameOptions) -> Manifest:
    """Store letterboxed frames with boxes, from a source in any of the known formats.

    Raises:
        UserError: for an unusable source, a limit that is exceeded, or a full disk.
    """
    from research.data.frames.annotations import read_frames
    from research.data.frames.limits import check_limits
    from research.data.warehouse.encoders import FrameEncoder
    from research.data.warehouse.plan import assign_splits, plan_frames

    frame_set = read_frames(
        source, options.scale_boxes, form=options.format, data_yaml=options.data_yaml
    )
    limits = options.limits()
    check_limits(frame_set, limits)
    splits = assign_splits(
        {frame.group for frame in frame_set.frames},
        frame_set.split,
        val=options.val,
        test=options.test,
        seed=options.seed,
        named={"val": options.val_runs, "test": options.test_runs},
    )
    encoder = FrameEncoder(options.size, options.max_boxes)
    return _build(plan_frames(frame_set, encoder, splits, limits), out, options)


def coefficients(source: Path, out: Path, options: CoefficientOptions) -> Manifest:
    """Store images as DCT coefficients with labels.

    Raises:
        UserError: for folders that cannot be read as classes, or a full disk.
    """
    from research.config import compose_config
    from research.data.folder import ImageFolders
    from research.data.splits import format_names
    from research.data.warehouse.encoders import CoefficientEncoder
    from research.data.warehouse.plan import plan_folders
    from research.engine import build

    roots = _split_folders(source)
    if roots and "train" not in roots:
        names = ", ".join(root.name for root in roots.values())
        raise UserError("SOURCE", f"{source}: has {names} but no train folder of classes")
    if roots:
        used = {root.name for root in roots.values()}
        if beside := sorted({path.name for path in source.iterdir()} - used):
            names = ", ".join(sorted(used))
            log.info("%s: passed over beside %s: %s", source, names, format_names(beside))
    config = compose_config(["dataset=imagefolder", "dataset.train_dirs=[.]"]).config
    config["dataset"] |= {
        "train_dirs": [str(roots.get("train", source))],
        "val_dir": str(roots["val"]) if "val" in roots else None,
        "test_dir": str(roots["test"]) if "test" in roots else None,
        "val_fraction": options.val,
    }
    folders = build.data_module(config)
    assert isinstance(folders, ImageFolders)
    folders.prepare(options.seed)
    log.info("%s: read as %s", source, folders.reading)
    encoder = CoefficientEncoder(options.image_size, options.window, options.source)
    return _build(plan_folders(folders, source, encoder), out, options)


def rgbx(source: Path, out: Path, options: RgbxOptions) -> Manifest:
    """Store letterboxed frames of RGB and further channels with boxes.

    Raises:
        UserError: for an unusable source, a limit that is exceeded, or a full disk.
    """
    from research.config import compose_config
    from research.data.frames.limits import check_limits
    from research.data.rgbx import sources
    from research.data.rgbx.paired_folders import PairedFolders, find_folders

    require_labels = options.missing_labels == "error"
    if options.format in ("auto", "yolo") and sources.holds_arrays(source):
        frames = sources.read_arrays(source, None, None, require_labels, options.data_yaml)
    else:
        folders = PairedFolders(source, find_folders(source, asdict(options)))
        frame_set = folders.read(
            require_labels, options.scale_boxes, form=options.format, data_yaml=options.data_yaml
        )
        frames = sources.of_pictures(folders, frame_set)
    limits = options.limits()
    check_limits(frames.frame_set, limits)
    read = compose_config(["model=rgbx_mit_b0", "dataset=rgbx", "dataset.root=."])
    size = options.size or read.config["dataset"]["image_size"]
    return _build(sources.plan_channels(frames, size, limits), out, options)


def prune(source: Path, out: Path, options: PruneOptions) -> None:
    """Copy capture runs without the frames that are not wanted."""
    from research.data.frames import capture

    names = [*options.runs, *(f"-{name}" for name in options.not_runs)]
    unwanted = {key: getattr(options, key) for key in ("empty", "missing", "invalid")}
    report = capture.prune(source, out, **unwanted, runs=names)
    print(f"pruned:   {out}")
    kept = counted(sum(report.runs.values()), "frames")
    print(f"  kept    {kept} of {counted(len(report.runs), 'runs')}")
    if report.runs_dropped:
        print(f"  without the runs {', '.join(report.runs_dropped)}")
    if report.dropped:
        print(f"  dropped {by_kind(report.dropped)}; see {out / capture.REPORT}")
    store = out.with_name(f"{out.name}_store")
    outputs.print_next(outputs.command_of("prepare", "frames", out, store))


def lint(path: Path, out: Path | None) -> bool:
    """Print the findings about a store, and save pictures of it.

    Returns:
        True if there are no errors.

    Raises:
        UserError: if there is no store, or the pictures cannot be written.
    """
    from research.data.warehouse import lint, pictures
    from research.data.warehouse.manifest import Manifest

    manifest = Manifest.load(path)
    report, samples = lint.lint(manifest)
    out = out or manifest.folder.parent / f"lint-{manifest.folder.name}"
    drawn = pictures.draw(samples)
    with outputs.writing_to(out):
        out.mkdir(parents=True, exist_ok=True)
        for name, picture in drawn.items():
            picture.save(out / f"{name}.png")
    for line in report.notes:
        print(line)
    for line in report.warnings:
        print(f"warning: {line}")
    for line in report.errors:
        print(f"error: {line}")
    errors = counted(len(report.errors), "errors")
    print(f"{errors}, {counted(len(report.warnings), 'warnings')}; pictures: {out}")
    if not report.errors and manifest.kind != "features":
        outputs.print_next(_train_command(manifest))
    return not report.errors


def _build(plan: BuildPlan, out: Path, options: StoreOptions | RgbxOptions) -> Manifest:
    from research.data.warehouse.build import build

    return build(
        plan,
        out,
        shard_samples=options.shard_samples,
        workers=options.workers,
    )


def _split_folders(source: Path) -> dict[str, Path]:
    """The folders of the splits, by split; a class that is named train contains images instead.

    Raises:
        UserError: for two folders of one split.
    """
    from research.data.frames.layout import split_from_name
    from research.data.listing import list_folders

    found: dict[str, Path] = {}
    for name in list_folders(source) if source.is_dir() else []:
        split = split_from_name(name)
        if split and list_folders(source / name):
            if split in found:
                both = f"{found[split].name} and {name}"
                raise UserError("SOURCE", f"{source}: {both} are both of {split}", "keep one")
            found[split] = source / name
    return found


def _print_summary(manifest: Manifest) -> None:
    print(f"prepared: {manifest.folder}")
    for split, ranges in manifest.splits.items():
        groups = sum(group.split == split for group in manifest.groups)
        samples = sum(stop - start for start, stop in ranges)
        print(f"  {split:5} {counted(samples, 'samples')} of {counted(groups, 'groups')}")
    if manifest.damage:
        print(f"  left out {by_kind(manifest.damage)}")
    if channels := manifest.transform.get("channels"):
        print(f"  {' '.join(channels)}, {manifest.transform['dtype']}")
    check = outputs.command_of("prepare", "lint", manifest.path)
    outputs.print_next(_train_command(manifest), check)


def _train_command(manifest: Manifest) -> str:
    """A command that trains a network on a store."""
    model: dict[str, Any] = {"model": "tinydet"}
    if manifest.kind == "coefficients":
        window = manifest.transform["window"]
        model = {"model": "resnet34_compressed", "compression.window": window}
    settings = {**model, "dataset": "warehouse", "dataset.manifest": str(manifest.path)}
    if "channels" in manifest.transform:
        settings = {"model": "rgbx_mit_b0", "dataset": "rgbx", "dataset.root": str(manifest.folder)}
        settings["dataset.image_size"] = manifest.transform["image_size"]
    return train_command([], settings)


def main(words: list[str]) -> None:
    if not words or "=" in words[0]:
        raise UserError("KIND", f"pass a KIND first: {', '.join(OPTIONS)}")
    kind = cli.choose("KIND", words[0], list(OPTIONS))
    paths, options, _ = cli.parse(OPTIONS[kind], words)
    expected = ["MANIFEST"] if kind == "lint" else ["SOURCE", "OUT"]
    if len(paths) - 1 != len(expected):
        raise UserError(expected[0], f"prepare {kind} takes {' and '.join(expected)}", "see --help")
    source = Path(paths[1])
    if not source.exists():
        raise UserError(expected[0], f"{source}: no such file or folder")
    if kind != "lint":
        if not source.is_dir():  # such as data.yaml, which other programs are given
            raise UserError("SOURCE", f"{source}: is no folder", f"pass its folder {source.parent}")
        out = Path(paths[2])
        if out.resolve().is_relative_to(source.resolve()):
            raise UserError("OUT", f"{out}: is inside the source", "pass an OUT outside it")
    # Imported late: mistakes are reported before torch is imported.
    from research.utils import logs

    logs.to_terminal()
    if isinstance(options, LintOptions):
        if not lint(source, options.out):
            raise SystemExit(1)
    elif isinstance(options, FrameOptions):
        _print_summary(frames(source, out, options))
    elif isinstance(options, CoefficientOptions):
        _print_summary(coefficients(source, out, options))
    elif isinstance(options, RgbxOptions):
        _print_summary(rgbx(source, out, options))
    elif isinstance(options, PruneOptions):
        prune(source, out, options)


if __name__ == "__main__":
    cli.command(USAGE, main)
