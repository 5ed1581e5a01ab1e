"""Batches as a loader ships them, from a file: training without decoder, renderer or data set."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from research import batch as batches
from research.batch import Batch
from research.compression.blocks import Blocks
from research.data.datamodule import DataModule
from research.data.loader import SampleKey

FOLDER = Path(__file__).parent / "batches"


class StoredSamples:
    """A split whose samples are the rows of one batch."""

    skipped: Mapping[str, int] = {}

    def __init__(self, rows: Batch) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, keys: Sequence[SampleKey]) -> Batch:
        index = torch.tensor([key.index for key in keys])
        return self.rows.map(lambda tensor: tensor[index])


@dataclass
class StoredData:
    """A data set whose splits, facts and measured statistics come from a file.

    Attributes:
        real: the data set of the configuration, of which nothing is read.
        splits: ``train`` and ``val``.
        known: what the data set said of itself.
        statistics: state of the device transform.
    """

    real: Any
    splits: dict[str, Batch]
    known: dict[str, Any]
    statistics: dict[str, torch.Tensor]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def prepare(self, seed: int) -> None:
        self.real.load_metadata(self.known)

    def dataset(self, split: str, **_: Any) -> StoredSamples:
        return StoredSamples(self.splits[split])

    def loading(self, *settings: Any) -> tuple[int, bool]:
        return DataModule.loading(self.real, *settings)

    def transform(self, **_: Any) -> Any:
        transform = self.real.transform(measured=False)
        transform.load_state_dict(self.statistics)
        return transform

    def metadata(self) -> dict[str, Any]:
        return self.known


def save(name: str, data: Any, samples: Mapping[str, int], seed: int) -> None:
    """Write the first samples of each split of a prepared data set."""
    tensors = {f"transform.{key}": value for key, value in data.transform().state_dict().items()}
    kinds = {}
    for split, count in samples.items():
        source = data.dataset(split, seed=seed, train=split == "train", device=torch.device("cpu"))
        rows = source.__getitems__(
            [SampleKey(1, index) for index in range(min(count, len(source)))]
        )
        kinds[split] = type(rows).__name__
        for field in fields(rows):
            value = getattr(rows, field.name)
            if isinstance(value, Blocks):
                tensors |= {f"{split}.{field.name}.y": value.y}
                tensors |= {f"{split}.{field.name}.cbcr": value.cbcr}
            elif isinstance(value, torch.Tensor):
                tensors[f"{split}.{field.name}"] = value
    metadata = {"batches": json.dumps(kinds), "facts": json.dumps(data.metadata())}
    whole = {key: value.clone().contiguous() for key, value in tensors.items()}
    save_file(whole, FOLDER / f"{name}.safetensors", metadata)


def load(name: str, real: Any) -> StoredData:
    """What ``save`` wrote, in the place of the data set ``real``."""
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    statistics = _below("transform", tensors)
    splits = {}
    for split, kind in json.loads(metadata["batches"]).items():
        values: dict[str, Any] = _below(split, tensors)
        if "inputs.y" in values:
            values["inputs"] = Blocks(values.pop("inputs.y"), values.pop("inputs.cbcr"))
        splits[split] = getattr(batches, kind)(**values)
    return StoredData(real, splits, json.loads(metadata["facts"]), statistics)


def _below(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    start = f"{prefix}."
    return {k.removeprefix(start): t for k, t in tensors.items() if k.startswith(start)}
