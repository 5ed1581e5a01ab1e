"""Data prepared ahead of time: ``python -m research.prepare KIND SOURCE OUT``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.config import cli
from research.data.prepare_options import LIMITS, OPTIONS, USAGE
from research.utils.errors import UserError

if TYPE_CHECKING:
    from research.data.index import ProgressCallback
    from research.data.warehouse.build import Plan
    from research.data.warehouse.manifest import Manifest


def frames(source: Path, out: Path, settings: Mapping[str, Any]) -> Manifest:
    """Letterboxed frames with boxes, from whatever format ``source`` has.

    Raises:
        UserError: for an unusable source, a threshold that is exceeded, or a full disk.
    """
    from research.data.frames.annotations import read_frames
    from research.data.frames.limits import hold
    from research.data.warehouse import recipes

    found = read_frames(source)
    limits = _limits(settings)
    hold(found, limits)
    splits = recipes.assign_splits(
        {frame.group for frame in found.frames},
        found.split,
        val=settings["val"],
        test=settings["test"],
        seed=settings["seed"],
        named={"val": _names(settings["val_runs"]), "test": _names(settings["test_runs"])},
    )
    recipe = recipes.FrameRecipe(settings["size"], settings["max_boxes"])
    return _build(recipes.plan_frames(found, recipe, splits, limits), out, settings)


def coefficients(source: Path, out: Path, settings: Mapping[str, Any]) -> Manifest:
    """Whole images as DCT coefficients with labels.

    Raises:
        UserError: for folders that cannot be read as classes, or a full disk.
    """
    from research.config import compose_config, resolved
    from research.data.folder import ImageFolders
    from research.data.warehouse import recipes
    from research.engine import build

    roots = {split: source / split for split in ("train", "val", "test")}
    roots = {split: root for split, root in roots.items() if _holds_folders(root)}
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
    recipe = recipes.CoefficientRecipe(
        settings["image_size"], settings["compression.window"], settings["compression.source"]
    )
    return _build(recipes.plan_folders(folders, source, recipe), out, settings)


def rgbx(source: Path, out: Path, settings: Mapping[str, Any]) -> None:
    """Frames whose modalities lie in folders of their own, as one array each.

    Raises:
        UserError: for an unusable source, a threshold that is exceeded, an OUT with other
            content, or a full disk.
    """
    from research.data.frames.limits import hold
    from research.data.rgbx.pack import pack
    from research.data.rgbx.pairs import Pairs, find_folders

    pairs = Pairs(source, find_folders(source, settings))
    found = pairs.read(settings["missing_labels"] == "error")
    judge = partial(hold, limits=_limits(settings))
    judge(found)
    made = pack(found, pairs, out, judge, settings["workers"], _progress())
    counts = dict(made["counts"])
    print(f"prepared: {out}")
    print(f"  {counts.pop('frames')} frames of {' '.join(made['channels'])}, {made['dtype']}")
    print(f"  {counts.pop('boxes')} boxes: {_listed(made['classes'])}")
    print(f"  {_listed({key.replace('_', ' '): count for key, count in counts.items()})}")
    print(f"next:     python train.py model=rgbx_mit_b0 dataset=rgbx dataset.root={out}")


def prune(source: Path, out: Path, settings: Mapping[str, Any]) -> None:
    """A copy of capture runs without the frames that are not wanted."""
    from research.data.frames import capture

    names = [*_names(settings["runs"]), *(f"-{name}" for name in _names(settings["not_runs"]))]
    unwanted = {key: settings[key] for key in ("empty", "missing", "invalid")}
    report = capture.prune(source, out, **unwanted, runs=names, progress=_progress())
    print(f"pruned:   {out}")
    print(f"  kept    {sum(report.runs.values())} frames of {len(report.runs)} runs")
    if report.runs_dropped:
        print(f"  without the runs {', '.join(report.runs_dropped)}")
    if report.dropped:
        print(f"  dropped {_listed(report.dropped)}; see {out / capture.REPORT}")
    print(f"next:     python -m research.prepare frames {out} OUT")


def lint(path: Path, out: Path | None) -> bool:
    """Print what is found in a store, and draw it.

    Returns:
        whether it is free of errors.

    Raises:
        UserError: when there is no store, or no place for the pictures.
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
        raise UserError("out", f"{out}: {error.strerror or error}", "give out=FOLDER") from None
    for line in report.notes:
        print(line)
    for line in report.warnings:
        print(f"warning: {line}")
    for line in report.errors:
        print(f"error: {line}")
    print(f"{len(report.errors)} errors, {len(report.warnings)} warnings; pictures: {out}")
    return not report.errors


def _build(plan: Plan, out: Path, settings: Mapping[str, Any]) -> Manifest:
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


def _holds_folders(root: Path) -> bool:
    """True for a folder of classes; a class that happens to be called train holds images."""
    return root.is_dir() and any(child.is_dir() for child in root.iterdir())


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.strip("[]").split(",") if name.strip()]


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _say(manifest: Manifest) -> None:
    print(f"prepared: {manifest.folder}")
    for split, ranges in manifest.splits.items():
        groups = sum(group.split == split for group in manifest.groups)
        samples = sum(stop - start for start, stop in ranges)
        print(f"  {split:5} {samples} samples of {groups} {'group' if groups == 1 else 'groups'}")
    if manifest.damage:
        print(f"  left out {_listed(manifest.damage)}")
    model = "tinydet"
    if manifest.kind == "coefficients":
        model = f"resnet34_compressed compression.window={manifest.transform['window']}"
    print(f"look:     python -m research.prepare lint {manifest.path}")
    settings = f"model={model} dataset=warehouse dataset.manifest={manifest.path}"
    print(f"next:     python train.py {settings}")


def main(words: list[str]) -> None:
    paths, settings = cli.split(words)
    if not paths:
        raise UserError("SOURCE", f"give a KIND first: {', '.join(OPTIONS)}")
    kind = cli.choose("KIND", paths[0], list(OPTIONS))
    values = cli.typed(settings, OPTIONS[kind], f"prepare {kind}")
    wanted = ["MANIFEST"] if kind == "lint" else ["SOURCE", "OUT"]
    if len(paths) - 1 != len(wanted):
        raise UserError("SOURCE", f"prepare {kind} takes {' and '.join(wanted)}", "see --help")
    source = Path(paths[1])
    if not source.exists():
        raise UserError("SOURCE", f"{source}: no such file or folder")
    if kind != "lint":
        out = Path(paths[2])
        if out.resolve().is_relative_to(source.resolve()):
            raise UserError("SOURCE", f"{out}: lies in the source", "give an OUT beside it")
    # Imported late: a mistake is answered before torch is there.
    from research.utils import logs

    logs.to_terminal()
    if kind == "lint":
        if not lint(source, Path(values["out"]) if values["out"] else None):
            raise SystemExit(1)
    elif kind in ("prune", "rgbx"):
        (prune if kind == "prune" else rgbx)(source, out, values)
    else:
        _say((frames if kind == "frames" else coefficients)(source, out, values))


if __name__ == "__main__":
    cli.command(USAGE, main)
