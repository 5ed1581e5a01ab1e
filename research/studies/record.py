"""Records of runs of studies, ``docs/records/STUDY/RUN.json``: what stays when folders are gone.

A record may come from someone else. It is small, its fields are checked when it is read, and no
text in it can end a cell, a line or an element of the page that is made of it.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, FiniteFloat, StringConstraints

from research.studies.definition import LINE, Name, Plain, Seed, StudyRun, strict, texts
from research.utils import documents
from research.utils.errors import UserError
from research.utils.files import write_text

FOLDER: Final = "records"
MAX_BYTES: Final = 2**18
EPOCH_TIME: Final = "epoch_time_sec"
HINT: Final = "remove it, and run the study again"
DIGITS: Final = 6
"""Significant digits of a metric."""
Line = Annotated[str, StringConstraints(pattern=f"^{LINE.pattern}$", max_length=4000)]
"""Text that is not on the page, without what HTML or a terminal would interpret."""


def _no_address(text: str) -> str:
    """What a page of Markdown shows as a link, without any sign for it."""
    if "://" in text or "www." in text.lower():
        raise ValueError("an address")
    return text


Short = Annotated[
    str,
    StringConstraints(pattern=r"^[\w .,:;()@/+\-=%'°×→]*$", max_length=100),
    AfterValidator(_no_address),
]
"""Text for the page: nothing in it is a sign of Markdown."""
Count = Annotated[int, Field(ge=0, le=2**53)]
Amount = Annotated[FiniteFloat, Field(ge=0)]
Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{7,64}$")]
Metric = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_./ -]{1,80}$")]
Values = dict[Metric, FiniteFloat | None]
"""Metrics by name, without the split; None for one that is not finite."""

SettingKey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:/ -]{1,200}$")]


@strict
class RecordedEvaluation:
    """Metrics of a checkpoint on a split.

    Attributes:
        split: ``val`` or ``test``.
        checkpoint: ``best`` or ``last``.
        epoch: completed epochs of the checkpoint.
        n: number of samples.
        metrics: of ``n`` samples.
    """

    split: Literal["val", "test"]
    checkpoint: Literal["best", "last"]
    epoch: Count
    n: Count
    metrics: Values


@strict
class RecordedBaseline:
    """The samples of a test split beside the baseline of its data.

    Attributes:
        names: what groups, samples, values and the baseline are, as in ``FoldColumns``.
        groups: of each group, without its name, the number of samples, and the sums of their values
            and of their baselines.
    """

    names: dict[Literal["groups", "units", "metric", "values", "baseline"], Short]
    groups: list[tuple[Count, FiniteFloat, FiniteFloat]]


@strict
class RecordedCase:
    """Metrics with a disturbed sensor, see ``research.engine.disturbances.Case``."""

    kind: Literal["clean", "missing", "shifted", "noisy"]
    sensor: Short
    amount: Amount
    metrics: Values


@strict
class RecordedTiming:
    """A row of a benchmark.

    Attributes:
        result: the table of the benchmark that it is in.
        unit: of work.
        name: of the candidate.
        seconds: median, for one unit.
        speed: relative to the first row in the same round: median, lowest, highest.
        rounds: number of them.
    """

    result: Short
    unit: Short
    name: Short
    seconds: Amount
    speed: tuple[Amount, Amount, Amount]
    rounds: Count


@strict
class Hardware:
    """Where a run was computed, as ``run_folder.environment`` describes it."""

    cpu: Short = ""
    cores: Count | None = None
    threads: Count | None = None
    memory_gib: Amount | None = None
    gpus: list[Short] = field(default_factory=list)
    platform: Short = ""


@strict
class StudyRecord:
    """What is kept of a finished run of a study.

    Attributes:
        version: of this format.
        study, arm, seed, fold: which run of which study.
        definition: see ``StudyRun.definition``.
        commands: that repeat it, with the names of data in place of paths.
        configuration: settings that differ from the defaults, by dotted key.
        configuration_hash: of all settings on which the result depends.
        data: hash of the data; empty if the run has none.
        samples: number of samples by split.
        monitor: the metric that chose the best epoch, and ``max`` or ``min``.
        best_epoch: from 1.
        epochs: metrics of each epoch, by column.
        evaluation: on which the study reports; None for a benchmark.
        baseline: None if the study does not compare with it.
        cases: with disturbed sensors, if the study has any.
        timings: of a benchmark.
        costs: parameters, macs (of one image) and bytes_per_image.
        seconds: ``training``: of all epochs; ``total``: of the commands; as far as they are known.
        hardware, python, packages: with which it was computed.
        commit: of the code; None outside a checkout.
        changed: whether files were changed since.
        date: on which it was recorded, in UTC.
    """

    study: Name
    arm: Name
    seed: Seed
    definition: Hash
    commands: Annotated[list[Line], Field(min_length=1, max_length=10)]
    hardware: Hardware
    python: Short
    packages: dict[Short, Short | None]
    date: Annotated[str, StringConstraints(pattern=r"^\d{4}-\d\d-\d\d$")]
    version: Literal[1] = 1
    seconds: dict[Literal["training", "total"], Amount] = field(default_factory=dict)
    fold: Count | None = None
    configuration: dict[SettingKey, Any] = field(default_factory=dict)
    configuration_hash: Hash | None = None
    data: Short = ""
    samples: dict[Literal["train", "val", "test"], Count] = field(default_factory=dict)
    monitor: Annotated[list[Metric], Field(max_length=2)] = field(default_factory=list)
    best_epoch: Count = 0
    epochs: dict[Metric, list[FiniteFloat | None]] = field(default_factory=dict)
    evaluation: RecordedEvaluation | None = None
    baseline: RecordedBaseline | None = None
    cases: list[RecordedCase] = field(default_factory=list)
    timings: list[RecordedTiming] = field(default_factory=list)
    costs: dict[
        Literal["parameters", "macs", "bytes_per_image", "ms_per_image"], Count | Amount
    ] = field(default_factory=dict)
    commit: Hash | None = None
    changed: bool = False

    @property
    def total(self) -> float | None:
        """Seconds of the run with its evaluation, without what other jobs took in training."""
        total, training = self.seconds.get("total"), self.seconds.get("training")
        alone = self.cost("seconds")
        lost = 0.0 if training is None or alone is None else max(0.0, training - alone)
        return None if total is None else total - lost

    def metric(self, name: str) -> float | None:
        """A metric of the evaluation; None if it has no finite value."""
        return None if self.evaluation is None else self.evaluation.metrics.get(name)

    def cost(self, name: str) -> float | None:
        """A cost of the run, see ``definition.CostName``; None if it is not known."""
        if name == "seconds":  # on a machine without other jobs
            times = [time for time in self.epochs.get(EPOCH_TIME, []) if time]
            return len(times) * min(times) if times else None
        return self.costs.get(name)  # type: ignore[call-overload]


def path_of(docs: Path, run: StudyRun) -> Path:
    """The file of a run's record."""
    return docs / FOLDER / run.study.name / f"{run.name}.json"


