"""From configuration to objects: the only place that reads a config."""

from __future__ import annotations

import logging
import math
import os
import random
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from torch import nn

from research import checkpoint, weights
from research.compression import statistics
from research.compression.selection import Selection
from research.compression.statistics import Statistics
from research.compression.stems import StemSpec
from research.config import EXECUTION_WHITELIST
from research.data.baseline import linear_top1
from research.data.folder import ImageFolders
from research.data.index import Progress
from research.data.loader import EpochLoader
from research.data.readers import BitstreamReader, PixelReader, Reader
from research.data.transforms import CoefficientTransform, DeviceTransform, PixelTransform
from research.errors import UserError
from research.loop import Parts, Settings
from research.tasks.task import Monitor, Task
from research.tracking.tracker import Tracker

log = logging.getLogger(__name__)

Config = Mapping[str, Any]
STATISTICS_RECIPE = 1
"""Raised when the way in which statistics are measured changes, so that old ones are not used."""


@dataclass
class Experiment:
    """A run, built and ready to fit.

    Attributes:
        parts: what the loop takes.
        settings: the loop's numbers.
        data: the data set, indexed.
        parameters: trainable parameters of the model.
    """

    parts: Parts
    settings: Settings
    data: ImageFolders
    parameters: int


def experiment(config: Config, progress: Progress | None = None) -> Experiment:
    """Build everything that training needs.

    Args:
        config: resolved and checked, see ``research.config``.
        progress: told while data are prepared.

    Raises:
        UserError: for what only the data, the device or a file can show to be wrong.
    """
    device = select_device(config["device"], config["precision"])
    seed_everything(config["seed"], config["deterministic"])
    data = source(config, progress)
    task = build_task(config, data.classes)
    network = model(config, data.classes).to(device)
    if config["init_from"] is not None:
        _init_from(network, Path(config["init_from"]))
    if config["channels_last"]:
        network = network.to(memory_format=torch.channels_last)
    train_loader = loader(config, data, "train", device, train=True)
    optimizer = _make(config["optimizer"])(network.parameters())
    batches = min(len(train_loader), config["max_train_batches"] or len(train_loader))
    parts = Parts(
        task=task,
        model=network,
        forward=torch.compile(network) if config["compile"] else network,  # type: ignore[arg-type]
        transform=device_transform(config, data, progress).to(device),
        train_loader=train_loader,
        val_loader=loader(config, data, "val", device, train=False),
        optimizer=optimizer,
        scheduler=_make(config["scheduler"])(
            optimizer,
            epochs=config["epochs"],
            steps_per_epoch=math.ceil(batches / config["accumulate"]),
        ),
        scaler=torch.amp.GradScaler(device.type, enabled=config["precision"] == "fp16"),
        monitor=_monitor(config["monitor"], task),
        device=device,
    )
    count = sum(p.numel() for p in network.parameters() if p.requires_grad)
    return Experiment(parts, settings(config), data, count)


def settings(config: Config) -> Settings:
    return Settings(**{name: config[name] for name in Settings.__dataclass_fields__})


def source(config: Config, progress: Progress | None = None) -> ImageFolders:
    """The data set, indexed and split."""
    data: ImageFolders = _make(config["dataset"])
    data.prepare(config["seed"], progress)
    return data


def build_task(config: Config, classes: list[str]) -> Task:
    task: Task = _make(config["task"], classes=classes)
    return task


def model(config: Config, classes: list[str]) -> nn.Module:
    """The network, as wide as the data set has classes.

    Raises:
        UserError: when ``model.num_classes`` is given and the data have another number.
    """
    asked = config["model"]["num_classes"]
    if asked is not None and asked != len(classes):
        raise UserError(
            f"model.num_classes={asked}: the data set has {len(classes)} classes; leave it out"
        )
    network: nn.Module = _make(
        config["model"], num_classes=len(classes), stem=stem_spec(config["compression"])
    )
    return network


def stem_spec(compression: Config) -> StemSpec | None:
    """How coefficients enter the network; ``None`` for pixels."""
    if compression["variant"] == "none":
        return None
    return StemSpec(compression["variant"], selection(compression), compression["range"])


def selection(compression: Config) -> Selection:
    """The kept frequencies of a compression group."""
    names = ("window_luma", "window_chroma", "count_luma", "count_chroma")
    return Selection.from_settings(
        compression["window"], compression["order"], **{name: compression[name] for name in names}
    )


def reader(config: Config) -> Reader:
    """What turns a file into a sample: pixels, unless the bitstream is asked for."""
    size, compression = config["dataset"]["image_size"], config["compression"]
    if compression.get("source") == "bitstream":
        return BitstreamReader(size, selection(compression))
    return PixelReader(size)


