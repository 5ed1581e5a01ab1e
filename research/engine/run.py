"""One training run: create or resume its folder, train, save checkpoints, record its status."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from research.data.transforms import DeviceTransform
from research.engine import build, checkpoint, run_folder
from research.engine.build import Config, Experiment
from research.engine.checkpoint import Checkpoints
from research.engine.interrupts import Interrupted, Interrupts
from research.engine.loop import EpochCallback, EvalResult, fit
from research.engine.loss_log import LossLog
from research.engine.state import TrainState
from research.engine.steps import check_weights
from research.tasks.task import Task
from research.tracking.console import ConsoleTracker
from research.tracking.files import FileTracker
from research.tracking.summary import SummaryTracker
from research.tracking.tracker import Position, Progress, Run, Status, Tracker, Trackers
from research.utils.conditions import explained
from research.utils.errors import UserError
from research.utils.files import write_text
from research.viz import pictures

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """The start of a run; the files that it starts from have been read and validated.

    Attributes:
        folder: the run folder; it exists.
        last: content of the checkpoint to resume from; None for a new run.
        weights: content of the file of ``init_from``, for a new run.
    """

    folder: Path
    last: dict[str, Any] | None = None
    weights: dict[str, Any] | None = None


def start(config: Mapping[str, Any], name: str) -> Start | None:
    """Create or resume a run folder and read the files that the run starts from.

    Returns:
        None if ``resume=auto`` finds in ``run_dir`` that this run is finished.

    Raises:
        UserError: if the run to resume has no checkpoint or has different settings, or if a file
            is refused.
    """
    if config["resume"] == "auto" and _is_done(config):
        log.info("resume=auto: %s is finished; nothing to do", config["run_dir"])
        return None
    folder = _resumed(config)
    if folder is not None:
        return resume(folder, config)
    weights = build.start_weights(config)
    return Start(run_folder.create(config, name), weights=weights)


def resume(folder: Path, config: Mapping[str, Any]) -> Start:
    """Resume the run in ``folder``.

    Raises:
        UserError: if its last checkpoint is refused or contains only weights.
    """
    path = checkpoint.find(folder, "last")
    if not run_folder.is_own(folder) and not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(
            "resume", f"resume={folder}: {path} is outside this folder", "copy it into the folder"
        )
    saved = checkpoint.load(path, config["trust"])
    if "optimizer" not in saved:
        raise UserError(
            "resume",
            f"resume: {path} contains only weights",
            f"pass the run folder, or start a new run with init_from={path}",
        )
    return Start(folder, saved)


def _is_done(config: Mapping[str, Any]) -> bool:
    """Whether ``run_dir`` has this run, and it is finished."""
    if config["run_dir"] is None:
        return False
    folder = Path(config["run_dir"])
    try:
        done = run_folder.is_finished(folder, config["epochs"])
        return done and not run_folder.changed(config, folder)
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return False  # `create` and `find_unfinished` say why


def _resumed(config: Mapping[str, Any]) -> Path | None:
    """The folder of the run to resume; None for a new run."""
    resume_from = config["resume"]
    if resume_from is None:
        return None
    if resume_from == "auto":
        unfinished = run_folder.find_unfinished(config, config["epochs"])
        if unfinished is None:
            log.info("resume=auto: no unfinished run of this configuration; starting a new one")
        return unfinished
    last = checkpoint.find(Path(resume_from), "last")
    folder = last.parent.parent
    # init_from may be omitted: the checkpoint already contains these weights.
    changed = [key for key in run_folder.changed(config, folder) if key != "init_from"]
    if changed:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise UserError(
            "resume",
            f"resume={folder}: {', '.join(changed[:5])}{more} not as in the run's config.yaml",
            f"use the run's settings, or start a new run from its weights with init_from={folder}",
        )
    return folder


class Pruner(Protocol):
    """Receives the monitored value of every epoch; sets ``stopped`` to end the run."""

    stopped: bool

    def epoch(self, epoch: int, value: float) -> None:
        """Called after epoch ``epoch`` (from 1) is logged and its checkpoint is written."""
        ...


class EpochEnd(EpochCallback):
    """At the end of an epoch: draw pictures and tables if it is the best, save, flush the tracker.

    Args:
        task: draws pictures and tables.
        metric: the monitored metric.
        checkpoints: writes the state.
        tracker: receives pictures and tables; flushed after the checkpoint is written.
        pruner: receives the value of ``metric`` of every epoch, and may stop the run.
        interrupts: signals that end the run after the current step.
        minutes: between two checkpoints within an epoch; None: only at its end.
    """

    def __init__(
        self,
        task: Task,
        metric: str,
        checkpoints: Checkpoints,
        tracker: Tracker,
        pruner: Pruner | None,
        interrupts: Interrupts,
        minutes: float | None,
    ) -> None:
        self.task = task
        self.metric = metric
        self.checkpoints = checkpoints
        self.tracker = tracker
        self.pruner = pruner
        self.interrupts = interrupts
        self.seconds = math.inf if minutes is None else 60 * minutes
        self.next_save = time.monotonic() + self.seconds

    def step(self, state: TrainState, losses: LossLog) -> None:
        if self.interrupts.requested or time.monotonic() >= self.next_save:
            state.epoch_losses = losses.state_dict()
            self._save(state)
        self.interrupts.check()

    @contextmanager
    def validation(self, state: TrainState) -> Iterator[None]:
        try:
            with self.interrupts.immediate():
                yield
        except Interrupted:
            self._save(state)
            raise

    def _save(self, state: TrainState, path: str = "", *, is_best: bool = False) -> None:
        """Write a checkpoint, of an epoch or (without ``path``) within one."""
        check_weights(state)
        state.tracking = self.tracker.state()
        self.checkpoints.save(state.state_dict(), path, is_best=is_best)
        self.tracker.flush()
        self.next_save = time.monotonic() + self.seconds

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
        self._save(state, row["checkpoint_path"], is_best=row["is_best"])
        self.replay(row)
        self.interrupts.check()


def draw(
    task: Task, transform: DeviceTransform, result: EvalResult, tracker: Tracker, epoch: int
) -> None:
    """Record the task's pictures and tables of an evaluated split, if it has a readable sample."""
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
        overrides: arguments of the command line, to be recorded.
        begin: from ``start``; its folder must be locked by this process.
        tags: for the trackers, in addition to those of the configuration.
        pruner: may end the run as ``PRUNED``.
    """
    console = ConsoleTracker()
    folder, resumed = begin.folder, begin.last is not None

    def again() -> str:
        if pruner is not None:
            return "run the command of the sweep again"
        saved = (folder / "checkpoints" / "last.pt").exists()
        return f"continue with resume={folder}" if saved else "run the command with resume=auto"

    with Interrupts() as interrupts, explained(build.limits(config), again):
        experiment = _build(config, begin, console)
        state, data = experiment.state, experiment.data
        source = data.name, data.fingerprint()
        environment = run_folder.describe(folder, config, overrides, source)
        tracker = _trackers(config, experiment, console)
        every_tag = _tags({**config["tags"], **(tags or {})}, source[1], environment)
        log.info("%s: %s, %s", "resuming" if resumed else "training", name, _describe(experiment))
        position = Position(state.epoch, state.samples // data.batch_size, state.step)
        run = Run(folder, name, config, every_tag, source, position, state.tracking)
        checkpoints = Checkpoints(folder / "checkpoints", config["save_every"], config["keep"])
        metric, minutes = experiment.monitor.metric, config["save_every_minutes"]
        end_epoch = EpochEnd(
            experiment.task, metric, checkpoints, tracker, pruner, interrupts, minutes
        )
        status: Status = "FAILED"
        try:
            with interrupts.deferred():
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
            log.info("interrupted %s; %s", _position(state), again())
            raise
        finally:
            with interrupts.deferred():
                tracker.finish(status)
    _log_locations(folder, state, metric, tracker)
    baseline = data.baseline()
    if baseline is not None:
        log.info("  baseline: %s", baseline)
    return state


def _build(config: dict[str, Any], begin: Start, console: ConsoleTracker) -> Experiment:
    """Build what the configuration describes, in the state from which the run starts."""

    def show_progress(what: str, done: int, total: int) -> None:
        console.progress(Progress(what, done, total, unit="files"))

    resumed = begin.last is not None
    experiment = build.experiment(
        _without_start_files(config) if resumed else config, show_progress, begin.weights
    )
    state = experiment.state
    state.config = config
    if begin.last is not None:
        state.load_state_dict(begin.last, begin.folder)
        log.info("resume: continuing %s in %s", _position(state), begin.folder)
    for content in (begin.last, begin.weights):
        if content is not None:
            content.clear()  # copied into the state; the caller's reference would keep the memory
    return experiment


def _position(state: TrainState) -> str:
    """How far a run is, in words."""
    after = f"after epoch {state.epoch}"
    return after if not state.samples else f"{after}, {state.samples} samples of the next"


def _without_start_files(config: Config) -> Config:
    """Remove ``init_from`` and ``model.pretrained``: the checkpoint has the weights."""
    pretrained = {"pretrained": None} if "pretrained" in config["model"] else {}
    return {**config, "init_from": None, "model": {**config["model"], **pretrained}}


def _trackers(config: dict[str, Any], experiment: Experiment, console: ConsoleTracker) -> Trackers:
    info = {
        "model": build.model_name(config),
        "parameters": experiment.parameters,
        "classes": experiment.data.classes,
        "monitor": list(experiment.monitor),
    }
    summary = SummaryTracker(info, experiment.state, config["patience"])
    return Trackers([FileTracker(), console, summary, *build.trackers(config)])


def _tags(own: Mapping[str, Any], data_hash: str, environment: Mapping[str, Any]) -> dict[str, str]:
    """The user's tags and the versions of data, code and packages."""
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
    header = {name: content[name] for name in ("config", "data", "transform")}
    header["state"] = {**content["state"], "history": state.history[-1:]}
    weights = folder / "checkpoints" / "final.safetensors"
    checkpoint.save_weights(state.export_model, weights, header)
    tracker.pictures(state.epoch, {"learning_curves": pictures.learning_curves(state.history)})
    files = ("config.yaml", "overrides.yaml", "environment.json", "model_summary.txt")
    for file in (*files, "epoch_metrics.csv", "checkpoints/best.pt"):
        tracker.artifact(folder / file)


