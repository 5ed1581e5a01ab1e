"""Prepares data ahead of training: ``python -m research.prepare KIND SOURCE OUT``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.config import cli
from research.config.rules import COUNT, SHARE, TEXT, TRUTH, Rule, number, one_of, whole
from research.config.schema import GROUP_RULES
from research.utils.errors import UserError

if TYPE_CHECKING:
    from research.data.index import ProgressCallback
    from research.data.warehouse.manifest import Manifest
    from research.data.warehouse.plan import BuildPlan

USAGE = """
python -m research.prepare KIND SOURCE OUT [key=value …]

KIND
  frames         SOURCE contains frames with boxes: capture runs, or a VOC, COCO or YOLO folder
  coefficients   SOURCE contains CLASS/image folders, or train, val and test folders of them
  rgbx           SOURCE contains a folder of images per modality, and VOC, COCO or YOLO labels
  prune          copy the capture runs of SOURCE to OUT without unusable frames
  lint           prepare lint MANIFEST: check a prepared store
OUT gets a folder v<version>: a hash of data and settings; of rgbx, images/*.npy and labels/*.txt.
A command that was interrupted resumes when it is run again.

frames
  size=384              side of the square frames, in pixels
  max_boxes=16          slots for boxes in a frame
  val=0.2 test=0        fraction of the runs (groups) drawn for validation and test
  val_runs= test_runs=  names of these runs instead of a draw: a,b,c
coefficients
  image_size=256                size of the stored squares, a multiple of 16
  compression.window=8          1…8, corner of frequencies; smaller windows can be read from it
  compression.source=bitstream  bitstream: the files' own coefficients; pixels: decoded first
  val=0.1                       fraction of each class held out if SOURCE has no val folder
rgbx
  rgb= thermal= event=     names of the folders; by default rgb, visible, vis or images; thermal,
                           infrared, ir or lwir; event or events, of which one may be missing
  missing_labels=negative  a picture without a YOLO file has no objects; error: is refused
frames and rgbx
  max_invalid= max_missing= max_empty=                    largest number of such frames
  max_invalid_ratio= max_missing_ratio= max_empty_ratio=  the same as a fraction of all
frames and coefficients
  seed=0             seed of the draw
  shard_samples=256  samples per file
all three
  workers=           number of processes; one per core by default
prune
  empty=false missing=true invalid=true  which frames are left out
  runs= not_runs=                        only these runs; not these
lint
  out=               folder of its pictures; OUT/lint-v<version> by default
"""

Options = dict[str, tuple[str, Rule]]

BUILD: Options = {
    "seed": ("0", whole(0, 2**32 - 1)),
    "shard_samples": ("256", COUNT),
    "workers": ("", COUNT),
}
LIMITS: Options = {
    **{f"max_{kind}": ("", whole(0)) for kind in ("invalid", "missing", "empty")},
    **{
        f"max_{kind}_ratio": ("", number(at_least=0, at_most=1))
        for kind in ("invalid", "missing", "empty")
    },
}
OPTIONS: dict[str, Options] = {
    "frames": {
        "size": ("384", whole(32)),
        "max_boxes": ("16", COUNT),
        "val": ("0.2", SHARE),
        "test": ("0", SHARE),
        "val_runs": ("", TEXT),
        "test_runs": ("", TEXT),
        **LIMITS,
        **BUILD,
    },
    "coefficients": {
        "image_size": (
            "256",
            Rule("a multiple of 16, at least 32", lambda n: whole(32).holds(n) and n % 16 == 0),
        ),
        "compression.window": ("8", GROUP_RULES["compression.window"]),
        "compression.source": ("bitstream", GROUP_RULES["compression.source"]),
        "val": ("0.1", GROUP_RULES["dataset.val_fraction"]),
        **BUILD,
    },
    "rgbx": {
        "rgb": ("", TEXT),
        "thermal": ("", TEXT),
        "event": ("", TEXT),
        "missing_labels": ("negative", one_of("negative", "error")),
        **LIMITS,
        "workers": BUILD["workers"],
    },
    "prune": {
        "empty": ("false", TRUTH),
        "missing": ("true", TRUTH),
        "invalid": ("true", TRUTH),
        "runs": ("", TEXT),
        "not_runs": ("", TEXT),
    },
    "lint": {"out": ("", TEXT)},
}
"""Options by kind: the default as it would be typed, and the rule for values."""


def frames(source: Path, out: Path, settings: Mapping[str, Any]) -> Manifest:
    """Store letterboxed frames with boxes, from a source in any of the known formats.

    Raises:
        UserError: for an unusable source, a limit that is exceeded, or a full disk.
    """
    from research.data.frames.annotations import read_frames
    from research.data.frames.limits import check_limits
    from research.data.warehouse.encoders import FrameEncoder
    from research.data.warehouse.plan import assign_splits, plan_frames

    frame_set = read_frames(source)
    limits = _limits(settings)
    check_limits(frame_set, limits)
    splits = assign_splits(
        {frame.group for frame in frame_set.frames},
        frame_set.split,
        val=settings["val"],
        test=settings["test"],
        seed=settings["seed"],
        named={"val": _names(settings["val_runs"]), "test": _names(settings["test_runs"])},
    )
    encoder = FrameEncoder(settings["size"], settings["max_boxes"])
    return _build(plan_frames(frame_set, encoder, splits, limits), out, settings)


def coefficients(source: Path, out: Path, settings: Mapping[str, Any]) -> Manifest:
    """Store images as DCT coefficients with labels.

    Raises:
        UserError: for folders that cannot be read as classes, or a full disk.
    """
    from research.config import compose_config, resolved
    from research.data.folder import ImageFolders
    from research.data.warehouse.encoders import CoefficientEncoder
    from research.data.warehouse.plan import plan_folders
    from research.engine import build

    roots = {split: source / split for split in ("train", "val", "test")}
    roots = {split: root for split, root in roots.items() if _has_subfolders(root)}
    if roots and "train" not in roots:
        raise UserError(
            "SOURCE", f"{source}: has {', '.join(roots)} but no train folder of classes"
        )
    config = resolved(compose_config(["dataset=imagefolder", "dataset.train_dirs=[.]"])[0])
    config["dataset"] |= {
        "train_dirs": [str(roots.get("train", source))],
        "val_dir": str(roots["val"]) if "val" in roots else None,
        "test_dir": str(roots["test"]) if "test" in roots else None,
        "val_fraction": settings["val"],
    }
    folders = build.source(config)
    assert isinstance(folders, ImageFolders)
    folders.prepare(settings["seed"], _progress())
    encoder = CoefficientEncoder(
        settings["image_size"], settings["compression.window"], settings["compression.source"]
    )
    return _build(plan_folders(folders, source, encoder), out, settings)


def rgbx(source: Path, out: Path, settings: Mapping[str, Any]) -> None:
    """Pack frames whose modalities are in separate folders into one array each.

    Raises:
        UserError: for an unusable source, a limit that is exceeded, an OUT with other content, or
            a full disk.
    """
    from research.data.frames.limits import check_limits
    from research.data.rgbx.pack import pack
    from research.data.rgbx.pairs import Pairs, find_folders

    pairs = Pairs(source, find_folders(source, settings))
    frame_set = pairs.read(settings["missing_labels"] == "error")
    check = partial(check_limits, limits=_limits(settings))
    check(frame_set)
    record = pack(frame_set, pairs, out, check, settings["workers"], _progress())
    counts = dict(record["counts"])
    print(f"prepared: {out}")
    print(f"  {counts.pop('frames')} frames of {' '.join(record['channels'])}, {record['dtype']}")
    print(f"  {counts.pop('boxes')} boxes: {_format_counts(record['classes'])}")
    print(f"  {_format_counts({key.replace('_', ' '): count for key, count in counts.items()})}")
    print(f"next:     python train.py model=rgbx_mit_b0 dataset=rgbx dataset.root={out}")


def prune(source: Path, out: Path, settings: Mapping[str, Any]) -> None:
    """Copy capture runs without the frames that are not wanted."""
    from research.data.frames import capture

    names = [*_names(settings["runs"]), *(f"-{name}" for name in _names(settings["not_runs"]))]
    unwanted = {key: settings[key] for key in ("empty", "missing", "invalid")}
    report = capture.prune(source, out, **unwanted, runs=names, progress=_progress())
    print(f"pruned:   {out}")
    print(f"  kept    {sum(report.runs.values())} frames of {len(report.runs)} runs")
    if report.runs_dropped:
        print(f"  without the runs {', '.join(report.runs_dropped)}")
    if report.dropped:
        print(f"  dropped {_format_counts(report.dropped)}; see {out / capture.REPORT}")
    print(f"next:     python -m research.prepare frames {out} OUT")


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
    report, samples = lint.lint(manifest, _progress())
    out = out or manifest.folder.parent / f"lint-{manifest.folder.name}"
    drawn = pictures.draw(samples)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, picture in drawn.items():
            picture.save(out / f"{name}.png")
    except OSError as error:
        raise UserError("out", f"{out}: {error.strerror or error}", "set out=FOLDER") from None
    for line in report.notes:
        print(line)
    for line in report.warnings:
        print(f"warning: {line}")
    for line in report.errors:
        print(f"error: {line}")
    print(f"{len(report.errors)} errors, {len(report.warnings)} warnings; pictures: {out}")
    return not report.errors


def _build(plan: BuildPlan, out: Path, settings: Mapping[str, Any]) -> Manifest:
    from research.data.warehouse.build import build

    return build(
        plan,
        out,
        shard_samples=settings["shard_samples"],
        workers=settings["workers"],
        progress=_progress(),
    )


def _limits(settings: Mapping[str, Any]) -> dict[str, float]:
    return {key: settings[key] for key in LIMITS if settings[key] is not None}


def _progress() -> ProgressCallback:
    from research.tracking.console import ConsoleTracker
    from research.tracking.tracker import Progress

    console = ConsoleTracker()
    return lambda what, done, total: console.progress(Progress(what, done, total, unit="files"))


def _has_subfolders(root: Path) -> bool:
    """True for a folder of classes; a class that is named train contains images instead."""
    return root.is_dir() and any(child.is_dir() for child in root.iterdir())


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.strip("[]").split(",") if name.strip()]


def _format_counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _print_summary(manifest: Manifest) -> None:
    print(f"prepared: {manifest.folder}")
    for split, ranges in manifest.splits.items():
        groups = sum(group.split == split for group in manifest.groups)
        samples = sum(stop - start for start, stop in ranges)
        print(f"  {split:5} {samples} samples of {groups} {'group' if groups == 1 else 'groups'}")
    if manifest.damage:
        print(f"  left out {_format_counts(manifest.damage)}")
    model = "tinydet"
    if manifest.kind == "coefficients":
        model = f"resnet34_compressed compression.window={manifest.transform['window']}"
    print(f"check:    python -m research.prepare lint {manifest.path}")
    settings = f"model={model} dataset=warehouse dataset.manifest={manifest.path}"
    print(f"next:     python train.py {settings}")


def main(words: list[str]) -> None:
    paths, settings = cli.split(words)
    if not paths:
        raise UserError("KIND", f"pass a KIND first: {', '.join(OPTIONS)}")
    kind = cli.choose("KIND", paths[0], list(OPTIONS))
    values = cli.typed(settings, OPTIONS[kind], f"prepare {kind}")
    expected = ["MANIFEST"] if kind == "lint" else ["SOURCE", "OUT"]
    if len(paths) - 1 != len(expected):
        raise UserError(expected[0], f"prepare {kind} takes {' and '.join(expected)}", "see --help")
    source = Path(paths[1])
    if not source.exists():
        raise UserError(expected[0], f"{source}: no such file or folder")
    if kind != "lint":
        out = Path(paths[2])
        if out.resolve().is_relative_to(source.resolve()):
            raise UserError("OUT", f"{out}: is inside the source", "pass an OUT outside it")
    # Imported late: mistakes are reported before torch is imported.
    from research.utils import logs

    logs.to_terminal()
    if kind == "lint":
        if not lint(source, Path(values["out"]) if values["out"] else None):
            raise SystemExit(1)
    elif kind in ("prune", "rgbx"):
        (prune if kind == "prune" else rgbx)(source, out, values)
    else:
        _print_summary((frames if kind == "frames" else coefficients)(source, out, values))


if __name__ == "__main__":
    cli.command(USAGE, main)
