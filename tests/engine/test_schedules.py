from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import SGD
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    ExponentialLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    StepLR,
)

from research.engine import schedules
from research.engine.schedules_rules import RULES

Make = Callable[[SGD], LRScheduler]
EPOCHS, STEPS, RATE = 6, 5, 0.4
TOTAL = EPOCHS * STEPS
CYCLE: dict[str, Any] = {
    "pct_start": 0.3,
    "div_factor": 25.0,
    "final_div_factor": 1e4,
    "anneal": "cos",
}
OWN: dict[str, dict[str, Any]] = {
    "cosine": {"lr_end": 0.0},
    "linear": {"lr_end": 0.0},
    "constant": {},
    "step": {"step_size": 2, "gamma": 0.1},
    "multistep": {"milestones": [2, 4], "gamma": 0.1},
    "exponential": {"gamma": 0.8},
    "one_cycle": CYCLE,
}
FALLING = [name for name in OWN if name != "one_cycle"]


def ours(
    name: str,
    warmup: float = 0.0,
    warmup_steps: int | None = None,
    epochs: int = EPOCHS,
    steps: int = STEPS,
    **own: Any,
) -> Make:
    function = getattr(schedules, name)
    return lambda solver: function(
        solver, epochs, steps, warmup, warmup_steps, **{**OWN[name], **own}
    )


def optimizer() -> SGD:
    groups = [
        {"params": [torch.nn.Parameter(torch.zeros(2))], "lr": RATE},
        {"params": [torch.nn.Parameter(torch.zeros(2))], "lr": RATE / 10},
    ]
    return SGD(groups, lr=RATE, momentum=0.9)


def rates(make: Make, steps: int = TOTAL) -> list[list[float]]:
    """The learning rate of each group at each step."""
    solver = optimizer()
    scheduler = make(solver)
    return [advance(solver, scheduler) for _ in range(steps)]


def advance(solver: SGD, scheduler: LRScheduler) -> list[float]:
    used = [group["lr"] for group in solver.param_groups]
    solver.step()
    scheduler.step()
    return used


def assert_same_rates(one: Make, two: Make) -> None:
    torch.testing.assert_close(
        torch.tensor(rates(one), dtype=torch.float64),
        torch.tensor(rates(two), dtype=torch.float64),
        rtol=1e-9,
        atol=1e-12,
    )


@pytest.mark.parametrize(
    ("make", "theirs"),
    [
        (ours("cosine"), lambda solver: CosineAnnealingLR(solver, TOTAL)),
        (ours("linear", lr_end=0.25 * RATE), lambda solver: LinearLR(solver, 1.0, 0.25, TOTAL)),
        (ours("constant"), lambda solver: ConstantLR(solver, 1.0)),
        (ours("step"), lambda solver: StepLR(solver, 2 * STEPS, 0.1)),
        (ours("multistep"), lambda solver: MultiStepLR(solver, [2 * STEPS, 4 * STEPS], 0.1)),
        (ours("exponential"), lambda solver: ExponentialLR(solver, 0.8 ** (1 / STEPS))),
    ],
    ids=FALLING,
)
def test_the_rates_are_torchs(make: Make, theirs: Make) -> None:
    assert_same_rates(make, theirs)


