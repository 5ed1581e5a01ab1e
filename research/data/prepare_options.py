"""Options of ``python -m research.prepare``, by kind of data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from research.compression import rules as compression_rules
from research.config import cli
from research.config.rules import (
    BELOW_ONE,
    COUNT,
    FRACTION,
    PATH,
    TEXT,
    TRUTH,
    Rule,
    one_of,
    whole,
)
from research.data import rules as data_rules

FORMATS = ("auto", "capture", "voc", "coco", "yolo")
STORED_SIZE = Rule("a multiple of 16, at least 32", lambda n: whole(32).is_valid(n) and n % 16 == 0)


@dataclass(frozen=True)
class WorkerOptions:
    """Of every kind that builds a store."""

    workers: int | None = cli.option(None, COUNT, "number of processes; one per core by default")


@dataclass(frozen=True)
class StoreOptions(WorkerOptions):
    """Of the kinds that draw splits."""

    seed: int = cli.option(0, whole(0, 2**32 - 1), "seed of the draw")
    shard_samples: int = cli.option(256, COUNT, "samples per file")


@dataclass(frozen=True)
class LabelOptions:
    """Of every kind that reads frames with boxes."""

    format: str = cli.option("auto", one_of(*FORMATS), "format of the labels in SOURCE")
    data_yaml: str = cli.option(
        "",
        TEXT,
        "file in SOURCE that declares names and splits (YAML, obj.data); none: no such file",
    )


@dataclass(frozen=True)
class LimitOptions:
    """Of every kind that reads frames with boxes."""

    max_invalid: int | None = cli.option(None, whole(0), "largest number of invalid frames")
    max_missing: int | None = cli.option(None, whole(0), "largest number of missing frames")
    max_empty: int | None = cli.option(None, whole(0), "largest number of empty frames")
    max_invalid_ratio: float | None = cli.option(None, FRACTION, "the same, as a fraction of all")
    max_missing_ratio: float | None = cli.option(None, FRACTION, "the same, as a fraction of all")
    max_empty_ratio: float | None = cli.option(None, FRACTION, "the same, as a fraction of all")

    def limits(self) -> dict[str, float]:
        """The limits that are set, by option."""
        values = {name: getattr(self, name) for name in LimitOptions.__annotations__}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class BoxOptions(LimitOptions):
    """Of every kind that reads boxes in pixels."""

    scale_boxes: bool = cli.option(
        False,
        TRUTH,
        "true: scale the boxes of pictures that are not of their declared size; left out otherwise",
    )


@dataclass(frozen=True)
class FrameOptions(LabelOptions, BoxOptions, StoreOptions):
    """Of ``prepare frames``."""

    size: int = cli.option(384, whole(32), "side of the square frames, in pixels")
    max_boxes: int = cli.option(16, COUNT, "slots for boxes in a frame")
    val: float = cli.option(0.2, BELOW_ONE, "fraction of the runs (groups) drawn for validation")
    test: float = cli.option(0.0, BELOW_ONE, "fraction of the runs (groups) drawn for testing")
    val_runs: tuple[str, ...] = cli.option((), TEXT, "names of these runs instead of a draw: a,b,c")
    test_runs: tuple[str, ...] = cli.option((), TEXT, "likewise for the test split")


@dataclass(frozen=True)
class CoefficientOptions(StoreOptions):
    """Of ``prepare coefficients``."""

    image_size: int = cli.option(256, STORED_SIZE, "size of the stored squares, a multiple of 16")
    window: int = cli.option(
        8,
        compression_rules.RULES["window"],
        "1…8, corner of frequencies; smaller windows can be read from it",
        key="compression.window",
    )
    source: str = cli.option(
        "bitstream",
        compression_rules.RULES["source"],
        "bitstream: the files' own coefficients; pixels: decoded first",
        key="compression.source",
    )
    val: float = cli.option(
        0.1,
        data_rules.RULES["val_fraction"],
        "fraction of each class held out if SOURCE has no val folder",
    )


@dataclass(frozen=True)
class RgbxOptions(LabelOptions, BoxOptions, WorkerOptions):
    """Of ``prepare rgbx``."""

    rgb: str = cli.option("", TEXT, "name of the folder; by default rgb, visible, vis or images")
    thermal: str = cli.option("", TEXT, "likewise; by default thermal, infrared, ir or lwir")
    event: str = cli.option(
        "", TEXT, "likewise; by default event or events; thermal or event may be missing"
    )
    missing_labels: str = cli.option(
        "negative",
        one_of("negative", "error"),
        "a picture without a YOLO file has no objects; error: is refused",
    )
    size: int | None = cli.option(
        None, whole(32), "side of the square frames, in pixels; by default that of dataset=rgbx"
    )
    shard_samples: int | None = cli.option(None, COUNT, "samples per file; by default 128 MiB")


@dataclass(frozen=True)
class PruneOptions:
    """Of ``prepare prune``."""

    empty: bool = cli.option(False, TRUTH, "true: leave out empty frames")
    missing: bool = cli.option(True, TRUTH, "true: leave out frames with missing files")
    invalid: bool = cli.option(True, TRUTH, "true: leave out frames with invalid labels")
    runs: tuple[str, ...] = cli.option((), TEXT, "only these runs: a,b,c")
    not_runs: tuple[str, ...] = cli.option((), TEXT, "without these runs")


@dataclass(frozen=True)
class LintOptions:
    """Of ``prepare lint``."""

    out: Path | None = cli.option(
        None, PATH, "folder of its pictures; OUT/lint-v<version> by default"
    )
