"""Checkpoint files: written atomically with checksums, read with ``weights_only=True``, validated.

Their content is ``TrainState.state_dict`` of ``research.engine.state``.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from research.config import stored, stored_state
from research.config.rules import is_model_address
from research.config.run_paths import instead_of
from research.engine import weights_file
from research.engine.weights_file import FORMAT, METADATA_KEY
from research.tracking import mlflow_models
from research.utils import weights
from research.utils.errors import Damaged, UserError
from research.utils.files import write_atomic

if TYPE_CHECKING:
    from research.engine.state import TrainState

log = logging.getLogger(__name__)


class Checkpoints:
    """The ``checkpoints/`` folder of a run.

    ``last.pt`` after every epoch, ``best.pt`` when the monitored metric improves, and
    ``epoch_012_loss_0.4321.pt`` every ``save_every`` epochs, of which the newest ``keep`` are kept.
    ``previous.pt`` is what ``last.pt`` was before: if ``last.pt`` is damaged, a run continues from
    there. One file is written per epoch; the other names are hard links to it if the disk supports
    them.

    Args:
        folder: created if missing.
        save_every: epochs between the ``epoch_*.pt`` checkpoints.
        keep: number of ``epoch_*.pt`` checkpoints to keep; None: all.
        newest: the intact checkpoint from which the run continues; None for a new run.
    """

    def __init__(
        self, folder: Path, save_every: int, keep: int | None, newest: Path | None = None
    ) -> None:
        self.folder = folder
        self.save_every = save_every
        self.keep = keep
        self.newest = newest

    def path_for(self, epoch: int, loss: float, *, is_best: bool) -> str:
        """The most specific name of this epoch's checkpoint, relative to the run folder."""
        name = "best.pt" if is_best else "last.pt"
        if self.keep != 0 and epoch % self.save_every == 0:
            name = f"epoch_{epoch:03d}_loss_{loss:.4f}.pt"
        return f"{self.folder.name}/{name}"

    def paths(self, state: TrainState, saved: str) -> dict[int, str]:
        """The checkpoint of each epoch of the history, relative to the run folder.

        Empty for an epoch whose checkpoint is no longer kept, or another epoch's by now.

        Args:
            state: of the run.
            saved: from ``path_for`` if a checkpoint is about to be saved there, else empty.
        """
        files = {epoch_of(path): path.name for path in self._remaining(Path(saved).name)}
        files.setdefault(state.best_epoch, "best.pt")
        if not state.samples:
            files.setdefault(state.epoch, "last.pt")
        epochs = [row["epoch"] for row in state.history]
        folder = self.folder.name
        return {epoch: f"{folder}/{files[epoch]}" if epoch in files else "" for epoch in epochs}

    def _remaining(self, new: str = "") -> list[Path]:
        """The checkpoints of epochs that remain once ``new`` is written, the oldest first."""
        found = {path.name for path in self.folder.glob("epoch_*.pt")}
        found |= {new} if new.startswith("epoch_") else set()
        every = sorted((self.folder / name for name in found), key=epoch_of)
        return every if self.keep is None or not new.startswith("epoch_") else every[-self.keep :]

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
        last = self.folder / "last.pt"

        def write(temporary: Path) -> None:
            torch.save({"format": FORMAT, **content}, temporary)
            if self.newest is not None and self.newest.exists():
                link(self.newest, self.folder / "previous.pt")

        write_atomic(first, write)
        for other in others:
            link(first, other)
        self.newest = last
        for old in {*self.folder.glob("epoch_*.pt")} - {*self._remaining(first.name)}:
            old.unlink()

    def drop_after(self, epoch: int) -> None:
        """Remove the checkpoints of later epochs than ``epoch``, which is resumed."""
        for path in self.folder.glob("epoch_*.pt"):
            if epoch_of(path) > epoch:
                path.unlink()


def paths(run: Path) -> list[Path]:
    """The checkpoints from which a run can be resumed, ``last.pt`` first."""
    folder = run / "checkpoints"
    found = ["last.pt", "previous.pt", "best.pt"]
    found += [path.name for path in sorted(folder.glob("epoch_*.pt"), key=epoch_of, reverse=True)]
    return [folder / name for name in found if os.path.lexists(folder / name)]


