"""Memory formats of weights and inputs, and ``torch.compile``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from research.compression.blocks import Blocks
from research.config import compose_config, resolved
from research.config.rules import COMPILE_MODES
from research.engine import build, description, placement, predictor
from research.engine.loop import evaluate
from tests.conftest import TINY, run, trained_epoch
from tests.golden import stored
from tests.golden.configurations import GOLDEN, overrides

Compose = Callable[..., dict[str, Any]]
CONTIGUOUS, CHANNELS_LAST = torch.contiguous_format, torch.channels_last


@pytest.mark.parametrize(
    ("setting", "device", "precision", "expected"),
    [
        (None, "cpu", "fp32", CONTIGUOUS),
        (None, "cpu", "bf16", CONTIGUOUS),
        (None, "cuda", "fp32", CONTIGUOUS),
        (None, "cuda", "bf16", CHANNELS_LAST),
        (None, "cuda", "fp16", CHANNELS_LAST),
        (None, "mps", "fp16", CONTIGUOUS),
        (True, "cpu", "fp32", CHANNELS_LAST),
        (False, "cuda", "bf16", CONTIGUOUS),
    ],
)
def test_the_format_is_chosen_by_device_and_precision(
    setting: bool | None, device: str, precision: str, expected: torch.memory_format
) -> None:
    config = {"channels_last": setting, "precision": precision}
    network = nn.Sequential(nn.Conv2d(3, 3, 3))
    assert placement.memory_format(config, torch.device(device), network) == expected


@pytest.mark.parametrize(
    ("device", "precision", "setting", "expected"),
    [
        ("cpu", "fp32", None, CHANNELS_LAST),
        ("cpu", "bf16", None, CHANNELS_LAST),
        ("cpu", "fp32", False, CONTIGUOUS),
        ("cuda", "fp32", None, CONTIGUOUS),
    ],
)
@pytest.mark.parametrize("compression", ["none", "block_stem"])
def test_a_densenet_is_channels_last_on_a_cpu(
    device: str, precision: str, setting: bool | None, expected: Any, compression: str
) -> None:
    words = ["model=densenet_bc_40_12", f"compression={compression}", "dataset=demo"]
    config = compose_config(words).config
    network = build.model(config, {"classes": ["a", "b"], "image_size": 64})
    config |= {"channels_last": setting, "precision": precision}
    assert placement.memory_format(config, torch.device(device), network) == expected


def images(inputs: Tensor | Blocks) -> list[Tensor]:
    """What a network gets as images [N, C, H, W]; none for features."""
    if isinstance(inputs, Blocks):
        return [inputs.y, inputs.cbcr.flatten(1, 2)]
    return [inputs.flatten(0, -4)] if inputs.dim() >= 4 else []


def mixed(tensor: Tensor) -> Tensor:
    """The same values in the memory order of a picture in a file, as loaders ship them."""
    if tensor.dim() < 4 or tensor.dtype != torch.uint8:
        return tensor
    return tensor.movedim(-3, -1).contiguous().movedim(-1, -3)


OFTEN = ("fastnet_bf16", "dct_from_store", "tinydet", "ranking")
"""With mixup, from a store, with a zoom, pairs."""


@pytest.mark.parametrize(
    "name",
    [
        *OFTEN,
        *(pytest.param(name, marks=pytest.mark.whole) for name in sorted(GOLDEN.keys() - OFTEN)),
    ],
)
def test_device_transforms_return_the_models_format(name: str) -> None:
    """With every augmentation, of every order in memory, and with the same values."""
    config = resolved(compose_config(overrides(name))[0])
    data = stored.load(name, build.data_module(config))
    data.prepare(config["seed"])
    transform = data.transform().train()
    rows = data.splits["train"]
    found = []
    for layout in (CONTIGUOUS, CHANNELS_LAST):
        transform.memory_format = layout
        for batch in (rows, rows.map(mixed)):
            inputs = transform(batch, torch.Generator().manual_seed(1)).inputs
            assert all(each.is_contiguous(memory_format=layout) for each in images(inputs))
            found.append(inputs if isinstance(inputs, Blocks) else (inputs,))
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, two)


class Seen:
    """Whether every input of a network was in its memory format."""

    def __init__(self, network: nn.Module, layout: torch.memory_format) -> None:
        self.found: list[bool] = []
        self.layout = layout
        network.register_forward_pre_hook(self)

    def __call__(self, network: nn.Module, arguments: tuple[Any, ...]) -> None:
        self.found += [each.is_contiguous(memory_format=self.layout) for each in images(*arguments)]


@pytest.mark.parametrize("chosen", [True, pytest.param(False, marks=pytest.mark.whole)])
def test_training_validation_and_prediction_use_it(small: Compose, chosen: bool) -> None:
    layout = CHANNELS_LAST if chosen else CONTIGUOUS
    words = (*TINY, f"channels_last={str(chosen).lower()}", "ema=0.5", "epochs=1")
    built = build.experiment(small(*words))
    state = built.state
    assert ("channels_last" in description.describe(built)) == chosen
    assert state.ema is not None
    for network in (state.model, state.ema.module):
        weights = [p for p in network.parameters() if p.dim() == 4]
        assert all(p.is_contiguous(memory_format=layout) for p in weights)
        assert any(not p.is_contiguous(memory_format=CONTIGUOUS) for p in weights) == chosen
    seen = Seen(state.model, layout), Seen(state.ema.module, layout)
    trained_epoch(built)
    evaluate(state.eval_model, built.task, built.val, state.transform, built.cfg, built.device)
    assert all(each.found and all(each.found) for each in seen)

    folder = run(small(*words))
    loaded, _ = predictor.load(folder, "last")
    later = Seen(loaded.model, layout)
    loaded.infer(next(iter(built.val.epoch(0))))
    assert later.found
    assert all(later.found)


class Overwriting(nn.Module):
    """Like a network that is replayed as a CUDA graph: each call has its outputs in one place."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.place: Tensor | None = None

    def forward(self, inputs: Tensor) -> dict[str, Any]:
        outputs = self.network(inputs)
        if self.place is None:
            self.place = outputs.clone()
        self.place.data.copy_(outputs)
        return {"logits": self.place, "count": len(inputs)}


