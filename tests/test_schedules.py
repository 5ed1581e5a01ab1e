from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, MultiStepLR

from research import schedules

Make = Callable[[SGD], LRScheduler]
EPOCHS, STEPS, RATE = 6, 5, 0.4


def optimizer() -> SGD:
    groups = [
        {"params": [torch.nn.Parameter(torch.zeros(2))], "lr": RATE},
        {"params": [torch.nn.Parameter(torch.zeros(2))], "lr": RATE / 10},
    ]
    return SGD(groups, lr=RATE, momentum=0.9)


def rates(make: Make, steps: int = EPOCHS * STEPS) -> list[list[float]]:
    """The learning rate of each group at each step."""
    solver = optimizer()
    scheduler = make(solver)
    return [advance(solver, scheduler) for _ in range(steps)]


def advance(solver: SGD, scheduler: LRScheduler) -> list[float]:
    used = [group["lr"] for group in solver.param_groups]
    solver.step()
    scheduler.step()
    return used


def cosine(warmup: float = 0.0, final: float = 0.0) -> Make:
    return lambda solver: schedules.cosine(solver, EPOCHS, STEPS, warmup, final)


def linear(warmup: float = 0.0, final: float = 0.0) -> Make:
    return lambda solver: schedules.linear(solver, EPOCHS, STEPS, warmup, final)


def step(warmup: float = 0.0, gamma: float = 0.1) -> Make:
    return lambda solver: schedules.step(solver, EPOCHS, STEPS, warmup, [2, 4], gamma)


def test_cosine_is_torchs() -> None:
    theirs = rates(lambda solver: CosineAnnealingLR(solver, EPOCHS * STEPS))
    torch.testing.assert_close(torch.tensor(rates(cosine())), torch.tensor(theirs))


def test_linear_is_torchs() -> None:
    theirs = rates(lambda solver: LinearLR(solver, 1.0, 0.25, EPOCHS * STEPS))
    ours = rates(linear(final=0.25 * RATE))
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs))


def test_each_group_ends_at_the_same_share_of_its_own_rate() -> None:
    ours = rates(cosine(final=0.25 * RATE), EPOCHS * STEPS + 1)
    for group, rate in enumerate((RATE, RATE / 10)):
        solver = SGD([torch.nn.Parameter(torch.zeros(2))], lr=rate)
        theirs = CosineAnnealingLR(solver, EPOCHS * STEPS, eta_min=0.25 * rate)
        expected = [advance(solver, theirs)[0] for _ in range(EPOCHS * STEPS + 1)]
        assert [row[group] for row in ours] == pytest.approx(expected, rel=1e-9)
        assert ours[-1][group] == pytest.approx(0.25 * rate)


def test_step_is_torchs_with_milestones_in_epochs() -> None:
    theirs = rates(lambda solver: MultiStepLR(solver, [2 * STEPS, 4 * STEPS], gamma=0.1))
    ours = rates(step())
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs))
    assert ours[2 * STEPS - 1][0] == RATE
    assert ours[2 * STEPS][0] == pytest.approx(RATE / 10)


@pytest.mark.parametrize("make", [cosine, linear, step])
def test_warm_up_rises_in_equal_parts_to_the_full_rate(make: Callable[..., Make]) -> None:
    found = torch.tensor(rates(make(warmup=1.6)), dtype=torch.float64)[:, 0]  # 8 steps
    rise = torch.arange(1, 10) * RATE / 9
    torch.testing.assert_close(found[:9], rise.double(), check_dtype=False)
    assert found[9] <= found[8]


def test_cosine_falls_over_what_the_warm_up_leaves() -> None:
    found = rates(cosine(warmup=2.0))[2 * STEPS :]
    theirs = rates(lambda solver: CosineAnnealingLR(solver, (EPOCHS - 2) * STEPS))
    torch.testing.assert_close(torch.tensor(found), torch.tensor(theirs[: len(found)]))


def test_milestones_count_the_warm_up() -> None:
    found = [row[0] for row in rates(step(warmup=1.0))]
    assert found[STEPS : 2 * STEPS] == [RATE] * STEPS
    assert found[2 * STEPS] == pytest.approx(RATE / 10)


@pytest.mark.parametrize("make", [cosine, linear, step])
def test_a_warm_up_longer_than_the_run_only_rises(make: Callable[..., Make]) -> None:
    found = [row[0] for row in rates(make(warmup=10.0))]
    assert found == sorted(found)
    assert found[-1] == pytest.approx(RATE * 30 / 51)


@pytest.mark.parametrize("make", [cosine(1.5, 0.1), linear(1.5, 0.1), step(1.5)])
@pytest.mark.parametrize("stop", [1, 7, 8, 19])
def test_resumed_exactly(make: Make, stop: int) -> None:
    solver = optimizer()
    scheduler = make(solver)
    before = [advance(solver, scheduler) for _ in range(stop)]
    kept = solver.state_dict(), scheduler.state_dict()
    assert all(isinstance(v, int | float | bool | str | list | None) for v in kept[1].values())
    solver = optimizer()
    scheduler = make(solver)
    solver.load_state_dict(kept[0])
    scheduler.load_state_dict(kept[1])
    after = [advance(solver, scheduler) for _ in range(EPOCHS * STEPS - stop)]
    assert before + after == rates(make)
