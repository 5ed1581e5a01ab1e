"""The tables of a study on the results page, made of its records."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from statistics import fmean
from typing import Final, NamedTuple

import numpy as np

from research.comparison.statistics import (
    Difference,
    SeedStats,
    difference,
    holm_verdicts,
    seed_stats,
    summed_interval,
)
from research.comparison.tables import decimals_of, p_text
from research.comparison.verdicts import verdict_text
from research.studies.plan import StudyPlan, hours_text
from research.studies.record import StudyRecord
from research.utils.counts import counted
from research.utils.tables import TextTable

CONFIDENCE: Final = 0.95


class CostColumn(NamedTuple):
    """How a cost of records is shown.

    Attributes:
        title: with its unit.
        form: format specification.
        scale: factor on the records' values.
    """

    title: str
    form: str
    scale: float = 1.0


COSTS: Final[Mapping[str, CostColumn]] = {
    "parameters": CostColumn("parameters", ",.0f"),
    "macs": CostColumn("GMAC", ".4g", 1e-9),
    "bytes_per_image": CostColumn("bytes an image", ",.0f"),
    "ms_per_image": CostColumn("training, ms an image", ".3g"),
    "seconds": CostColumn("training, s", ",.0f"),
}
UNITS: Final = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
"""Units of time, the longest first."""


def stats_of(plan: StudyPlan, metric: str) -> dict[str, SeedStats]:
    """The statistics of a metric over whole seeds, of the arms that have any."""
    values_of = {arm: list(plan.values(arm, metric).values()) for arm in plan.study.arms}
    return {arm: seed_stats(values) for arm, values in values_of.items() if values}


def cost(plan: StudyPlan, arm: str, name: str) -> float | None:
    """The mean of a cost over the records of an arm, in the unit of its title; None without."""
    values = [value for each in plan.records(arm) if (value := each.cost(name)) is not None]
    return fmean(values) * COSTS[name].scale if values else None


def mean_and_std(stats: SeedStats | None, digits: int) -> str:
    """Mean ± sample standard deviation; empty without values."""
    if stats is None:
        return ""
    sd = "" if stats.sd is None else f" ± {stats.sd:.{digits}f}"
    return f"{stats.mean:.{digits}f}{sd}"


def arms(plan: StudyPlan) -> str:
    """A row for each arm: the metric over seeds, and what it costs."""
    study = plan.study
    every = {name: stats_of(plan, name) for name in (study.metric, *study.also)}
    digits = {name: decimals_of(s.mean for s in every[name].values()) for name in every}
    header = ["arm", "seeds", f"{study.evaluate.split}/{study.metric}", "lowest … highest"]
    header += [*study.also, "n", *(COSTS[name].title for name in study.costs)]
    rows = []
    for arm, own in study.arms.items():
        stats = every[study.metric].get(arm)
        done = 0 if stats is None else stats.n
        whole = len(study.seeds)
        span = ""
        if stats is not None and stats.sd is not None:
            places = digits[study.metric]
            span = f"{stats.low:.{places}f} … {stats.high:.{places}f}"
        costs = [(COSTS[name].form, cost(plan, arm, name)) for name in study.costs]
        rows.append(
            [
                f"`{arm}`{f': {own.about}' if own.about else ''}",
                str(done) if done == whole else f"{done} of {whole}",
                mean_and_std(stats, digits[study.metric]) or _lack(plan, arm),
                span,
                *(mean_and_std(every[name].get(arm), digits[name]) for name in study.also),
                _samples(plan, arm),
                *("" if value is None else format(value, form) for form, value in costs),
            ]
        )
    return TextTable(header, rows, "lr" + "r" * (len(header) - 2)).text()


def _lack(plan: StudyPlan, arm: str) -> str:
    """Why an arm has no value."""
    undone = any(each.run.arm == arm for each in plan.undone)
    return f"needs {_needed(plan, arm)}" if undone else "no finite value"


def _needed(plan: StudyPlan, arm: str) -> str:
    runs = sum(each.run.arm == arm for each in plan.undone)
    return hours_text(runs * plan.hours_of(arm))


def _samples(plan: StudyPlan, arm: str) -> str:
    """Number of evaluated samples, over all folds."""
    by_fold = {each.fold: each.evaluation.n for each in plan.records(arm) if each.evaluation}
    return f"{sum(by_fold.values()):,}" if by_fold else ""


def differences(plan: StudyPlan) -> str:
    """A row for each arm that is compared with another; empty if none can be.

    Every comparison that the definition names counts, also one whose runs are undone.
    """
    study = plan.study
    values = {arm: plan.values(arm, study.metric) for arm in study.arms}
    pairs = [(arm, other) for arm in study.arms if (other := study.against(arm)) is not None]
    compared: list[Difference | None] = [
        difference(values[arm], values[other], CONFIDENCE)
        if values[arm] and values[other]
        else None
        for arm, other in pairs
    ]
    if not any(compared):
        return ""
    verdicts = holm_verdicts(compared, CONFIDENCE, len(pairs))
    digits = decimals_of(value for each in values.values() for value in each.values())
    rows = []
    for (arm, other), each, verdict in zip(pairs, compared, verdicts, strict=True):
        if each is None:
            continue
        spans = [
            "" if span is None else f"[{span[0]:+.{digits}f}, {span[1]:+.{digits}f}]"
            for span in (each.bootstrap, each.student)
        ]
        rows.append(
            [
                f"`{arm}` − `{other}`",
                f"{each.mean:+.{digits}f}",
                *spans,
                "" if verdict is None else p_text(verdict.p),
                f"{each.n} {'paired' if each.paired else 'unpaired'}",
                verdict_text(each, verdict, study.mode),
            ]
        )
    header = ["difference", "mean", "bootstrap 95 %", "Student's t 95 %", "p", "seeds", "verdict"]
    note = (
        f"p is adjusted for the {counted(len(pairs), 'comparisons')} of the definition by Holm's "
        "procedure; [how to read it](comparing.md#what-the-verdict-means)."
    )
    return f"{TextTable(header, rows, 'lrrrrll').text()}\n\n{note}"


def baselines(plan: StudyPlan) -> str:
    """A row for each arm beside the baseline of its data; empty without records of it."""
    rows, names = [], None
    for arm in plan.study.arms:
        groups = _groups(plan, arm)
        if groups is None:
            continue
        names = names or plan.records(arm)[0].baseline
        counts, values, baseline = groups.T
        interval = summed_interval(values - baseline, counts, CONFIDENCE)
        span = "" if interval is None else f" [{interval[0]:+.4f}, {interval[1]:+.4f}]"
        total = counts.sum()
        rows.append(
            [
                f"`{arm}`",
                str(len(groups)),
                f"{total:,.0f}",
                f"{values.sum() / total:.4f}",
                f"{baseline.sum() / total:.4f}",
                f"{(values - baseline).sum() / total:+.4f}{span}",
            ]
        )
    if names is None:
        return ""
    titles = [names.names[key] for key in ("groups", "units", "values", "baseline")]
    header = ["arm", *titles, "difference [95 %]"]
    note = f"The interval is a bootstrap over {titles[0]}, of values that are the mean over seeds."
    return f"{TextTable(header, rows, 'lrrrrr').text()}\n\n{note}"


def _groups(plan: StudyPlan, arm: str) -> np.ndarray | None:
    """[groups, 3] number, sum of values and sum of baselines, the mean over whole seeds."""
    seeds = plan.values(arm, plan.study.metric)
    by_seed = []
    for seed in seeds:
        records = [each for each in plan.records(arm) if each.seed == seed]
        known = [each.baseline.groups for each in records if each.baseline is not None]
        if known and len(known) == len(records):
            by_seed.append(np.concatenate([np.array(each, dtype=np.float64) for each in known]))
    if not by_seed or len({each.shape for each in by_seed}) > 1:
        return None
    return np.mean(by_seed, axis=0)


def cases(plan: StudyPlan) -> str:
    """A row for each disturbance, with a column for each arm, over whole seeds; empty without."""
    study = plan.study
    known = dict.fromkeys(
        (case.kind, case.sensor, case.amount)
        for arm in study.arms
        for each in plan.records(arm)
        for case in each.cases
    )
    table: dict[tuple[str, str, float], dict[str, list[float]]] = {}
    for key in known:
        by_arm = {
            arm: plan.values_of(arm, partial(_in_case, key, study.metric)) for arm in study.arms
        }
        values = {arm: [*by_seed.values()] for arm, by_seed in by_arm.items() if by_seed}
        table |= {key: values} if values else {}
    if not table:
        return ""
    shown = [arm for arm in study.arms if any(arm in row for row in table.values())]
    digits = decimals_of(v for row in table.values() for values in row.values() for v in values)
    rows = [
        [
            f"{kind} {sensor}".strip(),
            f"{amount:g} {'px' if kind == 'shifted' else 'σ'}" if amount else "",
            *(mean_and_std(seed_stats(row[arm]), digits) if arm in row else "" for arm in shown),
        ]
        for (kind, sensor, amount), row in table.items()
    ]
    header = [f"{study.evaluate.split}/{study.metric}", "amount", *(f"`{arm}`" for arm in shown)]
    return TextTable(header, rows, "lr" + "r" * len(shown)).text()


def _in_case(key: tuple[str, str, float], metric: str, record: StudyRecord) -> float | None:
    """The metric of a record with this disturbance; None without it."""
    same = (case for case in record.cases if (case.kind, case.sensor, case.amount) == key)
    return next((case.metrics.get(metric) for case in same), None)


def timings(plan: StudyPlan) -> str:
    """The tables of benchmarks, and the hours of those that are undone."""
    parts = []
    for arm, own in plan.study.arms.items():
        about = f": {own.about}" if own.about else ""
        records = plan.records(arm)
        if not records:
            parts.append(f"`{arm}`{about}: needs {_needed(plan, arm)}.")
        for each in records:
            tables = [_timing(each, name) for name in _results(each)]
            parts.append("\n\n".join([f"`{arm}`{about}", *tables]))
    return "\n\n".join(parts)


def _results(record: StudyRecord) -> list[str]:
    return list(dict.fromkeys(row.result for row in record.timings))


def _timing(record: StudyRecord, result: str) -> str:
    rows = [row for row in record.timings if row.result == result]
    unit, factor = _unit(rows[0].seconds)
    title = f"{result or rows[0].unit}, n = {rows[0].rounds}"
    header = [title, f"{unit} a {rows[0].unit}", "speed (lowest … highest)"]
    lines = [
        [
            row.name,
            f"{row.seconds * factor:.4g}",
            f"{row.speed[0]:.2f} ({row.speed[1]:.2f} … {row.speed[2]:.2f})",
        ]
        for row in rows
    ]
    return TextTable(header, lines, "lrr").text()


def _unit(seconds: float) -> tuple[str, float]:
    """A unit that suits a duration, and how many of it are a second."""
    scale, unit = next((each for each in UNITS if seconds >= each[0]), UNITS[-1])
    return unit, 1 / scale
