"""Sections of ``tests.gpu_check`` that train: against the CPU, resumed, with data on the device."""

from __future__ import annotations

import math
import os
import shutil
import signal
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import yaml
from PIL import Image

from research import prepare
from research.batch import Batch
from research.config import compose_config, resolved
from research.data import cifar_files
from research.demos.scenes import CLASSES, Scenes
from research.engine import build, checkpoint, run
from research.engine.epoch_end import EpochEnd
from research.engine.interrupts import Interrupted
from research.engine.loop import EpochCallback, fit
from research.engine.loss_log import LossLog
from research.engine.state import TrainState
from research.tracking.tracker import Row, Table, Tracker
from tests.golden import stored
from tests.golden.configurations import DATA, GOLDEN, overrides
from tests.gpu_check import Checks

STEADY: dict[str, tuple[str, ...]] = {
    "rgb_transformer": ("model.drop_path_rate=0",),
    "dct_from_bitstream": ("model.dropout=0",),
    "rgbx": ("model.drop_path_rate=0", "model.rpn_samples=100000", "model.rois=100000"),
    "ranking_frozen": ("model.dropout=0",),
    "bigdet": ("model.matching=greedy",),
}
"""Without what is drawn on the device, whose generator gives other numbers: dropout, samples of
anchors and proposals; and without the matching of BigDet on the CPU."""
FLOAT32 = ("precision=fp32", "accumulate=1", "ema=null", "ema_warmup=false")
EXACT = (1e-4, 5e-3)
"""Largest differences in float32: other kernels on the CPU differ by 3e-7 and 3e-6."""
VARIANTS: dict[str, tuple[tuple[str, ...], float, float]] = {
    "fp32": ((), *EXACT),
    "channels_last": (("channels_last=true",), *EXACT),
    "bf16": (("precision=bf16",), 0.02, 0.1),
    # The first steps of fp16 may be left out, until the scale of the gradients is small enough.
    "fp16": (("precision=fp16",), 0.005, 0.2),
    "EMA": (("ema=0.9", "ema_warmup=true"), *EXACT),
    "accumulation": (("accumulate=2", "grad_clip=1.0"), *EXACT),
}
"""Settings, and the largest relative difference of the first loss and of all losses."""
TINY = (("dct_from_store", "EMA"), ("dct_from_store", "bf16"), ("tinydet", "bf16"))
TINY += (("ranking_frozen", "bf16"), ("ranking_frozen", "accumulation"))
"""On the CPU: every task."""


class Losses(Tracker):
    """Collects the loss of each batch."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def log(self, table: Table, step: int, row: Row) -> None:
        if table == "batch":
            self.values.append(float(row["loss"]))


def composed(words: Sequence[str]) -> dict[str, Any]:
    """A configuration; of several values of a key the last one counts."""
    last = {word.partition("=")[0]: word for word in words}
    return resolved(compose_config([*last.values()])[0])


def fitted(config: dict[str, Any], callback: EpochCallback | None = None) -> list[float]:
    """Train; returns the loss of each batch."""
    experiment, tracker = build.experiment(config), Losses()
    fit(
        experiment.state,
        experiment.task,
        experiment.train,
        experiment.val,
        experiment.monitor,
        experiment.cfg,
        experiment.device,
        tracker,
        callback or EpochCallback(),
    )
    return tracker.values


@cache
def float32(name: str) -> dict[str, Any]:
    """A configuration of the golden losses: one epoch, in float32."""
    return composed([*overrides(name), "epochs=1", *STEADY.get(name, ()), *FLOAT32])


def golden(name: str, *words: str, callback: EpochCallback | None = None) -> list[float]:
    """Losses of a configuration of the golden losses, on its stored batches.

    Args:
        name: of the configuration.
        words: run settings of their own, which need not be composed.
        callback: for the training.
    """
    given = dict(word.split("=") for word in words)
    config = deepcopy(float32(name))
    assert given.keys() <= config.keys()
    config |= {key: yaml.safe_load(value) for key, value in given.items()}
    data = stored.load(name, build.data_module(config))
    with patch.object(build, "data_module", lambda _: data):
        return fitted(config, callback)


def losses(checks: Checks) -> None:
    """Every task in every precision, layout and mode, against float32 on the CPU."""
    exact_float32()
    tiny, device = checks.settings.tiny, f"device={checks.settings.device}"
    short = ("max_train_batches=2", "max_val_batches=1") if tiny else ()

    @cache
    def on_cpu(name: str, words: tuple[str, ...]) -> list[float]:
        return golden(name, *words, "device=cpu")

    def check(name: str, variant: str) -> dict[str, Any]:
        words, first, all_ = VARIANTS[variant]
        known = (*short, *words) if variant == "accumulation" else short
        return compared(golden(name, *short, *words, device), on_cpu(name, known), first, all_)

    pairs = [(name, variant) for name in GOLDEN for variant in VARIANTS]
    for name, variant in TINY if tiny else pairs:
        checks.run(f"{name}, {variant}", partial(check, name, variant))


def compiled(checks: Checks) -> None:
    """A configuration of each task with ``torch.compile``."""
    exact_float32()
    device = f"device={checks.settings.device}"

    def check(name: str) -> dict[str, Any]:
        return compared(golden(name, "compile=true", device), golden(name, "device=cpu"), *EXACT)

    if not checks.settings.tiny:  # the compiler takes a minute on the CPU
        for name in ("rgb", "dct_from_store", "tinydet", "ranking", "rgbx"):
            checks.run(name, partial(check, name))


def exact_float32() -> None:
    """No TF32, which rounds the factors of convolutions to 10 bits."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def compared(
    found: Sequence[float], expected: Sequence[float], first: float, all_: float
) -> dict[str, Any]:
    """Relative differences of losses, and whether they are larger than allowed."""
    assert len(found) == len(expected) > 0, f"{len(found)} losses, {len(expected)} on the CPU"
    differences = [abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True)]
    row = {
        "steps": len(found),
        "first loss": found[0],
        "difference of the first": differences[0],
        "largest difference": max(differences),
    }
    if not all(map(math.isfinite, found)):
        row["failed"] = f"losses {found}"
    elif differences[0] > first or max(differences) > all_:
        row["failed"] = (
            f"losses {found}, on the CPU {list(expected)}: allowed are {first:g} and {all_:g}"
        )
    return row


