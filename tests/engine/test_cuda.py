"""What training and evaluation do on a CUDA device, shown without one: ``tests.fake_cuda``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch._subclasses import FakeTensor

from research.batch import Targets
from research.config import compose_config, resolved
from research.config.options import options
from research.data.cifar_files import FAMILIES
from research.engine import build, evaluation
from research.engine.build import Experiment
from research.engine.loop import EpochCallback, EvalResult, fit
from research.models.detectors import BigDet, TinyDet
from research.tracking.tracker import Tracker
from tests.conftest import ROOT
from tests.data.test_cifar import TEST, TRAIN, write_binary
from tests.fake_cuda import CPU, CUDA, CountReads, CpuGenerator, FakeCuda, Read, copied
from tests.golden import stored
from tests.golden.configurations import DATA, GOLDEN, overrides

ONE_STEP = ("device=cuda", "epochs=1", "max_train_batches=1", "max_val_batches=1", "log_every=100")
ONE_STEP += ("workers=0", "pin_memory=false")
LOG = "research.engine.loss_log.LossLog._read"
"""The loop's only read: of the losses, every ``log_every`` batches."""
ONCE = (
    "research.tasks.classification.ClassificationMetrics.__init__",
    "research.data.warehouse.dataset.Warehouse._resident",
)
"""Called before the first step, or in it."""
STEP = "research.engine.steps.optimizer_step"
"""In fp16 it reads the scale of the gradients, and whether they overflowed."""
TARGETS = Read("aten.index.Tensor", "research.models.rgbx._as_torchvision.<locals>.<listcomp>")
HUNGARIAN = Read("aten._to_copy", "research.models.matching.hungarian")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """The device; ``select_device`` returns it, and a backward pass leaves gradients of 0."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    monkeypatch.setattr(torch, "Generator", CpuGenerator)
    monkeypatch.setattr(FakeTensor, "__deepcopy__", copied, raising=False)
    monkeypatch.setattr(build, "select_device", lambda *_: CUDA)
    return FakeCuda()


class Last(EpochCallback):
    """Keeps the result of the evaluation."""

    result: EvalResult

    def __call__(self, state: Any, row: Any, result: EvalResult) -> None:
        self.result = result


@dataclass
class Trained:
    """An experiment after one step and one batch of validation."""

    experiment: Experiment
    result: EvalResult


def composed(name: str, *words: str) -> dict[str, Any]:
    known = [word for word in overrides(name) if word != "device=cpu"]
    return resolved(compose_config([*known, *ONE_STEP, *words])[0])


def golden(name: str, *words: str) -> tuple[dict[str, Any], Any]:
    """The configuration of golden losses and its data, which come from a file."""
    config = composed(name, *words)
    return config, stored.load(name, build.data_module(config))


def train(
    config: dict[str, Any],
    cuda: FakeCuda,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Experiment], None] = lambda _: None,
) -> Trained:
    """One step and one batch of validation; ``cuda.reads`` are those after building.

    Args:
        change: makes a mistake.
    """
    with cuda:
        experiment = build.experiment(config)
        change(experiment)
        state, end = experiment.state, Last()
        cuda.reads.clear()

        def backward(self: Tensor) -> None:
            for group in state.optimizer.param_groups:  # which treats all parameters alike
                for parameter in group["params"][:2]:
                    parameter.grad = torch.zeros_like(parameter)

        monkeypatch.setattr(Tensor, "backward", backward)
        fit(
            state,
            experiment.task,
            experiment.train,
            experiment.val,
            experiment.monitor,
            experiment.cfg,
            experiment.device,
            Tracker(),
            end,
        )
    return Trained(experiment, end.result)


def in_steps(reads: set[Read]) -> set[Read]:
    return {read for read in reads if not read.evaluation and read.where not in (LOG, *ONCE)}


def train_golden(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, name: str, *words: str
) -> Trained:
    config, data = golden(name, *words)
    monkeypatch.setattr(build, "data_module", lambda _: data)
    trained = train(config, cuda, monkeypatch)
    tensors = [
        *trained.experiment.state.model.parameters(),
        *trained.experiment.state.model.buffers(),
    ]
    assert {tensor.device for tensor in tensors} == {CUDA}
    return trained


SOONER = ("fastnet_bf16", "dct_from_store", "tinydet", "ranking_frozen")
LATER = ("rgb", "rgb_transformer", "dct_reconstruction", "dct_from_pixels", "ranking")
LATER += ("dct_from_bitstream", "dct_refined_blocks", "dct_late_concat")


def long(names: Iterable[str]) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.long) for name in names]


def rarely(names: Iterable[str]) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.whole) for name in sorted(names)]


@pytest.mark.parametrize("name", [*SOONER, *long(LATER)])
def test_a_step_mixes_no_devices_and_waits_for_nothing(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    train_golden(cuda, monkeypatch, name)
    assert in_steps(cuda.reads) == set()


@pytest.mark.long
def test_a_step_of_bigdet(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    train_golden(cuda, monkeypatch, "bigdet", "model.matching=greedy")
    assert in_steps(cuda.reads) == set()


@pytest.mark.long
def test_the_reads_of_rgbx_are_those_of_the_documentation(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_golden(cuda, monkeypatch, "rgbx", "model.fusion=rgb_only")
    check_documented(cuda.reads)


TARGET = re.compile(r"^ *_target_: (research\.\S+)", re.MULTILINE)


def targets(config: Any) -> set[str]:
    """Every ``_target_`` in a configuration."""
    if isinstance(config, dict):
        own = {config["_target_"]} if "_target_" in config else set()
        return own.union(*map(targets, config.values()))
    return set().union(*map(targets, config)) if isinstance(config, list) else set()


@pytest.mark.long
def test_every_task_source_and_model_takes_a_step_here() -> None:
    """The configurations above have all classes of ``conf/``, and all compressions."""
    groups = ("task", "dataset", "model", "compression")
    files = [path for group in groups for path in (ROOT / "conf" / group).glob("*.yaml")]
    known = {found for path in files for found in TARGET.findall(path.read_text(encoding="utf-8"))}
    assert {*SOONER, *LATER, "bigdet", "rgbx"} == GOLDEN.keys()
    configs = [composed(name) for name in GOLDEN]
    covered = targets(configs) | {"research.data.cifar.Cifar"}  # test_cifar_on_the_device
    # What a demo renders is read by one of the other sources.
    assert {name for name in known - covered if not name.startswith("research.demos.")} == set()
    compressions = {word for words in GOLDEN.values() for word in words if "compression=" in word}
    assert {f"compression={name}" for name in options("compression")} - compressions == {
        "compression=none"  # that of rgb
    }


def check_documented(reads: set[Read]) -> None:
    """The reads of the RGB + X detector are the table of docs/performance.md."""
    page = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    (version,) = re.findall(r"\(torchvision ([\d.]+\d), fp32\)", page)
    rows = re.findall(r"^\| `([\w. ]+)` \| `([\w.]+)` \|", page, re.MULTILINE)
    found = {(read.op, re.sub(r"\.<locals>.*", "", read.where)) for read in in_steps(reads)}
    own = {(op, where) for op, where in found if where.startswith("research")}
    assert own == {("aten.index.Tensor", "research.models.rgbx._as_torchvision")}
    if torchvision.__version__.startswith(version):
        assert found == set(rows)


DETECTORS: dict[str, Callable[[], nn.Module]] = {
    "tinydet": lambda: TinyDet(4, 1, 1, 1, 1),
    "bigdet": lambda: BigDet(4, 3, "greedy", 1, 1, 1, 0.7, 0.5),
}


@pytest.mark.parametrize("name", DETECTORS)
def test_a_backward_pass_of_the_detectors_reads_nothing(name: str) -> None:
    """Derivatives of some operations, such as ``prod``, read values that the operations do not."""
    boxes = torch.tensor([[[0.1, 0.1, 0.4, 0.5], [0.5, 0.5, 0.5, 0.5]]]).repeat(2, 1, 1)
    labels = torch.zeros(2, 2, dtype=torch.int64)
    targets = Targets(boxes, torch.tensor([[True, False], [False, False]]), labels)
    losses = DETECTORS[name]()(torch.rand(2, 3, 64, 64), targets)
    with CountReads() as counted:
        torch.stack([*losses.values()]).sum().backward()
    assert counted.reads == set()


@pytest.mark.parametrize("name", ["dct_from_store", *long(["tinydet"])])
def test_a_store_on_the_device(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    """Batches are gathered there; only their positions are copied."""
    monkeypatch.chdir(DATA)
    train(composed(name, f"dataset.cache_dir={tmp_path}"), cuda, monkeypatch)
    assert in_steps(cuda.reads) == set()


class Mistake(NamedTuple):
    """A configuration, and a part of its experiment that is changed."""

    configuration: str
    change: Callable[[Experiment], None]


def on_cpu(batch: Any, field: str) -> Any:
    """``batch`` with zeros on the CPU in the place of a field."""
    value = getattr(batch, field)
    return replace(batch, **{field: torch.zeros(value.shape, dtype=value.dtype)})


def called_with(name: str, field: str) -> Callable[[Experiment], None]:
    """``losses`` or ``predict`` of the task gets a field of the batch on the CPU."""

    def change(experiment: Experiment) -> None:
        right = getattr(experiment.task, name)
        setattr(experiment.task, name, lambda model, batch: right(model, on_cpu(batch, field)))

    return change


def metrics_on_cpu(experiment: Experiment) -> None:
    right = experiment.task.metrics
    experiment.task.metrics = lambda _: right(CPU)  # type: ignore[method-assign]


def transform_on_cpu(experiment: Experiment) -> None:
    for name, buffer in experiment.state.transform.named_buffers():
        setattr(experiment.state.transform, name, torch.ones(buffer.shape, dtype=buffer.dtype))


def read_in_losses(experiment: Experiment) -> None:
    right = experiment.task.losses

    def losses(model: nn.Module, batch: Any) -> dict[str, Tensor]:
        return {name: loss * loss.item() for name, loss in right(model, batch).items()}

    experiment.task.losses = losses  # type: ignore[method-assign]


MISTAKES: dict[str, Mistake] = {
    "the statistics of coefficients": Mistake("dct_from_store", transform_on_cpu),
    "labels": Mistake("dct_from_store", called_with("losses", "labels")),
    "metrics of classes": Mistake("dct_from_store", metrics_on_cpu),
    "true boxes": Mistake("tinydet", called_with("losses", "boxes")),
    "frames": Mistake("tinydet", called_with("predict", "inputs")),
    "preferences": Mistake("ranking_frozen", called_with("losses", "preference")),
    "features": Mistake("ranking_frozen", called_with("predict", "inputs")),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_found(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    wrong = MISTAKES[name]
    config, data = golden(wrong.configuration)
    monkeypatch.setattr(build, "data_module", lambda _: data)
    with pytest.raises(RuntimeError, match=r"cuda.*cpu|cpu.*cuda"):
        train(config, cuda, monkeypatch, wrong.change)


def test_a_value_that_is_read_is_found(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    config, data = golden("ranking_frozen")
    monkeypatch.setattr(build, "data_module", lambda _: data)
    train(config, cuda, monkeypatch, read_in_losses)
    assert {read.op for read in in_steps(cuda.reads)} == {"aten._local_scalar_dense"}


HALF = ("dct_from_store", "ranking_frozen")


@pytest.mark.parametrize("name", [*HALF, *rarely(set(GOLDEN) - set(HALF))])
def test_half_precision_pictures_and_tables(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    trained = train_golden(cuda, monkeypatch, name, "precision=fp16")
    scaler = {read for read in in_steps(cuda.reads) if read.where == STEP}
    assert {read.op for read in scaler} == {"aten._local_scalar_dense"}
    own = {read for read in in_steps(cuda.reads) - scaler if read.where.startswith("research")}
    assert own == {"rgbx": {TARGETS}, "bigdet": {HUNGARIAN}}.get(name, set())
    task, result = trained.experiment.task, trained.result
    with cuda, torch.inference_mode():
        task.postprocess(*reversed(result.examples()))
        if name != "ranking_frozen":  # whose pictures are drawn from files
            evaluation.draw(task, trained.experiment.state.transform, result, Tracker(), 1)


POLICY = "dataset.augmentation.policy="
MIX = ("dataset.augmentation.mixup=1", "dataset.augmentation.cutmix=1")
FRAMES = ("dataset.augmentation.noise=0.1", "dataset.augmentation.flip_vertical=true")
OPTIONS: dict[str, tuple[str, ...]] = {
    "randaugment": ("rgb", POLICY + "randaugment"),
    "trivialaugment": ("rgb", POLICY + "trivialaugment"),
    "autoaugment": ("rgb", POLICY + "autoaugment_cifar"),
    "mixed pixels": ("rgb", *MIX, "dataset.augmentation.erasing=1"),
    "mixed coefficients": ("dct_from_bitstream", *MIX),
    "studio range": ("dct_reconstruction", "compression.range=studio"),
    "frames": ("tinydet", *FRAMES, "ema=0.9", "grad_clip=1"),
    "RGB + X": ("rgbx", *FRAMES, "ema=0.9", "grad_clip=1"),
    "X": ("rgbx", "model.fusion=x_only"),
    "concatenated": ("rgbx", "model.fusion=concat"),
    "sum": ("rgbx", "model.fusion=sum"),
    "a head of pairs": ("ranking", "model.head=mlp", "model.mlp_hidden_dims=[16]"),
    "hungarian": ("bigdet", "model.matching=hungarian"),
    "densenet": ("rgb", "model=densenet121", "model.name=densenet121"),
    "cspdarknet": ("rgb", "model=cspdarknet53", "model.name=cspdarknet53"),
    "efficientvit": ("rgb", "model=efficientvit_m4", "model.name=efficientvit_m4"),
    "adamw": ("rgb", "optimizer=adamw", "grad_clip=1", "layer_decay=0.7"),
}


OFTEN = ("frames", "hungarian", "mixed pixels")


@pytest.mark.parametrize("name", [*long(OFTEN), *rarely(OPTIONS.keys() - OFTEN)])
def test_options_mix_no_devices(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    base, *words = OPTIONS[name]
    train_golden(cuda, monkeypatch, base, *words)
    own = {read for read in in_steps(cuda.reads) if read.where.startswith("research")}
    known = {"rgbx": {TARGETS}, "bigdet": {HUNGARIAN}}.get(base, set())
    if POLICY in "".join(words):  # torchvision changes image by image
        own = {read for read in own if read.where != "research.data.augment.Augmentation._policy"}
    assert own == known


@pytest.mark.long
def test_cifar_on_the_device(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    few = replace(FAMILIES[10], images={"train": TRAIN, "test": TEST})
    monkeypatch.setitem(FAMILIES, 10, few)
    write_binary(tmp_path, 10)
    words = ("model=fastnet", "model.widths=[8,8,8]", "dataset=cifar10", f"dataset.root={tmp_path}")
    words += ("dataset.val_images=50", "batch_size=20", "dataset.image_size=48")
    config = resolved(compose_config([*ONE_STEP, "logging=csv", *words])[0])
    trained = train(config, cuda, monkeypatch)
    assert trained.experiment.train.source.images.device == CUDA
    assert in_steps(cuda.reads) == set()
