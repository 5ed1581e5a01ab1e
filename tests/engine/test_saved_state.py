"""Nothing is restored from a checkpoint that this run could not have written."""

from __future__ import annotations

import copy
import inspect
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.optim import list_optimizers
from torch import nn
from torch.optim import lr_scheduler as schedulers

from research.engine import optimizers
from research.engine.saved_state import OptimizerState
from research.engine.state import TrainState
from research.utils.errors import UserError
from tests.conftest import train_state, user_error

FOLDER = Path("runs/a")


def trained(steps: int = 3, **counters: Any) -> TrainState:
    """The state after one epoch of three steps."""
    torch.manual_seed(0)
    row = {"epoch": 1, "epoch_time_sec": 1.5, "val/top1": 0.5, "timestamp": "2026-01-01"}
    known = {"epoch": 1, "step": 3, "best": 0.5, "best_epoch": 1, "history": [row]}
    state = train_state(**{**known, **counters})
    state.optimizer = torch.optim.Adam(state.model.parameters(), lr=0.1)
    state.scheduler = torch.optim.lr_scheduler.LambdaLR(state.optimizer, lambda step: 0.9**step)
    for _ in range(steps):
        state.model(torch.ones(2, 1)).sum().backward()
        state.optimizer.step()
        state.scheduler.step()
    state.optimizer.zero_grad()
    return state


def restored(content: dict[str, Any]) -> TrainState:
    state = trained(0, epoch=0, step=0, best=None, best_epoch=0, history=[])
    state.load_state_dict(content, FOLDER, samples=48, metric="val/top1")
    return state


@pytest.fixture
def content() -> dict[str, Any]:
    """A checkpoint, as read from its file."""
    file = io.BytesIO()
    torch.save(trained(samples=16).state_dict(), file)
    file.seek(0)
    found: dict[str, Any] = torch.load(file, weights_only=True)
    return found


def test_a_checkpoint_is_restored(content: dict[str, Any]) -> None:
    one, two = restored(content), trained(samples=16)
    for state in (one, two):
        state.model(torch.ones(2, 1)).sum().backward()
        state.optimizer.step()
        state.scheduler.step()
    assert torch.equal(one.model.weight, two.model.weight)  # type: ignore[arg-type]
    assert one.optimizer.param_groups[0]["lr"] == two.optimizer.param_groups[0]["lr"]
    assert (one.samples, one.history, one.best) == (16, two.history, 0.5)


BOUNDLESS: list[Any] = [None, -1, "x", [], math.nan, math.inf, 10**400, True, torch.zeros(2)]
WRONG: dict[str, list[Any]] = {
    "model.weight": [
        torch.zeros(2), torch.zeros(1, 1, dtype=torch.complex64), torch.zeros(1, 1).int(),
    ],
    "transform.mean": [torch.zeros(9)],
    "optimizer": [None, 3, {}, {"state": {}, "param_groups": []}],
    "optimizer.extra": [1],
    "optimizer.param_groups": [None, {}, [], [1], [{}]],
    "optimizer.param_groups.0.params": [[0], [1, 0], [0, 1, 2], None, ["a", "b"]],
    "optimizer.param_groups.0.lr": BOUNDLESS,
    "optimizer.state": [None, [], {"0": {}}, {7: {}}, {0: 3}, {True: {}}, {0: {"exp_avg": 1}}],
    "optimizer.state.0.step": [
        *BOUNDLESS, torch.tensor(-1.0), torch.tensor(math.nan), torch.tensor(3),
    ],
    "optimizer.state.0.exp_avg": [
        None, torch.zeros(2), torch.zeros(1, 1).double(), torch.tensor(0.0),
    ],
    "optimizer.state.0.more": [None, 3, torch.zeros(2)],
    "scheduler": [None, {}, [], 3],
    "scheduler.last_epoch": [*BOUNDLESS, 2.0, 4],
    "scheduler._last_lr": [None, [], [0.1, 0.1], ["x"], [math.nan], 3],
    "scaler": [None, 3, []],
    "rng": [None, {}, 3],
    "rng.python": [None, (3, (1,), None), (3, (-1,) * 625, None), (9, (0,) * 625, None), "abc"],
    "rng.numpy": [
        None, ("MT19937", [0] * 624, 10**6, 0, 0.0), ("MT19937", [0] * 3, 0, 0, 0.0),
        ("MT19937", [-1] * 624, 0, 0, 0.0), ("MT19937", [2**40] * 624, 0, 0, 0.0),
        ("PCG64", [0] * 624, 0, 0, 0.0), ("MT19937", [0] * 624, 0, 7, 0.0),
        ("MT19937", [0] * 624, 0, 1, "x"), ("MT19937", "x" * 624, 0, 0, 0.0),
    ],
    "rng.torch": [
        None, torch.zeros(3), torch.zeros(5056, dtype=torch.uint8), torch.zeros(5056), b"x",
    ],
    "tracking": [None, 3, {1: "a"}, {"a": 1}, {"a": "x" * 2000}],
    "state.epoch": [0, 2],
    "state.step": [0, 2**60],
    "state.samples": [49, 2**60],
    "state.best": [None],
    "state.best_epoch": [0, 2],
    "state.history": [
        [], [{"epoch": 2, "val/top1": 0.5}], [{"epoch": 1}], [{"epoch": 1, "val/top1": "x"}],
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "value"),
    [
        pytest.param(path, value, id=f"{path}-{number}")
        for path, values in WRONG.items()
        for number, value in enumerate(values)
    ],
)
def test_what_does_not_fit_is_one_line(path: str, value: Any, content: dict[str, Any]) -> None:
    *above, last = [int(part) if part.isdecimal() else part for part in path.split(".")]
    node: Any = content
    for part in above:
        node = node[part]
    node[last] = value
    with user_error("resume", f"resume={FOLDER}: "):
        restored(content)


