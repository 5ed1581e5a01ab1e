"""Data that tests make for themselves, and a run small enough for a test."""

from __future__ import annotations

import inspect
import io
import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from research.config import command_line, compose_config, resolved
from research.utils.cache import SETTLED
from research.utils.errors import UserError
from research.utils.progress import Phase
from tests.mlflow_ui import free_port

if TYPE_CHECKING:
    from torch import nn

    from research.engine.build import Experiment
    from research.engine.loss_log import EpochStats
    from research.engine.state import TrainState
    from research.tracking.evaluations import Evaluation
    from research.tracking.tracker import Tracker

# Test processes are the parallelism (pytest -n 2): threads in each would wait for one another.
# In the environment, so that it holds in the processes that tests start as well; torch reads it
# when it is imported, so nothing above may do that.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Kernels for larger registers add in another order, in which golden losses of bf16 would move.
os.environ.setdefault("ATEN_CPU_CAPABILITY", "avx2")
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"
CLASSES = ("bars", "field", "spots")


Golden = Callable[..., None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write the files under tests/golden anew; CONTRIBUTING.md says when that is allowed",
    )


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """Compares plain values with ``tests/golden/NAME.json``, or writes it (``--update-golden``)."""

    def compare(name: str, found: Any, rel: float = 0.0, *, new_options: bool = False) -> None:
        path = GOLDEN / f"{name}.json"
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            return
        expected = json.loads(path.read_text(encoding="utf-8"))
        if new_options:
            found = without_new(expected, found)
        differences = list(unlike(expected, found, rel))
        more = f"\n(and {len(differences) - 20} more)" if len(differences) > 20 else ""
        assert not differences, f"{path}:\n" + "\n".join(differences[:20]) + more

    return compare


