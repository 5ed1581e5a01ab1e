"""Evaluation of a trained run on one split of its data: the one way of every command.

Every evaluation is of the whole split: a limit of training (``max_val_batches``) does not count.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch
from PIL.Image import Image

from research.config import outputs
from research.config.changes import for_use
from research.config.group_rules import group_rules
from research.config.keys import MISSING, differences
from research.config.run_files import is_own
from research.config.schema import rule_for
from research.data.datamodule import DataModule
from research.data.loader import EpochLoader
from research.data.transforms import DeviceTransform
from research.engine import build, checkpoint, distributed, loop, predictor, run_folder
from research.engine.build import Experiment
from research.engine.loop import EvalResult, autocast
from research.engine.loss_log import timestamp
from research.engine.predictor import Predictor
from research.tasks.task import Monitor, Task
from research.tracking.evaluations import FOLDER, Evaluation
from research.tracking.files import FileTracker
from research.tracking.tracker import Rows, Tracker
from research.utils.conditions import explained
from research.utils.errors import UserError
from research.utils.files import to_json, write_text
from research.utils.timing import synchronize
from research.viz import pictures

log = logging.getLogger(__name__)

MAIN = ("mAP50", "mAP75", "mAP", "top1")
"""Main metrics, most important first."""
LIMIT: Final = "max_val_batches"
LIMITS: Final = (LIMIT, "max_train_batches")
"""Settings that only training has; an evaluation is limited by what is typed on its own line."""
DECISIVE: Final = ("model", "dataset", "compression", "task", "precision", "seed", LIMIT)
"""Settings and groups on which metrics depend; ``seed`` divides the data."""


@dataclass(frozen=True)
class EvalRun:
    """A trained run with one split of its data.

    Attributes:
        predictor: the model and its preprocessing.
        loader: batches of the split.
        saved: content of the checkpoint.
        split: ``train``, ``val`` or ``test``.
        file: the checkpoint.
        overrides: settings as they were typed, ``key=value`` each.
        changed: those that are not the run's own, and on which metrics depend.
    """

    predictor: Predictor
    loader: EpochLoader
    saved: Mapping[str, Any]
    split: str
    file: Path
    overrides: Sequence[str] = ()
    changed: Mapping[str, Any] = field(default_factory=dict)

    def evaluate(self, phase: str = "") -> EvalResult:
        """One pass over the split; ``phase`` is its name in progress lines, if not the split."""
        model, cfg = self.predictor, build.loop_config(self.predictor.config)
        with explained(evaluation_limits(model.config)):
            return loop.evaluate(
                model.model,
                model.task,
                self.loader,
                model.transform,
                cfg,
                model.device,
                phase or self.split,
            )

    def measure(self) -> tuple[Evaluation, EvalResult]:
        """One pass over the split: what is recorded of it, and what ``write`` draws."""
        result, state = self.evaluate(), self.saved["state"]
        # A checkpoint within an epoch has other weights than its last row is of.
        row = state["history"][-1] if state["history"] and not state["samples"] else {}
        logged = {name: row.get(f"{self.split}/{name}") for name in result.metrics}
        folder = outputs.run_dir_of(self.file)
        evaluation = Evaluation(
            split=self.split,
            epoch=state["epoch"],
            metrics=result.metrics,
            n=result.n,
            logged={name: value for name, value in logged.items() if value is not None},
            damage=result.skipped,
            checkpoint=str(self.file.relative_to(folder)),
            changed=dict(self.changed),
            overrides=list(self.overrides),
            command=run_folder.command(),
            date=timestamp(),
            versions=run_folder.versions(),
        )
        return evaluation, result

    def write(self, evaluation: Evaluation, result: EvalResult, out: Path) -> list[Path]:
        """Write pictures and tables to ``out/NAME``, then the record to ``out/NAME.json``.

        Those that are left of an earlier evaluation of this name are removed.

        Returns:
            the files.
        """
        drawn = _DrawnFiles(out / evaluation.name)
        record = out / f"{evaluation.name}.json"
        draw(self.predictor.task, self.predictor.transform, result, drawn, evaluation.epoch)
        write_text(record, to_json(asdict(evaluation)))
        drawn.remove_others()
        return [*drawn.files, record]

    def keep(self, evaluation: Evaluation, result: EvalResult, out: Path) -> None:
        """``write``, and record it with the trackers of the run, if it is one of the user's own.

        Under changed settings it is not a result of the run, and is only in its file. What cannot
        be delivered is logged, with the command that repeats it.

        Raises:
            UserError: if ``out`` cannot be written to.
        """
        with outputs.writing_to(out):
            files = self.write(evaluation, result, out)
        if evaluation.changed or not is_own(self.file):
            return
        folder = outputs.run_dir_of(self.file)
        try:
            trackers = build.trackers(self.predictor.config)
            found = [each.deliver_evaluation(folder, evaluation, out, files) for each in trackers]
        except UserError as error:  # an address without its password
            found = [str(error)]
        for problem in filter(None, found):
            log.warning(
                "%s; %s of %s is not logged there; to repeat it: %s",
                problem, evaluation.name, folder, self._command(),
            )  # fmt: skip

    def _command(self) -> str:
        """The command of this evaluation."""
        folder, stem = outputs.run_dir_of(self.file), self.file.stem
        is_usual = self.file == folder / "checkpoints" / f"{stem}.pt" and stem in ("best", "last")
        run = folder if is_usual else self.file
        which = ["checkpoint=last"] * (is_usual and stem == "last")
        words = [str(run), f"split={self.split}", *which, *self.overrides]
        return f"python -m research.evaluate {shlex.join(words)}"

    def timed_prediction(self, count: int) -> Callable[[], None]:
        """A function that predicts ``count`` images on the device and synchronizes.

        The images are those of the first nonempty batch, repeated if it has fewer.
        """
        model = self.predictor
        batch = next(batch for batch in self.loader.epoch(0) if len(batch))
        chosen = torch.arange(count) % len(batch)
        images = batch.map(lambda tensor: tensor[chosen.to(tensor.device)]).to(model.device)
        with torch.inference_mode():
            inputs = model.transform(images, None)

        @torch.inference_mode()
        def predict() -> None:
            with autocast(model.device, model.config["precision"]):
                model.task.predict(model.model, inputs)
            synchronize(model.device)

        return predict

    def main_metric(self, metrics: Mapping[str, float]) -> Monitor:
        """The metric that selected the best epoch, without its split.

        Args:
            metrics: of a split. If the monitored metric is not among them, such as a training loss,
                the first of ``MAIN`` is returned.
        """
        chosen = build.monitor(self.predictor.config, self.predictor.task)
        where, _, name = chosen.metric.partition("/")
        if where == "val" and name in metrics:
            return Monitor(name, chosen.mode)
        return Monitor(next((name for name in MAIN if name in metrics), next(iter(metrics))), "max")


def evaluation_limits(config: build.Config) -> dict[str, Any]:
    """``build.limits`` without the settings that only training has."""
    limits = build.limits({**config, "global_batch_size": None})
    return {key: value for key, value in limits.items() if key != "accumulate"}


def load_eval_run(
    run: Path,
    split: str,
    which: str,
    device: str,
    overrides: Sequence[str],
    trust: Sequence[str] = (),
    check: Callable[[DataModule], None] = lambda data: None,
) -> EvalRun:
    """Load a trained run and one split of its data.

    Args:
        run: run folder or checkpoint file.
        split: ``train``, ``val`` or ``test``.
        which: ``best`` or ``last``, of a run folder.
        device: as in the run settings.
        overrides: changed settings of the run, ``key=value``; only here count ``LIMITS``.
        trust: the user's own ``_target_`` names that the configuration may contain.
        check: called with the data set before it is read; may refuse it.

    Raises:
        UserError: if the run, setting or split does not exist, or the classes have changed.
    """
    file = checkpoint.find(run, which)
    saved = checkpoint.load(file, trust)
    words = [*(f"{name}=null" for name in LIMITS), f"device={device}", *overrides]
    loaded = predictor.of_checkpoint(file, saved, words, data=True)
    check(loaded.data)
    config = loaded.config
    with explained(evaluation_limits(config)):
        loaded.data.prepare(config["seed"])
    if loaded.data.classes != loaded.classes:
        raise UserError(
            "dataset",
            f"the data set has {len(loaded.data.classes)} classes that differ from the "
            f"{len(loaded.classes)} of {run}",
            "check the dataset settings",
        )
    alone = {**config, "global_batch_size": None}  # in one process, batch_size counts
    loader = build.loader(alone, loaded.data, split, loaded.device, train=False)
    if loader.sampler.samples < len(loader.source):
        log.warning("%s=%d: %s", LIMIT, config[LIMIT], loader.basis(loader.sampler.samples))
    changed = _changed(file, saved["config"], loaded)
    return EvalRun(loaded, loader, saved, split, file, overrides, changed)


def _changed(file: Path, config: build.Config, loaded: Predictor) -> dict[str, Any]:
    """The settings that are not those of a checkpoint, and on which metrics depend.

    That the data are elsewhere is no change if they are those of the run.

    Args:
        file: the checkpoint.
        config: its configuration.
        loaded: from it, under other settings.
    """
    own, now = is_own(file), loaded.config
    then = for_use(config, [], str(file), own=own, data=False)
    rules = group_rules(now)
    changed: dict[str, Any] = {}
    moved: dict[str, Any] = {}
    for key, (_, value) in differences({**then, LIMIT: None}, now, ()).items():
        rule = rule_for(key, None, rules)
        # The weights are those of the checkpoint, whatever it has started from.
        is_decisive = key.partition(".")[0] in DECISIVE and key != "model.pretrained"
        if is_decisive and (key == LIMIT or not rule.may_change):
            is_place = rule.is_path and key.startswith("dataset.")
            (moved if is_place else changed)[key] = None if value is MISSING else value
    # Where the data of a stranger's file are can only be said on the command line.
    if not moved or not own:
        return changed
    recorded = run_folder.data_hash(outputs.run_dir_of(file))
    return changed if recorded == loaded.data.fingerprint() else {**changed, **moved}


def evaluate(
    run: Path,
    split: str = "val",
    which: str = "best",
    device: str = "auto",
    overrides: Sequence[str] = (),
    out: Path | None = None,
    trust: Sequence[str] = (),
) -> Evaluation:
    """Evaluate a checkpoint on a split, and keep the result, see ``EvalRun.keep``.

    Args:
        run: run folder or checkpoint file.
        split: ``train``, ``val`` or ``test``.
        which: ``best`` or ``last``, of a run folder.
        device: as in the run settings.
        overrides: changed settings of the run, ``key=value``.
        out: folder for the record, pictures and tables; None: ``evaluations`` in the run folder.
        trust: the user's own ``_target_`` names that the configuration may contain.

    Raises:
        UserError: if the run, setting or split does not exist, or ``out`` cannot be written to.
    """
    out = out or outputs.folder_in_run(run, FOLDER)
    loaded = load_eval_run(run, split, which, device, overrides, trust)
    evaluation, result = loaded.measure()
    loaded.keep(evaluation, result, out)
    return evaluation


def at_end(experiment: Experiment, folder: Path, tracker: Tracker) -> Evaluation | None:
    """Evaluate the best checkpoint on the split of ``evaluate_at_end``; None if it is not set.

    Every process calls it; the main one writes, and records it with the tracker of the run.
    """
    config = {**experiment.state.config, **dict.fromkeys(LIMITS)}
    split = config["evaluate_at_end"]
    if split is None:
        return None
    file = checkpoint.find(folder, "best")
    saved = checkpoint.load(file, config["trust"])
    loaded = predictor.load_predictor(config, saved)
    # The data have been read, and their transform may refer to them.
    data, transform = experiment.data, experiment.state.transform
    loaded = replace(loaded, data=data, transform=transform)
    loader = build.loader(config, data, split, loaded.device, train=False)
    run = EvalRun(loaded, loader, saved, split, file)
    evaluation, result = run.measure()
    if distributed.is_main():
        tracker.evaluation(evaluation, run.write(evaluation, result, folder / FOLDER))
    return evaluation


class _DrawnFiles(FileTracker):
    """Remembers the files that it has written."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.files: list[Path] = []

    def pictures(self, step: int, images: Mapping[str, Image]) -> None:
        super().pictures(step, images)
        self.files += [self.folder / "pictures" / f"{name}.png" for name in images]

    def tables(self, step: int, tables: Mapping[str, Rows]) -> None:
        filled = {name: rows for name, rows in tables.items() if rows}
        super().tables(step, filled)
        self.files += [self.folder / "tables" / f"{name}.csv" for name in filled]

    def remove_others(self) -> None:
        """Remove pictures and tables of earlier evaluations that this one does not have."""
        for pattern in ("pictures/*.png", "tables/*.csv"):
            for path in {*self.folder.glob(pattern)} - {*self.files}:
                path.unlink()


def draw(
    task: Task, transform: DeviceTransform, result: EvalResult, tracker: Tracker, epoch: int
) -> None:
    """Record the task's pictures and tables of an evaluated split."""
    images = task.pictures(result.totals, *result.examples(), transform.to_images)
    title = f"{result.basis}, epoch {epoch}"
    tracker.pictures(epoch, {n: pictures.titled(image, title) for n, image in images.items()})
    tracker.tables(epoch, task.tables(result.totals, transform.names))
