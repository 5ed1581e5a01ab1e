"""Makes the record of a run from the files that it left in its folder."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from research.config.compose import composed
from research.config.keys import MISSING, differences
from research.config.schema import register
from research.engine.run_record import read_record
from research.studies.definition import Plain, StudyRun, with_names
from research.studies.record import (
    Hardware,
    RecordedBaseline,
    RecordedCase,
    RecordedEvaluation,
    RecordedTiming,
    StudyRecord,
    rounded,
)
from research.tracking.files import typed_rows
from research.utils import documents
from research.utils.errors import UserError

NOT_DECISIVE: Final = ("name", "tags", "run_dir", "resume", "logging", "trust", "version", "device")
"""Settings without effect on the result, or that depend on the machine."""
NOT_METRICS: Final = ("epoch", "is_best", "checkpoint_path", "timestamp", "avg_loss", "total_loss")
"""Columns of ``epoch_metrics.csv`` that are no metrics, or repeat another column."""
HINT: Final = "run the study again"


def of_training(
    run: StudyRun,
    folder: Path,
    measured: Mapping[str, Any],
    commands: Sequence[str],
    spent: float,
    evaluation: float,
    places: Mapping[str, str],
) -> StudyRecord:
    """The record of a run of ``train.py``.

    Args:
        run: of the study.
        folder: of the run, finished.
        measured: from ``measuring.measure``.
        commands: that repeat it.
        spent: seconds of its processes, as far as they are known: a run that is recorded again may
            have been trained by processes whose time is lost.
        evaluation: seconds of the evaluation; with the training they are the least that it took.
        places: the path of each ``data.NAME`` and ``store.NAME``; the record has the names.

    Raises:
        UserError: if a file of the run is damaged.
    """
    about = read_record(folder)
    summary = documents.load(folder / "summary.json", dict, "RUN")
    config = {key: value for key, value in about.config.items() if key not in NOT_DECISIVE}
    config = with_names(config, places)
    training = float(summary["total_time_sec"])
    shown = {run.study.metric, *run.study.also}
    cases = [
        RecordedCase(
            **{**case, "metrics": {k: v for k, v in case["metrics"].items() if k in shown}}
        )
        for case in measured.get("cases", ())
    ]
    return StudyRecord(
        **_common(run, about.environment),
        commands=list(commands),
        seconds={"training": training, "total": max(spent, training + evaluation)},
        configuration=_differing(config),
        configuration_hash=sha256(json.dumps(config, sort_keys=True).encode()).hexdigest(),
        data=(about.environment["data"] or {}).get("hash", ""),
        samples=measured["samples"],
        monitor=list(summary["monitor"]),
        best_epoch=summary["best_epoch"],
        epochs=_epochs(folder / "epoch_metrics.csv"),
        evaluation=RecordedEvaluation(**measured["evaluation"]),
        baseline=RecordedBaseline(**measured["baseline"]) if "baseline" in measured else None,
        cases=cases,
        costs=measured["costs"] | time_per_image(folder),
    )


def of_benchmark(run: StudyRun, file: Path, command: str, seconds: float) -> StudyRecord:
    """The record of a benchmark, from the JSON file that it wrote.

    Args:
        run: of the study.
        file: of the benchmark.
        command: that repeats it.
        seconds: that it took; 0 if that is not known.

    Raises:
        UserError: if the file is damaged.
    """
    content = documents.load(file, dict, "benchmark", HINT)
    try:
        timings = [
            RecordedTiming(
                result["name"],
                result["unit"],
                row["name"],
                row["median"],
                (row["speed"]["median"], row["speed"]["lowest"], row["speed"]["highest"]),
                len(row["seconds"]),
            )
            for result in content["results"]
            for row in result["rows"]
        ]
        threads = {"threads": content["threads"]}
        common = _common(run, {**content, "hardware": {**content["hardware"], **threads}})
    except (KeyError, TypeError) as error:
        raise UserError("benchmark", f"{file}: damaged ({error!r})", HINT) from None
    return StudyRecord(
        **common,
        commands=[command],
        seconds={"total": seconds} if seconds else {},
        timings=timings,
    )


def _common(run: StudyRun, environment: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of every record."""
    git, hardware = environment["git"] or {}, environment["hardware"] or {}
    known = Hardware.__dataclass_fields__
    return {
        "study": run.study.name,
        "arm": run.arm,
        "seed": run.seed,
        "fold": run.fold,
        "definition": run.definition,
        "hardware": Hardware(**{key: value for key, value in hardware.items() if key in known}),
        "python": environment["python"],
        "packages": environment["packages"],
        "commit": git.get("commit"),
        "changed": bool(git.get("changed")),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
    }


def _differing(config: Plain) -> Plain:
    """The settings that differ from those of ``train.py`` without words, by dotted key."""
    register()
    pairs = differences(composed([]).config, config, NOT_DECISIVE)
    own = {key: value for key, (_, value) in pairs.items() if value is not MISSING}
    return {key: value for key, value in own.items() if not key.rpartition(".")[2].startswith("_")}


def time_per_image(folder: Path) -> dict[str, float]:
    """Milliseconds that training takes for an image, with its loading and without validation.

    Of the fastest epoch, since other jobs may have run during the others.
    """
    seconds: dict[Any, float] = defaultdict(float)
    for row in typed_rows(folder / "batch_metrics.csv"):
        if isinstance(taken := row.get("batch_time_sec"), int | float):
            seconds[row.get("epoch")] += taken
    times = [
        seconds[row["epoch"]] / n
        for row in typed_rows(folder / "epoch_metrics.csv")
        if isinstance(n := row.get("train/n"), int) and n and seconds[row["epoch"]]
    ]
    return {"ms_per_image": 1000 * min(times)} if times else {}


def _epochs(path: Path) -> dict[str, list[float | None]]:
    """The metrics of each epoch, by column."""
    rows = [dict(row) for row in typed_rows(path)]
    names = dict.fromkeys(name for row in rows for name in row if name not in NOT_METRICS)
    columns: dict[str, list[float | None]] = {}
    for name in names:
        values = [row.get(name) for row in rows]
        numbers = [value if isinstance(value, int | float) else None for value in values]
        columns[name] = [None if n is None or not math.isfinite(n) else rounded(n) for n in numbers]
    return columns
