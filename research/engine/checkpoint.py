"""Checkpoint files: written atomically, read with ``weights_only=True`` and validated.

Their content is ``TrainState.state_dict`` of ``research.engine.state``.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from research.config import stored
from research.utils import weights
from research.utils.errors import UserError
from research.utils.files import write_atomic

FORMAT = 2
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16,
        torch.int64, torch.int32, torch.int16, torch.uint8, torch.bool,
    )
}  # fmt: skip
"""Allowed dtypes of tensors in the metadata."""
METADATA_KEY = "backbone_lab"
"""Entry of the metadata of ``final.safetensors`` with the rest of the checkpoint, as JSON."""


class Checkpoints:
    """The ``checkpoints/`` folder of a run.

    ``last.pt`` after every epoch, ``best.pt`` when the monitored metric improves, and
    ``epoch_012_loss_0.4321.pt`` every ``save_every`` epochs, of which the newest ``keep`` are kept.
    One file is written per epoch; the other names are hard links to it if the disk supports them.

    Args:
        folder: created if missing.
        save_every: epochs between the ``epoch_*.pt`` checkpoints.
        keep: number of ``epoch_*.pt`` checkpoints to keep.
    """

    def __init__(self, folder: Path, save_every: int, keep: int) -> None:
        self.folder = folder
        self.save_every = save_every
        self.keep = keep

    def path_for(self, epoch: int, loss: float, *, is_best: bool) -> str:
        """The most specific name of this epoch's checkpoint, relative to the run folder."""
        name = "best.pt" if is_best else "last.pt"
        if self.keep and epoch % self.save_every == 0:
            name = f"epoch_{epoch:03d}_loss_{loss:.4f}.pt"
        return f"{self.folder.name}/{name}"

    def save(self, content: dict[str, Any], path: str, *, is_best: bool) -> None:
        """Write ``content`` as ``last.pt``, as ``path``, and as ``best.pt`` if ``is_best``.

        Args:
            content: from ``TrainState.state_dict``.
            path: from ``path_for``.
            is_best: whether the monitored metric has improved.
        """
        names = ["last.pt"]
        if is_best:
            names.insert(0, "best.pt")
        if Path(path).name.startswith("epoch_"):
            names.insert(0, Path(path).name)
        if not self.folder.parent.is_dir():
            # Deleted during the run. `write_atomic` would make a folder without the run's records.
            raise FileNotFoundError(errno.ENOENT, "deleted", str(self.folder))
        # last.pt, from which a run is resumed, is written last: if it exists, so do the others.
        first, *others = (self.folder / name for name in names)
        full = {"format": FORMAT, **content}
        write_atomic(first, lambda temporary: torch.save(full, temporary))
        for other in others:
            _link(first, other)
        if first.name.startswith("epoch_"):
            for old in sorted(self.folder.glob("epoch_*.pt"), key=_epoch_of)[: -self.keep]:
                old.unlink()