class NoWaits(EpochCallback):
    """From the second step to the last but one, operations that wait for the device raise."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.done = 0

    def step(self, state: TrainState, losses: LossLog, inputs: Batch | None) -> None:
        self.done += 1
        mode = "error" if self.done < self.steps - 1 else "default"
        if torch.cuda.is_initialized():
            torch.cuda.set_sync_debug_mode(mode)


def waits(checks: Checks) -> None:
    """Steps of all tasks that read nothing, see docs/performance.md."""
    device = f"device={checks.settings.device}"
    names = ["ranking_frozen"] if checks.settings.tiny else [*GOLDEN.keys() - {"rgbx"}]

    def check(name: str) -> dict[str, Any]:
        try:
            found = golden(name, "log_every=100", device, callback=NoWaits(5))
        finally:
            if torch.cuda.is_initialized():
                torch.cuda.set_sync_debug_mode("default")
        return {"steps": len(found)}

    for name in sorted(names):
        checks.run(name, partial(check, name))


class Stopped(EpochEnd):
    """Sends SIGTERM to this process in step ``AT``."""

    AT = 3
    steps = 0

    def step(self, *arguments: Any) -> None:
        type(self).steps += 1
        if self.steps == self.AT:
            os.kill(os.getpid(), signal.SIGTERM)
        super().step(*arguments)


def resume(checks: Checks) -> None:
    """Runs that are stopped within an epoch and resumed: the same weights, bit for bit."""
    shutil.copytree(DATA / "data", "data", dirs_exist_ok=True)
    shutil.copytree(DATA / "stores", "stores", dirs_exist_ok=True)
    names = ("dct_from_store", "fastnet_bf16", "tinydet", "bigdet", "ranking", "rgbx")
    short = ("epochs=1",) if checks.settings.tiny else ()
    for name in ("dct_from_store",) if checks.settings.tiny else names:
        checks.run(name, partial(resumed, name, checks.settings.device, *short))


def resumed(name: str, device: str, *short: str) -> dict[str, Any]:
    words = [
        *overrides(name),
        "deterministic=true",
        f"device={device}",
        "max_val_batches=2",
        *short,
    ]
    trained(composed([*words, f"run_dir={name}_whole"]))
    with patch.object(run, "EpochEnd", Stopped), patch.object(Stopped, "steps", 0):
        try:
            trained(composed([*words, f"run_dir={name}_stopped"]))
        except Interrupted:
            pass
        else:
            return {"failed": "SIGTERM did not stop the run"}
    stopped = checkpoint.load(Path(f"{name}_stopped/checkpoints/last.pt"))["state"]
    trained(composed([*words, f"resume={name}_stopped"]))
    whole, other = (
        checkpoint.load(Path(f"{name}_{how}/checkpoints/last.pt")) for how in ("whole", "stopped")
    )
    parts = ("model", "ema", "transform", "optimizer", "scheduler", "scaler", "rng")
    different = [part for part in parts if not same(whole[part], other[part])]
    row = {
        "stopped after": f"{stopped['epoch']} epochs, {stopped['samples']} samples",
        "values": sum(tensor.numel() for tensor in whole["model"].values()),
    }
    return row | ({"failed": f"not the same: {', '.join(different)}"} if different else {})


def trained(config: dict[str, Any]) -> None:
    """Train as ``train.py`` does."""
    begin = run.start(config, "gpu_check")
    assert begin is not None
    with run.opened(begin):
        run.train(config, "gpu_check", [], begin)


def same(one: Any, two: Any) -> bool:
    """Equality of nested values, bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return bool(one == two)


