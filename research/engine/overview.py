"""What a run logs before its first batch and after its last: data, model, steps, results, files."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from research.config import cli, outputs
from research.engine import build, description
from research.engine.build import Experiment
from research.tracking.evaluations import Evaluation
from research.tracking.summary import best_n
from research.tracking.tracker import Tracker
from research.utils import logs
from research.utils.counts import counted, with_n
from research.utils.progress import duration

log = logging.getLogger(__name__)
Fields = Iterator[tuple[str, Sequence[str]]]


def log_start(
    folder: Path, name: str, experiment: Experiment, tracker: Tracker, *, resumed: bool
) -> None:
    """Log what is about to happen, as a table."""
    title = f"{'resuming' if resumed else 'training'}: {name}"
    logs.log_table(log, title, _start(folder, experiment, tracker))


def log_end(
    folder: Path,
    experiment: Experiment,
    tracker: Tracker,
    evaluation: Evaluation | None,
    *,
    is_trial: bool,
) -> None:
    """Log the results of a run, as a table, and a command to go on with.

    Args:
        folder: of the run.
        experiment: that was trained.
        tracker: says where its records are.
        evaluation: of its best checkpoint, if there was one at the end.
        is_trial: whether it is a trial of a sweep, which goes on by itself.
    """
    state, metric = experiment.state, experiment.monitor.metric
    value = "none" if state.best is None else f"{state.best:.4f}"
    best = with_n(f"best {metric} {value}", best_n(state, metric), unit=experiment.data.unit)
    title = f"{best} at epoch {state.best_epoch} of {state.epoch}"
    logs.log_table(log, title, _end(folder, experiment, tracker, evaluation), is_result=True)
    if not is_trial:
        words = outputs.typed_options(cli.RunOptions(trust=tuple(state.config["trust"])))
        log.info("next:  %s", outputs.command_of("evaluate", folder, *words))


def _start(folder: Path, experiment: Experiment, tracker: Tracker) -> Fields:
    state, cfg, data = experiment.state, experiment.cfg, experiment.data
    config, train = state.config, experiment.train
    counts = [f"{name} {count}" for name, (count, _) in data.counts().items()]
    classes = [counted(len(data.classes), "classes")] if data.classes else []
    yield "data", [f"{data.name}:", *classes, *counts, data.unit]
    yield "read as", _parts(data.reading)
    for split, (_, skipped) in data.counts().items():
        yield "left out", [f"{count} {kind} in {split}" for kind, count in sorted(skipped.items())]
    yield "model", [build.model_name(config), *_parameters(experiment), *_weights(experiment)]
    yield "input", _input(config, state.metadata)
    yield "device", description.device(experiment)
    optimizer, scheduler = (_class_name(config[key]) for key in ("optimizer", "scheduler"))
    average = [f"ema {config['ema']}"] if state.ema is not None else []
    yield "optimizer", [optimizer, f"lr {state.optimizer.defaults['lr']:.4g}", scheduler, *average]
    yield "batches", description.batches(experiment)
    batches = min(len(train), cfg.max_train_batches or len(train))
    steps = -(-batches // cfg.accumulate)
    done = [f"{state.epoch} done"] if state.epoch else []
    patience = [f"patience {cfg.patience}"] if cfg.patience is not None else []
    limited = experiment.val.sampler.samples
    shown = (
        [f"val on {counted(limited, data.unit)}"] if limited < len(experiment.val.source) else []
    )
    total = f"{cfg.epochs} × {steps} steps = {cfg.epochs * steps}"
    yield "epochs", [total, *done, *patience, *shown]
    yield "monitor", [f"{experiment.monitor.metric}", f"({experiment.monitor.mode})"]
    yield "run", [str(folder)]
    yield "tracking", [*tracker.locations()] or ["csv files in the run folder"]


def _end(
    folder: Path, experiment: Experiment, tracker: Tracker, evaluation: Evaluation | None
) -> Fields:
    state, data = experiment.state, experiment.data
    if state.best_epoch:
        row = state.history[state.best_epoch - 1]
        for split in ("train", "val"):
            values = {
                name.removeprefix(f"{split}/"): value
                for name, value in row.items()
                if name.startswith(f"{split}/") and isinstance(value, float)
            }
            yield split, _metrics(values, row.get(f"{split}/n"), data.unit)
    if evaluation is not None:
        yield evaluation.name, _metrics(evaluation.metrics, evaluation.n, data.unit)
    yield "baseline", _parts(data.baseline() or "")
    seconds = sum(row["epoch_time_sec"] for row in state.history)
    if state.history:
        each = f"{seconds / len(state.history):.3g} s an epoch"
        samples = sum(row.get("train/n", 0) for row in state.history)
        rate = [f"{samples / seconds:.3g} training {data.unit} a second", "(with validation)"]
        yield "time", [duration(seconds), each, *rate * bool(samples)]
    yield "run", [str(folder)]
    yield "in it", ["checkpoints/best.pt", "pictures/", "epoch_metrics.csv", "summary.json"]
    yield "tracking", tracker.locations()


def _metrics(values: Mapping[str, Any], n: int | None, unit: str) -> list[str]:
    """Metrics, and the number of samples that they are of."""
    found = [f"{name} {value:.4g}" for name, value in values.items()]
    return [*found, f"(n={n} {unit})"] if found and n else found


def _parts(text: str) -> list[str]:
    """A sentence in parts, after which a line may end."""
    return re.split(r"(?<=[,;:]) ", text)


def _parameters(experiment: Experiment) -> list[str]:
    total = sum(p.numel() for p in experiment.state.model.parameters())
    trained = experiment.parameters
    frozen = [f"{trained:,} of them trained"] if trained < total else []
    return [f"{total:,} parameters", *frozen]


def _weights(experiment: Experiment) -> list[str]:
    return [f"from {each['name']}" for each in experiment.weights]


def _input(config: build.Config, metadata: Mapping[str, Any]) -> list[str]:
    """What the network gets, in words."""
    if features := config["dataset"].get("features"):
        return [f"features: {', '.join(features)}"]
    size = build.input_size(config, metadata)
    parts = [f"{size}×{size} px", " ".join(metadata.get("channels", ["RGB"]))]
    if (stem := build.stem_spec(config["compression"])) is None:
        return parts
    luma, chroma = len(stem.selection.luma), len(stem.selection.chroma)
    source = config["compression"]["source"]
    return [
        parts[0],
        f"DCT coefficients from {source}:",
        f"{luma} of 64 luma,",
        f"{chroma} of 64 chroma",
        f"({stem.variant})",
    ]


def _class_name(node: Mapping[str, Any]) -> str:
    """The name of an optimizer or a schedule as it is chosen: ``sgd``, ``cosine``."""
    return str(node.get("name") or node["_target_"].rpartition(".")[2])
