"""One training run: its folder, resume, trackers, checkpoints, and how it ends."""

from __future__ import annotations

import logging
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from torch import nn

from research.data.transforms import DeviceTransform
from research.engine import build, checkpoint, run_folder
from research.engine.build import Config, Experiment
from research.engine.checkpoint import Checkpoints
from research.engine.loop import EpochCallback, EvalResult, fit
from research.engine.state import TrainState
from research.tasks.task import Task
from research.tracking.console import ConsoleTracker
from research.tracking.files import FileTracker
from research.tracking.summary import SummaryTracker
from research.tracking.tracker import Progress, Run, Status, Tracker, Trackers
from research.utils.errors import UserError
from research.utils.files import write_text
from research.viz import pictures

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """Where a run begins. The files that it starts from have been read and are valid.

    Attributes:
        folder: of the run, existing.
        last: content of the checkpoint to resume from; ``None`` for a new run.
        weights: content of the file that ``init_from`` names, for a new run.
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


class Pruner(Protocol):
    """Sees the monitored value of every epoch; ends the run by setting ``stopped``."""

    stopped: bool

    def epoch(self, epoch: int, value: float) -> None:
        """Epoch ``epoch``, counted from 1, is recorded and its checkpoint written."""
        ...


class EpochEnd(EpochCallback):
    """What a run does at an epoch's end: pictures and tables of a best epoch, checkpoint, records.

    Args:
        task: draws.
        metric: the monitored one.
        checkpoints: writes the state.
        tracker: takes pictures and tables; is flushed after the checkpoint.
        pruner: sees every epoch's value of ``metric``, and may stop the run.
    """

    def __init__(
        self,
        task: Task,
        metric: str,
        checkpoints: Checkpoints,
        tracker: Tracker,
        pruner: Pruner | None,
    ) -> None:
        self.task = task
        self.metric = metric
        self.checkpoints = checkpoints
        self.tracker = tracker
        self.pruner = pruner

    @property
    def stop(self) -> bool:
        return self.pruner is not None and self.pruner.stopped

    def replay(self, row: Mapping[str, Any]) -> None:
        if self.pruner is not None:
            self.pruner.epoch(row["epoch"], row[self.metric])

    def checkpoint_path(self, epoch: int, loss: float, *, is_best: bool) -> str:
        return self.checkpoints.path_for(epoch, loss, is_best=is_best)

    def __call__(self, state: TrainState, row: Mapping[str, Any], result: EvalResult) -> None:
        if row["is_best"]:
            draw(self.task, state.transform, result, self.tracker, state.epoch)
        state.tracking = self.tracker.state()
        self.checkpoints.save(state.state_dict(), row["checkpoint_path"], is_best=row["is_best"])
        self.tracker.flush()
        self.replay(row)


def draw(
    task: Task, transform: DeviceTransform, result: EvalResult, tracker: Tracker, epoch: int
) -> None:
    """The task's pictures and tables of an evaluated split, if a sample could be read."""
    if result.first is not None:
        images = task.pictures(result.totals, *result.first, transform.to_images)
        tracker.pictures(epoch, images)
        tracker.tables(epoch, task.tables(result.totals, transform.names))


