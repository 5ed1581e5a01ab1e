"""The moving average of the weights: its values, what is judged by it, what is kept of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import research
from research import build, checkpoint, evaluate, loop
from research.loop import State, train_epoch
from research.tracking.tracker import Tracker
from tests.conftest import TINY, run
from tests.test_train import assert_same

Compose = Callable[..., dict[str, Any]]
DECAY = 0.75


@pytest.mark.parametrize("warmup", [False, True])
def test_the_average_follows_its_formula(
    small: Compose, monkeypatch: pytest.MonkeyPatch, warmup: bool
) -> None:
    average = (f"ema={DECAY}", f"ema_warmup={str(warmup).lower()}")
    built = build.experiment(small(*TINY, *average, "accumulate=2", "dataset.batch_size=4"))
    model, steps = built.parts.model, []

    def step(*args: Any) -> None:
        original(*args)
        steps.append({name: w.clone().double() for name, w in model.state_dict().items()})

    original = loop._optimizer_step
    monkeypatch.setattr(loop, "_optimizer_step", step)
    train_epoch(built.parts, built.settings, State(), Tracker())
    assert len(steps) == 3
    assert built.parts.ema is not None
    for name, averaged in built.parts.ema.module.state_dict().items():
        # What the network was made with is nobody's opinion: the average begins with step one.
        expected: Tensor = steps[0][name]
        for step_number, weights in enumerate(steps[1:], start=2):
            decay = min(DECAY, 1 - step_number ** (-2 / 3)) if warmup else DECAY
            expected = decay * expected + (1 - decay) * weights[name]
        if averaged.is_floating_point():
            assert torch.allclose(averaged.double(), expected, atol=1e-6), name


def test_the_average_is_what_is_judged_and_kept(small: Compose) -> None:
    folder = run(small(*TINY, "ema=0.5", "epochs=2"))
    saved = checkpoint.load(folder / "checkpoints" / "last.pt")
    differing = [
        name for name in saved["ema"] if not torch.equal(saved["ema"][name], saved["model"][name])
    ]
    assert differing
    last = research.load(folder / "checkpoints" / "last.pt", device="cpu")
    assert_same(dict(last.model.state_dict()), dict(saved["ema"]))
    weights = folder / "checkpoints" / "final.safetensors"
    assert_same(dict(checkpoint.load(weights)["model"]), dict(saved["ema"]))
    judged = evaluate.evaluate(folder, "val", "last", "cpu", [])
    assert {name: judged["metrics"][name] for name in judged["logged"]} == judged["logged"]
    begun = build.experiment(small(*TINY, f"init_from={folder / 'checkpoints' / 'last.pt'}"))
    assert_same(dict(begun.parts.model.state_dict()), dict(saved["ema"]))