def loader(
    config: Config, data: ImageFolders, split: str, device: torch.device, *, train: bool
) -> EpochLoader:
    """The batches of one split."""
    on_gpu = device.type == "cuda"
    workers = data.workers
    if workers is None:
        workers = min(8, os.cpu_count() or 1) if on_gpu else 0
    return EpochLoader(
        data.dataset(split, reader(config), config["seed"], train=train),
        data.batch_size,
        seed=config["seed"],
        train=train,
        workers=workers,
        pin_memory=on_gpu if data.pin_memory is None else data.pin_memory,
    )


def device_transform(
    config: Config, data: ImageFolders, progress: Progress | None = None
) -> DeviceTransform:
    """The batched half of preprocessing, with statistics measured (or recalled) where needed."""
    stem = stem_spec(config["compression"])
    if stem is None:
        return PixelTransform(data.mean, data.std, data.random_flip)
    measured = _statistics(config, data, progress) if stem.normalised else None
    return CoefficientTransform(stem.selection, stem.range_, measured, data.random_flip)


def bare_transform(config: Config) -> DeviceTransform:
    """The device transform without its numbers, which a checkpoint fills in."""
    stem = stem_spec(config["compression"])
    if stem is None:
        return PixelTransform(config["dataset"]["mean"], config["dataset"]["std"], flip=False)
    return CoefficientTransform(stem.selection, stem.range_, None, flip=False)


def linear_baseline(config: Config, data: ImageFolders) -> float:
    """Validation top-1 of a linear classifier on this data's colours; see ``data.baseline``."""
    read = PixelReader(config["dataset"]["image_size"])
    loaders = (
        EpochLoader(data.dataset(split, read, seed=0, train=False), 256, seed=0, train=False)
        for split in ("train", "val")
    )
    return linear_top1(*loaders)


def load_weights(network: nn.Module, state: Mapping[str, Any], where: str) -> None:
    """Every weight of a network.

    Args:
        network: filled in.
        state: a state dict.
        where: what it comes from, for the message.

    Raises:
        UserError: when the two do not fit.
    """
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{where}: the weights do not fit this model ({reason})") from None


def trackers(config: Config) -> list[Tracker]:
    """The trackers of the logging group."""
    return [_make(tracker)() for tracker in config["logging"].values()]


def select_device(name: str, precision: str) -> torch.device:
    """``auto`` takes the GPU when there is one.

    Raises:
        UserError: when the device asked for is not there or cannot do the precision.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device={name}: this machine has {torch.cuda.device_count()} CUDA devices; "
            "use device=cpu"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("device=mps: not available on this machine; use device=cpu")
    if precision == "fp16" and device.type == "cpu":
        raise UserError("precision=fp16 needs a GPU; use precision=bf16 or fp32 on the CPU")
    return device


def seed_everything(seed: int, deterministic: bool) -> None:
    """Seed every generator, and bind the algorithms to one order of additions if asked."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries draw from the global generator
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic


def _statistics(config: Config, data: ImageFolders, progress: Progress | None) -> Statistics:
    """Statistics of all 64 frequencies over the training split, as validation would see it."""
    compression, size = config["compression"], config["dataset"]["image_size"]
    images = compression["statistics_images"]
    key = {
        "recipe": STATISTICS_RECIPE,
        "data": data.fingerprint(),
        "source": compression["source"],
        "image_size": size,
        "resize": f"bilinear, centre crop {config['dataset']['crop_pct']}",
        "range": compression["range"],
        "images": images,
    }
    every = Selection(tuple(range(64)), tuple(range(64)))

    def measure() -> Statistics:
        read = BitstreamReader(size, every) if key["source"] == "bitstream" else PixelReader(size)
        samples = data.dataset("train", read, seed=0, train=False)
        batches = EpochLoader(samples, min(64, len(samples)), seed=0, train=True)
        transform = CoefficientTransform(every, compression["range"], None, flip=False).eval()
        wanted = min(len(batches), math.ceil(images / batches.sampler.batch_size))

        def blocks() -> Any:
            for done, batch in enumerate(islice(batches.epoch(0), wanted), start=1):
                if progress is not None:
                    progress("measuring DCT statistics", done, wanted)
                if len(batch):
                    yield transform(batch, None).inputs

        return statistics.measure(blocks())

    return statistics.cached(Path(config["dataset"]["cache_dir"]) / "statistics", key, measure)


def _init_from(network: nn.Module, path: Path) -> None:
    """Weights alone, from a run folder, a checkpoint or a state dict."""
    file = checkpoint.find(path)
    content = weights.read(file)
    state = content["model"] if "format" in content else content
    load_weights(network, state, f"init_from={path}")
    log.info("weights from %s", file)


def _monitor(asked: str | None, task: Task) -> Monitor:
    return task.monitor if asked is None else Monitor(*asked.rsplit(":", 1))


def _make(config: Config, **extra: Any) -> Any:
    return instantiate(
        dict(config), _execution_whitelist_=EXECUTION_WHITELIST, _convert_="all", **extra
    )