def _describe(experiment: Experiment) -> str:
    data = experiment.data
    counts = ", ".join(f"{samples} {name}" for name, (samples, _) in data.counts().items())
    skipped = {
        f"{kind} in {name}": count
        for name, (_, kinds) in data.counts().items()
        for kind, count in sorted(kinds.items())
    }
    skipped_text = "; skipped: " + ", ".join(f"{n} {kind}" for kind, n in skipped.items())
    classes = f"{len(data.classes)} classes, " if data.classes else ""
    return (
        f"{experiment.parameters:,} parameters on {experiment.device}; "
        f"{data.name}: {classes}{counts} samples{skipped_text if skipped else ''}"
    )


def _model_summary(model: nn.Module, parameters: int) -> str:
    lines = [
        f"{sum(p.numel() for p in child.parameters()):>12,}  {name}"
        for name, child in model.named_modules()
        if name and name.count(".") < 2 and any(True for _ in child.parameters())
    ]
    return "\n".join([f"{parameters:>12,}  trainable parameters in total", *lines, "", str(model)])


def _log_locations(folder: Path, state: TrainState, metric: str, tracker: Tracker) -> None:
    log.info("best %s %s at epoch %d", metric, _number(state.best), state.best_epoch)
    for line in (f"run:      {folder}", f"pictures: {folder / 'pictures'}", *tracker.locations()):
        log.info("  %s", line)


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
