"""Sections of ``tests.gpu_check`` that measure: the machine, training steps, a matrix product."""

from __future__ import annotations

import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import timm
import torch
import torchvision
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from research.compression.blocks import Blocks
from research.config.options import options
from research.engine import build, placement
from research.engine.loop import autocast
from research.utils.timing import synchronize
from tests.gpu_check import Checks
from tests.gpu_training import composed

IMAGES = ("dataset=imagefolder", "dataset.train_dirs=[none]", "dataset.val_dir=none")
BF16 = ("precision=bf16",)
SIAMESE = ("model=siamese_e2e", "model.backbone=resnet50")
MODELS: dict[str, tuple[int, tuple[str, ...]]] = {
    "ResNet-34, 224 px, fp32": (256, ("model=resnet34", *IMAGES, "dataset.image_size=224")),
    "ResNet-34, 224 px, fp16": (
        256,
        ("model=resnet34", *IMAGES, "dataset.image_size=224", "precision=fp16"),
    ),
    "ResNet-34, 224 px, bf16": (256, ("model=resnet34", *IMAGES, "dataset.image_size=224", *BF16)),
    "DenseNet-121, 224 px, bf16": (
        128,
        ("model=densenet121", *IMAGES, "dataset.image_size=224", *BF16),
    ),
    "FastNet, 32 px, bf16": (1024, ("model=fastnet", "dataset=cifar10", *BF16)),
    "TinyDet, 384 px, bf16": (64, ("model=tinydet", "dataset=demo_runs", *BF16)),
    "BigDet, 384 px, bf16": (64, ("model=bigdet", "dataset=demo_runs", *BF16)),
    "RGB + X, MiT-B0, 512 px, bf16": (
        8,
        ("model=rgbx_mit_b0", "dataset=demo_rgbx", "dataset.image_size=512", *BF16),
    ),
    "Siamese ResNet-50, 224 px, bf16": (
        64,
        (*SIAMESE, "dataset=demo_photos", "dataset.image_size=224", *BF16),
    ),
    "Siamese, features": (1024, ("model=siamese_frozen", "dataset=demo_photo_features")),
}
"""Samples per batch and settings."""
STEPS, WARM_UP = 20, 5
FEW = 3
"""Steps on the CPU."""
MATRIX = 8192
"""Side of the matrices of the product."""


@dataclass
class Training:
    """A network with everything that a training step needs; its inputs are normal noise.

    Attributes:
        step: one forward and backward pass and a step of the optimizer.
        forward_backward: the same without the optimizer.
    """

    step: Callable[[], None]
    forward_backward: Callable[[], None]
    device: torch.device


def training(words: tuple[str, ...], batch: int, name: str) -> Training:
    config = composed([*words, f"device={name}", "logging=csv"])
    data = build.data_module(config)
    metadata = data.expected_metadata(config["model"], own_classes=False)
    device = build.select_device(config["device"], config["precision"])
    torch.backends.cudnn.benchmark = True
    network = build.model(config, metadata)
    layout = placement.memory_format(config, device, network)
    network = network.to(memory_format=layout).to(device).train()
    task = build.build_task(config, metadata["classes"])

    def noise(count: int) -> Tensor | Blocks:
        return _noise(build.blank_inputs(config, metadata, count))

    inputs = task.example_batch(batch, noise, metadata).to(device).in_format(layout)
    optimizer = build.optimizer(config, network, batch)
    scaler = torch.amp.GradScaler(device.type, enabled=config["precision"] == "fp16")

    def forward_backward() -> None:
        with autocast(device, config["precision"]):
            losses = task.losses(network, inputs)
        scaler.scale(torch.stack([*losses.values()]).sum()).backward()

    def step() -> None:
        forward_backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

    return Training(step, forward_backward, device)


def _noise(blank: Tensor | Blocks) -> Tensor | Blocks:
    """Normal noise of the shape of inputs."""
    return (
        Blocks(*map(torch.randn_like, blank))
        if isinstance(blank, Blocks)
        else torch.randn_like(blank)
    )


def timed(step: Callable[[], None], device: torch.device, steps: int) -> float:
    """Seconds of a step, the mean of ``steps``; before them, others are not timed."""
    for _ in range(min(WARM_UP, steps)):
        step()
    synchronize(device)
    start = time.perf_counter()
    for _ in range(steps):
        step()
    synchronize(device)
    return (time.perf_counter() - start) / steps


def measured(words: tuple[str, ...], batch: int, device: str, steps: int) -> dict[str, Any]:
    """Milliseconds of a step, samples per second, peak memory."""
    built = training(words, batch, device)
    on_gpu = built.device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(built.device)
    seconds = timed(built.step, built.device, steps)
    row = {
        "batch": batch,
        "steps": steps,
        "ms per step": 1000 * seconds,
        "samples/s": batch / seconds,
    }
    if on_gpu:
        row["peak GiB"] = torch.cuda.max_memory_allocated(built.device) / 2**30
    return row


