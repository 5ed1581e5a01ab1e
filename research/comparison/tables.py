"""A comparison as Markdown and as flat rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

from research.comparison.verdicts import Comparison

Cell = str | int | float


def markdown(found: Comparison) -> str:
    """The groups, and below them their differences from the reference."""
    digits = decimals(found)
    better = "higher" if found.mode == "max" else "lower"
    header = ["#", "group", "seeds", found.metric, "min … max", "parameters", "training s"]
    rows = []
    for place, (group, spread) in enumerate(zip(found.groups, found.spreads, strict=True)):
        many = f" ({len(group.runs)} runs)" if len(group.runs) > spread.n else ""
        mean = f"{spread.mean:.{digits}f}"
        sd = "" if spread.sd is None else f" ± {spread.sd:.{digits}f}"
        span = "" if spread.sd is None else f"{spread.low:.{digits}f} … {spread.high:.{digits}f}"
        rows.append(
            [
                str(place + 1),
                group.label,
                f"{spread.n}{many}",
                f"{mean}{sd}",
                span,
                f"{group.cost('parameters'):,.0f}",
                f"{group.cost('seconds'):,.1f}",
            ]
        )
    runs = sum(len(group.runs) for group in found.groups)
    parts = [
        f"{runs} runs in {len(found.groups)} groups: {found.metric} ({better} is better) in each "
        "run's best epoch, mean ± sample standard deviation over seeds",
        _table(header, rows, "rlrrrrr"),
    ]
    if len(found.groups) > 1:
        parts.append(_differences(found, digits))
    return "\n\n".join(parts)


def _differences(found: Comparison, digits: int) -> str:
    share = f"{100 * found.confidence:g} %"
    header = [
        "#", f"difference from {found.groups[found.reference].label}", "mean",
        f"bootstrap {share}", f"Student's t {share}", "p", "seeds", "verdict",
    ]  # fmt: skip
    rows = []
    for place, difference in enumerate(found.differences):
        verdict = found.verdicts[place]
        if difference is not None:
            spans = [
                "" if span is None else f"[{span[0]:+.{digits}f}, {span[1]:+.{digits}f}]"
                for span in (difference.bootstrap, difference.student)
            ]
            rows.append(
                [
                    str(place + 1),
                    found.groups[place].label,
                    f"{difference.mean:+.{digits}f}",
                    *spans,
                    "" if verdict is None else f"{verdict.p:.3f}",
                    found.pairing(place),
                    found.said(place),
                ]
            )
    return _table(header, rows, "rlrrrrll")


def decimals(found: Comparison) -> int:
    """Decimals that show four digits of the largest mean."""
    largest = max(abs(spread.mean) for spread in found.spreads)
    return min(9, max(0, 3 - math.floor(math.log10(largest)))) if largest else 4


def flat(found: Comparison) -> list[dict[str, Cell]]:
    """A row a group, with the settings in which they differ; what is not known is empty."""
    costs = costs_of(found)
    rows: list[dict[str, Cell]] = []
    for place, (group, spread) in enumerate(zip(found.groups, found.spreads, strict=True)):
        difference, verdict = found.differences[place], found.verdicts[place]
        bootstrap = (difference and difference.bootstrap) or ("", "")
        student = (difference and difference.student) or ("", "")
        rows.append(
            {
                "group": group.label,
                "seeds": spread.n,
                "runs": len(group.runs),
                "mean": spread.mean,
                "sd": "" if spread.sd is None else spread.sd,
                "min": spread.low,
                "max": spread.high,
                **{name: _known(group.cost(name)) for name in costs},
                "difference": "" if difference is None else difference.mean,
                "bootstrap_low": bootstrap[0],
                "bootstrap_high": bootstrap[1],
                "t_low": student[0],
                "t_high": student[1],
                "p": "" if verdict is None else verdict.p,
                "pairing": found.pairing(place),
                "verdict": found.said(place),
            }
        )
        # A setting may be called as a column is.
        for key, value in group.settings.items():
            rows[-1][f"setting.{key}" if key in rows[-1] else key] = value
    return rows


def flat_runs(found: Comparison) -> list[dict[str, Cell]]:
    """A row a run."""
    costs = costs_of(found)
    rows: list[dict[str, Cell]] = []
    for group in found.groups:
        for run in group.runs:
            value = run.value(found.metric)
            assert value is not None
            rows.append(
                {
                    "run": str(run.folder),
                    "group": group.label,
                    "seed": run.seed,
                    found.metric: value,
                    "best_epoch": run.best_epoch,
                    "status": run.status,
                    **{name: _known(run.costs.get(name)) for name in costs},
                }
            )
    return rows


def costs_of(found: Comparison) -> list[str]:
    """Every cost that some run knows."""
    return list(dict.fromkeys(n for group in found.groups for run in group.runs for n in run.costs))


def _known(value: float | None) -> Cell:
    return "" if value is None else value


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], sides: str) -> str:
    """Markdown, each column to the left (``l``) or right (``r``)."""
    rules = [{"l": "---", "r": "---:"}[side] for side in sides]
    lines = [header, rules, *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )
