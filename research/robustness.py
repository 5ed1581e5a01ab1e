"""How much a detector on RGB + X needs each sensor: ``python -m research.robustness RUN``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.config import cli
from research.config.checks import RGB
from research.config.rules import DEVICE, TEXT, Rule, one_of
from research.utils.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from research.batch import DetectionBatch
    from research.data.transforms import DeviceTransform

USAGE = """
python -m research.robustness RUN [key=value …]

RUN is a run folder or checkpoint of a detector on RGB + X. Judges it on a split as it is, and then
again and again with something wrong:
  missing  a sensor, or all but RGB, says nothing: its mean everywhere
  shifted  what is not RGB lies n pixels of the letterboxed frame further to the right; the mean
           enters from the left
  noisy    a sensor has Gaussian noise, in its own standard deviations; the same in every run
Prints a Markdown table with the change of the monitored metric; writes robustness.csv, .json and
.png.
  split=test         test, val or train (with validation crops)
  shifts=2,4,8       pixels
  noise=0.25,0.5,1   standard deviations
  checkpoint=best    best or last, of a run folder
  device=auto        auto, cpu, cuda, cuda:N or mps
  out=               folder for the results; robustness_SPLIT in the run folder by default
  trust=[]           classes and functions of your own that the run names: [my_models.Net]
Any setting of the run may follow, such as dataset.root=FOLDER for data that were moved.
"""

SEED = 0
SHOWN = ("mAP", "mAP50", "mAP75", "recall", "precision")
"""Metrics in the printed table; all of them are in the files."""


def _positive(text: Any, kind: Callable[[str], float]) -> bool:
    try:
        return all(0 < kind(part) < 1e6 for part in str(text).split(","))
    except ValueError:
        return False


OPTIONS: dict[str, tuple[str, Rule]] = {
    "split": ("test", one_of("test", "val", "train")),
    "shifts": ("2,4,8", Rule("whole numbers above 0", lambda text: _positive(text, int))),
    "noise": ("0.25,0.5,1", Rule("numbers above 0", lambda text: _positive(text, float))),
    "checkpoint": ("best", one_of("best", "last")),
    "device": ("auto", DEVICE),
    "out": ("", TEXT),
    **cli.TRUST,
}

Disturb = Callable[["Tensor"], "Tensor"]
"""Of inputs [B, C, S, S] that are normalised: a copy of them with something wrong."""


@dataclass(frozen=True)
class Case:
    """One thing that goes wrong.

    Attributes:
        kind: ``clean``, ``missing``, ``shifted`` or ``noisy``.
        sensor: which sensor it happens to.
        amount: pixels or standard deviations; 0 where there is no more or less.
        disturb: makes it happen; made anew for every pass over the split.
    """

    kind: str
    sensor: str
    amount: float
    disturb: Callable[[], Disturb]


def sensors(channels: Sequence[str]) -> dict[str, list[int]]:
    """The places of every sensor's channels: RGB, each other one, and the others together."""
    others = {name: [place] for place, name in enumerate(channels) if name not in RGB}
    found = {"RGB": [place for place, name in enumerate(channels) if name in RGB], **others}
    if len(others) > 1:
        found["all but RGB"] = [place for places in others.values() for place in places]
    return found


def cases(channels: Sequence[str], shifts: Sequence[int], noise: Sequence[float]) -> list[Case]:
    """Everything that is tried, the clean case first."""
    groups = sensors(channels)
    single = {name: places for name, places in groups.items() if name != "all but RGB"}
    # Of one sensor beside RGB the group of all others is that sensor.
    others = list(groups)[-1]
    return [
        Case("clean", "", 0, lambda: lambda inputs: inputs),
        *(Case("missing", name, 0, lambda p=p: missing(p)) for name, p in groups.items()),  # type: ignore[misc]
        *(Case("shifted", others, n, lambda n=n: shifted(groups[others], n)) for n in shifts),  # type: ignore[misc]
        *(
            Case("noisy", name, sigma, lambda p=p, sigma=sigma: noisy(p, sigma))  # type: ignore[misc]
            for name, p in single.items()
            for sigma in noise
        ),
    ]


def missing(places: Sequence[int]) -> Disturb:
    """Channels at their mean."""

    def disturb(inputs: Tensor) -> Tensor:
        inputs = inputs.clone()
        inputs[:, list(places)] = 0
        return inputs

    return disturb


def shifted(places: Sequence[int], pixels: int) -> Disturb:
    """Channels moved to the right."""

    def disturb(inputs: Tensor) -> Tensor:
        moved = inputs[:, list(places)].roll(pixels, -1)
        moved[..., :pixels] = 0
        inputs = inputs.clone()
        inputs[:, list(places)] = moved
        return inputs

    return disturb