def read(path: Path) -> StudyRecord:
    """Read and check a record.

    Raises:
        UserError: if it is missing, too large, not valid, or of another run than its name says.
    """
    size = path.stat().st_size if path.is_file() else 0
    if size > MAX_BYTES:
        raise UserError("records", f"{path}: {size:,} bytes, more than {MAX_BYTES:,}", HINT)
    record = _checked(documents.load(path, dict, "records", HINT), path)
    fold = "" if record.fold is None else f"_fold{record.fold}"
    if (record.study, f"{record.arm}{fold}_seed{record.seed}") != (path.parent.name, path.stem):
        raise UserError("records", f"{path}: is of another run than its name says", HINT)
    return record


def _checked(document: Plain, path: Path) -> StudyRecord:
    """A document as a record.

    Raises:
        UserError: if it is none.
    """
    record = documents.validate(StudyRecord, document, "records", path, HINT)
    for text in texts(record.configuration):
        if not LINE.fullmatch(text):
            raise UserError("records", f"{path}: refused, configuration has {text[:40]!r}", HINT)
    lengths = {len(values) for values in record.epochs.values()}
    if len(lengths) > 1:
        raise UserError("records", f"{path}: its metrics are of {sorted(lengths)} epochs", HINT)
    training = record.seconds.get("training", 0.0)
    if record.seconds.get("total", training) < training:
        raise UserError("records", f"{path}: seconds.total is less than seconds.training", HINT)
    return record


def write(path: Path, record: StudyRecord) -> None:
    """Check a record and write it, a line for each of its parts.

    Raises:
        UserError: if it is not valid.
    """
    content = rounded(asdict(record))
    content = {key: value for key, value in content.items() if value not in (None, [], {}, "")}
    _checked(content, path)
    text = _lines(content) + "\n"
    if len(text) > MAX_BYTES:
        raise UserError("records", f"{path}: {len(text):,} bytes, more than {MAX_BYTES:,}")
    write_text(path, text)


def rounded(value: Any) -> Any:
    """Plain values with numbers of ``DIGITS`` significant digits; what is not finite is None."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    return [rounded(entry) for entry in value] if isinstance(value, list | tuple) else value


def _lines(content: Plain) -> str:
    """JSON with a line for each entry of the first two levels, so that a change is one line."""
    parts = []
    for key, value in content.items():
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        if isinstance(value, dict | list) and value and len(text) > 90:
            names = [f"{json.dumps(name)}: " for name in value] if isinstance(value, dict) else []
            entries = value.values() if isinstance(value, dict) else value
            inner = [json.dumps(entry, allow_nan=False, ensure_ascii=False) for entry in entries]
            rows = ",\n  ".join(map("".join, zip(names or [""] * len(inner), inner, strict=True)))
            left, right = "{}" if isinstance(value, dict) else "[]"
            text = f"{left}\n  {rows}\n {right}"
        parts.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}"