def load_newest(run: Path, trust: Collection[str] = ()) -> tuple[Path, dict[str, Any]]:
    """The newest intact checkpoint of a run: ``last.pt``, or the one before it if it is damaged.

    Logs a warning for a damaged ``last.pt``.

    Args:
        run: a run folder or a file.
        trust: as for ``load``.

    Returns:
        the file and its content, as from ``load``.

    Raises:
        Damaged: if no checkpoint is intact.
        UserError: if the configuration of the checkpoint is refused.
    """
    if run.is_file():
        return run, load(run, trust)
    last = run / "checkpoints" / "last.pt"
    try:
        return last, _load(last, trust)
    except Damaged as error:
        damage = error.message
    newest: tuple[Path, dict[str, Any]] | None = None
    for path in paths(run):
        with suppress(Damaged):
            content = _load(path, trust)
            if newest is None or _position(content) > _position(newest[1]):
                newest = path, content
    if newest is None:
        raise _none_intact(run, damage)
    state = newest[1]["state"]
    log.warning(
        "%s; resuming from %s, after epoch %d, step %d: what was trained later is trained again",
        damage,
        newest[0],
        state["epoch"],
        state["step"],
    )
    return newest


def _position(content: Mapping[str, Any]) -> tuple[int, int]:
    return content["state"]["step"], content["state"]["epoch"]


def check_any_intact(run: Path) -> None:
    """Check that a run has a checkpoint with the right checksums.

    Raises:
        Damaged: if it has none.
    """
    damage = "no checkpoints"
    for path in paths(run):
        try:
            return weights.check(path)
        except Damaged as error:
            damage = error.message
    raise _none_intact(run, damage)


def _none_intact(run: Path, damage: str) -> Damaged:
    return Damaged(
        "checkpoint",
        f"{run}: none of its checkpoints is intact ({damage})",
        f"start a new run, or delete {run} to use this folder again",
    )


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
    try:
        return _load(path, trust)
    except Damaged as error:
        raise _with_alternative(error, path) from None


def _load(path: Path, trust: Collection[str]) -> dict[str, Any]:
    content = read(path, trust)
    if "format" not in content:
        raise _not_ours(path)
    return content


def _with_alternative(error: Damaged, path: Path) -> Damaged:
    """The same error, with a hint to another checkpoint of the run if one is intact."""
    for other in paths(path.parent.parent) if path.parent.name == "checkpoints" else ():
        with suppress(Damaged):
            weights.check(other)
            return Damaged(error.key, error.message, f"use {other}, which is intact")
    return error


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
    metadata = weights.metadata(path)
    if METADATA_KEY in metadata:
        content = weights_file.with_header(content, metadata, path)
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
        "state": stored_state.state(content.get("state"), where),
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
    """Path of the checkpoint of ``run``; it need not be intact.

    Args:
        run: a run folder, a file, or the address of a model in MLflow, which is downloaded.
        which: ``best`` or ``last``, of a run folder; ``last`` if there is no ``best``.

    Raises:
        Damaged: if there is none.
        UserError: if a model cannot be downloaded.
    """
    if is_model_address(run):
        return mlflow_models.fetch(run.as_posix())
    if os.path.isfile(run):  # unlike Path.is_file, False for a folder without permission
        return run
    for name in dict.fromkeys((which, "last")):
        path = run / "checkpoints" / f"{name}.pt"
        if os.path.lexists(path):
            return path
    if not run.exists():
        raise Damaged("checkpoint", f"{run}: no such run or checkpoint", instead_of(run))
    if paths(run):
        raise _with_alternative(Damaged("checkpoint", f"no file {path}"), path)
    raise Damaged(
        "checkpoint",
        f"no checkpoint in {run}",
        f"pass a run folder that has checkpoints/{which}.pt",
    )


def save_weights(content: Mapping[str, Any], path: Path) -> None:
    """Write the evaluated weights of a checkpoint as ``.safetensors``; ``load`` reads it.

    Args:
        content: of the checkpoint.
        path: the file.
    """
    header = {name: content[name] for name in ("config", "data", "transform")}
    state = content["state"]
    header["state"] = {**state, "history": state["history"][-1:]}
    weights_file.save(weights_of(content), path, header)


def save_best_weights(best: Path, trust: Sequence[str], same: Path | None) -> None:
    """Write the weights of the best epoch, if their checkpoint is intact.

    Args:
        best: ``best.safetensors``, beside the checkpoint ``best.pt``.
        trust: the user's own ``_target_`` names that its configuration may contain.
        same: a file of the same weights; None if there is none.
    """
    if same is not None:
        link(same, best)
        return
    best.unlink(missing_ok=True)  # of an earlier end of the run
    try:
        saved = load(best.with_suffix(".pt"), trust)
    except UserError as error:
        log.warning("%s is not written: %s", best.name, error)
    else:
        save_weights(saved, best)


def epoch_of(path: Path) -> int:
    """The epoch in the name of a checkpoint; -1 if there is none."""
    match = re.match(r"epoch_(\d+)_", path.name)
    return int(match.group(1)) if match else -1


def link(source: Path, target: Path) -> None:
    """Give a checkpoint another name; atomic."""

    def make(temporary: Path) -> None:
        temporary.unlink()
        try:
            os.link(source, temporary)
        except OSError:
            # A disk without hard links (some network and FAT file systems).
            shutil.copyfile(source, temporary)

    write_atomic(target, make)
