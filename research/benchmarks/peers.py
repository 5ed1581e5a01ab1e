"""The loops with which ``train.py``'s is compared, written as their documentation shows.

All build the model, the data and the transform of a configuration with ``build.experiment``, which
seeds everything, so that they start from the same weights and draw the same random numbers.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from research.batch import Batch
from research.benchmarks.loaders import PictureFiles
from research.data.folder import ImageFolders
from research.data.loader import EpochSampler, ProcessShard
from research.engine import build, placement
from research.engine.build import Config, Experiment
from research.engine.loop import autocast
from research.engine.rng import generator_for
from research.utils.timing import synchronize

FORMATS = (torch.contiguous_format, torch.channels_last)
PROBE_STEPS = 3


class EpochSeconds(NamedTuple):
    """Seconds per step.

    Attributes:
        steps: of the training steps.
        processor: processor time of all threads in the training steps.
        epoch: of the training steps and the end of the epoch.
    """

    steps: float
    processor: float
    epoch: float


class Clock(NamedTuple):
    """The time now.

    Attributes:
        wall: seconds.
        processor: seconds of all threads of this process.
    """

    wall: float
    processor: float

    @classmethod
    def read(cls, device: torch.device) -> Clock:
        """The time when the device has finished its queue."""
        synchronize(device)
        return cls(time.perf_counter(), time.process_time())


def per_step(start: Clock, trained: Clock, ended: Clock, steps: int) -> EpochSeconds:
    """Of an epoch: its beginning, after its last step, after its end."""
    return EpochSeconds(
        (trained.wall - start.wall) / steps,
        (trained.processor - start.processor) / steps,
        (ended.wall - start.wall) / steps,
    )


def bare_loop(
    config: Config,
    scratch: Path,
    memory_format: torch.memory_format,
    losses: list[Any] | None = None,
) -> EpochSeconds:
    """An epoch by a loop of a dozen lines, and a checkpoint.

    Args:
        config: the configuration.
        scratch: a folder for the checkpoint.
        memory_format: of the network and its inputs.
        losses: receives the loss of every step.
    """
    with folder_in(scratch) as folder:
        built = build.experiment(config)
        device = built.device
        model, transform, task = built.state.model, built.state.transform, built.task
        placement.lay_out(model, transform, device, memory_format)
        optimizer, scheduler = built.state.optimizer, built.state.scheduler
        loader = data_loader(built, config)
        losses = [] if losses is None else losses
        model.train()
        transform.train()
        start = Clock.read(device)
        for step, batch in enumerate(loader):
            inputs = transform(batch.to(device), generator_for(config["seed"], 1, step))
            optimizer.zero_grad()
            with autocast(device, config["precision"]):
                loss = torch.stack(list(task.losses(model, inputs).values())).sum()
            loss.backward()
            optimizer.step()
            scheduler.step()
            losses.append(loss.detach())
            if (step + 1) % config["log_every"] == 0:
                losses[-1].item()
        trained = Clock.read(device)
        torch.save(
            {"model": model.state_dict(), "optimizer": optimizer.state_dict()}, folder / "last.pt"
        )
        ended = Clock.read(device)
    return per_step(start, trained, ended, len(loader))


def fastest_format(config: Config) -> torch.memory_format:
    """The memory format in which the first steps of the bare loop take least time."""
    few = {**config, "max_train_batches": PROBE_STEPS}
    with tempfile.TemporaryDirectory() as scratch:
        seconds = {
            each: min(bare_loop(few, Path(scratch), each).steps for _ in range(2))
            for each in FORMATS
        }
    return min(FORMATS, key=seconds.__getitem__)


def data_loader(built: Experiment, config: Config) -> DataLoader[Batch]:
    """A plain ``DataLoader`` of the batches of the first epoch."""
    source = built.train.source
    order = EpochSampler(
        len(source), built.train.batch_size, seed=config["seed"], train=True, shard=ProcessShard()
    )
    order.epoch = 1
    workers, pin_memory = built.data.loading(built.device, config["workers"], config["pin_memory"])
    return DataLoader(
        source,  # type: ignore[arg-type]
        batch_sampler=list(order)[: config["max_train_batches"]],
        num_workers=workers,
        pin_memory=pin_memory,
        collate_fn=_same,  # type: ignore[arg-type]
    )


def _same(batch: Batch) -> Batch:
    return batch


def lightning_trainer(
    config: Config, scratch: Path, losses: list[Any] | None = None
) -> EpochSeconds:
    """An epoch by Lightning's ``Trainer`` with its default logger, progress bar and checkpoints."""
    from lightning import Trainer

    with folder_in(scratch) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on the number of workers and the like
        built = build.experiment(config)
        module = _lightning_module(built, config, [] if losses is None else losses)
        trainer = Trainer(
            accelerator=built.device.type,
            devices=1,
            precision="bf16-mixed" if config["precision"] == "bf16" else "32-true",
            max_epochs=1,
            default_root_dir=folder,
        )
        loader = data_loader(built, config)
        trainer.fit(module, loader)
        start, trained, ended = module.times
    return per_step(start, trained, ended, len(loader))


