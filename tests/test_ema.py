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


def test_the_average_follows_its_formula(small: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    built = build.experiment(small(*TINY, f"ema={DECAY}", "accumulate=2", "dataset.batch_size=4"))
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
        for weights in steps[1:]:
            expected = DECAY * expected + (1 - DECAY) * weights[name]
        if averaged.is_floating_point():
            assert torch.allclose(averaged.double(), expected, atol=1e-6), name


def test_a_warm_up_shortens_the_memory_of_the_first_steps(small: Compose) -> None:
    config = small(*TINY, "ema=0.999", "ema_warmup=true")
    ema = build.experiment(config).parts.ema
    assert ema is not None
    for step in (2, 10, 100):
        assert ema.get_decay(step) == pytest.approx(1 - step ** (-2 / 3))
    assert ema.get_decay(10**6) == 0.999


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