def without_new(expected: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """``found`` without entries, and names in lists, that are not in ``expected``."""
    known = {key: value for key, value in found.items() if key in expected}
    return {
        key: [name for name in value if name in expected[key]] if isinstance(value, list) else value
        for key, value in known.items()
    }


def unlike(kept: Any, found: Any, rel: float, where: str = "", abs_: float = 0.0) -> Iterator[str]:
    """A line for each place in which two plain values differ, numbers by more than ``rel`` and
    ``abs_``.
    """
    if isinstance(kept, dict) and isinstance(found, dict):
        for key in dict.fromkeys([*kept, *found]):
            if key not in found:
                yield f"{where}.{key}: gone"
            elif key not in kept:
                yield f"{where}.{key}: new"
            else:
                yield from unlike(kept[key], found[key], rel, f"{where}.{key}", abs_)
    elif isinstance(kept, list) and isinstance(found, list) and len(kept) == len(found):
        for place, both in enumerate(zip(kept, found, strict=True)):
            yield from unlike(*both, rel, f"{where}[{place}]", abs_)
    elif type(kept) is float and type(found) is float:
        if kept != pytest.approx(found, rel=rel, abs=abs_, nan_ok=True):
            yield f"{where}: {kept!r} is kept, {found!r} was found"
    elif kept != found or type(kept) is not type(found):
        yield f"{where}: {kept!r} is kept, {found!r} was found"


@pytest.fixture(autouse=True)
def _own_log_handlers() -> Iterator[None]:
    """Handlers that a command adds write to its test's output, and go with it."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    root.setLevel(level)
    for handler in [h for h in root.handlers if h not in before]:
        root.removeHandler(handler)


@pytest.fixture(autouse=True)
def _own_search_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command adds its working directory to the places of modules, for its test only."""
    monkeypatch.setattr(sys, "path", [*sys.path])


def picture(kind: str, seed: int, size: tuple[int, int] = (56, 48)) -> Image.Image:
    """A noisy picture (width, height) of one of ``CLASSES``."""
    rng = np.random.default_rng(seed)
    width, height = size
    y, x = np.mgrid[:height, :width]
    phase = rng.uniform(0, 6)
    pattern = {
        "bars": np.sin(x / 2.5 + phase),
        "field": np.zeros((height, width)),
        "spots": np.sin(x / 2 + phase) * np.sin(y / 2 + phase),
    }[kind]
    colour = rng.uniform(60, 190, 3)
    pixels = colour + 50 * pattern[..., None] + rng.normal(0, 6, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def make_folders(root: Path, images: int, *, seed: int = 0, suffix: str = ".jpg") -> Path:
    """``root/CLASS/N.jpg`` with ``images`` a class, of mixed sizes and chroma samplings."""
    for label, kind in enumerate(CLASSES):
        folder = root / kind
        folder.mkdir(parents=True)
        for number in range(images):
            size = (40 + 8 * (number % 4), 40 + 5 * (number % 3))
            image = picture(kind, 1000 * seed + 100 * label + number, size)
            options = {"quality": 90, "subsampling": number % 3} if suffix == ".jpg" else {}
            image.save(folder / f"{number:03d}{suffix}", **options)
    return root


def settle() -> None:
    """Wait until files that were written just now have stamps that can be trusted."""
    time.sleep(SETTLED / 1e9 + 0.005)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """A tree with ``train`` (24 images) and ``val`` (12 images) of three classes."""
    make_folders(tmp_path / "data" / "train", 8)
    make_folders(tmp_path / "data" / "val", 4, seed=1)
    return tmp_path / "data"


@pytest.fixture
def small(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """Composes a run of seconds on ``folders``, in a working directory of its own."""
    monkeypatch.chdir(tmp_path)

    def compose(*overrides: str) -> dict[str, Any]:
        return resolved(compose_config([*SMALL, *data_overrides(folders), *overrides])[0])

    return compose


SMALL = (
    "dataset=imagefolder",
    "model.name=resnet18",
    "dataset.image_size=32",
    "batch_size=8",
    "epochs=1",
    "device=cpu",
    "logging=csv",
    "optimizer.lr=0.02",
)


def data_overrides(folders: Path) -> list[str]:
    return [
        f"dataset.train_dirs=[{folders / 'train'}]",
        f"dataset.val_dir={folders / 'val'}",
        f"dataset.cache_dir={folders.parent / 'cache'}",
    ]


def prepared(config: dict[str, Any]) -> Any:
    """The data set of a configuration, found and split."""
    from research.engine import build

    data = build.data_module(config)
    data.prepare(config["seed"])
    return data


def run(config: dict[str, Any], name: str = "test", overrides: Sequence[str] = ()) -> Path:
    """Train as ``train.py`` does; returns the run folder, which records the overrides."""
    from research.engine import run

    begin = run.start(config, name)
    assert begin is not None
    with run.opened(begin):
        run.train(config, name, list(overrides), begin)
    return begin.folder


def train_state(**counters: Any) -> TrainState:
    """The state of a run with one weight."""
    import torch

    from research.data.transforms import DeviceTransform
    from research.engine.state import TrainState

    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return TrainState(model, model, DeviceTransform(), optimizer, scheduler, scaler, **counters)


def trained_epoch(built: Experiment, tracker: Tracker | None = None) -> EpochStats:
    """One epoch of training; afterwards ``built.state`` stands at the next."""
    from research.engine.distributed import Losses
    from research.engine.loop import EpochCallback, train_epoch
    from research.tracking.tracker import Tracker

    stats = train_epoch(
        built.state,
        Losses(built.task, built.state.forward),
        built.train,
        built.cfg,
        built.device,
        tracker or Tracker(),
        EpochCallback(),
    )
    built.state.end_epoch()
    return stats


def evaluated(
    run: str | Path,
    split: str = "val",
    which: str = "best",
    *overrides: str,
    trust: Sequence[str] = (),
) -> Evaluation:
    """A checkpoint of a run on a split, on the CPU, without files."""
    from research.engine.evaluation import load_eval_run

    loaded = load_eval_run(Path(run), split, which, "cpu", overrides, trust)
    return loaded.measure()[0]


def result_of(**changes: Any) -> Evaluation:
    """An evaluation without a run."""
    from research.tracking.evaluations import Evaluation

    usual = {
        "split": "test", "epoch": 3, "metrics": {"top1": 0.5}, "n": 8, "logged": {}, "damage": {},
        "checkpoint": "checkpoints/best.pt", "changed": {}, "overrides": [], "command": [],
        "date": "", "versions": {},
    }  # fmt: skip
    return Evaluation(**{**usual, **changes})


def verb(name: str) -> ModuleType:
    """The module of ``python -m research.NAME``; ``research.NAME`` may be a function."""
    return import_module(f"research.{name}")


Train = Callable[..., None]


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> Train:
    """Runs ``train.py`` with the words given, in this process."""
    from train import main

    def run_command(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["train.py", *words])
        command_line(main)

    return run_command


TINY = (
    "model=resnet34_compressed",
    "model.name=resnet18",
    "compression=luma_fusion_pruned",
    "compression.window=1",
)
"""A network of 0.15 M parameters, for tests of everything but the network."""


def as_if_trained(model: nn.Module) -> None:
    """Give every norm weights and running statistics with which it does something."""
    from torch import nn

    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]


def save_state(content: dict[str, Any], path: Path) -> Path:
    """A state dict in a file of the format that its suffix names."""
    import torch
    from safetensors.torch import save_file

    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return path


@contextmanager
def interrupted_at(step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A run inside is stopped, as by Ctrl-C, before the batch ``step`` is recorded."""
    from research.engine.loss_log import LossLog

    original = LossLog.add

    def stop(self: LossLog, at: int, *rest: Any) -> None:
        if at == step:
            raise KeyboardInterrupt
        original(self, at, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(LossLog, "add", stop)
        with pytest.raises(KeyboardInterrupt):
            yield


@dataclass(frozen=True)
class FirstUse:
    """What came of two processes that used a fresh MLflow store at the same time.

    Attributes:
        database: the store, its tables made.
        outcomes: of each process the exit status, what it printed (the id of its run, as soon as
            it had one), and its errors.
    """

    database: Path
    outcomes: list[tuple[int, str, str]]


@pytest.fixture(scope="session")
def first_use(tmp_path_factory: pytest.TempPathFactory) -> FirstUse:
    """A store used by two processes at once; others copy it, since making tables takes seconds."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # shared by all test processes
    database, record = folder / "mlflow.db", folder / "first_use.json"
    with FileLock(folder / "first_use.lock"):
        if not record.exists():
            record.write_text(json.dumps(_use_at_once(database)))
    return FirstUse(database, [tuple(outcome) for outcome in json.loads(record.read_text())])


def _use_at_once(database: Path) -> list[tuple[int, str, str]]:
    script = """
import sys, time
from pathlib import Path
import mlflow.tracking
from research.tracking.mlflow import MLflowTracker
from research.tracking.tracker import Run
folder = Path(sys.argv[1])
folder.mkdir()
(folder / "ready").touch()
while len(list(folder.parent.glob("user_*/ready"))) < 2:
    time.sleep(0.005)
tracker = MLflowTracker(sys.argv[2], "first use", False)
tracker.start(Run(folder, "run", {"epochs": 1}))
tracker.finish("FINISHED")
print(tracker.run_id)
"""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script, database.with_name(name), f"sqlite:///{database}"],
            env={**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_LOGGING_LEVEL": "WARNING"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("user_1", "user_2")
    ]
    try:
        printed = [process.communicate(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
    return [(p.returncode, *texts) for p, texts in zip(started, printed, strict=True)]


@pytest.fixture
def store(first_use: FirstUse, tmp_path: Path) -> str:
    """The URI of an MLflow store of its own whose tables are there."""
    database = tmp_path / "store" / "mlflow.db"
    database.parent.mkdir()
    shutil.copy(first_use.database, database)
    return f"sqlite:///{database}"


@pytest.fixture
def dead() -> str:
    """The address of a server that is not there."""
    return f"http://127.0.0.1:{free_port()}"


def refusal(command: Callable[[list[str]], object], words: list[str]) -> str:
    """The line with which a command refuses its words."""
    with pytest.raises(UserError) as caught:
        command(words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@contextmanager
def user_error(key: str, *words: object) -> Iterator[pytest.ExceptionInfo[UserError]]:
    """Expect a ``UserError`` of this key whose one line has these words in it."""
    with pytest.raises(UserError) as caught:
        yield caught
    assert caught.value.key == key, f"{caught.value.key}: {caught.value}"
    assert "\n" not in str(caught.value)
    for word in words:
        assert str(word) in str(caught.value)


def one_line_of(act: Callable[[], object]) -> str:
    """The line in which a function or a command refuses what it is given."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            act()
    except UserError as error:
        line = str(error)
    except SystemExit:
        line = said.getvalue().strip().splitlines()[-1]
    else:
        raise AssertionError("it was not refused")
    assert "\n" not in line
    return line


def arguments(of: Callable[..., object]) -> set[str]:
    """Names of the arguments of a function or class, with those of ``**common: Unpack[…]``."""
    found = set()
    for name, parameter in inspect.signature(of).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            unpacked = get_type_hints(of.__init__ if isinstance(of, type) else of).get(name)
            found |= {key for each in get_args(unpacked) for key in each.__annotations__}
        else:
            found.add(name)
    return found


def histories(client: Any, run_id: str) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every metric of an MLflow run, without clocks and machine load."""
    return {
        key: [(metric.step, metric.value) for metric in client.get_metric_history(run_id, key)]
        for key in client.get_run(run_id).data.metrics
        if not key.startswith("system/") and not key.endswith("_time_sec")
    }


Update = tuple[str, int, int | None]
"""Name of a phase, items done, number of items."""


@pytest.fixture
def updates(monkeypatch: pytest.MonkeyPatch) -> list[Update]:
    """What is reported of the progress of this test."""
    reported: list[Update] = []
    at_update(monkeypatch, lambda *update: reported.append(update))
    return reported


def at_update(monkeypatch: pytest.MonkeyPatch, act: Callable[[str, int, int | None], None]) -> None:
    """Call ``act`` with each ``Update``."""
    original = Phase.update

    def update(phase: Phase, done: int, *rest: Any, **named: Any) -> None:
        act(phase.name, done, phase.total)
        original(phase, done, *rest, **named)

    monkeypatch.setattr(Phase, "update", update)


def advised(printed: str) -> list[str]:
    """The words of the command with which a command says to go on."""
    (line,) = [each for each in printed.splitlines() if each.strip().startswith("next:")]
    return shlex.split(line)[1:]