def _lightning_module(built: Experiment, config: Config, losses: list[Any]) -> Any:
    """The model, task, transform, optimizer and schedule as a ``LightningModule``."""
    from lightning import LightningModule

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = built.state.model
            self.transform = built.state.transform
            self.times: list[Clock] = []

        def training_step(self, batch: Batch, number: int) -> Tensor:
            inputs = self.transform(batch, generator_for(config["seed"], 1, number))
            loss = torch.stack(list(built.task.losses(self.model, inputs).values())).sum()
            self.log("train/loss", loss, batch_size=len(batch))
            losses.append(loss.detach())
            return loss

        def transfer_batch_to_device(
            self, batch: Batch, device: torch.device, dataloader_idx: int
        ) -> Batch:
            return batch.to(device)

        def configure_optimizers(self) -> Any:
            return [built.state.optimizer], [
                {"scheduler": built.state.scheduler, "interval": "step"}
            ]

        def _read_clock(self) -> None:
            self.times.append(Clock.read(self.device))

        def on_train_epoch_start(self) -> None:
            self._read_clock()

        def on_train_epoch_end(self) -> None:  # before the checkpoint
            self._read_clock()

        def on_train_end(self) -> None:  # after it
            self._read_clock()

    return Module()


def has_picture_files(config: Config) -> bool:
    """Whether timm's loader can read the same files, and its batches fit the model."""
    data = build.data_module(config)
    return isinstance(data, ImageFolders) and data.coefficients is None


def timm_loop(config: Config, scratch: Path) -> EpochSeconds:
    """An epoch by timm's own loader, optimizer, schedule and checkpoints, as its script does it."""
    from timm.data import create_loader
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2
    from timm.utils import AverageMeter, CheckpointSaver

    with folder_in(scratch) as folder:
        built = build.experiment(config)
        device, model = built.device, built.state.model
        data = built.data
        assert isinstance(data, ImageFolders)
        workers, pin_memory = data.loading(device, config["workers"], config["pin_memory"])
        split = data.splits["train"]
        loader = create_loader(
            PictureFiles(split.files, split.labels),
            input_size=(3, data.image_size, data.image_size),
            batch_size=config["batch_size"],
            is_training=True,
            scale=tuple(config["dataset"]["crop_scale"]),
            color_jitter=0.0,
            mean=tuple(data.mean),
            std=tuple(data.std),
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
            device=device,
        )
        group = built.state.optimizer.param_groups[0]
        optimizer = create_optimizer_v2(
            model,
            opt=type(built.state.optimizer).__name__.lower(),
            lr=group["lr"],
            weight_decay=group["weight_decay"],
        )
        steps = min(len(loader), config["max_train_batches"])
        scheduler, _ = create_scheduler_v2(
            optimizer, num_epochs=1, step_on_epochs=False, updates_per_epoch=steps
        )
        saver = CheckpointSaver(model, optimizer, checkpoint_dir=str(folder), decreasing=True)
        criterion = nn.CrossEntropyLoss()
        mean_loss = AverageMeter()
        model.train()
        start = Clock.read(device)
        for step, (images, labels) in enumerate(loader, start=1):
            with autocast(device, config["precision"]):
                loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step_update(num_updates=step)
            if step % config["log_every"] == 0:
                mean_loss.update(loss.item(), len(images))
            if step == steps:
                break
        trained = Clock.read(device)
        saver.save_checkpoint(0, metric=mean_loss.avg)
        ended = Clock.read(device)
    return per_step(start, trained, ended, steps)


@contextmanager
def folder_in(scratch: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        yield Path(folder)
