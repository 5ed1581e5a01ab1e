"""A comparison as Markdown tables and as rows of CSV files."""

from __future__ import annotations

import math
from collections.abc import Iterable

from research.comparison.verdicts import ComparisonResult
from research.utils.counts import counted
from research.utils.tables import TextTable, paragraph

Cell = str | int | float


def markdown(result: ComparisonResult, width: int | None = None) -> str:
    """The groups, and below them their differences from the reference.

    Args:
        result: of the comparison.
        width: see ``TextTable.text``.
    """
    digits = decimals(result)
    better = "higher" if result.mode == "max" else "lower"
    header = ["#", "group", "seeds", "n", result.metric, "min … max", "parameters", "training s"]
    rows = []
    for index, (group, stats) in enumerate(zip(result.groups, result.stats, strict=True)):
        many = f" ({len(group.runs)} runs)" if len(group.runs) > stats.n else ""
        mean = f"{stats.mean:.{digits}f}"
        sd = "" if stats.sd is None else f" ± {stats.sd:.{digits}f}"
        span = "" if stats.sd is None else f"{stats.low:.{digits}f} … {stats.high:.{digits}f}"
        rows.append(
            [
                str(index + 1),
                group.label,
                f"{stats.n}{many}",
                group.n(result.metric),
                f"{mean}{sd}",
                span,
                f"{group.cost('parameters'):,.0f}",
                f"{group.cost('seconds'):,.1f}",
            ]
        )
    runs = sum(len(group.runs) for group in result.groups)
    groups = counted(len(result.groups), "groups")
    about = (
        f"{counted(runs, 'runs')} in {groups}: {result.metric} ({better} is better) in each "
        f"run's best epoch, mean ± sample standard deviation over seeds; n: {result.unit}"
    )
    parts = [
        paragraph(about, width),
        TextTable(header, rows, "rlrrrrrr", keys=2).text(width),
    ]
    if len(result.groups) > 1:
        parts.append(_differences(result, digits).text(width))
    return "\n\n".join(parts)


def _differences(result: ComparisonResult, digits: int) -> TextTable:
    confidence = f"{100 * result.confidence:g} %"
    header = [
        "#", f"difference from {result.groups[result.reference].label}", "mean",
        f"bootstrap {confidence}", f"Student's t {confidence}", "p", "seeds", "verdict",
    ]  # fmt: skip
    rows = []
    for index, difference in enumerate(result.differences):
        verdict = result.verdicts[index]
        if difference is not None:
            spans = [
                "" if span is None else f"[{span[0]:+.{digits}f}, {span[1]:+.{digits}f}]"
                for span in (difference.bootstrap, difference.student)
            ]
            rows.append(
                [
                    str(index + 1),
                    result.groups[index].label,
                    f"{difference.mean:+.{digits}f}",
                    *spans,
                    "" if verdict is None else p_text(verdict.p),
                    result.pairing(index),
                    result.verdict_text(index),
                ]
            )
    return TextTable(header, rows, "rlrrrrll", keys=2)


def p_text(p: float) -> str:
    """A p value with three decimals; none is 0."""
    return "< 0.001" if p < 0.0005 else f"{p:.3f}"


def decimals(result: ComparisonResult) -> int:
    """Decimals with which the largest mean has four digits."""
    return decimals_of([stats.mean for stats in result.stats])


def decimals_of(values: Iterable[float]) -> int:
    """Decimals with which the largest of some values has four digits."""
    largest = max(map(abs, values), default=0.0)
    return min(9, max(0, 3 - math.floor(math.log10(largest)))) if largest else 4


def flat(result: ComparisonResult) -> list[dict[str, Cell]]:
    """One row for each group, with the settings in which groups differ; unknown values empty."""
    costs = costs_of(result)
    rows: list[dict[str, Cell]] = []
    for index, (group, stats) in enumerate(zip(result.groups, result.stats, strict=True)):
        difference, verdict = result.differences[index], result.verdicts[index]
        bootstrap = (difference and difference.bootstrap) or ("", "")
        student = (difference and difference.student) or ("", "")
        rows.append(
            {
                "group": group.label,
                "seeds": stats.n,
                "runs": len(group.runs),
                "n": group.n(result.metric),
                "mean": stats.mean,
                "sd": "" if stats.sd is None else stats.sd,
                "min": stats.low,
                "max": stats.high,
                **{name: _known(group.cost(name)) for name in costs},
                "difference": "" if difference is None else difference.mean,
                "bootstrap_low": bootstrap[0],
                "bootstrap_high": bootstrap[1],
                "t_low": student[0],
                "t_high": student[1],
                "p": "" if verdict is None else verdict.p,
                "pairing": result.pairing(index),
                "verdict": result.verdict_text(index),
            }
        )
        # A setting may have the name of a column.
        for key, value in group.settings.items():
            rows[-1][f"setting.{key}" if key in rows[-1] else key] = value
    return rows


def flat_runs(result: ComparisonResult) -> list[dict[str, Cell]]:
    """One row for each run."""
    costs = costs_of(result)
    rows: list[dict[str, Cell]] = []
    for group in result.groups:
        for run in group.runs:
            value = run.value(result.metric)
            assert value is not None
            rows.append(
                {
                    "run": str(run.folder),
                    "group": group.label,
                    "seed": run.seed,
                    result.metric: value,
                    "n": _known(run.n(result.metric)),
                    "best_epoch": run.best_epoch,
                    "status": run.status,
                    **{name: _known(run.costs.get(name)) for name in costs},
                }
            )
    return rows


def costs_of(result: ComparisonResult) -> list[str]:
    """All costs that a run has recorded."""
    return list(
        dict.fromkeys(n for group in result.groups for run in group.runs for n in run.costs)
    )


def _known(value: float | None) -> Cell:
    return "" if value is None else value
