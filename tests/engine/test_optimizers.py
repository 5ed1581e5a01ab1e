from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from research.config import compose_config, resolved
from research.engine import optimizers, schedules
from research.engine.saved_state import OptimizerState
from tests.conftest import user_error


class Positioned(nn.Module):
    """With a position embedding that timm would not let decay, and a bias of three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.ones(1, 4, 2, 2))
        self.bias = nn.Parameter(torch.ones(4, 1, 1))

    def no_weight_decay(self) -> set[str]:
        return {"position"}

    def forward(self, x: Tensor) -> Tensor:
        return x + self.position + self.bias


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Positioned(), nn.Flatten(), nn.Linear(16, 2)
    )


def test_norms_biases_and_what_timm_spares_do_not_decay() -> None:
    net = network()
    net[4].weight.requires_grad_(False)
    whole = optimizers.parameter_groups(net, True, None, None, 0.1)
    assert [list(group) for group in whole] == [["params"]]
    trained = [p for p in net.parameters() if p.requires_grad]
    assert [id(p) for p in whole[0]["params"]] == [id(p) for p in trained]

    decayed, spared = optimizers.parameter_groups(net, False, None, None, 0.1)
    assert [id(p) for p in decayed["params"]] == [id(net[0].weight)]
    assert "weight_decay" not in decayed
    assert spared["weight_decay"] == 0
    names = {id(p): name for name, p in net.named_parameters()}
    assert [names[id(p)] for p in spared["params"]] == [
        "0.bias", "1.weight", "1.bias", "2.position", "2.bias", "4.bias",
    ]  # fmt: skip


def test_no_group_is_empty() -> None:
    assert len(optimizers.parameter_groups(nn.BatchNorm2d(3), False, None, None, 0.1)) == 1
    (group,) = optimizers.parameter_groups(nn.Linear(3, 2, bias=False), False, None, None, 0.1)
    assert list(group) == ["params"]


@pytest.mark.parametrize(("library", "name"), [("timm", "momentum"), ("torch", "SGD")])
def test_only_the_first_group_decays(library: str, name: str) -> None:
    net = network()
    before = {key: p.detach().clone() for key, p in net.named_parameters()}
    groups = optimizers.parameter_groups(net, False, None, None, 0.1)
    solver = optimizers.by_name(groups, library, name, 0.1, 0.5, None)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    solver.step()
    shrunk = {key for key, p in net.named_parameters() if not torch.equal(p, before[key])}
    assert shrunk == {"0.weight", "4.weight"}
    torch.testing.assert_close(net[0].weight, 0.95 * before["0.weight"])  # 1 - lr · decay


def test_each_layer_learns_at_a_share_of_the_one_above_it() -> None:
    net = timm.create_model("deit_tiny_patch16_224", depth=3, num_classes=2)
    groups = optimizers.parameter_groups(net, False, 0.5, None, 0.8)
    rates = {
        id(p): (group["lr"], group.get("weight_decay")) for group in groups for p in group["params"]
    }
    assert len(rates) == len(list(net.parameters()))
    expected = {
        "head.weight": (0.8, None), "head.bias": (0.8, 0.0), "norm.weight": (0.4, 0.0),
        "blocks.2.mlp.fc1.weight": (0.4, None), "blocks.1.norm1.bias": (0.2, 0.0),
        "blocks.0.attn.qkv.weight": (0.1, None), "patch_embed.proj.weight": (0.05, None),
        "pos_embed": (0.05, 0.0),
    }  # fmt: skip
    found = {name: rates[id(p)] for name, p in net.named_parameters() if name in expected}
    assert found == expected
    # The run's own rate, which the tables show, is the head's.
    assert groups[0]["lr"] == 0.8


def test_a_schedule_keeps_the_shares_of_the_layers() -> None:
    net = timm.create_model("deit_tiny_patch16_224", depth=2, num_classes=2)
    solver = torch.optim.AdamW(optimizers.parameter_groups(net, True, 0.5, None, 0.8), lr=0.8)
    before = [group["lr"] for group in solver.param_groups]
    schedule = schedules.cosine(solver, 1, 10, 0.0, None, 0.0)
    for _ in range(5):
        solver.step()
        schedule.step()
    after = [group["lr"] for group in solver.param_groups]
    assert after == pytest.approx([rate / 2 for rate in before])


class Backed(nn.Module):
    """A backbone with a head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(3, 2)
        self.head = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.backbone(x))
        return found