@pytest.mark.parametrize("setting", [False, True, *COMPILE_MODES])
def test_modes_of_compilation(monkeypatch: pytest.MonkeyPatch, setting: bool | str) -> None:
    modes = []

    def compile_(network: nn.Module, mode: str) -> nn.Module:
        modes.append(mode)
        return Overwriting(network)

    monkeypatch.setattr(torch, "compile", compile_)
    network = nn.Linear(2, 2)
    called = placement.called(network, setting)
    assert modes == ([] if setting is False else ["default" if setting is True else setting])
    assert [*called.parameters()] == [*network.parameters()]
    if setting in placement.GRAPHS:
        first = called(torch.ones(1, 2))
        before = first["logits"].clone()
        second = called(torch.zeros(1, 2))
        assert torch.equal(first["logits"], before)
        assert not torch.equal(first["logits"], second["logits"])
        assert first["count"] == 1


def test_what_is_validated_is_compiled(small: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model, or its moving average; their weights are those that are saved."""
    monkeypatch.setattr(torch, "compile", lambda network, mode: nn.Sequential(network))
    for words in ((), ("ema=0.5",)):
        state = build.experiment(small(*TINY, "compile=true", *words)).state
        assert isinstance(state.eval_model, nn.Sequential)
        assert state.eval_model[0] is (state.model if state.ema is None else state.ema.module)
        assert isinstance(state.forward, nn.Sequential)
        assert state.forward[0] is state.model


@pytest.mark.whole
@pytest.mark.parametrize("mode", ["true", "max-autotune-no-cudagraphs"])
def test_a_compiled_run(small: Compose, mode: str) -> None:
    """As the plain one; smaller last batches and later epochs are not compiled again and again."""
    words = (*TINY, "ema=0.5", "batch_size=5", "epochs=3")
    losses = []
    for setting in ("false", mode):
        counters.clear()
        built = build.experiment(small(*words, f"compile={setting}"))
        graphs, own = [], []
        for _ in range(3):
            own.append(trained_epoch(built).metrics["train/loss"])
            result = evaluate(
                built.state.eval_model, built.task, built.val, built.state.transform, built.cfg,
                built.device,
            )  # fmt: skip
            own.append(result.metrics["loss"])
            graphs.append(counters["stats"]["unique_graphs"])
        losses.append(own)
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert 0 < graphs[0] == graphs[2] <= 6
