"""Training and inference of the RGB network and of every variant of compression, side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from research.batch import Batch
from research.benchmarks.measure import Candidate, Result, measure
from research.benchmarks.options import BenchmarkOptions
from research.compression.blocks import Blocks
from research.config import compose_config
from research.config.options import options as options_of
from research.engine import build, cost, placement
from research.engine.loop import autocast
from research.tasks.task import Task
from research.utils.timing import synchronize

RGB = "RGB"
DATA = ("dataset=imagefolder", "dataset.train_dirs=[none]", "dataset.val_dir=none")
DEFAULTS = ("dataset.image_size=224", "batch_size=8")
LATE = "late_concat"
CONTROL = f"RGB of the depth of {LATE}"
"""Tells what is due to the depth, and not to the coefficients."""


@dataclass
class Network:
    """A network with everything that a step needs; its inputs are normal noise."""

    config: Mapping[str, Any]
    network: nn.Module
    task: Task
    batch: Batch
    device: torch.device
    columns: dict[str, Any]

    @classmethod
    def of(cls, words: Sequence[str]) -> Network:
        """The network of a composed configuration, with 1000 classes unless they are set."""
        config = compose_config([*DATA, *DEFAULTS, *words]).config
        data = build.data_module(config)
        metadata = data.expected_metadata(config["model"], own_classes=False)
        torch.manual_seed(0)
        network = build.model(config, metadata)
        task = build.build_task(config, metadata["classes"])
        parameters, macs, *_ = cost.measure(network, config, metadata)
        device = build.select_device(config["device"], config["precision"])
        layout = placement.memory_format(config, device, network)
        network = network.to(memory_format=layout).to(device)

        def noise(count: int) -> Tensor | Blocks:
            blank = build.blank_inputs(config, metadata, count)
            if isinstance(blank, Blocks):
                return Blocks(*map(torch.randn_like, blank))
            return torch.randn_like(blank)

        batch = task.example_batch(config["batch_size"], noise, metadata)
        columns = {
            "parameters": f"{parameters:,}",
            "GFLOP": 2 * macs / 1e9,
            "batch": f"{config['batch_size']} × {config['dataset']['image_size']} px",
            "precision": config["precision"],
        }
        return cls(config, network, task, batch.to(device).in_format(layout), device, columns)

    def training(self) -> Candidate:
        """Seconds per sample of a forward and a backward pass, and a step of the optimizer."""
        optimizer = build.optimizer(self.config, self.network, self.config["batch_size"])
        scaler = torch.amp.GradScaler(self.device.type, enabled=self.config["precision"] == "fp16")

        def step() -> None:
            with autocast(self.device, self.config["precision"]):
                losses = self.task.losses(self.network, self.batch)
            scaler.scale(torch.stack([*losses.values()]).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)

        return partial(self._timed, step, train=True)

    def inference(self) -> Candidate:
        """Seconds per sample of a forward pass in evaluation mode."""

        @torch.inference_mode()
        def predict() -> None:
            with autocast(self.device, self.config["precision"]):
                self.task.predict(self.network, self.batch)

        return partial(self._timed, predict, train=False)

    def _timed(self, work: Callable[[], None], *, train: bool) -> float:
        self.network.train(train)
        synchronize(self.device)
        start = time.perf_counter()
        work()
        synchronize(self.device)
        return (time.perf_counter() - start) / len(self.batch)


def run(options: BenchmarkOptions, paths: list[Path], overrides: list[str]) -> list[Result]:
    networks = variants(overrides)
    return [
        compared("training", networks, Network.training, options.rounds),
        compared("inference", networks, Network.inference, options.rounds),
        compared("training of RGB", formats(overrides), Network.training, options.rounds),
    ]


def variants(overrides: Sequence[str]) -> dict[str, Network]:
    """The RGB ResNet-34, again, in the depth of ``LATE``, and with every variant of compression.

    Args:
        overrides: settings of all of them; those of compression for the variants.
    """
    shared = [word for word in overrides if not word.startswith("compression.")]
    rgb = ["model=resnet34", *shared]
    networks = {RGB: Network.of(rgb), f"{RGB} (control)": Network.of(rgb)}
    for variant in options_of("compression"):
        if variant != "none":
            words = ["model=resnet34_compressed", f"compression={variant}", *overrides]
            networks[variant] = Network.of(words)
    backbone: Any = networks[LATE].network.backbone
    depths = [len(getattr(backbone, f"layer{number}")) for number in (2, 3, 4)]
    control = [*rgb, f"model.layers=[0,{','.join(map(str, depths))}]"]
    return networks | {CONTROL: Network.of(control)}


def has_bf16(device: torch.device) -> bool:
    """Whether a processor has instructions for bf16."""
    if device.type != "cpu":
        return True
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def formats(overrides: Sequence[str]) -> dict[str, Network]:
    """The RGB network in each precision and memory format; the first one also as the control.

    A CPU without instructions for bf16, which computes it 15 times slower than fp32, has no rows
    of it.
    """
    shared = [word for word in overrides if not word.startswith("compression.")]

    def network(precision: str, setting: str) -> Network:
        words = [f"precision={precision}", f"channels_last={setting}"]
        return Network.of(["model=resnet34", *shared, *words])

    plain = network("fp32", "false")
    networks = {"fp32": plain, "fp32 (control)": plain}
    for precision in ("fp32", "bf16") if has_bf16(plain.device) else ("fp32",):
        for setting in ("false", "true"):
            if (precision, setting) != ("fp32", "false"):
                name = f"{precision}{', channels_last' if setting == 'true' else ''}"
                networks[name] = network(precision, setting)
    return networks


def compared(
    name: str,
    networks: Mapping[str, Network],
    candidate: Callable[[Network], Candidate],
    rounds: int,
) -> Result:
    """Seconds per sample of each, with parameters and operations of a forward pass."""
    candidates = {each: candidate(network) for each, network in networks.items()}
    result = measure(candidates, rounds, unit="sample", name=name)
    for row in result.rows:
        row.columns.update(networks[row.name].columns)
    return result
