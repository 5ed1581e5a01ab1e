"""The results page, its pictures and CSV files, made of definitions and records alone."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from research.studies import record, tables
from research.studies.definition import (
    FOLDER,
    SECTION,
    TEMPLATE,
    StudyDefinition,
    load_studies,
    placeholder,
)
from research.studies.plan import StudyPlan, hours_text, mixed_settings, plan
from research.tracking.files import csv_text
from research.utils.counts import counted
from research.utils.errors import UserError
from research.utils.files import write_text

PAGE: Final = "results.md"
PICTURES: Final = "pictures/studies"
HEAD: Final = (
    f"<!-- Made by `python -m research.study build=true` from docs/{FOLDER} and "
    f"docs/{record.FOLDER}: change these. -->\n\n"
)


@dataclass(frozen=True)
class BuiltFile:
    """A file of the documentation that is made of records.

    Attributes:
        path: of the file.
        text: its content; None if it is to be removed.
        description: of a picture: a hash of what it shows; empty for other files.
    """

    path: Path
    text: str | None
    description: str = ""

    @property
    def is_current(self) -> bool:
        """Whether the file has this content."""
        from research.viz import studies

        written = self.path.read_text(encoding="utf-8") if self.path.is_file() else None
        if written is None or self.text is None or not self.description:
            return written == self.text
        return studies.is_same(written, self.text, self.description)


def build(docs: Path) -> list[BuiltFile]:
    """Everything that is made of definitions and records.

    Args:
        docs: folder of the documentation.

    Raises:
        UserError: for a definition or record that is refused, or a study without a place in the
            template.
    """
    plans = {study.name: plan(study, docs) for study in load_studies(docs)}
    template = docs / FOLDER / TEMPLATE
    if not template.is_file():
        raise UserError("docs", f"{template}: missing", "it has the text of the results page")
    text = template.read_text(encoding="utf-8")
    named = Counter(SECTION.findall(text))
    for name in {*plans} ^ {*named} or {name for name, times in named.items() if times > 1}:
        raise UserError(
            "docs",
            f"{template}: has {named[name]} lines <!-- study {name} -->",
            f"there must be one for each definition in {docs / FOLDER}",
        )
    sections = {name: section(each) for name, each in plans.items()}
    page = HEAD + SECTION.sub(lambda match: sections[match[1]], text)
    return [
        BuiltFile(docs / PAGE, page),
        *(table(each, docs) for each in plans.values()),
        *(picture(each, docs) for each in plans.values()),
    ]


def write(files: Sequence[BuiltFile]) -> list[Path]:
    """Write the files that are not current; returns their paths."""
    changed = [each for each in files if not each.is_current]
    for each in changed:
        if each.text is None:
            each.path.unlink()
        else:
            write_text(each.path, each.text)
    return [each.path for each in changed]


def outdated(files: Sequence[BuiltFile]) -> Iterator[str]:
    """A line for each file that is not what its records say, with the first difference."""
    for each in files:
        if each.is_current:
            continue
        written = each.path.read_text(encoding="utf-8") if each.path.is_file() else ""
        made = (each.text or "").splitlines()
        pairs = zip([*written.splitlines(), ""], [*made, ""], strict=False)
        number, (ours, theirs) = next(
            (place, pair) for place, pair in enumerate(pairs, start=1) if pair[0] != pair[1]
        )
        yield f"{each.path}:{number}: has {_shown(ours)}, the records say {_shown(theirs)}"


def _shown(line: str) -> str:
    return repr(line if len(line) <= 100 else f"{line[:97]}…")


def section(planned: StudyPlan) -> str:
    """The section of a study."""
    study = planned.study
    parts = [
        f"## {study.title}",
        f"**Question.** {study.question.strip()}",
        f"**Protocol.** {study.protocol.strip()}",
        f"```bash\n{command(study)}\n```",
        _status(planned),
    ]
    if study.metric:
        parts += [tables.arms(planned), _picture_link(planned), tables.differences(planned)]
        parts += [tables.baselines(planned), tables.cases(planned)]
    else:
        parts.append(tables.timings(planned))
    limits = "\n".join(f"- {limit.strip()}" for limit in study.limits)
    parts.append(f"**What it does not show.**\n\n{limits}")
    return "\n\n".join(part for part in parts if part)


def command(study: StudyDefinition) -> str:
    """The command that does a study, and what its data are."""
    words = {name: placeholder(f"data.{name}") for name in study.data}
    data = [f"data.{name}={word}" for name, word in words.items()]
    about = [f"# {words[name]}: {text.strip()}" for name, text in study.data.items()]
    return "\n".join([" ".join(["python -m research.study", study.name, *data]), *about])


def _status(planned: StudyPlan) -> str:
    """What is done, with what, and the hours that the rest needs."""
    study, total, undone = planned.study, len(planned.runs), planned.undone
    need = f"about {hours_text(planned.hours)}, one run at a time"
    runs = counted(total, "runs")
    if len(undone) == total:
        lines = [f"Undone: {runs}, {need}."]
    elif undone:
        lines = [f"{total - len(undone)} of {runs} are recorded; the others need {need}."]
    else:
        lines = [f"{'All ' if total > 1 else ''}{runs} {'are' if total > 1 else 'is'} recorded."]
    if stale := [each.run.name for each in planned.of("stale")]:
        lines.append(f"Stale, of a former definition and not used here: {', '.join(stale)}.")
    for arm in study.arms:
        if mixed := mixed_settings(planned, arm):
            keys = ", ".join(f"`{key}`" for key in mixed)
            lines.append(f"**The runs of `{arm}` differ in {keys}.**")
    if planned.others:
        # The name of a file may be anything.
        names = ", ".join(re.sub(r"[^a-z0-9_]", "…", path.stem) for path in planned.others)
        lines.append(f"Of no run of the definition, and not used: {names}.")
    machines = Counter(_machine(each) for arm in study.arms for each in planned.records(arm))
    if machines:
        on = "; ".join(f"{name} ({count})" for name, count in sorted(machines.items()))
        lines.append(f"On {on}. A row for each run: [{study.name}.csv]({_csv(study)}).")
    return " ".join(lines)


def _machine(each: record.StudyRecord) -> str:
    hardware = each.hardware
    gpus = ", ".join(hardware.gpus)
    threads = counted(hardware.threads, "threads") if hardware.threads else "unknown threads"
    where = gpus or f"{hardware.cores} cores of {hardware.cpu}, {threads}"
    return f"{where}, torch {each.packages.get('torch')}"


def _csv(study: StudyDefinition) -> str:
    return f"{record.FOLDER}/{study.name}.csv"


def table(planned: StudyPlan, docs: Path) -> BuiltFile:
    """A CSV file with a row for each recorded run, or for each candidate of a benchmark."""
    rows = [
        {"run": each.run.name, **row, **_origin(each.record)}
        for each in planned.of("recorded")
        if each.record is not None
        for row in (_timed(each.record) or [_measured(each.record)])
    ]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return BuiltFile(docs / _csv(planned.study), csv_text(columns, rows) if rows else None)


def _measured(run: record.StudyRecord) -> dict[str, object]:
    row: dict[str, object] = {"arm": run.arm, "seed": run.seed}
    row |= {} if run.fold is None else {"fold": run.fold}
    if (evaluation := run.evaluation) is not None:
        split = evaluation.split
        row |= {f"{split}/{name}": value for name, value in evaluation.metrics.items()}
        row |= {"n": evaluation.n, "checkpoint": evaluation.checkpoint}
        row |= {"epoch": evaluation.epoch, "best_epoch": run.best_epoch}
    row |= {f"{name}_samples": count for name, count in run.samples.items()}
    row |= {str(name): value for name, value in run.costs.items()}
    return row | {f"{name}_seconds": value for name, value in run.seconds.items()}


def _timed(run: record.StudyRecord) -> list[dict[str, object]]:
    return [
        {
            "arm": run.arm,
            **{name: getattr(each, name) for name in ("result", "unit", "name", "seconds")},
            **dict(zip(("speed", "lowest", "highest"), each.speed, strict=True)),
            "rounds": each.rounds,
        }
        for each in run.timings
    ]


def _origin(run: record.StudyRecord) -> dict[str, object]:
    """With what a run was computed."""
    hardware = run.hardware
    return {
        "cpu": hardware.cpu,
        "threads": hardware.threads,
        "gpus": " ".join(hardware.gpus),
        "torch": run.packages.get("torch"),
        "commit": run.commit,
        "date": run.date,
        "definition": run.definition,
    }


def _drawn(planned: StudyPlan) -> dict[str, list[float]]:
    """The values that the picture shows, by arm."""
    study = planned.study
    values = {arm: [*planned.values(arm, study.metric).values()] for arm in study.arms}
    return {arm: own for arm, own in values.items() if own}


def _picture_link(planned: StudyPlan) -> str:
    study = planned.study
    if not _drawn(planned):
        return ""
    over = " over cost" if study.picture else ""
    alt = f"{study.evaluate.split}/{study.metric}{over}, by arm"
    return f"![{alt}]({PICTURES}/{study.name}.svg)"


def picture(planned: StudyPlan, docs: Path) -> BuiltFile:
    """The picture of a study; none without a value, or of benchmarks."""
    from research.viz import studies

    study, values = planned.study, _drawn(planned)
    path = docs / PICTURES / f"{study.name}.svg"
    if not values:
        return BuiltFile(path, None)
    metric = f"{study.evaluate.split}/{study.metric}"
    costs = {
        tables.COSTS[name].title: {
            arm: value for arm in values if (value := tables.cost(planned, arm, name)) is not None
        }
        for name in study.picture
    }
    content = json.dumps([values, costs, metric, study.mode])
    description = f"sha256 of its numbers: {sha256(content.encode()).hexdigest()}"
    if costs:
        figure = studies.over_costs(values, costs, metric, study.mode)
    else:
        figure = studies.over_seeds(values, metric)
    return BuiltFile(path, studies.to_svg(figure, description), description)