@pytest.mark.parametrize("decay_norms", [True, False])
def test_a_backbone_learns_at_a_share_of_the_heads_rate(decay_norms: bool) -> None:
    net = Backed()
    groups = optimizers.parameter_groups(net, decay_norms, None, 0.25, 0.8)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert {name: rates[id(p)] for name, p in net.named_parameters()} == {
        "backbone.weight": 0.2, "backbone.bias": 0.2, "head.weight": 0.8, "head.bias": 0.8,
    }  # fmt: skip
    assert groups[0]["lr"] == 0.8
    with user_error("lr_backbone", "this model has no backbone of its own"):
        optimizers.parameter_groups(network(), decay_norms, None, 0.25, 0.8)


def test_layer_decay_needs_a_network_that_defines_its_layers() -> None:
    with user_error("layer_decay", "this model does not define its layers"):
        optimizers.parameter_groups(network(), True, 0.5, None, 0.1)


CHOSEN = [
    ("timm", "lion", {"betas": [0.9, 0.97]}),
    ("timm", "lamb", {}),
    ("timm", "rmsproptf", {"alpha": 0.8}),
    ("timm", "muon", {}),
    ("timm", "lookahead_adamw", None),
    ("torch", "Adagrad", {"lr_decay": 0.01}),
    ("torch", "RMSprop", {"momentum": 0.5}),
    ("torch", "Adafactor", None),
]


