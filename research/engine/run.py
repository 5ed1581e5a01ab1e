"""One training run from its first line to its last: folder, resume, trackers, ending."""

from __future__ import annotations

import logging
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from torch import nn

from research.engine import build, checkpoint, run_folder
from research.engine.build import Config
from research.engine.checkpoint import Checkpoints
from research.engine.loop import Parts, State, Watch, fit
from research.tracking.console import ConsoleTracker
from research.tracking.files import FileTracker
from research.tracking.summary import SummaryTracker
from research.tracking.tracker import Progress, Run, Status, Trackers
from research.utils.errors import UserError, one_line
from research.utils.files import write_text
from research.viz import pictures

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """Where a run begins; what it goes on from has been read, so that nothing is written in vain.

    Attributes:
        folder: of the run, existing.
        last: content of the checkpoint to go on from; null for a run that begins.
        weights: content of the file that ``init_from`` names, for a run that begins.
    """

    folder: Path
    last: dict[str, Any] | None = None
    weights: dict[str, Any] | None = None


def start(config: Mapping[str, Any], name: str) -> Start:
    """The run folder, and what an earlier run left to go on from.

    Raises:
        UserError: when the run to resume has no checkpoint or other settings, or a file that is
            to be read is refused.
    """
    folder = _resumed(config)
    if folder is not None:
        return resume(folder, config)
    weights = build.start_weights(config)
    return Start(run_folder.create(config, name), weights=weights)


def resume(folder: Path, config: Mapping[str, Any]) -> Start:
    """A run that goes on in its folder.

    Raises:
        UserError: when its last checkpoint is refused, or holds the weights alone.
    """
    path = checkpoint.find(folder, "last")
    if not run_folder.is_own(folder) and not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(
            "resume", f"resume={folder}: {path} leads out of this folder", "copy it into it"
        )
    saved = checkpoint.load(path, config["trust"])
    if "optimizer" not in saved:
        raise UserError(
            "resume",
            f"resume: {path} holds the weights alone",
            f"give the run folder, or start a new run with init_from={path}",
        )
    return Start(folder, saved)


def _resumed(config: Mapping[str, Any]) -> Path | None:
    """The folder of the run that is asked to go on."""
    asked = config["resume"]
    if asked is None:
        return None
    if asked == "auto":
        found = run_folder.find_unfinished(config, config["epochs"])
        if found is None:
            log.info("resume=auto: no unfinished run of this configuration; starting afresh")
        return found
    last = checkpoint.find(Path(asked), "last")
    folder = last.parent.parent
    # What it started from is long in its weights, and need not be said again.
    changed = [key for key in run_folder.changed(config, folder) if key != "init_from"]
    if changed:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise UserError(
            "resume",
            f"resume={folder}: {', '.join(changed[:5])}{more} not as in the run's config.yaml",
            f"a run goes on with its own settings, init_from={folder} starts a new one from it",
        )
    return folder


def train(
    config: dict[str, Any],
    name: str,
    overrides: Sequence[str],
    begin: Start,
    tags: Mapping[str, str] | None = None,
    watch: Watch | None = None,
) -> State:
    """Build, fit and record one run.

    Args:
        config: resolved and checked configuration.
        name: the run's name.
        overrides: what the command line said, for the record.
        begin: from ``start``; its folder is held by this process.
        tags: for the trackers, beside those of the configuration.
        watch: sees every epoch, and may end the run as ``PRUNED``.
    """
    console = ConsoleTracker()

    def preparing(what: str, done: int, total: int) -> None:
        console.progress(Progress(what, done, total, unit="files"))

    folder, last = begin.folder, begin.last
    plan = config if last is None else _going_on(config)
    experiment = build.experiment(plan, preparing, begin.weights)
    parts, data = experiment.parts, experiment.data
    state, tracking = _restore(experiment, begin)
    for content in (begin.last, begin.weights):
        if content is not None:
            content.clear()  # it has gone into the model; the caller would keep it in memory
    source = data.name, data.fingerprint()
    environment = run_folder.describe(folder, config, overrides, source)
    tracker = _trackers(config, experiment, state, console)
    every_tag = _tags({**config["tags"], **(tags or {})}, source[1], environment)
    log.info("%s: %s, %s", "training" if last is None else "resuming", name, _describe(experiment))
    run = Run(folder, name, config, every_tag, source, resumed=state.epoch, state=tracking)
    header = {"config": config, "data": data.metadata()}
    checkpoints = Checkpoints(folder / "checkpoints", header, config["save_every"], config["keep"])
    status: Status = "FAILED"
    terminate_as_interrupt()
    try:
        tracker.start(run)
        write_text(folder / "model_summary.txt", _model_summary(parts.model, experiment.parameters))
        fit(parts, experiment.settings, state, tracker, checkpoints, watch)
        _finish_files(folder, parts, header, state, tracker)
        status = "FINISHED" if watch is None or not watch.stopped else "PRUNED"
    except KeyboardInterrupt:
        status = "KILLED"
        how = f"resume={folder}" if watch is None else "the command of the sweep"
        log.info("interrupted after epoch %d; go on with %s", state.epoch, how)
        raise
    finally:
        tracker.finish(status)
    _say_where(folder, state, parts.monitor.metric, tracker)
    floor = data.baseline()
    if floor is not None:
        log.info("  floor:    %s", floor)
    return state


