"""Evaluation of RGB+X detectors with disturbed sensors: missing, shifted, noisy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from research.batch import DetectionBatch
from research.data.rgbx.transform import valid_mask
from research.data.rules import RGB
from research.data.transforms import DeviceTransform
from research.engine.evaluation import EvalRun
from research.utils.errors import UserError
from research.utils.progress import track

SEED = 0
Disturb = Callable[[Tensor], Tensor]
"""Maps normalised inputs [B, C, S, S] to disturbed ones; the inputs are not modified."""


@dataclass(frozen=True)
class Case:
    """One disturbance.

    Attributes:
        kind: ``clean``, ``missing``, ``shifted`` or ``noisy``.
        sensor: the disturbed sensor.
        amount: pixels or standard deviations; 0 for ``clean`` and ``missing``.
        disturb: creates the function, a new one for every pass over the split.
    """

    kind: str
    sensor: str
    amount: float
    disturb: Callable[[], Disturb]


def sensors(channels: Sequence[str]) -> dict[str, list[int]]:
    """Channel indices of each sensor: RGB, each other channel, and all other channels together."""
    others = {name: [index] for index, name in enumerate(channels) if name not in RGB}
    groups = {"RGB": [index for index, name in enumerate(channels) if name in RGB], **others}
    if len(others) > 1:
        groups["all but RGB"] = [index for indices in others.values() for index in indices]
    return groups


def cases(channels: Sequence[str], shifts: Sequence[int], noise: Sequence[float]) -> list[Case]:
    """All cases, the clean one first."""
    groups = sensors(channels)
    single = {name: indices for name, indices in groups.items() if name != "all but RGB"}
    # The last group: all other sensors, or the only one.
    others = list(groups)[-1]
    return [
        Case("clean", "", 0, lambda: lambda inputs: inputs),
        *(Case("missing", name, 0, partial(missing, c)) for name, c in groups.items()),
        *(Case("shifted", others, n, partial(shifted, groups[others], n)) for n in shifts),
        *(
            Case("noisy", name, sigma, partial(noisy, c, sigma))
            for name, c in single.items()
            for sigma in noise
        ),
    ]


def missing(channels: Sequence[int]) -> Disturb:
    """Replaces channels by their mean, which is 0 after normalisation."""

    def disturb(inputs: Tensor) -> Tensor:
        inputs = inputs.clone()
        inputs[:, list(channels)] = 0
        return inputs

    return disturb


def shifted(channels: Sequence[int], pixels: int) -> Disturb:
    """Shifts channels to the right."""

    def disturb(inputs: Tensor) -> Tensor:
        moved = inputs[:, list(channels)].roll(pixels, -1)
        moved[..., :pixels] = 0
        inputs = inputs.clone()
        inputs[:, list(channels)] = moved
        return inputs

    return disturb


def noisy(channels: Sequence[int], sigma: float) -> Disturb:
    """Adds Gaussian noise to channels, from a new generator with a fixed seed."""
    generator = torch.Generator().manual_seed(SEED)

    def disturb(inputs: Tensor) -> Tensor:
        inputs = inputs.clone()
        clean = inputs[:, list(channels)]
        # Sampled on the CPU: the same noise on every device.
        noise = torch.randn(clean.shape, generator=generator)
        inputs[:, list(channels)] = clean + sigma * noise.to(clean)
        return inputs

    return disturb


def disturbed(transform: DeviceTransform, disturb: Disturb) -> DeviceTransform:
    """A device transform followed by a disturbance of the frames, without the letterbox bars."""

    class Disturbed(DeviceTransform):
        def __init__(self) -> None:
            super().__init__()
            self.clean = transform
            self.memory_format = transform.memory_format

        def forward(self, batch: DetectionBatch, generator: Any) -> DetectionBatch:
            batch = self.clean(batch, generator)
            mask = valid_mask(batch.sizes, batch.inputs.shape[-1])[:, None]
            return replace(batch, inputs=disturb(batch.inputs) * mask)

        def to_images(self, batch: DetectionBatch) -> list[Tensor]:
            return self.clean.to_images(batch)

    return Disturbed()


def evaluate_cases(
    run: EvalRun, shifts: Sequence[int], noise: Sequence[float]
) -> tuple[list[dict[str, Any]], str, str]:
    """One row for each case (``kind``, ``sensor``, ``amount``, ``n``: number of frames, metrics),
    the monitored metric, and what the metrics are of, in words.

    Args:
        run: the detector with the split.
        shifts: in pixels.
        noise: standard deviations.

    Raises:
        UserError: if the run's data has no channel besides RGB.
    """
    channels = run.saved["data"].get("channels", RGB)
    if set(channels) <= set(RGB):
        raise UserError(
            "RUN",
            f"{run.file}: its data has no channel besides red, green and blue",
            "pass a run of model=rgbx_mit_b0 or a similar model",
        )
    rows: list[dict[str, Any]] = []
    all_cases = cases(channels, shifts, noise)
    for case in track(all_cases, f"evaluating {run.split}", unit="cases"):
        transform = run.predictor.transform
        if case.kind != "clean":
            transform = disturbed(transform, case.disturb())
        predictor = replace(run.predictor, transform=transform)
        phase = f"{case.kind} {case.sensor}".strip()
        result = replace(run, predictor=predictor).evaluate(phase)
        about = {"kind": case.kind, "sensor": case.sensor, "amount": case.amount}
        rows.append({**about, "n": result.n, **result.metrics})
    return rows, run.main_metric(result.metrics).metric, result.basis
