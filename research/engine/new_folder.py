"""``NewFolder``: what a start has created, of which nothing remains if it is refused."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass
class NewFolder:
    """A folder that a run or a sweep was given, which stays if it begins.

    Attributes:
        path: the folder.
        made: the folders that did not exist, from the inside out.
        own: the names in it that are this run's; None if all are, since the folder is new.
        begun: whether to keep it; of a run, that it has trained a batch.
    """

    path: Path
    made: Sequence[Path]
    own: Collection[str] | None
    begun: bool = False

    @classmethod
    def create(cls, path: Path, own: Collection[str], *, shared: bool) -> NewFolder:
        """Create the folder and those above it.

        Args:
            path: the folder.
            own: the names that will be created in it.
            shared: whether it may exist; others may then write to it at the same time.

        Raises:
            FileExistsError: if it exists and may not, or is a file.
        """
        made = [each for each in (path, *path.parents) if not each.exists()]
        try:
            path.mkdir(parents=True, exist_ok=shared)
            known = {entry.name for entry in path.iterdir()} if shared else ()
        except OSError:
            _remove_empty(made)
            raise
        return cls(path, made, [name for name in own if name not in known] if shared else None)

    def settle(self) -> None:
        """Remove what was created, unless the run has begun; may be called again."""
        if self.begun or not self.path.is_dir():
            return
        for entry in [*self.path.iterdir()]:
            if self.own is not None and entry.name not in self.own:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)
        _remove_empty(self.made)


def _remove_empty(folders: Iterable[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
