"""Run studies and build their results page: ``python -m research.study NAME data.NAME=PATH``."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from research.config import cli, outputs
from research.config.rules import PATH, TRUTH, number
from research.studies import results
from research.studies.definition import load_studies
from research.studies.plan import StudyPlan, hours_text, plan
from research.studies.running import RUNS, epochs_of, run_plans
from research.utils.counts import counted
from research.utils.errors import UserError

log = logging.getLogger("research.study")  # as a command, this module is called __main__
DATA = "data."


@dataclass(frozen=True)
class StudyOptions:
    """Options of the command."""

    dry: bool = cli.option(False, TRUTH, "true: only list the runs, with the hours that they need")
    build: bool = cli.option(
        False, TRUTH, "true: only build the results page, its pictures and CSV files from records"
    )
    check: bool = cli.option(
        False,
        TRUTH,
        "true: only compare them with the records; the exit status is 1 if they differ",
    )
    hours: float | None = cli.option(
        None, number(above=0), "start no run that would probably end later than this"
    )
    docs: Path = cli.option(Path("docs"), PATH, "folder with studies/ and records/")


USAGE = cli.usage(
    "python -m research.study [NAME …] [data.NAME=PATH …] [key=value …]",
    """
Does the runs of the studies docs/studies/NAME.yaml that have no record yet: trains, evaluates, and
writes docs/records/STUDY/RUN.json; then builds docs/results.md. Without NAME, of all studies whose
data are given. Seed after seed; what was interrupted goes on; a run that fails is reported, and the
others go on. Several of these commands may run at once: each takes runs that no other is at.
  python -m research.study dry=true
  python -m research.study compressed data.caltech101=FOLDER
Options
""",
    StudyOptions,
    "data.NAME=PATH says where the data are that a definition names.",
)


def main(words: list[str]) -> None:
    names, options, others = cli.parse(StudyOptions, words, others=DATA)
    if options.check or options.build:
        if chosen := [*names, *others]:
            key = "check" if options.check else "build"
            line = f"{key}=true is of the whole page, not of {chosen[0]}"
            raise UserError(key, line, "leave it out")
        _build(options.docs, check=options.check)
        return
    plans = [plan(study, options.docs) for study in load_studies(options.docs, names)]
    data = _data(others, plans)
    if options.dry:
        print("\n\n".join(map(listing, plans)))
        return
    from research.utils import logs

    logs.to_terminal()
    ready = [each for each in plans if not _lacking(each, data)]
    for each in plans:
        if lacking := _lacking(each, data):
            line = f"{each.study.name} needs {' '.join(f'data.{name}=PATH' for name in lacking)}"
            if names:
                raise UserError(f"data.{lacking[0]}", line, each.study.data[lacking[0]].strip())
            log.info("left out: %s", line)
    state = run_plans(ready, options.docs, data, options.hours)
    _build(options.docs, check=False)
    for label, reason in state.failed.items():
        log.error("failed: %s: %s", label, reason)
    if state.failed:
        raise SystemExit(1)


def _build(docs: Path, *, check: bool) -> None:
    """Build the page, or compare it with the records."""
    files = results.build(docs)
    if check:
        lines = list(results.outdated(files))
        print("\n".join(lines) or "the results page is that of its records")
        if lines:
            raise SystemExit(1)
        return
    with outputs.writing_to(docs):
        changed = results.write(files)
    print("\n".join(f"wrote {path}" for path in changed) or "the results page has not changed")


def _data(words: Sequence[str], plans: Sequence[StudyPlan]) -> dict[str, Path]:
    """The paths of ``data.NAME=PATH``.

    Raises:
        UserError: for a name that no study has, or a path that does not exist.
    """
    known = sorted({name for each in plans for name in each.study.data})
    data = {}
    for word in words:
        key, _, text = word.partition("=")
        name = cli.choose("data", key.removeprefix(DATA), known)
        if not Path(text).exists():
            raise UserError(key, f"{word}: no such file or folder")
        data[name] = Path(text).absolute()
    return data


def _lacking(planned: StudyPlan, data: Mapping[str, Path]) -> list[str]:
    """The names of data that undone runs need and that were not given."""
    needed = {n for each in planned.undone for n in planned.study.data_of(each.run.arm)}
    return sorted(needed - {*data})


def listing(planned: StudyPlan) -> str:
    """What is done of a study, a line for each run, and the hours that the rest needs."""
    study = planned.study
    counts = [f"{len(planned.of(state))} {state}" for state in ("recorded", "stale", "undone")]
    need = f"; {hours_text(planned.hours)}, one run at a time" if planned.undone else ""
    lines = [
        f"{study.name}: {study.title}",
        f"  {counted(len(planned.runs), 'runs')}: {', '.join(counts)}{need}",
    ]
    for each in planned.runs:
        value = each.record.metric(study.metric) if each.record and study.metric else None
        shown = "" if value is None else f"  {study.metric} {value:.4g}"
        if each.state != "recorded":
            done, total = epochs_of(RUNS / study.name / each.run.name)
            shown = f"  {hours_text(planned.hours_of(each.run.arm))}"
            shown += f", epoch {done} of {total}" if done and each.state == "undone" else ""
        lines.append(f"  {each.run.name:<36} {each.state:<8}{shown}")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.command(USAGE, main)