def load(path: Path, trust: Collection[str] = ()) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU, with its configuration migrated.

    Args:
        path: a file of ``Checkpoints`` or of ``save_weights``; the latter has only ``config``,
            ``data``, ``model``, ``transform`` and ``state``.
        trust: the user's own ``_target_`` names that the configuration may contain.

    Raises:
        UserError: for a file that is missing, damaged or not a checkpoint of this project, that
            contains pickled objects (they could run code), or whose configuration or metadata
            does not pass the schema of ``research.config.stored``.
    """
    content = read(path, trust)
    if "format" not in content:
        raise _not_ours(path)
    return content


def _not_ours(path: Path) -> UserError:
    return UserError(
        "checkpoint",
        f"{path}: not a checkpoint of this project (format {FORMAT})",
        "bare weights go into model.pretrained",
    )


def read(path: Path, trust: Collection[str] = ()) -> dict[str, Any]:
    """The content of a checkpoint (it has a ``format``), or the state dict of another file.

    Raises: as ``load``, except for files that are not checkpoints of this project.
    """
    content = weights.read(path)
    text = weights.metadata(path).get(METADATA_KEY)
    if text is not None:
        try:
            header = json.loads(text)
            _ = header["format"]
            transform = {name: _tensor(**parts) for name, parts in header["transform"].items()}
        except (
            ValueError, TypeError, KeyError, AttributeError, RuntimeError, RecursionError,
            OverflowError,
        ):  # fmt: skip
            raise UserError(
                "checkpoint", f"{path}: damaged file (its metadata)", "use another one"
            ) from None
        content = {**header, "transform": transform, "model": content}
    return _checked(content, path, trust) if "format" in content else content


def _checked(content: dict[str, Any], path: Path, trust: Collection[str]) -> dict[str, Any]:
    """The checkpoint, after its entries were validated."""
    if type(content["format"]) is not int or content["format"] != FORMAT:
        raise _not_ours(path)
    for name in ("model", "transform", "ema"):
        missing = name == "ema" and content.get(name) is None
        if not missing and not _is_state_dict(content.get(name)):
            raise UserError(
                "checkpoint",
                f"{path}: damaged file ({name} is not a dict of tensors)",
                "use another one",
            )
    where = str(path)
    config = stored.configuration(content.get("config"), where, trust)
    foreign = config["dataset"]["_target_"] in trust
    state_dicts = {name: dict(content[name]) for name in ("model", "transform")}
    return {
        **content,
        **state_dicts,
        "config": config,
        "data": stored.metadata(content.get("data"), where, foreign=foreign),
        "state": stored.state(content.get("state"), where),
    }


def _is_state_dict(value: Any) -> bool:
    """Whether it is a mapping of names to dense tensors."""
    return isinstance(value, Mapping) and all(
        isinstance(name, str)
        and torch.is_tensor(tensor)
        and tensor.layout == torch.strided
        and not tensor.is_meta
        for name, tensor in value.items()
    )


def weights_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """The weights that were evaluated: the EMA if the run has one."""
    weights: dict[str, Any] = content["model"] if content.get("ema") is None else content["ema"]
    return weights


def find(run: Path, which: str = "best") -> Path:
    """Path of the checkpoint of ``run``.

    Args:
        run: a run folder or a file.
        which: ``best`` or ``last``, of a run folder; ``last`` if there is no ``best``.

    Raises:
        UserError: if there is none.
    """
    if run.is_file():
        return run
    for name in dict.fromkeys((which, "last")):
        path = run / "checkpoints" / f"{name}.pt"
        if path.exists():
            return path
    raise UserError(
        "checkpoint",
        f"no checkpoint in {run}",
        f"pass a run folder that has checkpoints/{which}.pt",
    )


def save_weights(model: torch.nn.Module, path: Path, header: Mapping[str, Any]) -> None:
    """Write a ``.safetensors`` file that ``load`` reads as a checkpoint without the optimizer.

    Args:
        model: its state dict becomes the tensors of the file, under the same names.
        path: the file.
        header: written to the metadata: ``config``, ``data``, ``state`` (plain values) and
            ``transform``, a state dict of small tensors.
    """
    tensors: dict[str, Tensor] = {
        name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()
    }
    transform = {name: _plain(tensor) for name, tensor in header["transform"].items()}
    text = json.dumps({"format": FORMAT, **header, "transform": transform})
    # Other readers of safetensors files expect the "format" of the tensors.
    metadata = {"format": "pt", METADATA_KEY: text}
    write_atomic(path, lambda temporary: save_file(tensors, temporary, metadata))


def _plain(tensor: Tensor) -> dict[str, Any]:
    """A tensor as JSON; exact, since a float's shortest decimals read back as the same float."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    return {"dtype": dtype, "shape": list(tensor.shape), "values": tensor.flatten().tolist()}


def _tensor(dtype: str, shape: list[int], values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=DTYPES[dtype]).reshape(shape)


def _epoch_of(path: Path) -> int:
    match = re.match(r"epoch_(\d+)_", path.name)
    return int(match.group(1)) if match else -1


def _link(source: Path, target: Path) -> None:
    def link(temporary: Path) -> None:
        temporary.unlink()
        try:
            os.link(source, temporary)
        except OSError:
            # A disk without hard links (some network and FAT file systems).
            shutil.copyfile(source, temporary)

    write_atomic(target, link)
