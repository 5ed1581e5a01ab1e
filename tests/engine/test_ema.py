"""The moving average of the weights: its values, what is evaluated with it, what is kept of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import research
from research.engine import build, checkpoint, loop
from tests.conftest import TINY, evaluated, run, trained_epoch
from tests.test_train import assert_same

Compose = Callable[..., dict[str, Any]]
DECAY = 0.75


@pytest.mark.parametrize("warmup", [False, True])
def test_the_average_follows_its_formula(
    small: Compose, monkeypatch: pytest.MonkeyPatch, warmup: bool
) -> None:
    average = (f"ema={DECAY}", f"ema_warmup={str(warmup).lower()}")
    built = build.experiment(small(*TINY, *average, "accumulate=2", "batch_size=4"))
    model, steps = built.state.model, []

    def step(*args: Any) -> None:
        original(*args)
        steps.append({name: w.clone().double() for name, w in model.state_dict().items()})

    original = loop.optimizer_step
    monkeypatch.setattr(loop, "optimizer_step", step)
    trained_epoch(built)
    assert len(steps) == 3
    assert built.state.ema is not None
    for name, averaged in built.state.ema.module.state_dict().items():
        # What the network was made with is nobody's opinion: the average begins with step one.
        expected: Tensor = steps[0][name]
        for step_number, weights in enumerate(steps[1:], start=2):
            decay = min(DECAY, 1 - step_number ** (-2 / 3)) if warmup else DECAY
            expected = decay * expected + (1 - decay) * weights[name]
        if averaged.is_floating_point():
            assert torch.allclose(averaged.double(), expected, atol=1e-6), name


def test_the_average_is_what_is_evaluated_and_kept(small: Compose) -> None:
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
    result = evaluated(folder, "val", "last")
    assert {name: result.metrics[name] for name in result.logged} == result.logged
    begun = build.experiment(small(*TINY, f"init_from={folder / 'checkpoints' / 'last.pt'}"))
    assert_same(dict(begun.state.model.state_dict()), dict(saved["ema"]))


@pytest.mark.parametrize("overflows", [{3}, {1, 2, 4}])
def test_a_step_that_fp16_skips_steps_nothing_else(
    small: Compose, monkeypatch: pytest.MonkeyPatch, overflows: set[int]
) -> None:
    """Gradients of some steps overflow: model, schedule and average stay as they were."""
    built = build.experiment(small(*TINY, f"ema={DECAY}", "batch_size=4"))
    parts = built.state
    parts.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    assert parts.ema is not None
    steps: list[dict[str, Any]] = []

    def snapshot() -> dict[str, Any]:
        assert parts.ema is not None
        return {
            "model": [p.detach().clone() for p in parts.model.parameters()],
            "average": [p.detach().clone() for p in parts.ema.module.parameters()],
            "schedule": parts.scheduler.last_epoch,
            "rate": parts.optimizer.param_groups[0]["lr"],
        }

    def step(*args: Any) -> None:
        if len(steps) + 1 in overflows:
            next(iter(parts.model.parameters())).grad.fill_(torch.inf)  # type: ignore[union-attr]
        before = snapshot()
        original(*args)
        steps.append({"before": before, "after": snapshot(), "scale": parts.scaler.get_scale()})

    original = loop.optimizer_step
    monkeypatch.setattr(loop, "optimizer_step", step)
    trained_epoch(built)
    assert len(steps) == 6
    for number, seen in enumerate(steps, start=1):
        before, after = seen["before"], seen["after"]
        if number in overflows:
            assert_same(before, after)
        moved = after["schedule"] - before["schedule"]
        assert moved == (number not in overflows)
    assert steps[-1]["scale"] == 2.0 ** (10 - len(overflows))
    assert steps[-1]["after"]["schedule"] == 6 - len(overflows)
