"""The definition of a study, ``docs/studies/NAME.yaml``: its question, its arms, its runs.

No path of data stands in it: settings name data as ``${data.NAME}``, whose place is said on the
command line (``data.NAME=PATH``), and stores prepared from them as ``${store.NAME}``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, dataclass_transform

from pydantic import ConfigDict, Field, StringConstraints, with_config

from research.config import cli
from research.config.overrides import override
from research.utils import documents
from research.utils.errors import UserError

T = TypeVar("T")
FOLDER: Final = "studies"
"""Of the definitions, in the folder of the documentation."""
TEMPLATE: Final = "results.md"
"""The results page, with a line in place of the section of each study."""
SECTION: Final = re.compile(r"^<!-- study ([a-z0-9_]+) -->$", re.MULTILINE)
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_]*$", max_length=40)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=4000)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
CostName = Literal["parameters", "macs", "bytes_per_image", "ms_per_image", "seconds"]
Plain = dict[str, Any]
LINE: Final = re.compile(r"[^<>\x00-\x1f\x7f-\x9f\u2028\u2029]*")
"""What a text of a record may be: nothing that HTML or a terminal would interpret."""
PLACE: Final = re.compile(r"\$\{((?:data|store)\.[a-z0-9_]+)\}")
KEY: Final = re.compile(r"[a-z][\w./]*")
NOT_SET: Final = (
    "seed",
    "run_dir",
    "resume",
    "name",
    "tags",
    "sweep",
    "trust",
    "logging.mlflow.uri",
)
"""Settings that a study gives its runs itself, or that belong to a machine."""


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def strict(kind: type[T]) -> type[T]:
    """A frozen dataclass whose documents may have no other keys than its fields."""
    return with_config(ConfigDict(extra="forbid"))(dataclass(frozen=True)(kind))


@strict
class StudyStore:
    """A store that is prepared before the first run, by ``research.prepare KIND SOURCE``.

    Attributes:
        kind: of ``research.prepare``.
        source: the name of the data.
        options: of ``research.prepare``.
    """

    kind: Literal["coefficients", "frames", "rgbx"]
    source: Name
    options: Plain = field(default_factory=dict)


@strict
class StudyEvaluation:
    """What is measured of a trained run.

    Attributes:
        split: ``val`` or ``test``.
        checkpoint: ``best``, which the validation split chose, or ``last``.
        baseline: whether each sample is compared with the baseline of the data, with an interval
            over groups, as ``research.crossval`` does.
        shifts: pixels by which all channels but RGB are shifted, as in ``research.robustness``.
        noise: standard deviations of noise, as there. With either, each sensor is missing in turn.
    """

    split: Literal["val", "test"]
    checkpoint: Literal["best", "last"] = "best"
    baseline: bool = False
    shifts: list[Annotated[int, Field(ge=1)]] = field(default_factory=list)
    noise: list[Annotated[float, Field(gt=0)]] = field(default_factory=list)


@strict
class Arm:
    """One of the things that a study compares.

    Attributes:
        about: what it is, in a few words; empty if its name says it.
        settings: of ``train.py``, in addition to those of the study; or of the benchmark.
        against: the arm that it is compared with; None for the reference of the study.
        hours: that one run takes on two cores; None for that of the study.
        benchmark: name in ``research.benchmark``; empty for a run of ``train.py``.
        images: the data that the benchmark reads; None if it reads none.
    """

    about: Annotated[str, StringConstraints(max_length=200)] = ""
    settings: Plain = field(default_factory=dict)
    against: Name | None = None
    hours: Annotated[float, Field(gt=0)] | None = None
    benchmark: Annotated[str, StringConstraints(pattern=r"^[a-z]*$")] = ""
    images: Name | None = None


@strict
class StudyDefinition:
    """A study.

    Attributes:
        name: of its file.
        title: of its section.
        question: that it answers.
        protocol: what chose the checkpoint, and on what it is measured.
        limits: what it does not show.
        hours: that one run takes on two cores.
        arms: at least one.
        metric: that is compared, without the split; empty for benchmarks.
        mode: ``max`` or ``min``: which direction is better.
        also: further metrics in the table.
        reference: the arm that others are compared with; None without comparison.
        seeds: of the runs.
        folds: number of folds, each of which is trained and tested; None without.
        base: settings of all arms.
        data: what each name of data stands for.
        stores: that are prepared from them.
        evaluate: what is measured of each run.
        costs: columns of the table.
        picture: costs over which the metric is drawn, a panel each; empty: the metric alone.
    """

    name: Name
    title: Annotated[str, StringConstraints(min_length=1, max_length=100)]
    question: Text
    protocol: Text
    limits: Annotated[list[Text], Field(min_length=1)]
    hours: Annotated[float, Field(gt=0)]
    arms: Annotated[dict[Name, Arm], Field(min_length=1)]
    metric: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_/]*$", max_length=60)] = ""
    mode: Literal["max", "min"] = "max"
    also: list[Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_/]+$")]] = field(
        default_factory=list
    )
    reference: Name | None = None
    seeds: Annotated[list[Seed], Field(min_length=1)] = field(default_factory=lambda: [0])
    folds: Annotated[int, Field(ge=3)] | None = None
    base: Plain = field(default_factory=dict)
    data: dict[Name, Text] = field(default_factory=dict)
    stores: dict[Name, StudyStore] = field(default_factory=dict)
    evaluate: StudyEvaluation = field(default_factory=lambda: StudyEvaluation("val"))
    costs: list[CostName] = field(default_factory=list)
    picture: list[CostName] = field(default_factory=list)

    def settings(self, arm: str) -> Plain:
        """The settings of an arm: those of the study, and above them its own."""
        own = self.arms[arm]
        return dict(own.settings) if own.benchmark else {**self.base, **own.settings}

    def against(self, arm: str) -> str | None:
        """The arm with which another is compared; None for the reference."""
        reference = self.arms[arm].against or self.reference
        return None if reference == arm else reference

    def arm_hours(self, arm: str) -> float:
        """Hours that one run of the arm takes on two cores."""
        return self.arms[arm].hours or self.hours

    def runs(self) -> list[StudyRun]:
        """All runs, seed after seed, so that whatever ends first leaves whole seeds."""
        folds = range(self.folds) if self.folds else [None]
        return [
            StudyRun(self, arm, seed, fold)
            for seed in self.seeds
            for arm in self.arms
            for fold in folds
            if not (self.arms[arm].benchmark and seed != self.seeds[0])
        ]

    def data_of(self, arm: str) -> set[str]:
        """The names of the data that an arm reads, or that its stores are made of."""
        places = _places(self.settings(arm))
        data = {name.removeprefix("data.") for name in places if name.startswith("data.")}
        images = self.arms[arm].images
        stores = {self.stores[name].source for name in self.stores_of(arm)}
        return data | stores | ({images} if images else set())

    def stores_of(self, arm: str) -> set[str]:
        """The names of the stores that an arm reads."""
        places = _places(self.settings(arm))
        return {name.removeprefix("store.") for name in places if name.startswith("store.")}


@dataclass(frozen=True)
class StudyRun:
    """One run of a study.

    Attributes:
        study: that it belongs to.
        arm: name of the arm.
        seed: of the run.
        fold: the test fold; None without folds.
    """

    study: StudyDefinition
    arm: str
    seed: int
    fold: int | None

    @property
    def name(self) -> str:
        """Of its folder and its record: ``ARM_seedS``, ``ARM_foldF_seedS``."""
        fold = "" if self.fold is None else f"_fold{self.fold}"
        return f"{self.arm}{fold}_seed{self.seed}"

    @property
    def training(self) -> str:
        """A hash of what decides its weights. A run folder with another one is of a former run."""
        study = self.study
        return _hash(
            {
                "settings": study.settings(self.arm),
                "benchmark": study.arms[self.arm].benchmark,
                "folds": study.folds,
                "stores": {name: vars(study.stores[name]) for name in study.stores_of(self.arm)},
            }
        )

    @property
    def definition(self) -> str:
        """A hash of what decides its result. A record with another one is stale."""
        return _hash({"training": self.training, "evaluate": vars(self.study.evaluate)})

    def overrides(self, places: Mapping[str, str] | None = None) -> list[str]:
        """The settings as words of a command line.

        Args:
            places: the path of each ``data.NAME`` and ``store.NAME``; None for words in place of
                them, to be shown.
        """
        settings = self.study.settings(self.arm)
        if self.fold is not None:
            settings |= {"dataset.folds": self.study.folds, "dataset.fold": self.fold}
        if not self.study.arms[self.arm].benchmark:
            settings["seed"] = self.seed
        if places is None:
            places = {name: placeholder(name) for name in _places(settings)}
        return [override(key, with_paths(value, places)) for key, value in settings.items()]


def _hash(content: Plain) -> str:
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def with_paths(value: Any, places: Mapping[str, str]) -> Any:
    """A setting with the paths of the data that it names."""
    if isinstance(value, str):
        return PLACE.sub(lambda match: places[match[1]], value)
    if isinstance(value, list):
        return [with_paths(entry, places) for entry in value]
    if isinstance(value, dict):
        return {key: with_paths(entry, places) for key, entry in value.items()}
    return value


def with_names(value: Any, places: Mapping[str, str]) -> Any:
    """The inverse of ``with_paths``: any plain value with names of data in place of paths."""
    if isinstance(value, str):
        for name, path in sorted(places.items(), key=lambda each: -len(each[1])):
            value = value.replace(path, placeholder(name))
        return value
    if isinstance(value, list):
        return [with_names(entry, places) for entry in value]
    if isinstance(value, dict):
        return {key: with_names(entry, places) for key, entry in value.items()}
    return value


def placeholder(place: str) -> str:
    """The word that stands for a path in commands that are shown: ``data.photos`` is ``PHOTOS``."""
    return place.partition(".")[2].upper()


def _places(value: Any) -> Iterator[str]:
    """The names of data and stores in a setting."""
    if isinstance(value, str):
        yield from PLACE.findall(value)
    elif isinstance(value, dict):
        for entry in value.values():
            yield from _places(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _places(entry)


def load_study(path: Path) -> StudyDefinition:
    """Read and check a definition.

    Raises:
        UserError: for the first entry that is missing, unknown or not valid.
    """
    hint = "docs/studies.md says what a definition has"
    document = documents.load(path, dict, "NAME", hint)
    study = documents.validate(StudyDefinition, {**document, "name": path.stem}, "NAME", path, hint)
    for problem in _problems(study):
        raise UserError("NAME", f"{path}: {problem}", hint)
    return study


def _problems(study: StudyDefinition) -> Iterator[str]:
    """What a schema does not see."""
    for arm, own in study.arms.items():
        reference = own.against or study.reference
        if reference is not None and reference not in study.arms:
            yield f"arms.{arm} is compared with {reference!r}, which is no arm"
        if bool(own.benchmark) != (not study.metric):
            yield f"arms.{arm}: a study is of benchmarks, without metric, or of runs with one"
        for key, value in study.settings(arm).items():
            for problem in _setting_problems(key, value):
                yield f"arms.{arm}: {key} {problem}"
        names = {*_places(study.settings(arm))}
        known = {*(f"data.{n}" for n in study.data), *(f"store.{n}" for n in study.stores)}
        names |= {f"data.{own.images}"} if own.images else set()
        if unknown := sorted(names - known):
            yield f"arms.{arm} reads {unknown[0]}, which the study does not name"
    if len({*study.seeds}) < len(study.seeds):
        yield f"seeds: {study.seeds} has one of them twice"
    if both := sorted({*study.data} & {*study.stores}):
        yield f"{both[0]} is the name of data and of a store"
    for name, store in study.stores.items():
        if store.source not in study.data:
            yield f"stores.{name} is made of data.{store.source}, which the study does not name"


def _setting_problems(key: str, value: Any) -> Iterator[str]:
    if not KEY.fullmatch(key) or key.startswith("hydra"):
        yield "is no setting of train.py"
    if key in NOT_SET or key.startswith("tags."):
        yield "is not for a definition to set"
    for text in texts(value):
        if _is_number(text):
            yield f"is the text {text!r}; a number has a point, as in 1.0e-4"
        if text.startswith(("/", "~")):
            yield "is a path of one machine; name data as ${data.NAME}"
        if not LINE.fullmatch(text):
            yield "has a character that no record may have"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def texts(value: Any) -> Iterator[str]:
    """All texts in a plain value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for entry in (*value, *value.values()):
            yield from texts(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from texts(entry)


def load_studies(docs: Path, names: Sequence[str] = ()) -> list[StudyDefinition]:
    """The studies with these names; without any, all, in the order of the results page.

    Raises:
        UserError: for a name without a definition, or a definition that is not valid.
    """
    folder = docs / FOLDER
    known = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    if not known:
        raise UserError("docs", f"{folder}: no definition of a study", "set docs=FOLDER")
    for name in names:
        cli.choose("NAME", name, list(known))
    return [load_study(known[name]) for name in names or _in_order(folder / TEMPLATE, known)]


def _in_order(template: Path, known: Collection[str]) -> list[str]:
    """The names in the order in which the template of the results page has them."""
    text = template.read_text(encoding="utf-8") if template.is_file() else ""
    first = [name for name in SECTION.findall(text) if name in known]
    return [*first, *(name for name in known if name not in first)]
