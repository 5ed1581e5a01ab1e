"""Backbone Lab: vision backbones on pixels and on JPEG DCT coefficients.

The functions of this module are the Python API; docs/python.md has an example of each::

    config = research.compose(["model=resnet34_compressed", "epochs=2"])
    result = research.train(config)
    research.evaluate(result.folder, "test")
    model = research.load(result.folder)

A mistake raises ``research.UserError``. The commands are the modules of this package, such as
``python -m research.evaluate``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from research.utils.errors import UserError
from research.utils.installation import VERSION as __version__

if TYPE_CHECKING:
    from research.config import RunConfig
    from research.data.warehouse.store import Store
    from research.engine.predictor import Predictor
    from research.engine.training import TrainResult
    from research.tracking.evaluations import Evaluation

__all__ = [
    "UserError",
    "__version__",
    "compose",
    "evaluate",
    "load",
    "open_store",
    "predict",
    "train",
]


def compose(overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> RunConfig:
    """Compose and check the configuration of a run.

    Args:
        overrides: what follows ``train.py`` on a command line: ``key=value`` each. With
            ``resume=RUN`` it is the configuration of that run.
        config_dir: a folder with options of your own, ``GROUP/OPTION.yaml``.

    Returns:
        A mapping of the settings that cannot be changed, for ``train``.

    Raises:
        UserError: for a mistake in the overrides, in one line that says what is allowed.
    """
    from research.config import compose_run

    own = None if config_dir is None else Path(config_dir)
    return compose_run(_texts("overrides", overrides), own)


def train(config: RunConfig) -> TrainResult:
    """Train or resume one run in this process, as ``train.py`` does.

    It makes the run folder in ``runs/`` of the working directory, locks it, logs to the terminal
    and to ``train.log``, and records to the trackers of ``logging``.

    Args:
        config: from ``compose``.

    Returns:
        The run folder, the best value of the monitored metric, and its epoch.

    Raises:
        UserError: for a mistake in the configuration or the data, or an everyday condition of the
            machine, such as a full disk.
        KeyboardInterrupt: after Ctrl-C or SIGTERM; the run is saved: ``compose(["resume=RUN"])``.
    """
    from research.config import RunConfig
    from research.utils import garbage

    if not isinstance(config, RunConfig):
        raise UserError(
            "config", f"config is a {type(config).__name__}", "pass what research.compose returns"
        )
    if config["verify_resume"]:
        raise UserError("verify_resume", "verify_resume=true is for the command line only")
    with garbage.paused():
        from research.engine import training

    return training.train(config)


def load(
    run: str | Path,
    device: str = "auto",
    trust: Sequence[str] = (),
    overrides: Sequence[str] = (),
) -> Predictor:
    """Load a trained model with its preprocessing.

    From a file outside of ``runs/`` in the working directory, and from a model in MLflow, only
    model, task, preprocessing and metadata of the data set are used; files and addresses that it
    names are not.

    Args:
        run: run folder, of which the best checkpoint is loaded; checkpoint file;
            ``best.safetensors``, which contains everything that is needed; or the address of a
            model in MLflow, such as ``models:/NAME/1``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        trust: your own classes and functions that the configuration may name, such as
            ``["my_models.Net"]``. Other names that are not from this project are refused.
        overrides: changed settings of the run, ``key=value`` each.

    Returns:
        A callable: ``model(paths)`` reads image files and returns the predictions of its task.

    Raises:
        UserError: if no checkpoint can be read, or its configuration is refused.
    """
    names, words = _texts("trust", trust), _texts("overrides", overrides)
    words.insert(0, f"device={device}")
    from research.engine import predictor

    return predictor.load(Path(run), overrides=words, trust=names)[0]


def evaluate(
    run: str | Path,
    split: str = "val",
    checkpoint: str = "best",
    device: str = "auto",
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    trust: Sequence[str] = (),
) -> Evaluation:
    """Evaluate a trained run on a split of its data, as ``python -m research.evaluate`` does.

    Args:
        run: as for ``load``.
        split: ``val``, ``train`` (with validation crops) or ``test`` (if the data set has one).
        checkpoint: ``best`` or ``last``, of a run folder.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        overrides: changed settings of the run, ``key=value`` each.
        out: folder for the results; None: ``evaluations`` in the run folder. A model in MLflow has
            none.
        trust: your own classes and functions that the configuration may name.

    Returns:
        ``metrics`` by name and ``n``, the number of samples; the content of ``SPLIT.json``.

    Raises:
        UserError: for a run, a split or data that cannot be used.
    """
    from research.config import cli
    from research.evaluate import EvaluateOptions

    folder, words = None if out is None else Path(out), _texts("overrides", overrides)
    names = _texts("trust", trust)
    cli.checked(EvaluateOptions(tuple(names), checkpoint, device, split, folder))
    from research.engine import evaluation

    return evaluation.evaluate(Path(run), split, checkpoint, device, words, folder, names)


def predict(
    run: str | Path,
    paths: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    checkpoint: str = "best",
    device: str = "auto",
    objectness: float | None = None,
    iou: float | None = None,
    max_frames: int | None = None,
    batch_size: int = 8,
    precision: str | None = None,
    overrides: Sequence[str] = (),
    trust: Sequence[str] = (),
) -> dict[str, Any]:
    """Run a trained model on files, and write what ``python -m research.predict`` writes.

    Args:
        run: as for ``load``.
        paths: images, folders of images, capture runs or videos.
        out: folder for the results, new or empty; None: ``runs/predict/NAME-TIME``.
        checkpoint: ``best`` or ``last``, of a run folder.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        objectness: lowest score of boxes, 0…1; None: that of the run.
        iou: threshold of non-maximum suppression, 0…1; None: that of the run.
        max_frames: maximum number of frames; None: all.
        batch_size: frames per batch.
        precision: ``fp32``, ``bf16`` or ``fp16``; None: that of the run.
        overrides: changed settings of the run, ``key=value`` each.
        trust: your own classes and functions that the configuration may name.

    Returns:
        The content of ``summary.json``: ``out`` (the folder), ``frames``, ``damage``, speed and
        counts. The predictions are in the files; those of ``load`` stay in memory.

    Raises:
        UserError: for a run or files that cannot be used.
    """
    from research.config import cli
    from research.predict import PredictOptions, prepare

    options = PredictOptions(
        trust=tuple(_texts("trust", trust)),
        checkpoint=checkpoint,
        device=device,
        objectness=objectness,
        iou=iou,
        max_frames=max_frames,
        out=None if out is None else Path(out),
        batch_size=batch_size,
        precision=precision,
    )
    sources = [paths] if isinstance(paths, str | Path) else paths
    files = [Path(path) for path in sources]
    words = _texts("overrides", overrides)
    return prepare(Path(run), files, cli.checked(options), words).predict()


def open_store(manifest: str | Path, verify: str = "once") -> Store:
    """Open a prepared store, for random access to its memory-mapped tensors.

    Args:
        manifest: a ``manifest.json``, the folder of a version, or a folder of versions, of which
            the newest is opened.
        verify: when to compare checksums: ``always``; ``once``, until a shard changes; ``never``.

    Returns:
        The store: ``len(store)`` samples, ``store.gather("images", [0, 5])`` is a tensor,
        ``store.manifest`` describes it.

    Raises:
        UserError: if there is no manifest, or a shard is missing, damaged or different from it.
    """
    from research.config import cli
    from research.data.warehouse.manifest import Manifest
    from research.data.warehouse.rules import RULES
    from research.data.warehouse.store import Store

    cli.choose("verify", verify, RULES["verify"].choices)
    store = Store(Manifest.load(Path(manifest)), verify)
    store.open()
    return store


def _texts(key: str, words: Sequence[str]) -> list[str]:
    """A list of texts; one text alone would be taken apart into its letters.

    Raises:
        UserError: for one text alone.
    """
    if isinstance(words, str):
        raise UserError(key, f"{key}={words!r}: expected a list of texts", f"write [{words!r}]")
    return list(words)


class _Package(ModuleType):
    """This module. Importing ``research.evaluate``, the module of the command, makes the import
    system set the attribute ``evaluate`` to it, which would hide the function of that name.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        """By name, as modules are sent to other processes."""
        return import_module, (self.__name__,)

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
