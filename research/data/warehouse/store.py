"""Random access to a version's samples, straight from memory-mapped shards."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Sequence
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from research.data.warehouse.checksums import damaged_shards, wrong_size
from research.data.warehouse.manifest import REMEDY, Manifest, Shard
from research.utils.errors import UserError
from research.utils.files import write_text

VERIFY = ("always", "once", "never")


class Store:
    """A version's rows, in the order of its samples.

    Each process maps a shard when it first reads from it; nothing but the settings and what was
    verified travels to another process, whether it is forked or spawned. Rows are views of the
    mapped files: their pages belong to the page cache, so that memory does not grow with the
    store.

    Args:
        manifest: of the version.
        verify: compare checksums when the store is opened: ``always``; ``once`` for each shard
            until it changes its size or date; ``never``.
        cache: where it is remembered which shards were verified.
    """

    def __init__(
        self, manifest: Manifest, verify: str = "once", cache: Path = Path("runs/cache")
    ) -> None:
        self.manifest = manifest
        self.verify = verify
        self.cache = cache
        self.verified = False
        self._stops = list(accumulate(shard.samples for shard in manifest.shards))
        self._starts = [0, *self._stops[:-1]]
        self._forget()

    def open(self) -> None:
        """Check sizes, and checksums as asked; does nothing the second time.

        Raises:
            UserError: naming a shard that is missing, damaged or other than the manifest says.
        """
        if self.verified:
            return
        for shard in self.manifest.shards:
            problem = wrong_size(self.manifest, shard)
            if problem:
                raise UserError("dataset.manifest", problem)
        if self.verify != "never":
            self._compare_hashes()
        self.verified = True

    def __len__(self) -> int:
        return self.manifest.samples

    def rows(self, name: str, index: int) -> NDArray[Any]:
        """One sample's row of one tensor: a read-only view of the mapped file.

        Raises:
            IndexError: for a position outside the store.
            UserError: when its shard cannot be opened.
        """
        if index < 0:
            raise IndexError(index)
        shard = bisect_right(self._stops, index)
        tensors = self._tensors[shard] or self._map(shard)
        row: NDArray[Any] = tensors[name][index - self._starts[shard]]
        return row

    def gather(self, name: str, indices: Sequence[int]) -> torch.Tensor:
        """Rows of several samples, [B, …], copied once."""
        tensor = self.manifest.tensors[name]
        batch = np.empty((len(indices), *tensor.shape), tensor.dtype)
        rows = self.rows
        for place, index in enumerate(indices):
            batch[place] = rows(name, index)
        return torch.from_numpy(batch)

    def whole(self, name: str) -> torch.Tensor:
        """All rows of one tensor, [samples, …], in memory."""
        tensor = self.manifest.tensors[name]
        everything = np.empty((len(self), *tensor.shape), tensor.dtype)
        for shard, (start, stop) in enumerate(zip(self._starts, self._stops, strict=True)):
            everything[start:stop] = (self._tensors[shard] or self._map(shard))[name]
        return torch.from_numpy(everything)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_tensors"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def _forget(self) -> None:
        # One place more than shards, so that an index behind the end is an IndexError there.
        self._tensors: list[dict[str, NDArray[Any]] | None] = [None] * len(self.manifest.shards)

    def _map(self, number: int) -> dict[str, NDArray[Any]]:
        """Views of all tensors of one shard."""
        self.open()
        shard = self.manifest.shards[number]
        path = self.manifest.folder / shard.file
        views = {}
        try:
            with safe_open(path, framework="pt") as file:
                for name, tensor in self.manifest.tensors.items():
                    view = file.get_tensor(name).numpy()
                    view.flags.writeable = False
                    expected = (shard.samples, *tensor.shape)
                    if view.shape != expected or view.dtype != tensor.dtype:
                        raise UserError(
                            "dataset.manifest",
                            f"{path}: {name} is {view.dtype} {list(view.shape)}, expected "
                            f"{tensor.dtype} {list(expected)}",
                            f"{REMEDY}",
                        )
                    views[name] = view
        except (OSError, SafetensorError) as error:
            raise UserError(
                "dataset.manifest", f"{path}: cannot be opened ({error})", f"{REMEDY}"
            ) from None
        self._tensors[number] = views
        return views

    def _compare_hashes(self) -> None:
        folder = self.manifest.folder.resolve()
        key = sha256(str(folder).encode()).hexdigest()[:16]
        record = self.cache / "verified" / f"{key}.json"
        known = _read(record) if self.verify == "once" else {}
        now = {shard.file: _mark(folder, shard) for shard in self.manifest.shards}
        fresh = [
            shard for shard in self.manifest.shards if known.get(shard.file) != now[shard.file]
        ]
        for _, problem in damaged_shards(self.manifest, fresh):
            raise UserError("dataset.manifest", problem)
        if fresh:
            write_text(record, json.dumps(now))


def _mark(folder: Path, shard: Shard) -> list[Any]:
    stat = (folder / shard.file).stat()
    return [shard.sha256, stat.st_size, stat.st_mtime_ns]


def _read(record: Path) -> dict[str, Any]:
    try:
        known = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # A missing or damaged record costs only the time to verify again.
        return {}
    return known if isinstance(known, dict) else {}