@pytest.mark.parametrize("anneal", ["cos", "linear"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.55])
def test_one_cycle_is_torchs(anneal: str, share: float) -> None:
    make = ours("one_cycle", pct_start=share, anneal=anneal, div_factor=10.0, final_div_factor=7.0)

    def theirs(solver: SGD) -> LRScheduler:
        return OneCycleLR(
            solver,
            [RATE, RATE / 10],
            total_steps=TOTAL,
            pct_start=share,
            anneal_strategy=anneal,  # type: ignore[arg-type]
            cycle_momentum=False,
            div_factor=10.0,
            final_div_factor=7.0,
        )

    # Past the last step torch refuses; there ours stays where it is.
    solver = optimizer()
    scheduler = theirs(solver)
    expected = [advance(solver, scheduler) for _ in range(TOTAL - 1)]
    expected.append([group["lr"] for group in solver.param_groups])
    found = rates(make, TOTAL + 3)
    torch.testing.assert_close(torch.tensor(found[:TOTAL]), torch.tensor(expected))
    assert found[TOTAL:] == [found[TOTAL - 1]] * 3


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(OWN)),
    st.integers(1, 7),
    st.integers(1, 9),
    st.integers(0, 30),
    st.integers(0, 80),
)
def test_closed_forms(name: str, epochs: int, steps: int, warmup: int, place: int) -> None:
    make = ours(name, warmup_steps=warmup, warmup=99.0, epochs=epochs, steps=steps)
    scheduler = make(optimizer())
    (rule, _) = scheduler.lr_lambdas  # type: ignore[attr-defined]
    total = epochs * steps
    left = max(1, total - warmup)
    done = min(1.0, (place - warmup) / left)
    peak = 0.3 * left - 1
    expected: dict[str, Callable[[], float]] = {
        "cosine": lambda: (1 + math.cos(math.pi * done)) / 2,
        "linear": lambda: 1 - done,
        "constant": lambda: 1.0,
        "step": lambda: 0.1 ** (place // (2 * steps)),
        "multistep": lambda: 0.1 ** ((place >= 2 * steps) + (place >= 4 * steps)),
        "exponential": lambda: 0.8 ** ((place - warmup) / steps),
        "one_cycle": lambda: _one_cycle(place - warmup, peak, left - 1),
    }
    first = 1 / 25 if name == "one_cycle" else 1.0
    value = first * (place + 1) / (warmup + 1) if place < warmup else expected[name]()
    assert rule(place) == pytest.approx(value, abs=1e-12)


def _one_cycle(place: int, peak: float, end: int) -> float:
    if place < peak:
        return 1 - 0.96 * (1 + math.cos(math.pi * place / peak)) / 2
    fallen = min(1.0, (place - peak) / (end - peak))
    return 4e-6 + (1 - 4e-6) * (1 + math.cos(math.pi * fallen)) / 2


def test_each_group_ends_at_the_same_share_of_its_own_rate() -> None:
    found = rates(ours("cosine", lr_end=0.25 * RATE), TOTAL + 1)
    for group, rate in enumerate((RATE, RATE / 10)):
        solver = SGD([torch.nn.Parameter(torch.zeros(2))], lr=rate)
        theirs = CosineAnnealingLR(solver, TOTAL, eta_min=0.25 * rate)
        expected = [advance(solver, theirs)[0] for _ in range(TOTAL + 1)]
        assert [row[group] for row in found] == pytest.approx(expected, rel=1e-9)
        assert found[-1][group] == pytest.approx(0.25 * rate)


@pytest.mark.parametrize("name", ["step", "multistep"])
def test_rates_drop_at_the_first_step_of_an_epoch(name: str) -> None:
    found = rates(ours(name))
    assert found[2 * STEPS - 1][0] == RATE
    assert found[2 * STEPS][0] == pytest.approx(RATE / 10)


def test_exponential_agrees_with_torchs_epoch_by_epoch() -> None:
    found = [row[0] for row in rates(ours("exponential"))]
    solver = optimizer()
    theirs = ExponentialLR(solver, 0.8)
    for epoch in range(EPOCHS):
        assert found[epoch * STEPS] == pytest.approx(advance(solver, theirs)[0])


@pytest.mark.parametrize("warmup", [{"warmup": 1.6}, {"warmup": 3.0, "warmup_steps": 8}])
@pytest.mark.parametrize("name", FALLING)
def test_warm_up_rises_in_equal_parts_to_the_full_rate(name: str, warmup: dict[str, Any]) -> None:
    found = torch.tensor(rates(ours(name, **warmup)), dtype=torch.float64)[:, 0]  # 8 steps
    rise = torch.arange(1, 10) * RATE / 9
    torch.testing.assert_close(found[:9], rise.double(), check_dtype=False)
    assert found[9] <= found[8]


def test_warm_up_comes_before_a_whole_cycle() -> None:
    found = [row[0] for row in rates(ours("one_cycle", warmup=2.0))]
    first = RATE / 25
    assert found[: 2 * STEPS] == pytest.approx([first * n / 11 for n in range(1, 11)])
    shorter = [row[0] for row in rates(ours("one_cycle", epochs=EPOCHS - 2))]
    assert found[2 * STEPS :] == pytest.approx(shorter[: TOTAL - 2 * STEPS])


def test_no_warm_up_in_steps_outdoes_one_in_epochs() -> None:
    assert rates(ours("cosine", warmup=2.0, warmup_steps=0)) == rates(ours("cosine"))


def test_cosine_falls_over_what_the_warm_up_leaves() -> None:
    found = rates(ours("cosine", warmup=2.0))[2 * STEPS :]
    theirs = rates(lambda solver: CosineAnnealingLR(solver, (EPOCHS - 2) * STEPS))
    torch.testing.assert_close(torch.tensor(found), torch.tensor(theirs[: len(found)]))


@pytest.mark.parametrize("name", ["step", "multistep"])
def test_milestones_count_the_warm_up(name: str) -> None:
    found = [row[0] for row in rates(ours(name, warmup=1.0))]
    assert found[STEPS : 2 * STEPS] == [RATE] * STEPS
    assert found[2 * STEPS] == pytest.approx(RATE / 10)


@pytest.mark.parametrize("epochs", [4, 6, 200])
def test_milestones_may_be_fractions_of_the_run(epochs: int) -> None:
    halves, whole = [0.5, 0.75], [epochs // 2, epochs * 3 // 4]
    total = epochs * STEPS
    one, two = (
        rates(ours("multistep", epochs=epochs, milestones=each), total) for each in (halves, whole)
    )
    assert epochs == 6 or one == two
    at = [round(total * each) for each in halves]
    torch.testing.assert_close(
        torch.tensor(one),
        torch.tensor(rates(lambda solver: MultiStepLR(solver, at, 0.1), total)),
    )


@pytest.mark.parametrize(
    ("value", "is_valid"),
    [
        ([30, 60], True), ([0.5, 0.75], True), ([1], True), ([0.999], True), ([], True),
        ([0.5, 60], False), ([1, 1.5], False), ([0.5, 1.0], False), ([0.0, 0.5], False),
        ([0.75, 0.5], False), ([30.0, 60.0], False), ([0, 1], False), ("0.5", False),
    ],
)  # fmt: skip
def test_milestones_are_epochs_or_fractions_and_never_both(value: Any, is_valid: bool) -> None:
    assert RULES["milestones"].is_valid(value) == is_valid


@pytest.mark.parametrize(
    ("warmup", "steps", "said"),
    [
        (5.8, None, ""), (6.0, None, "scheduler.warmup_epochs=6:"), (0.0, 29, ""),
        (0.5, 30, "scheduler.warmup_steps=30:"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", OWN)
def test_a_warm_up_that_takes_the_whole_run_is_said(
    name: str, warmup: float, steps: int | None, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    ours(name, warmup=warmup, warmup_steps=steps)(optimizer())
    whole = f"{said} the warm-up takes the whole run (epochs=6, 30 steps), so the learning rate "
    only_rising = f"{whole}only rises; set a shorter one, or more epochs"
    assert caplog.messages == ([only_rising] if said else [])


@pytest.mark.parametrize("name", OWN)
def test_a_warm_up_longer_than_the_run_only_rises(name: str) -> None:
    found = [row[0] for row in rates(ours(name, warmup=10.0))]
    assert found == sorted(found)
    first = RATE / 25 if name == "one_cycle" else RATE
    assert found[-1] == pytest.approx(first * 30 / 51)


def resumed(make: Make, before: SGD, steps: int) -> tuple[SGD, LRScheduler]:
    """In the order of ``TrainState.load_state_dict``."""
    solver = optimizer()
    scheduler = make(solver)
    schedules.advance(scheduler, steps)
    solver.load_state_dict(before.state_dict())
    schedules.set_rates(scheduler)
    return solver, scheduler


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("stop", [1, 7, 19])
def test_resumed_exactly(name: str, stop: int) -> None:
    make = ours(name, warmup=1.5)
    solver = optimizer()
    scheduler = make(solver)
    before = [advance(solver, scheduler) for _ in range(stop)]
    kept = scheduler.state_dict()
    assert all(isinstance(v, int | float | bool | str | list | None) for v in kept.values())
    solver, scheduler = resumed(make, solver, stop)
    assert scheduler.state_dict() == kept
    after = [advance(solver, scheduler) for _ in range(TOTAL - stop)]
    assert before + after == rates(make)


@given(
    st.sampled_from(sorted(OWN)),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(0, 40),
    st.sampled_from([0.0, 1.0, 1.5, 12.0]),
    st.sampled_from([0.0, 0.01]),
)
@settings(deadline=None, max_examples=60)
def test_resumed_with_other_epochs(
    name: str, before: int, after: int, stop: int, warmup: float, lr_end: float
) -> None:
    """From the first step on, the rates are those of a run that had the new epochs from its start.

    With the same epochs this holds to the last bit, like everything here.
    """
    more = {"lr_end": lr_end} if "lr_end" in OWN[name] else {}
    solver = optimizer()
    scheduler = ours(name, warmup, epochs=before, **more)(solver)
    for _ in range(stop):
        advance(solver, scheduler)
    make = ours(name, warmup, epochs=after, **more)
    solver, scheduler = resumed(make, solver, stop)
    assert scheduler.get_last_lr() == [group["lr"] for group in solver.param_groups]
    steps = stop + 2 * STEPS
    assert [advance(solver, scheduler) for _ in range(2 * STEPS)] == rates(make, steps)[stop:]
