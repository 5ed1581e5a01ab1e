"""An epoch of training by ``train.py``'s loop and by others: seconds per step.

Every side trains the same model from the same weights on the same samples, augmented alike, so its
losses are the same. Each side has a process of its own, so that what it sets there, such as how
memory is allocated, and what it leaves do not reach the others. The sides:

``bare loop``: the reference, written as in a tutorial: no tracker, a checkpoint at the end. It uses
the faster memory format of the two, and fused optimizers.
``train.py``: a run as the command makes it, with its trackers (MLflow on sqlite), signals,
checkpoint, validation and pictures.
``Lightning``: its ``Trainer`` with its default logger, progress bar and checkpoints.
``timm``: its own loader on the same files (with timm's augmentation), its optimizer, schedule and
checkpoints; for a classifier of pictures in folders.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from research.benchmarks import peers
from research.benchmarks.measure import Result, compared, in_process, interleaved
from research.benchmarks.options import BenchmarkOptions
from research.benchmarks.peers import Clock, EpochSeconds, per_step
from research.config import compose_config
from research.engine import run as training
from research.engine import run_folder
from research.engine.epoch_end import EpochEnd
from research.engine.loop import EvalResult
from research.engine.state import TrainState
from research.utils import logs
from research.utils.errors import UserError

Side = Callable[[], EpochSeconds]
"""Trains one epoch."""
PLAIN: Mapping[str, Any] = {
    "accumulate": 1, "compile": False, "ema": None, "grad_clip": None, "skip_nonfinite": 0,
}  # fmt: skip
"""Settings that only ``train.py``'s loop has here; the others would do less."""
AFTER_TRAINING = ("baseline", "linear_baseline")
"""Settings of data sets that only take time after the last epoch."""


def run(options: BenchmarkOptions, paths: list[Path], overrides: list[str]) -> list[Result]:
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        config = configuration(overrides, options.steps, Path(scratch))
        sides = {
            name: in_process(side, stack, partial(_begin, options.threads), method="spawn")
            for name, side in candidates(config, Path(scratch), options.threads).items()
        }
        times_of = interleaved(sides, options.rounds)
    results = [
        compared(
            {name: [getattr(each, part) for each in times] for name, times in times_of.items()},
            unit="step",
            name=title,
        )
        for part, title in (
            ("steps", "training steps"),
            ("processor", "training steps, processor time"),
            ("epoch", "the epoch with its end: checkpoint, rows, pictures"),
        )
    ]
    results[-1].notes.append(
        f"{options.steps} steps of {config['batch_size']} samples at most; lightning "
        f"{metadata.version('lightning')}, timm {metadata.version('timm')}; validation is not timed"
    )
    return results


def configuration(overrides: list[str], steps: int, scratch: Path) -> dict[str, Any]:
    """The configuration of an epoch of ``steps`` steps, with a new MLflow store in ``scratch``.

    Raises:
        UserError: for a setting that the other loops do not have.
    """
    words = [*overrides, "epochs=1", f"max_train_batches={steps}", "max_val_batches=1"]
    store = ["logging=mlflow", f"logging.mlflow.uri=sqlite:///{scratch}/mlflow.db"]
    config: dict[str, Any] = compose_config([*words, *store]).config
    for key, value in PLAIN.items():
        if config[key] != value:
            text = "null" if value is None else value
            message = f"{key}={config[key]}: the loops compared here have no {key}"
            raise UserError(key, message, f"set {key}={text}")
    if config["precision"] == "fp16":
        raise UserError("precision", "precision=fp16: the bare loop scales no loss", "use bf16")
    for key in AFTER_TRAINING:
        if key in config["dataset"]:
            config["dataset"][key] = False
    return config


def candidates(config: dict[str, Any], scratch: Path, threads: int) -> dict[str, Side]:
    """The sides, by name."""
    with ExitStack() as stack:
        formats = partial(peers.fastest_format, config)
        fastest = in_process(formats, stack, partial(_begin, threads), method="spawn")()
    bare = partial(peers.bare_loop, config, scratch, fastest)
    sides: dict[str, Side] = {
        "bare loop": bare,
        "bare loop (control)": bare,
        "train.py": partial(train_py, config, scratch),
        "Lightning": partial(peers.lightning_trainer, config, scratch),
    }
    if peers.has_picture_files(config):
        sides["timm"] = partial(peers.timm_loop, config, scratch)
    return sides


def _begin(threads: int) -> None:
    torch.set_num_threads(threads)
    logs.to_terminal()


def train_py(config: dict[str, Any], scratch: Path) -> EpochSeconds:
    """A run of ``train.py``, in a new folder; timed within its first epoch."""
    ends: list[TimedEnd] = []

    def end_epoch(*arguments: Any) -> TimedEnd:
        ends.append(TimedEnd(*arguments))
        return ends[0]

    with peers.folder_in(scratch) as folder:
        config = {**config, "run_dir": str(folder)}
        begin = training.start(config, "benchmark")
        assert begin is not None
        with run_folder.run_lock(begin.folder):
            state = training.train(config, "benchmark", [], begin, callback=end_epoch)
    shutil.rmtree(scratch / "mlflow-artifacts", ignore_errors=True)  # copies of all checkpoints
    return ends[0].times(state.step)


class TimedEnd(EpochEnd):
    """``EpochEnd`` that reads the clock between the parts of the first epoch."""

    started: Clock | None = None

    @property
    def stop(self) -> bool:
        if self.started is None:  # asked immediately before the epoch
            self.started = Clock.read(torch.device("cpu"))
        return super().stop

    @contextmanager
    def validation(self, state: TrainState) -> Iterator[None]:
        self.device = next(state.model.parameters()).device
        self.trained = Clock.read(self.device)
        with super().validation(state):
            self.before_validation = Clock.read(self.device)
            yield
            self.after_validation = Clock.read(self.device)

    def __call__(self, state: TrainState, row: Mapping[str, Any], result: EvalResult) -> None:
        super().__call__(state, row, result)
        self.ended = Clock.read(self.device)

    def times(self, steps: int) -> EpochSeconds:
        """Per step, without validation."""
        assert self.started is not None
        validation = self.after_validation.wall - self.before_validation.wall
        ended = self.ended._replace(wall=self.ended.wall - validation)
        return per_step(self.started, self.trained, ended, steps)
