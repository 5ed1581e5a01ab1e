"""Random access to the samples of a store through memory-mapped shards."""

from __future__ import annotations

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

from research.data.warehouse.checksums import damaged_shards, size_mismatch
from research.data.warehouse.manifest import REMEDY, Manifest, Shard
from research.utils.cache import cached, cached_by_file, file_stamp
from research.utils.errors import UserError
from research.utils.progress import track


class Store:
    """Rows of all tensors of a version, in the order of its samples.

    Each process maps a shard when it first reads from it. Pickling keeps the settings and the
    result of the verification, not the mappings, so a store can be sent to forked and spawned
    workers. Rows are views of the mapped files: their pages belong to the page cache, and memory
    does not grow with the store.

    Args:
        manifest: manifest of the version.
        verify: when to compare checksums: ``always`` when the store is opened; ``once``, until
            size or date of a shard changes; ``never``.
        cache: folder of the records of verified shards.
    """

    def __init__(
        self, manifest: Manifest, verify: str = "once", cache: Path = Path("runs/cache")
    ) -> None:
        self.manifest = manifest
        self.verify = verify
        self.cache = cache
        self.verified = False
        self._stops = list(accumulate(shard.samples for shard in manifest.shards))
        self._starts = [0, *self._stops][: len(self._stops)]
        self._reset_mappings()

    def open(self) -> None:
        """Check sizes, and checksums according to ``verify``; does nothing the second time.

        Raises:
            UserError: for a shard that is missing, damaged or different from the manifest.
        """
        if self.verified:
            return
        for shard in self.manifest.shards:
            if problem := size_mismatch(self.manifest, shard):
                raise UserError("manifest", problem, REMEDY)
        if self.verify != "never":
            self._verify_checksums()
        self.verified = True

    def __len__(self) -> int:
        return self.manifest.samples

    def rows(self, name: str, index: int) -> NDArray[Any]:
        """One tensor of one sample: a read-only view of the mapped file.

        Raises:
            IndexError: for a position outside the store.
            UserError: if its shard cannot be opened.
        """
        tensors, row = self.locate(index)
        view: NDArray[Any] = tensors[name][row]
        return view

    def locate(self, index: int) -> tuple[dict[str, NDArray[Any]], int]:
        """The mapped tensors of the shard of a sample, and its row in them; raises as ``rows``."""
        if index < 0:
            raise IndexError(index)
        shard = bisect_right(self._stops, index)
        return self._tensors[shard] or self._map_shard(shard), index - self._starts[shard]

    def gather(self, name: str, indices: Sequence[int]) -> torch.Tensor:
        """One tensor of several samples, [B, …], copied into new memory."""
        return self.gather_all([name], indices)[name]

    def gather_all(self, names: Sequence[str], indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """Several tensors of several samples, [B, …] each, copied into new memory."""
        located = [self.locate(index) for index in indices]
        batches = {}
        for name in names:
            tensor = self.manifest.tensors[name]
            batch = np.empty((len(indices), *tensor.shape), tensor.dtype)
            for position, (tensors, row) in enumerate(located):
                batch[position] = tensors[name][row]
            batches[name] = torch.from_numpy(batch)
        return batches

    def column(self, name: str, positions: NDArray[np.int64]) -> torch.Tensor:
        """As ``gather``, shard by shard: for a small tensor of very many samples."""
        tensor = self.manifest.tensors[name]
        batch = np.empty((len(positions), *tensor.shape), tensor.dtype)
        shards = np.searchsorted(self._stops, positions, side="right")
        order = np.argsort(shards, kind="stable")
        first = np.flatnonzero(np.diff(shards[order], prepend=-1))
        for chosen in np.split(order, first[1:]) if len(order) else ():
            shard = int(shards[chosen[0]])
            views = self._tensors[shard] or self._map_shard(shard)
            batch[chosen] = views[name][positions[chosen] - self._starts[shard]]
        return torch.from_numpy(batch)

    def whole(self, name: str) -> torch.Tensor:
        """One tensor of all samples, [samples, …], copied into new memory."""
        tensor = self.manifest.tensors[name]
        batch = np.empty((len(self), *tensor.shape), tensor.dtype)
        places = list(zip(self._starts, self._stops, strict=True))
        for shard, (start, stop) in enumerate(track(places, f"reading {name}", unit="shards")):
            batch[start:stop] = (self._tensors[shard] or self._map_shard(shard))[name]
        return torch.from_numpy(batch)

    def table(self, name: str) -> torch.Tensor:
        """A small tensor of integers of all samples, [samples, …]; read once, then from the cache.

        Otherwise every start would read from each shard, and map it.
        """
        shards = sha256("".join(shard.sha256 for shard in self.manifest.shards).encode())
        key = {"table": name, "version": self.manifest.version, "shards": shards.hexdigest()}
        values = cached(self.cache / "tables", key, lambda: self.whole(name).tolist())
        return torch.from_numpy(np.array(values, self.manifest.tensors[name].dtype))

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_tensors"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset_mappings()

    def _reset_mappings(self) -> None:
        # _stops maps an index after the end to len(shards), which is an IndexError in this list.
        self._tensors: list[dict[str, NDArray[Any]] | None] = [None] * len(self.manifest.shards)

    def _map_shard(self, number: int) -> dict[str, NDArray[Any]]:
        """Map one shard and return views of its tensors."""
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
                            "manifest",
                            f"{path}: {name} is {view.dtype} {list(view.shape)}, expected "
                            f"{tensor.dtype} {list(expected)}",
                            REMEDY,
                        )
                    views[name] = view
        except (OSError, SafetensorError, TypeError) as error:  # TypeError: not a type of NumPy
            raise UserError("manifest", f"{path}: cannot be opened ({error})", REMEDY) from None
        self._tensors[number] = views
        return views

    def _verify_checksums(self) -> None:
        folder = self.manifest.folder.resolve()
        shards = {shard.file: shard for shard in self.manifest.shards}

        def verify(files: Sequence[str]) -> list[bool]:
            for _, problem in damaged_shards(self.manifest, [shards[file] for file in files]):
                raise UserError("manifest", problem, REMEDY)
            return [True] * len(files)

        if self.verify == "always":
            verify([*shards])
        else:
            stamps = {file: _stamp(folder, shard) for file, shard in shards.items()}
            cached_by_file(self.cache / "verified", {"verified": str(folder)}, stamps, verify)


def _stamp(folder: Path, shard: Shard) -> list[Any]:
    """Expected hash, size and times: unchanged until the file or the manifest changes."""
    stat = (folder / shard.file).stat()
    return [shard.sha256, *file_stamp(stat)]