def speed(checks: Checks) -> None:
    """Steps of networks of every task, without reading of data."""
    device = checks.settings.device
    if checks.settings.tiny:
        words = ("model=fastnet", "model.widths=[8,8,8]", "dataset=cifar10")
        checks.run("FastNet", partial(measured, words, 2, device, FEW))
        return
    for name, (batch, words) in MODELS.items():
        checks.run(name, partial(measured, words, batch, device, STEPS))


def compression(checks: Checks) -> None:
    """RGB and every variant of compression, on the same pictures."""
    tiny, device = checks.settings.tiny, checks.settings.device
    size, batch, steps = (32, 2, FEW) if tiny else (224, 256, STEPS)
    name = ("model.name=resnet10t",) if tiny else ()
    common = (*IMAGES, f"dataset.image_size={size}", *name, *(() if tiny else BF16))
    rgb: list[float] = []

    def check(words: tuple[str, ...]) -> dict[str, Any]:
        row = measured((*words, *common), batch, device, steps)
        rgb.append(row["ms per step"])
        return {**row, "× RGB": row["ms per step"] / rgb[0]}

    checks.run("RGB", partial(check, ("model=resnet34",)))
    for variant in options("compression"):
        for window in (4,) if tiny else (8, 4, 2):
            words = ("model=resnet34_compressed", f"compression={variant}")
            if variant != "none":
                checks.run(
                    f"{variant}, window {window}",
                    partial(check, (*words, f"compression.window={window}")),
                )


def matrix_product(checks: Checks) -> None:
    """How much of the rate of a matrix product a ResNet-34 reaches in training, in bf16."""
    tiny, name = checks.settings.tiny, checks.settings.device
    side, batch, size, steps = (256, 2, 32, FEW) if tiny else (MATRIX, 256, 224, STEPS)
    rates: list[float] = []

    def product() -> dict[str, Any]:
        device = torch.device(name)
        one, two = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in "ab")
        seconds = timed(lambda: torch.mm(one, two), device, steps)  # type: ignore[arg-type, return-value]
        rates.append(2 * side**3 / seconds)
        return {"n": steps, "ms": 1000 * seconds, "TFLOP/s": rates[0] / 1e12}

    def network() -> dict[str, Any]:
        words = ("model=resnet34", *IMAGES, f"dataset.image_size={size}", *BF16)
        words += ("model.name=resnet10t",) if tiny else ()
        built = training(words, batch, name)
        with FlopCounterMode(display=False) as counter:
            built.forward_backward()
        seconds = timed(built.step, built.device, steps)
        rate = counter.get_total_flops() / seconds
        return {
            "n": steps,
            "ms": 1000 * seconds,
            "TFLOP/s": rate / 1e12,
            "share": rate / rates[0],
        }

    checks.run(f"product of {side} × {side}", product)
    network_name = "ResNet-10" if tiny else "ResNet-34"
    checks.run(f"{network_name}, {size} px, batch {batch}", network)


def environment(checks: Checks) -> None:
    """Versions of libraries and of every CUDA toolchain, and the device."""

    def versions() -> dict[str, Any]:
        return {
            "Python": platform.python_version(),
            "torch": torch.__version__,
            "CUDA of torch": torch.version.cuda,
            "cuDNN": torch.backends.cudnn.version(),
            "torchvision": torchvision.__version__,
            "timm": timm.__version__,
            "Hydra": hydra.__version__,
        }

    def toolchains() -> dict[str, Any]:
        folders = [path / "bin/nvcc" for path in Path("/usr/local").glob("cuda*")]
        found = {Path(path).resolve() for path in (shutil.which("nvcc"), *folders) if path}
        lines = {str(path): _last_line([str(path), "--version"]) for path in sorted(found)}
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        nvcc = "; ".join(f"{path}: {line}" for path, line in lines.items())
        return {"nvcc": nvcc or "none", "driver": _last_line(query)}

    def device() -> dict[str, Any]:
        device = build.select_device(checks.settings.device, "fp32")
        if device.type != "cuda":
            return {"device": platform.processor() or platform.machine()}
        known = torch.cuda.get_device_properties(device)
        return {
            "device": known.name,
            "capability": f"{known.major}.{known.minor}",
            "GiB": known.total_memory / 2**30,
            "devices": torch.cuda.device_count(),
        }

    for check in (versions, toolchains, device):
        checks.run(check.__name__, check)


def _last_line(command: list[str]) -> str:
    try:
        printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except FileNotFoundError:
        return "none"
    except (OSError, subprocess.SubprocessError) as error:
        return f"{type(error).__name__}"
    return (printed.stdout.strip().splitlines() or [""])[-1]
