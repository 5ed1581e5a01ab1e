"""Run by ``torchrun``: ``python tests/engine/distributed_worker.py CHECK OUT [ARGUMENT…]``.

The main process writes what it found to ``OUT`` as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timm.layers import DropPath
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from research.config import compose_config, resolved
from research.engine import build, distributed
from research.utils import whole_batch
from tests.golden import stored
from tests.golden.configurations import GOLDEN, overrides

FROZEN = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd, DropPath)
SAMPLES = 7
"""Samples of the joined batch: no multiple of the number of processes."""


def gradients() -> dict[str, Any]:
    """Largest relative difference of the first gradient from one process, by configuration."""
    found = {}
    for name in GOLDEN:
        config = resolved(compose_config(overrides(name))[0])
        config["ema"], config["compile"] = None, False
        settings = {"dropout": 0.0, "rpn_samples": 100_000, "rois": 100_000}  # sample all
        config["model"] |= {key: settings[key] for key in settings if key in config["model"]}
        data = stored.load(name, build.data_module(config))
        build_data = build.data_module
        build.data_module = lambda _, data=data: data  # type: ignore[assignment,misc]
        experiment = build.experiment(config)
        build.data_module = build_data
        found[name] = _difference(experiment, data.splits["train"])
    return found


def _difference(experiment: build.Experiment, rows: Any) -> float:
    state = experiment.state
    # Conversions to single precision within models are to float64 here.
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign,assignment]
    model = state.model.double()
    model.train()
    for module in model.modules():
        if isinstance(module, FROZEN):
            module.eval()
    transform = state.transform.double().eval()
    losses = distributed.Losses(experiment.task, model)
    count = min(SAMPLES, len(rows))

    def batch(index: Any) -> Any:
        chosen = torch.as_tensor(index)
        return transform(rows.map(lambda tensor: tensor[chosen]), None).map(_double)

    own = distributed.shard().part(torch.arange(count).numpy())
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
    alone = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert together.keys() == alone.keys()
    largest = max(float(grad.abs().max()) for grad in alone.values())
    return max(float((together[n] - alone[n]).abs().max()) for n in alone) / largest


def _double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


CHECKS: dict[str, Callable[..., Any]] = {"gradients": gradients}

if __name__ == "__main__":
    torch.set_num_threads(1)
    check, out, *words = sys.argv[1:]
    with distributed.processes("cpu"):
        result = CHECKS[check](*words)
        if distributed.is_main():
            Path(out).write_text(json.dumps(result), encoding="utf-8")