def train(
    config: dict[str, Any],
    name: str,
    overrides: Sequence[str],
    begin: Start,
    tags: Mapping[str, str] | None = None,
    pruner: Pruner | None = None,
) -> TrainState:
    """Build, fit and record one run.

    Args:
        config: resolved and checked configuration.
        name: the run's name.
        overrides: the words of the command line, for the record.
        begin: from ``start``; its folder is locked by this process.
        tags: for the trackers, beside those of the configuration.
        pruner: sees every epoch, and may end the run as ``PRUNED``.
    """
    console = ConsoleTracker()

    def preparing(what: str, done: int, total: int) -> None:
        console.progress(Progress(what, done, total, unit="files"))

    folder, resumed = begin.folder, begin.last is not None
    experiment = build.experiment(
        _without_start_files(config) if resumed else config, preparing, begin.weights
    )
    state, data = experiment.state, experiment.data
    state.config = config
    if begin.last is not None:
        state.load_state_dict(begin.last, folder)
        log.info("resume: going on after epoch %d in %s", state.epoch, folder)
    for content in (begin.last, begin.weights):
        if content is not None:
            content.clear()  # it is in the model now; the caller would keep it in memory
    source = data.name, data.fingerprint()
    environment = run_folder.describe(folder, config, overrides, source)
    tracker = _trackers(config, experiment, console)
    every_tag = _tags({**config["tags"], **(tags or {})}, source[1], environment)
    log.info("%s: %s, %s", "resuming" if resumed else "training", name, _describe(experiment))
    run = Run(folder, name, config, every_tag, source, resumed=state.epoch, state=state.tracking)
    checkpoints = Checkpoints(folder / "checkpoints", config["save_every"], config["keep"])
    end_epoch = EpochEnd(experiment.task, experiment.monitor.metric, checkpoints, tracker, pruner)
    status: Status = "FAILED"
    terminate_as_interrupt()
    try:
        tracker.start(run)
        summary = _model_summary(state.model, experiment.parameters)
        write_text(folder / "model_summary.txt", summary)
        fit(
            state,
            experiment.task,
            experiment.train,
            experiment.val,
            experiment.monitor,
            experiment.cfg,
            experiment.device,
            tracker,
            end_epoch,
        )
        _finish_files(folder, state, tracker)
        status = "PRUNED" if end_epoch.stop else "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        how = f"resume={folder}" if pruner is None else "the command of the sweep"
        log.info("interrupted after epoch %d; go on with %s", state.epoch, how)
        raise
    finally:
        tracker.finish(status)
    _say_where(folder, state, experiment.monitor.metric, tracker)
    baseline = data.baseline()
    if baseline is not None:
        log.info("  baseline: %s", baseline)
    return state


def _without_start_files(config: Config) -> Config:
    """Without the files that a run started from: its own checkpoint has all their weights."""
    pretrained = {"pretrained": None} if "pretrained" in config["model"] else {}
    return {**config, "init_from": None, "model": {**config["model"], **pretrained}}


def _trackers(config: dict[str, Any], experiment: Experiment, console: ConsoleTracker) -> Trackers:
    about = {
        "model": build.model_name(config),
        "parameters": experiment.parameters,
        "classes": experiment.data.classes,
        "monitor": list(experiment.monitor),
    }
    summary = SummaryTracker(about, experiment.state, config["patience"])
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


def _finish_files(folder: Path, state: TrainState, tracker: Tracker) -> None:
    content = state.state_dict()
    about = {name: content[name] for name in ("config", "data", "transform")}
    about["state"] = {**content["state"], "history": state.history[-1:]}
    weights = folder / "checkpoints" / "final.safetensors"
    checkpoint.save_weights(state.export_model, weights, about)
    tracker.pictures(state.epoch, {"learning_curves": pictures.learning_curves(state.history)})
    files = ("config.yaml", "overrides.yaml", "environment.json", "model_summary.txt")
    for file in (*files, "epoch_metrics.csv", "checkpoints/best.pt"):
        tracker.artifact(folder / file)


def _describe(experiment: Experiment) -> str:
    data = experiment.data
    counts = ", ".join(f"{samples} {name}" for name, (samples, _) in data.counts().items())
    left_out = {
        f"{kind} in {name}": count
        for name, (_, kinds) in data.counts().items()
        for kind, count in sorted(kinds.items())
    }
    damage = "; left out: " + ", ".join(f"{n} {kind}" for kind, n in left_out.items())
    classes = f"{len(data.classes)} classes, " if data.classes else ""
    return (
        f"{experiment.parameters:,} parameters on {experiment.device}; "
        f"{data.name}: {classes}{counts} samples{damage if left_out else ''}"
    )


def _model_summary(model: nn.Module, parameters: int) -> str:
    lines = [
        f"{sum(p.numel() for p in child.parameters()):>12,}  {name}"
        for name, child in model.named_modules()
        if name and name.count(".") < 2 and any(True for _ in child.parameters())
    ]
    return "\n".join([f"{parameters:>12,}  trainable parameters in all", *lines, "", str(model)])


def _say_where(folder: Path, state: TrainState, metric: str, tracker: Tracker) -> None:
    log.info("best %s %s at epoch %d", metric, _number(state.best), state.best_epoch)
    for line in (f"run:      {folder}", f"pictures: {folder / 'pictures'}", *tracker.locations()):
        log.info("  %s", line)


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


def terminate_as_interrupt() -> None:
    """SIGTERM, as schedulers send it, ends a run as Ctrl-C does: recorded as KILLED, resumable."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
