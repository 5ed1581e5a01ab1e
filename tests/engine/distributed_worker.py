"""Run by ``torchrun``: ``python tests/engine/distributed_worker.py CHECK OUT [ARGUMENT…]``.

The main process writes what it found to ``OUT`` as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.layers import DropPath
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from research.batch import Batch
from research.config import compose_config, resolved
from research.data.loader import EpochLoader, ProcessShard, SampleKey
from research.engine import build, distributed
from research.engine.loop import EpochCallback, evaluate, train_epoch
from research.tracking.tracker import Tracker
from research.utils import whole_batch
from tests.golden import stored
from tests.golden.configurations import GOLDEN, overrides

FROZEN = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd, DropPath)
SAMPLES = 7
"""Samples of the joined batch: no multiple of the number of processes."""
SINGLE = torch.Tensor.float
EVALUATED = 101
"""Samples of an evaluation."""


def gradients(*empty: str) -> dict[str, Any]:
    """Largest relative difference of the first gradient from one process, by configuration.

    Args:
        empty: each a number of processes that have no sample, as if theirs were damaged.
    """
    found = {}
    for name in GOLDEN:
        config = resolved(compose_config(overrides(name))[0])
        config["ema"], config["compile"] = None, False
        settings = {"dropout": 0.0, "rpn_samples": 100_000, "rois": 100_000}  # sample all
        config["model"] |= {key: settings[key] for key in settings if key in config["model"]}
        experiment = _built(name, config)
        data: Any = experiment.data
        found[name] = max(
            _difference(experiment, data.splits["train"], int(number)) for number in empty
        )
    return found


def _built(name: str, config: dict[str, Any]) -> build.Experiment:
    """The experiment of a golden configuration, on its stored batches."""
    data: Any = stored.load(name, build.data_module(config))
    build_data = build.data_module
    build.data_module = lambda _: data  # type: ignore[assignment]
    experiment = build.experiment(config)
    build.data_module = build_data
    return experiment


def skips(name: str) -> list[float]:
    """The sum of the weights in each process after a step of two batches. The loss of the second
    is not finite in the last process, so that all skip it.
    """
    config = resolved(compose_config(overrides(name))[0])
    config |= {"ema": None, "accumulate": 2, "skip_nonfinite": 1, "max_train_batches": 2}
    experiment = _built(name, config | {"batch_size": 2, "compile": False})
    task, calls = experiment.task, []
    losses_of = task.losses

    def losses(model: nn.Module, batch: Any) -> Any:
        calls.append(1)
        terms = losses_of(model, batch)
        if len(calls) == 2 and distributed.rank() == distributed.count() - 1:
            terms |= {key: terms[key] * torch.nan for key in terms}
        return terms

    task.losses = losses  # type: ignore[method-assign]
    state = experiment.state
    averaged = distributed.parallel(distributed.Losses(task, state.forward))
    train_epoch(
        state, averaged, experiment.train, experiment.cfg, experiment.device, Tracker(),
        EpochCallback(),
    )  # fmt: skip
    assert (state.skips, state.scheduler.last_epoch, len(calls)) == (1, 1, 2)
    total = sum(float(p.detach().double().abs().sum()) for p in state.model.parameters())
    return distributed.joined([total])


def _difference(experiment: build.Experiment, rows: Any, empty: int) -> float:
    state = experiment.state
    _in_double(state)
    model = state.model
    model.train()
    for module in model.modules():
        if isinstance(module, FROZEN):
            module.eval()
    transform = state.transform.eval()
    losses = distributed.Losses(experiment.task, model)
    count = min(SAMPLES, len(rows))

    def batch(index: Any) -> Any:
        chosen = torch.as_tensor(index)
        return transform(rows.map(lambda tensor: tensor[chosen]), None).map(_double)

    own = np.arange(0)
    if distributed.rank() >= empty:
        rest = ProcessShard(distributed.rank() - empty, distributed.count() - empty)
        own = rest.part(np.arange(count))
    averaged = distributed.parallel(losses)
    distributed.announce(len(own))
    terms = averaged(batch(own) if len(own) else None)
    torch.stack(list(terms.values())).sum().backward()
    together = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    model.zero_grad()
    whole_batch.sum_with(None)
    terms = losses(batch(torch.arange(count)))
    torch.stack(list(terms.values())).sum().backward()
    whole_batch.sum_with(distributed._sum)
    alone = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    # A process without samples gives all parameters a gradient, also those that no loss uses.
    unused = {name for name in together if name not in alone}
    assert all(not together[name].any() for name in unused), unused
    largest = max(float(grad.abs().max()) for grad in alone.values())
    return max(float((together[n] - alone[n]).abs().max()) for n in alone) / largest


def metrics(workers: str) -> dict[str, Any]:
    """Metrics and counts of ``EVALUATED`` samples of every configuration, in all processes
    together and in one, read from the data of the configuration.
    """
    found = {}
    for name in GOLDEN:
        config = resolved(compose_config([*overrides(name), f"workers={workers}"])[0])
        config["ema"], config["compile"], config["precision"] = None, False, "fp32"
        torch.Tensor.float = SINGLE  # type: ignore[method-assign]
        with distributed.main_first():
            experiment = build.experiment(config)
        _in_double(experiment.state)
        together = _evaluated(experiment, distributed.shard(), int(workers))
        group, distributed._Group.control = distributed._Group.control, None
        alone = _evaluated(experiment, ProcessShard(), int(workers))
        distributed._Group.control = group
        found[name] = together, alone
    return found


def _evaluated(experiment: build.Experiment, shard: ProcessShard, workers: int) -> Any:
    config = experiment.state.config
    source = experiment.data.dataset(
        "val", seed=config["seed"], train=False, device=experiment.device
    )
    loader = EpochLoader(Repeated(source), 4, seed=0, train=False, workers=workers, shard=shard)
    state = experiment.state
    transform: Any = Doubled(state.transform)
    result = evaluate(
        state.model, experiment.task, loader, transform, experiment.cfg, experiment.device
    )
    return {**result.metrics, **result.skipped}


class Repeated:
    """A split of ``EVALUATED`` samples: those of ``source``, again and again."""

    def __init__(self, source: Any) -> None:
        self.source = source
        self.skipped = source.skipped

    def __len__(self) -> int:
        return EVALUATED

    def __getitems__(self, keys: list[SampleKey]) -> Batch:
        count = len(self.source)
        batch: Batch = self.source.__getitems__(
            [SampleKey(key.epoch, key.index % count) for key in keys]
        )
        batch.index = torch.tensor([key.index for key in keys])
        return batch


class Doubled(nn.Module):
    """A transform to double precision."""

    def __init__(self, transform: nn.Module) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, batch: Batch, generator: None) -> Batch:
        transformed: Batch = self.transform(batch, generator)
        return transformed.map(_double)


def _in_double(state: Any) -> None:
    """Compute in float64; also where a model converts to single precision."""
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign,assignment]
    state.model.double()
    state.transform.double()


def _double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


CHECKS: dict[str, Callable[..., Any]] = {"gradients": gradients, "metrics": metrics, "skips": skips}

if __name__ == "__main__":
    torch.set_num_threads(1)
    check, out, *words = sys.argv[1:]
    with distributed.processes("cpu"):
        result = CHECKS[check](*words)
        if distributed.is_main():
            Path(out).write_text(json.dumps(result), encoding="utf-8")
