"""Robustness of RGB+X detectors to sensor failures: ``python -m research.robustness RUN``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.config import cli
from research.config.rules import PATH, number, one_of, whole
from research.data.rules import RGB
from research.utils.errors import UserError
from research.utils.progress import track
from research.utils.tables import TextTable, terminal_width

if TYPE_CHECKING:
    from torch import Tensor

    from research.batch import DetectionBatch
    from research.data.transforms import DeviceTransform


@dataclass(frozen=True)
class RobustnessOptions(cli.RunOptions):
    """Options of the command."""

    split: str = cli.option(
        "test", one_of("test", "val", "train"), "test, val or train (with validation crops)"
    )
    shifts: tuple[int, ...] = cli.option((2, 4, 8), whole(1, 10**6), "in pixels")
    noise: tuple[float, ...] = cli.option(
        (0.25, 0.5, 1.0), number(above=0, below=1e6), "standard deviations"
    )
    out: Path | None = cli.option(
        None, PATH, "folder for the results; by default robustness_SPLIT in the run folder"
    )


USAGE = cli.usage(
    "python -m research.robustness RUN [key=value …]",
    """
RUN is a run folder or checkpoint of a detector on RGB + X. Evaluates it on a split as it is and
with disturbed inputs:
  missing  a sensor, or all except RGB, is replaced by its mean
  shifted  all channels except RGB are shifted to the right by n pixels of the letterboxed frame;
           the mean enters from the left
  noisy    a sensor has Gaussian noise, in units of its standard deviation; the same in every run
Prints a Markdown table with the change of the monitored metric; writes robustness.csv, .json and
.png.
""",
    RobustnessOptions,
    "Any setting of the run may follow, such as dataset.root=FOLDER if the data was moved.",
)

SEED = 0
SHOWN = ("mAP", "mAP50", "mAP75", "recall", "precision")
"""Metrics in the printed table; the files have all."""


Disturb = Callable[["Tensor"], "Tensor"]
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
    import torch

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
    from research.data.rgbx.transform import valid_mask
    from research.data.transforms import DeviceTransform

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
    path: Path,
    split: str,
    which: str,
    device: str,
    overrides: Sequence[str],
    shifts: Sequence[int],
    noise: Sequence[float],
    trust: Sequence[str] = (),
) -> tuple[list[dict[str, Any]], str, str]:
    """One row for each case (``kind``, ``sensor``, ``amount``, ``n``: number of frames, metrics),
    the monitored metric, and what the metrics are of, in words.

    Raises:
        UserError: if the run's data has no channel besides RGB.
    """
    from research.engine.evaluation import load_eval_run

    run = load_eval_run(path, split, which, device, overrides, trust)
    channels = run.saved["data"].get("channels", RGB)
    if set(channels) <= set(RGB):
        raise UserError(
            "RUN",
            f"{path}: its data has no channel besides red, green and blue",
            "pass a run of model=rgbx_mit_b0 or a similar model",
        )
    rows: list[dict[str, Any]] = []
    all_cases = cases(channels, shifts, noise)
    for case in track(all_cases, f"evaluating {split}", unit="cases"):
        transform = run.predictor.transform
        if case.kind != "clean":
            transform = disturbed(transform, case.disturb())
        predictor = replace(run.predictor, transform=transform)
        phase = f"{case.kind} {case.sensor}".strip()
        result = replace(run, predictor=predictor).evaluate(phase)
        about = {"kind": case.kind, "sensor": case.sensor, "amount": case.amount}
        rows.append({**about, "n": result.n, **result.metrics})
    return rows, run.main_metric(result.metrics).metric, result.basis


def table(rows: Sequence[Mapping[str, Any]], metric: str) -> TextTable:
    """A row for each case; the first one is the clean case."""
    shown = [name for name in dict.fromkeys((metric, *SHOWN)) if name in rows[0]]
    lines = []
    for row in rows:
        cells = [row["kind"], row["sensor"], f"{row['amount']:g}" if row["amount"] else ""]
        change = f"{row[metric] - rows[0][metric]:+.3f}" if row is not rows[0] else ""
        cells += [str(row["n"]), f"{row[metric]:.3f}", change]
        lines.append([*cells, *(f"{row[name]:.3f}" for name in shown[1:])])
    header = ["disturbance", "sensor", "amount", "n", metric, f"Δ {metric}", *shown[1:]]
    return TextTable(header, lines, "ll" + "r" * (len(shown) + 3), keys=3)


def write(
    out: Path, rows: Sequence[Mapping[str, Any]], metric: str, settings: Mapping[str, Any]
) -> None:
    """Write ``robustness.csv``, ``.json`` (with ``settings`` of the evaluation) and ``.png``."""
    from research.tracking.files import csv_text
    from research.utils.files import to_json, write_atomic, write_text
    from research.viz import charts

    write_text(out / "robustness.csv", csv_text(list(rows[0]), rows))
    content = {**settings, "metric": metric, "cases": [dict(row) for row in rows]}
    write_text(out / "robustness.json", to_json(content))
    titles = {
        "missing": "missing",
        "shifted": "shifted, pixels",
        "noisy": "noise, standard deviations",
    }
    groups: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in rows[1:]:
        lines = groups.setdefault(titles[row["kind"]], {})
        lines.setdefault(row["sensor"], []).append((row["amount"], row[metric]))
    picture = charts.robustness(groups, rows[0][metric], metric, settings["of"])
    write_atomic(out / "robustness.png", lambda path: picture.save(path, "PNG"))


def main(words: list[str]) -> None:
    paths, options, overrides = cli.parse(RobustnessOptions, words, others="")
    if len(paths) != 1:
        raise UserError("RUN", "pass one RUN folder or checkpoint first, then key=value settings")
    path, split = Path(paths[0]), options.split
    out = options.out or cli.folder_in_run(path, f"robustness_{split}")
    # Imported late: mistakes are reported before torch is imported.
    from research.utils import logs

    # Standard output is for the result only.
    logs.to_terminal(sys.stderr)
    rows, metric, basis = evaluate_cases(
        path,
        split,
        options.checkpoint,
        options.device,
        overrides,
        sorted(set(options.shifts)),
        sorted(set(options.noise)),
        options.trust,
    )
    # Printed before the files are written: a full disk must not lose it.
    print(table(rows, metric).text(terminal_width()))
    with cli.writing_to(out):
        write(out, rows, metric, {"run": str(path), "split": split, "of": basis})
    words = [f"split={split}", *cli.typed_options(options), *overrides]
    look = cli.command_of("evaluate", path, *words)
    names = [f"robustness.{suffix}" for suffix in ("csv", "json", "png")]
    cli.print_files(out, *names, following=look)


if __name__ == "__main__":
    cli.command(USAGE, main)