@pytest.mark.parametrize(("library", "name", "kwargs"), CHOSEN)
def test_by_name_learns_and_resumes_exactly(
    library: str, name: str, kwargs: dict[str, Any] | None
) -> None:
    inputs = torch.randn(16, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(16) % 2

    def start() -> tuple[nn.Module, torch.optim.Optimizer, LambdaLR]:
        net = network()
        groups = optimizers.parameter_groups(net, False, None, None, 0.1)
        solver = optimizers.by_name(groups, library, name, 0.02, 0.01, kwargs)
        assert solver.defaults["lr"] == 0.02
        return net, solver, LambdaLR(solver, lambda step: 0.9**step)

    def learn(parts: tuple[nn.Module, torch.optim.Optimizer, LambdaLR], steps: int) -> float:
        net, solver, scheduler = parts
        for _ in range(steps):
            loss = nn.functional.cross_entropy(net(inputs), labels)
            solver.zero_grad()
            loss.backward()
            solver.step()
            scheduler.step()
        return loss.item()

    whole, first, second = start(), start(), start()
    early = learn(whole, 1)
    assert learn(whole, 13) < early
    learn(first, 7)
    for source, target in zip(first, second, strict=True):
        target.load_state_dict(source.state_dict())
    learn(second, 7)
    for one, two in zip(whole[0].parameters(), second[0].parameters(), strict=True):
        assert torch.equal(one, two)


def test_settings_reach_the_optimizer() -> None:
    for library, name, kwargs in CHOSEN:
        solver = optimizers.by_name([nn.Parameter(torch.ones(2, 2))], library, name, 1.0, 0, kwargs)
        assert {key: solver.param_groups[0][key] for key in kwargs or {}} == (kwargs or {})


@pytest.mark.parametrize(
    ("library", "name", "decay", "kwargs", "key", "message"),
    [
        ("timm", "lian", 0, None, "name", "no 'lian'; did you mean lion"),
        ("timm", "lookahead_lian", 0, None, "name", "did you mean lion"),
        ("timm", "zzzz", 0, None, "name", "no 'zzzz'; there are"),
        ("timm", "adahessian", 0, None, "name", "second derivatives"),
        ("timm", "fusedadam", 0, None, "name", "needs apex"),
        ("torch", "adagard", 0, None, "name", "did you mean Adagrad"),
        ("torch", "LBFGS", 0, None, "name", "no 'LBFGS'"),
        ("torch", "Optimizer", 0, None, "name", "no 'Optimizer'"),
        ("torch", "Rprop", 0.1, None, "weight_decay", "set optimizer.weight_decay=0"),
        ("torch", "Muon", 0, None, "kwargs", "2D"),
        (
            "torch",
            "Adam",
            0,
            {"bettas": [0.9, 0.9]},
            "kwargs",
            "'bettas'; did you mean betas",
        ),
        ("timm", "lion", 0, {"momentum": 0.9}, "kwargs", "no argument 'momentum'; it has betas"),
        ("timm", "lion", 0, {"lr": 1}, "kwargs", "set optimizer.lr"),
        ("timm", "lion", 0, {"betas": 0.9}, "kwargs", "optimizer.name=lion"),
        ("torch", "Adam", 0, {"betas": [0.9, 2]}, "kwargs", "beta"),
    ],
)
def test_mistakes_are_one_line(
    library: str, name: str, decay: float, kwargs: dict[str, Any] | None, key: str, message: str
) -> None:
    with user_error(f"optimizer.{key}", message):
        # A convolution's weight, which Muon of torch does not accept.
        optimizers.by_name([nn.Parameter(torch.ones(2, 2, 3, 3))], library, name, 1, decay, kwargs)


@pytest.mark.parametrize("option", ["rmsprop", "timm", "torch"])
def test_every_option_makes_an_optimizer(option: str) -> None:
    from research.config import targets

    words = [f"optimizer={option}", "optimizer.lr=0.3"]
    if option == "timm":
        words += ["optimizer.name=lion", "optimizer.kwargs={betas: [0.8, 0.9]}"]
    whole = resolved(compose_config(words)[0])
    config = whole["optimizer"]
    solver = targets.build(whole, "optimizer")(network().parameters())
    assert solver.defaults["lr"] == 0.3
    for key in set(config) - {"_target_", "_partial_", "library", "name", "kwargs"}:
        assert _listed(solver.defaults[key]) == config[key]
    if option == "timm":
        assert type(solver).__name__ == "Lion"
        assert list(solver.defaults["betas"]) == [0.8, 0.9]


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize(
    ("rule", "expected"), [(None, 0.1), ("linear", 0.05), ("sqrt", 0.1 / math.sqrt(2))]
)
def test_scaled_rates(rule: str | None, expected: float, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert optimizers.scaled_lr(0.1, 128, rule, 256) == pytest.approx(expected)
        assert optimizers.scaled_lr(0.1, 256, rule, 256) == pytest.approx(0.1)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == (0 if rule is None else 2)
    assert all(f"scale_lr={rule}" in line for line in lines)


# -- fused kernels --------------------------------------------------------------------------------

KINDS: dict[str, Callable[..., Any]] = {
    "SGD": partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "SGD without momentum": partial(torch.optim.SGD, lr=0.1),
    "Adam": partial(torch.optim.Adam, lr=0.01),
    "AdamW": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
    "Adagrad": partial(torch.optim.Adagrad, lr=0.1),
}


def learned(
    make: Callable[..., Any], steps: int, skipped: int = 0, late: bool = False
) -> list[Tensor]:
    """The parameters after some steps.

    Args:
        make: makes the optimizer of parameter groups.
        steps: number of steps.
        skipped: number of first steps that a gradient scaler skips.
        late: whether the last layer has no gradients in the first step.
    """
    torch.manual_seed(0)
    # Without batch norm: before it, the gradient of a bias is rounding alone, which Adam scales up.
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 2))
    solver = make(optimizers.parameter_groups(net, False, None, None, 0.1))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, enabled=skipped > 0)
    for step in range(steps):
        inputs = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(step))
        scaler.scale(net(inputs).square().mean()).backward()
        if step < skipped:
            next(net.parameters()).grad.fill_(torch.inf)  # type: ignore[union-attr]
        if late and step == 0:
            net[3].weight.grad = None
        scaler.step(solver)
        scaler.update()
        solver.zero_grad()
    return [p.detach() for p in net.parameters()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", [{}, {"skipped": 1}, {"late": True}], ids=str)
def test_fused_steps_are_those_of_torchs_plain_ones(kind: str, case: dict[str, Any]) -> None:
    """Also where the first step is skipped, or reaches only some parameters."""
    make = KINDS[kind]
    fused = partial(optimizers.created, make)
    assert fused([{"params": [nn.Parameter(torch.ones(2))]}]).defaults["fused"] is True
    plain = learned(partial(make, foreach=False), 5, **case)
    for one, two in zip(learned(fused, 5, **case), plain, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def test_which_optimizers_are_fused() -> None:
    params = [{"params": [nn.Parameter(torch.ones(2, 2))]}]

    def fused(library: str, name: str, **kwargs: Any) -> Any:
        make = partial(
            optimizers.by_name, library=library, name=name, lr=0.1, weight_decay=0.0, kwargs=kwargs
        )
        return optimizers.created(make, params).defaults.get("fused")

    for name in ("SGD", "Adam", "AdamW", "Adagrad"):
        assert fused("torch", name)
    assert fused("timm", "momentum")
    assert fused("timm", "adamw")
    for name in ("lion", "lamb", "lookahead_adamw"):
        assert not fused("timm", name)
    assert not fused("torch", "NAdam")
    # What is asked for is not overridden.
    assert fused("torch", "AdamW", fused=False) is False
    assert not fused("torch", "AdamW", foreach=True)
    assert not fused("torch", "SGD", momentum=0.9, dampening=0.1)
    complex_ = [{"params": [torch.ones(2, dtype=torch.cfloat)]}]
    made = optimizers.created(partial(torch.optim.AdamW, lr=0.1), complex_)
    assert not made.defaults["fused"]


@pytest.mark.parametrize("kind", ["SGD", "AdamW", "Adagrad"])
@pytest.mark.parametrize("then", [torch.contiguous_format, torch.channels_last])
def test_a_run_goes_on_in_another_memory_format(kind: str, then: torch.memory_format) -> None:
    """And with another kernel: states are those of parameters, not of their order in memory."""
    now = torch.channels_last if then is torch.contiguous_format else torch.contiguous_format

    def begun(layout: torch.memory_format, *, fused: bool) -> tuple[nn.Conv2d, Any]:
        torch.manual_seed(0)
        net = nn.Conv2d(3, 4, 3).to(memory_format=layout)
        groups = [{"params": [*net.parameters()]}]
        make = KINDS[kind] if fused else partial(KINDS[kind], foreach=False)
        return net, optimizers.created(make, groups)

    def step(net: nn.Conv2d, solver: Any, seed: int) -> None:
        inputs = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
        net(inputs).square().sum().backward()
        solver.step()
        solver.zero_grad()

    ends = []
    for was_fused, is_fused in ((True, True), (True, False), (False, True), (False, False)):
        (first, one), (second, two) = begun(then, fused=was_fused), begun(now, fused=is_fused)
        assert one.defaults["fused"] == (True if was_fused else None)
        for seed in range(2):
            step(first, one, seed)
        saved = copy.deepcopy(one.state_dict())
        state = OptimizerState(two)
        second.load_state_dict(first.state_dict())
        two.load_state_dict(state.restored(saved))
        step(second, two, 2)
        ends.append(second.weight.detach())
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-5, atol=1e-6)