def noisy(places: Sequence[int], sigma: float) -> Disturb:
    """Channels with Gaussian noise, which a fresh generator draws batch after batch."""
    import torch

    generator = torch.Generator().manual_seed(SEED)

    def disturb(inputs: Tensor) -> Tensor:
        inputs = inputs.clone()
        wanted = inputs[:, list(places)]
        # Drawn on the CPU: the same noise on every device.
        drawn = torch.randn(wanted.shape, generator=generator)
        inputs[:, list(places)] = wanted + sigma * drawn.to(wanted)
        return inputs

    return disturb


def disturbed(transform: DeviceTransform, disturb: Disturb) -> DeviceTransform:
    """A device transform after which something is wrong, in the frames and not around them."""
    from research.data.rgbx.transform import valid_mask
    from research.data.transforms import DeviceTransform

    class Disturbed(DeviceTransform):
        def __init__(self) -> None:
            super().__init__()
            self.usual = transform

        def forward(self, batch: DetectionBatch, generator: Any) -> DetectionBatch:
            batch = self.usual(batch, generator)
            there = valid_mask(batch.sizes, batch.inputs.shape[-1])[:, None]
            return replace(batch, inputs=disturb(batch.inputs) * there)

        def to_images(self, batch: DetectionBatch) -> list[Tensor]:
            return self.usual.to_images(batch)

    return Disturbed()


def judge(
    run: Path,
    split: str,
    which: str,
    device: str,
    overrides: Sequence[str],
    shifts: Sequence[int],
    noise: Sequence[float],
    trust: Sequence[str] = (),
) -> tuple[list[dict[str, Any]], str]:
    """A row a case (``kind``, ``sensor``, ``amount``, metrics), and the monitored metric.

    Raises:
        UserError: when the run's data have no sensor beside RGB.
    """
    from research.engine.evaluation import load_eval_run

    one = load_eval_run(run, split, which, device, overrides, trust)
    channels = one.saved["data"].get("channels", RGB)
    if set(channels) <= set(RGB):
        raise UserError(
            "RUN",
            f"{run}: its data have no channel beside red, green and blue",
            "give a run of model=rgbx_mit_b0 or its like",
        )
    rows: list[dict[str, Any]] = []
    for case in cases(channels, shifts, noise):
        transform = disturbed(one.predictor.transform, case.disturb())
        if case.kind == "clean":
            transform = one.predictor.transform
        trained = replace(one.predictor, transform=transform)
        phase = f"{case.kind} {case.sensor}".strip()
        metrics = replace(one, predictor=trained).evaluate(phase).metrics
        rows.append({"kind": case.kind, "sensor": case.sensor, "amount": case.amount, **metrics})
    return rows, one.main_metric(metrics).metric


def table(rows: Sequence[Mapping[str, Any]], metric: str) -> str:
    """The rows as Markdown; the first one is the clean case."""
    shown = [name for name in dict.fromkeys((metric, *SHOWN)) if name in rows[0]]
    lines = [
        "| " + " | ".join(["disturbance", "sensor", "amount", *shown, f"Δ {metric}"]) + " |",
        "| --- | --- |" + " ---: |" * (len(shown) + 2),
    ]
    for row in rows:
        cells = [row["kind"], row["sensor"], f"{row['amount']:g}" if row["amount"] else ""]
        cells += [f"{row[name]:.3f}" for name in shown]
        cells.append(f"{row[metric] - rows[0][metric]:+.3f}" if row is not rows[0] else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write(out: Path, rows: Sequence[Mapping[str, Any]], metric: str, told: dict[str, Any]) -> None:
    """``robustness.csv``, ``.json`` (with what was asked, ``told``) and ``.png``."""
    from research.tracking.files import csv_text
    from research.utils.files import to_json, write_atomic, write_text
    from research.viz import charts

    write_text(out / "robustness.csv", csv_text(list(rows[0]), rows))
    content = {**told, "metric": metric, "cases": [dict(row) for row in rows]}
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
    picture = charts.robustness(groups, rows[0][metric], metric)
    write_atomic(out / "robustness.png", lambda path: picture.save(path, "PNG"))


def main(words: list[str]) -> None:
    paths, settings = cli.split(words)
    if len(paths) != 1:
        raise UserError("RUN", "give one RUN folder or checkpoint first, then key=value settings")
    asked, rest = cli.mixed(settings, OPTIONS, "robustness")
    run, split = Path(paths[0]), asked["split"]
    shifts = sorted({int(part) for part in str(asked["shifts"]).split(",")})
    noise = sorted({float(part) for part in str(asked["noise"]).split(",")})
    out = Path(asked["out"]) if asked["out"] else cli.beside(run, f"robustness_{split}")
    # Imported late: a mistake is answered before torch is there.
    from research.utils import logs

    # Standard output is for the result alone.
    logs.to_terminal(sys.stderr)
    which, device, trust = asked["checkpoint"], asked["device"], asked["trust"]
    rows, metric = judge(run, split, which, device, rest, shifts, noise, trust)
    # First: no disk can take it back.
    print(table(rows, metric))
    with cli.written(out):
        write(out, rows, metric, {"run": str(run), "split": split})
    print(f"\nfiles: {out}", file=sys.stderr)


if __name__ == "__main__":
    cli.command(USAGE, main)
