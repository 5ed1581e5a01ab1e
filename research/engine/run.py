"""One training run: create or resume its folder, train, save checkpoints, record its status."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from research.config import run_files
from research.config.batch_sizes import check_batch_size
from research.config.compose import config_dir
from research.config.overrides import override, train_command
from research.config.resume import merged, words_to_resume
from research.config.rules import ALL
from research.engine import (
    build,
    checkpoint,
    description,
    distributed,
    evaluation,
    initial_weights,
    overview,
    run_folder,
)
from research.engine.build import Config, Experiment
from research.engine.checkpoint import Checkpoints
from research.engine.epoch_end import EpochEnd, Pruner
from research.engine.interrupts import Interrupts
from research.engine.loop import fit
from research.engine.resume import Start, check_data, resume, set_back
from research.engine.state import TrainState
from research.tracking.console import ConsoleTracker
from research.tracking.evaluations import Evaluation
from research.tracking.files import FileTracker
from research.tracking.summary import SummaryTracker
from research.tracking.tracker import Position, Run, Status, Tracker, Trackers
from research.utils import garbage, logs
from research.utils.allocator import keep_freed_memory
from research.utils.conditions import explained
from research.utils.counts import with_n
from research.utils.errors import UserError
from research.utils.files import remove_leftovers, write_text
from research.utils.progress import contained
from research.viz.curves import learning_curves

log = logging.getLogger(__name__)


def start(config: Mapping[str, Any], name: str, overrides: Sequence[str] = ()) -> Start | None:
    """As ``_start`` in the main process; the others read the same files."""
    begin = _start(config, name, overrides) if distributed.is_main() else None
    shared = None if begin is None else replace(begin, last=None, weights=None, new=None)
    shared = distributed.broadcast(shared)
    if distributed.is_main() or shared is None or shared.checkpoint is None:
        return begin or shared
    return replace(shared, last=checkpoint.load(shared.checkpoint, config["trust"]))


def _start(config: Mapping[str, Any], name: str, overrides: Sequence[str]) -> Start | None:
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
    run = _resumed(config)
    if run is not None:
        return resume(run, config)
    check_batch_size(config, overrides, distributed.count())
    weights = initial_weights.read(config)
    new = run_folder.create(config, name)
    return Start(new.path, weights=weights, new=new)


@contextmanager
def opened(begin: Start, rank: int = 0) -> Iterator[None]:
    """Lock the folder of a run and log to it; of a run that does not begin, nothing remains.

    Args:
        begin: from ``start``.
        rank: of this process among those of the run.
    """
    lock = run_folder.watching if rank else run_folder.run_lock
    with lock(begin.folder):
        try:
            with logs.to_file(begin.folder, rank):
                yield
        finally:
            begin.settle()  # under the lock: what another process writes there is not removed


def _is_done(config: Mapping[str, Any]) -> bool:
    """Whether ``run_dir`` has this run, and it is finished."""
    if config["run_dir"] is None:
        return False
    folder = Path(config["run_dir"])
    try:
        done = run_folder.is_finished(folder, config)
        return done and not run_folder.changed(config, folder)
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return False  # `create` and `find_unfinished` say why


def _resumed(config: Mapping[str, Any]) -> Path | None:
    """The folder or checkpoint of the run to resume; None for a new run."""
    resume_from = config["resume"]
    if resume_from is None:
        return None
    if resume_from == "auto":
        unfinished = run_folder.find_unfinished(config, config["epochs"])
        if unfinished is None:
            log.info("resume=auto: no unfinished run of this configuration; starting a new one")
        return unfinished
    return Path(resume_from)


@contained()
def train(
    config: dict[str, Any],
    name: str,
    overrides: Sequence[str],
    begin: Start,
    tags: Mapping[str, str] | None = None,
    pruner: Pruner | None = None,
    callback: Callable[..., EpochEnd] | None = None,
) -> TrainState:
    """Build, fit and record one run; of several processes, the main one records.

    Args:
        config: resolved and checked configuration.
        name: of a new run; one that is resumed keeps its own.
        overrides: arguments of the command line, to be recorded.
        begin: from ``start``; its folder must be ``opened``. If the run is refused before its first
            batch is trained, nothing of it remains.
        tags: for the trackers, in addition to those of the configuration.
        pruner: may end the run as ``PRUNED``.
        callback: takes the arguments of ``EpochEnd``; None: ``EpochEnd``.
    """
    keep_freed_memory()
    try:
        return _train(config, name, overrides, begin, tags, pruner, callback)
    finally:
        begin.settle()


def _train(
    config: dict[str, Any],
    name: str,
    overrides: Sequence[str],
    begin: Start,
    tags: Mapping[str, str] | None,
    pruner: Pruner | None,
    callback: Callable[..., EpochEnd] | None,
) -> TrainState:
    console = ConsoleTracker()
    folder, resumed = begin.folder, begin.last is not None
    is_main = distributed.is_main()
    if resumed:
        name = run_files.name(folder)
    if is_main:
        remove_leftovers(*(folder / part for part in ("", "checkpoints", "pictures", "tables")))

    is_trial = pruner is not None
    again = partial(_how_to_continue, folder, config, overrides, is_trial=is_trial)
    several = distributed.count() > 1
    # Explained after its handlers have ended: the launcher may send a signal meanwhile.
    limits, saved = build.limits(config), partial(_is_saved, folder)
    with explained(limits, again, saved), Interrupts(repeated=several) as interrupts:
        experiment = _build(config, begin)
        state, data = experiment.state, experiment.data
        source = data.name, data.fingerprint()
        check_data(begin, source[1])
        tracker = _trackers(config, experiment, console) if is_main else Tracker()
        checkpoints = Checkpoints(
            folder / "checkpoints",
            config["save_every"],
            None if config["keep"] == ALL else config["keep"],
            begin.checkpoint,
        )
        if resumed:  # from its checkpoint, so nothing was loaded
            experiment.weights += run_folder.start_weights(folder)
        if begin.earlier is not None:
            set_back(begin.earlier, state, experiment.monitor, checkpoints, tracker)
        if resumed and is_main:
            checkpoints.drop_after(state.epoch)
        metric, minutes = experiment.monitor.metric, config["save_every_minutes"]
        end_epoch = (callback or EpochEnd)(
            experiment.task, metric, checkpoints, tracker, pruner, interrupts, minutes
        )
        status: Status = "FAILED"
        evaluated: Evaluation | None = None
        try:
            with interrupts.deferred():
                if is_main:
                    own = {**config["tags"], **(tags or {})}
                    _record_start(folder, name, overrides, own, source, experiment, tracker)
                    overview.log_start(folder, name, experiment, tracker, resumed=resumed)
                if resumed:
                    end_epoch.correct_paths(state, all_rows=True)
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
                _finish_files(folder, state, data.unit, tracker)
                if not end_epoch.stop:
                    with interrupts.immediate():
                        evaluated = evaluation.at_end(experiment, folder, tracker)
            status = "PRUNED" if end_epoch.stop else "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            log.info("interrupted %s; %s", _position(state), again())
            raise
        finally:
            with interrupts.deferred():
                begin.look(state)
                tracker.finish(status) if begin.has_begun else tracker.discard()
    overview.log_end(folder, experiment, tracker, evaluated, is_trial=is_trial)
    return state


def _build(config: dict[str, Any], begin: Start) -> Experiment:
    """Build what the configuration describes, in the state from which the run starts."""
    # The main process prepares the data; the others find them. The model's library is imported.
    with distributed.main_first(), garbage.paused():
        experiment = build.experiment(_to_build(config, begin), begin.weights)
    state = experiment.state
    state.config = config
    if begin.last is not None:
        loader, most = experiment.train, experiment.cfg.max_train_batches
        samples = min(len(loader), most or len(loader)) * loader.global_batch
        state.load_state_dict(begin.last, begin.folder, samples, experiment.monitor.metric)
        state.global_batch = loader.global_batch  # 0 in checkpoints of earlier versions
        log.info("resume: continuing %s in %s", _position(state), begin.folder)
        if state.epoch >= config["epochs"]:
            log.info("no epoch is left; add epochs=%d to train longer", 2 * state.epoch)
    for content in (begin.last, begin.weights):
        if content is not None:
            content.clear()  # copied into the state; the caller's reference would keep the memory
    return experiment


def _how_to_continue(folder: Path, config: Config, words: Sequence[str], *, is_trial: bool) -> str:
    """What to do after an error or an interruption: the command.

    Args:
        folder: of the run.
        config: of the run.
        words: of the command line that started it.
        is_trial: whether it is a trial of a sweep.
    """
    if is_trial:
        return "run the command of the sweep again"
    if _is_saved(folder):
        words = [override("resume", str(folder)), *words_to_resume(folder, config)]
        return f"continue with {train_command(words)}"
    words = merged(words, ["resume=auto"])
    return f"continue with {train_command(words, own=config_dir())}"


def _is_saved(folder: Path) -> bool:
    """Whether a run can be resumed."""
    return (folder / "checkpoints" / "last.pt").exists()


def _record_start(
    folder: Path,
    name: str,
    overrides: Sequence[str],
    own_tags: Mapping[str, Any],
    source: tuple[str, str],
    experiment: Experiment,
    tracker: Tracker,
) -> None:
    """Describe the run in its folder, and start the tracker where the run starts."""
    state, config = experiment.state, experiment.state.config
    about = f"{build.model_name(config)}: {description.describe(experiment)}"
    remarks = experiment.data.remarks
    own = {**description.batch(experiment), "description": about, "remarks": remarks}
    environment = run_folder.describe(folder, config, overrides, source, own, experiment.weights)
    tags = run_folder.tags(own_tags, environment)
    position = Position(state.epoch, state.samples // state.global_batch, state.step)
    tracker.start(Run(folder, name, state.config, tags, source, position, state.tracking))
    summary = description.model_summary(state.model, experiment.parameters)
    write_text(folder / "model_summary.txt", summary)


def _position(state: TrainState) -> str:
    """How far a run is, in words."""
    after = f"after epoch {state.epoch}"
    return after if not state.samples else f"{after}, {state.samples} samples of the next"


def _to_build(config: Config, begin: Start) -> Config:
    """Of a resumed run: with the same batch over all processes, and without ``init_from`` and
    ``model.pretrained``, since the checkpoint has the weights.
    """
    if begin.last is None:
        return config
    whole = begin.last["state"]["global_batch"] or config["global_batch_size"]
    config = {**config, "global_batch_size": whole}
    pretrained = {"pretrained": None} if "pretrained" in config["model"] else {}
    return {**config, "init_from": None, "model": {**config["model"], **pretrained}}


def _trackers(config: dict[str, Any], experiment: Experiment, console: ConsoleTracker) -> Trackers:
    info = {
        "model": build.model_name(config),
        "parameters": experiment.parameters,
        "classes": experiment.data.classes,
        "unit": experiment.data.unit,
        "monitor": list(experiment.monitor),
        "weights": experiment.weights,
        **description.batch(experiment),
    }
    summary = SummaryTracker(info, experiment.state, config["patience"])
    return Trackers([FileTracker(), console, summary, *build.trackers(config)])


def _finish_files(folder: Path, state: TrainState, unit: str, tracker: Tracker) -> None:
    content = state.state_dict()
    if not distributed.is_main():
        return
    final, best = (folder / "checkpoints" / f"{name}.safetensors" for name in ("final", "best"))
    checkpoint.save_weights(content, final)
    is_last = state.best_epoch == state.epoch
    checkpoint.save_best_weights(best, state.config["trust"], final if is_last else None)
    counts = {split: [row.get(f"{split}/n") for row in state.history] for split in ("train", "val")}
    title = ", ".join(with_n(split, *each, unit=unit) for split, each in counts.items())
    curves = learning_curves(state.history, title)
    tracker.pictures(state.epoch, {"learning_curves": curves})
    files = ("config.yaml", "overrides.yaml", "environment.json", "model_summary.txt")
    for file in (*files, "epoch_metrics.csv", "checkpoints/best.pt"):
        tracker.artifact(folder / file)
    if state.best_epoch and best.exists():
        tracker.model(best, state.best_epoch)