def data(checks: Checks) -> None:
    """Rendered data in the formats of the readers: on the device, from workers, from the host."""
    tiny = checks.settings.tiny
    count = 24 if tiny else 240
    scenes = Scenes("scenes", count, count // 2, 0)
    scenes.render()
    device = f"device={checks.settings.device}"
    common = (device, "deterministic=true", "logging=csv", "epochs=1", "batch_size=8")
    common += ("max_train_batches=4", "max_val_batches=1")
    folders = ("dataset=imagefolder", "dataset.train_dirs=[scenes/train]")
    folders += ("dataset.val_dir=scenes/val", "dataset.image_size=64")
    narrow = ("model=resnet34_compressed", "model.name=resnet10t", "compression.window=4")
    net = ("model=fastnet", "model.widths=[8,16,16]")
    on_device, on_host = "dataset.on_device=true", "dataset.on_device=false"
    none, two = "workers=0", "workers=2"

    def equal(one: str, other: str, *words: str) -> dict[str, Any]:
        config = composed([*common, *words, one])
        first = fitted(deepcopy(config))
        key, value = other.removeprefix("dataset.").split("=")
        config["dataset"][key] = yaml.safe_load(value)
        second = fitted(config)
        row = {"ways": f"{one}, {other}", "steps": len(first), "last loss": first[-1]}
        failed = first != second or not all(map(math.isfinite, first))
        return row | ({"failed": f"losses {first} and {second}"} if failed else {})

    def coefficients() -> dict[str, Any]:
        options = ["image_size=64", "val=0.3", "workers=1"]
        prepare.main(["coefficients", "scenes/train", "coefficients", *options])
        store = ("dataset=warehouse", "dataset.manifest=coefficients", "dataset.image_size=48")
        return equal(on_device, on_host, *narrow, *store)

    def cifar() -> dict[str, Any]:
        write_cifar(Path("cifar"), Path("scenes/train"), 200 if tiny else 50_000)
        root = ("dataset=cifar10", "dataset.root=cifar", "dataset.download=false")
        return equal(on_device, on_host, *net, *root, f"dataset.val_images={count // 2}")

    frames = ("dataset=demo_runs", "dataset.demo.runs=6", "dataset.demo.frames=5")
    frames += ("dataset.image_size=64",)
    checks.run("folder, pixels", lambda: equal(none, two, *net, *folders))
    checks.run("CIFAR-10", cifar)
    checks.run("store of frames", lambda: equal(on_device, on_host, "model=tinydet", *frames))
    if tiny:
        return
    checks.run("store of coefficients", coefficients)
    bitstream = (*narrow, *folders, "compression.source=bitstream")
    checks.run("folder, bitstream", lambda: equal(none, two, *bitstream))
    photos = ("model=siamese_e2e", "model.backbone=resnet18", "dataset=demo_photos")
    photos += ("dataset.demo.series=20", "dataset.image_size=64")
    checks.run("photos", lambda: equal(none, two, *photos))
    features = ("model=siamese_frozen", "dataset=demo_photo_features", "dataset.demo.series=20")
    checks.run("features", lambda: equal(none, two, *features))
    rgbx = ("model=rgbx_mit_b0", "dataset=demo_rgbx", "dataset.demo.images=48")
    checks.run("RGB + X", lambda: equal(none, two, *rgbx, "batch_size=2"))


def write_cifar(root: Path, scenes: Path, train: int) -> None:
    """Scenes as the binary version of CIFAR-10, repeated; fewer images than published if asked."""
    family = cifar_files.FAMILIES[10]
    images = {"train": train, "test": train // 5}
    cifar_files.FAMILIES[10] = replace(family, images=images)
    files = sorted(scenes.glob("*/*.jpg"))
    pixels = np.stack([np.asarray(Image.open(f).convert("RGB").resize((32, 32))) for f in files])
    labels = [CLASSES.index(file.parent.name) % len(family.classes) for file in files]
    records = np.concatenate(
        [np.array(labels, np.uint8)[:, None], pixels.transpose(0, 3, 1, 2).reshape(len(files), -1)],
        axis=1,
    )
    folder = root / family.binary
    folder.mkdir(parents=True, exist_ok=True)
    for split, names in family.binary_files.items():
        each = images[split] // len(names)
        for number, name in enumerate(names):
            rows = np.arange(number * each, (number + 1) * each) % len(records)
            records[rows].tofile(folder / name)