def _going_on(config: Config) -> Config:
    """Without the files that a run started from: its own checkpoint says all that they did."""
    pretrained = {"pretrained": None} if "pretrained" in config["model"] else {}
    return {**config, "init_from": None, "model": {**config["model"], **pretrained}}


def _restore(experiment: build.Experiment, begin: Start) -> tuple[State, dict[str, str]]:
    """Put everything back where the checkpoint left it; the trackers' state is handed on."""
    if begin.last is None:
        return State(), {}
    parts, saved, folder = experiment.parts, begin.last, begin.folder
    build.load_weights(parts.model, saved["model"], f"resume: {folder}")
    try:
        parts.transform.load_state_dict(saved["transform"])
        if parts.ema is not None:
            build.load_weights(parts.ema.module, saved["ema"], f"resume: {folder}")
        parts.optimizer.load_state_dict(saved["optimizer"])
        for name, part in (("scheduler", parts.scheduler), ("scaler", parts.scaler)):
            own = part.state_dict()
            # They would take over whatever it holds; another torch may have had other keys.
            known = {key: value for key, value in saved[name].items() if key in own}
            lacking = "last_epoch" in own and "last_epoch" not in known
            if lacking or not _alike(known, {key: own[key] for key in known}):
                raise ValueError(f"{name} is of another form")
            part.load_state_dict({**own, **known})
        state = State(**saved["state"])
        checkpoint.set_rng_state(saved["rng"])
        tracking = {str(key): str(value) for key, value in saved["tracking"].items()}
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise UserError(
            "resume",
            f"resume: {folder}: its last checkpoint is damaged ({one_line(error)})",
            f"start a new run with init_from={folder}",
        ) from error
    log.info("resume: going on after epoch %d in %s", state.epoch, folder)
    return state, tracking


def _alike(one: Any, two: Any) -> bool:
    """Whether two plain values have the same keys, lengths and kinds of values."""
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(_alike(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        return len(one) == len(two) and all(map(_alike, one, two))
    numbers = (int, float)
    return type(one) is type(two) or (type(one) in numbers and type(two) in numbers)


def _trackers(
    config: dict[str, Any], experiment: build.Experiment, state: State, console: ConsoleTracker
) -> Trackers:
    about = {
        "model": build.model_name(config),
        "parameters": experiment.parameters,
        "classes": experiment.data.classes,
        "monitor": list(experiment.parts.monitor),
    }
    summary = SummaryTracker(about, state, config["patience"])
    return Trackers([FileTracker(), console, summary, *build.trackers(config)])


def _tags(own: Mapping[str, Any], data_hash: str, environment: Mapping[str, Any]) -> dict[str, str]:
    """The user's tags, and what a run stands on: data, code and packages."""
    tags = {
        **own,
        "data_hash": data_hash,
        "git_commit": environment["git"].get("commit", ""),
        "git_changed": environment["git"].get("changed", ""),
        **{f"version.{name}": version for name, version in environment["packages"].items()},
    }
    return {key: str(value) for key, value in tags.items()}


def _finish_files(
    folder: Path, parts: Parts, header: Mapping[str, Any], state: State, tracker: Trackers
) -> None:
    about = {
        **header,
        "transform": parts.transform.state_dict(),
        "state": {**vars(state), "history": state.history[-1:]},
    }
    checkpoint.save_weights(parts.kept, folder / "checkpoints" / "final.safetensors", about)
    tracker.pictures(state.epoch, {"learning_curves": pictures.learning_curves(state.history)})
    files = ("config.yaml", "overrides.yaml", "environment.json", "model_summary.txt")
    for file in (*files, "epoch_metrics.csv", "checkpoints/best.pt"):
        tracker.artifact(folder / file)


def _describe(experiment: build.Experiment) -> str:
    parts, data = experiment.parts, experiment.data
    counts = ", ".join(f"{samples} {name}" for name, (samples, _) in data.counts().items())
    left_out = {
        f"{kind} in {name}": count
        for name, (_, kinds) in data.counts().items()
        for kind, count in sorted(kinds.items())
    }
    damage = "; left out: " + ", ".join(f"{n} {kind}" for kind, n in left_out.items())
    classes = f"{len(data.classes)} classes, " if data.classes else ""
    return (
        f"{experiment.parameters:,} parameters on {parts.device}; "
        f"{data.name}: {classes}{counts} samples{damage if left_out else ''}"
    )


def _model_summary(model: nn.Module, parameters: int) -> str:
    lines = [
        f"{sum(p.numel() for p in child.parameters()):>12,}  {name}"
        for name, child in model.named_modules()
        if name and name.count(".") < 2 and any(True for _ in child.parameters())
    ]
    return "\n".join([f"{parameters:>12,}  trainable parameters in all", *lines, "", str(model)])


def _say_where(folder: Path, state: State, metric: str, tracker: Trackers) -> None:
    log.info("best %s %s at epoch %d", metric, _number(state.best), state.best_epoch)
    for line in (f"run:      {folder}", f"pictures: {folder / 'pictures'}", *tracker.where()):
        log.info("  %s", line)


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


def terminate_as_interrupt() -> None:
    """A scheduler's SIGTERM ends a run as Ctrl-C does: recorded as KILLED, resumable."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