def test_settings_are_those_of_the_run(content: dict[str, Any]) -> None:
    """Those in the file are not used: beta 1 would divide by 0, and capturable needs a GPU."""
    content["optimizer"]["param_groups"][0].update(betas=(1.0, 1.0), capturable=True, eps="x")
    content["scheduler"].update(base_lrs=[1e9], lr_lambdas=["x"])
    state = restored(content)
    group = state.optimizer.param_groups[0]
    assert (group["betas"], group["capturable"], group["eps"]) == ((0.9, 0.999), False, 1e-8)
    assert state.scheduler.base_lrs == [0.1]
    state.model(torch.ones(2, 1)).sum().backward()
    state.optimizer.step()


# -- schedulers of torch --------------------------------------------------------------------------

SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "multistep": lambda solver: schedulers.MultiStepLR(solver, [2, 6], 0.1),
    "cosine": lambda solver: schedulers.CosineAnnealingLR(solver, 9),
    "restarts": lambda solver: schedulers.CosineAnnealingWarmRestarts(solver, 2, 2),
    "one cycle": lambda solver: schedulers.OneCycleLR(solver, 0.1, total_steps=12),
    "cycles": lambda solver: schedulers.CyclicLR(solver, 0.01, 0.1, 2, mode="exp_range", gamma=0.9),
    "sequence": lambda solver: schedulers.SequentialLR(
        solver,
        [schedulers.LinearLR(solver, 0.1, total_iters=3), schedulers.ExponentialLR(solver, 0.9)],
        [3],
    ),
}


@pytest.mark.filterwarnings("ignore:The epoch parameter")  # SequentialLR's own
@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_a_scheduler_of_torch_goes_on_exactly(name: str, steps: int) -> None:
    """With all that it sets: cycles of momentum, and rates that follow from the one before."""

    def begun() -> TrainState:
        torch.manual_seed(0)
        state = train_state()
        state.optimizer = torch.optim.SGD(state.model.parameters(), lr=0.05, momentum=0.9)
        state.scheduler = SCHEDULERS[name](state.optimizer)
        return state

    def go_on(state: TrainState, steps: int) -> None:
        for _ in range(steps):
            state.model(torch.ones(2, 1)).sum().backward()
            state.optimizer.step()
            state.optimizer.zero_grad()
            state.scheduler.step()
            state.step += 1
            state.samples += 1

    one, file = begun(), io.BytesIO()
    go_on(one, steps)
    torch.save(one.state_dict(), file)
    file.seek(0)
    two = begun()
    two.load_state_dict(torch.load(file, weights_only=True), FOLDER, samples=48, metric="a")
    for state in (one, two):
        go_on(state, 6)
    assert torch.equal(one.model.weight, two.model.weight)  # type: ignore[arg-type]
    assert one.optimizer.state_dict()["param_groups"] == two.optimizer.state_dict()["param_groups"]
    assert one.scheduler.state_dict() == two.scheduler.state_dict()


# -- every optimizer ------------------------------------------------------------------------------


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 16, 3), nn.Tanh()
    )


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    optimizer.zero_grad()
    model(torch.randn(2, 3, 6, 6)).square().sum().backward()
    optimizer.step()


def classes_of_torch() -> list[str]:
    found = inspect.getmembers(torch.optim, inspect.isclass)
    return [
        name
        for name, kind in found
        if issubclass(kind, torch.optim.Optimizer)
        and kind is not torch.optim.Optimizer
        and name not in (*optimizers.UNSUPPORTED, "Muon")  # of matrices only
    ]


EVERY = [
    *(("timm", name) for name in (*list_optimizers(), "lookahead_adam")),
    *(("torch", name) for name in classes_of_torch()),
]
SLOW = (("timm", "kron"), ("timm", "kronc"), ("timm", "kronw"))  # half a minute each
FEW = [("torch", "SGD"), ("torch", "AdamW"), ("timm", "lamb"), ("timm", "adan")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("library", "name"),
    [
        *FEW,
        *(
            pytest.param(*each, marks=pytest.mark.whole if each in SLOW else pytest.mark.long)
            for each in EVERY
            if each not in FEW
        ),
    ],
)
@pytest.mark.parametrize(
    "steps", [pytest.param(0, marks=pytest.mark.whole), 1, pytest.param(7, marks=pytest.mark.whole)]
)
def test_an_optimizer_goes_on_exactly(library: str, name: str, steps: int) -> None:
    def make(model: nn.Module) -> torch.optim.Optimizer:
        groups = optimizers.parameter_groups(model, False, None, None, 0.01)
        return optimizers.by_name(groups, library, name, 0.01, 0.0, None)

    one, two = network(), network()
    try:
        first = make(one)
    except UserError:
        pytest.skip("needs a package, or second derivatives")
    for seed in range(steps):
        step(one, first, seed)
    saved = copy.deepcopy(first.state_dict())
    second = make(two)
    state = OptimizerState(second).restored(saved)
    two.load_state_dict(one.state_dict())
    second.load_state_dict(state)
    for seed in (7, 8):
        step(one, first, seed)
        step(two, second, seed)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a.nan_to_num(), b.nan_to_num())
