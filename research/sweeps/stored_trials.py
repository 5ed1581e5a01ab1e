"""What the storage of a study has of its trials: checked when it is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from optuna.trial import FrozenTrial, TrialState
from pydantic import ConfigDict, NonNegativeInt, StringConstraints, with_config

from research.sweeps.storage import StorageError
from research.utils.documents import validate
from research.utils.errors import UserError

REPAIR: Final = (
    "move the storage's file away and run the same command again: trials are restored from "
    "final_summary.json"
)


@with_config(ConfigDict(extra="allow"))
@dataclass(frozen=True)
class _Attributes:
    """User attributes of a trial."""

    run: Annotated[str, StringConstraints(pattern=r"^(.*[/\\])?trial_\d{4,}(_\d+)?$")] | None = None
    beginnings: NonNegativeInt = 0
    attempts: int = 0
    checkpoint: float = 0.0
    reason: str = ""
    seconds: float = 0.0
    retries: int | None = None


def check(trial: FrozenTrial, study: str, storage: str, objectives: int) -> None:
    """Check what the storage has of a trial.

    Args:
        trial: from the storage.
        study: its name.
        storage: its name, for messages.
        objectives: their number.

    Raises:
        StorageError: if it is not what a trial records.
    """
    file = Path(f"trial {trial.number} of {study}")
    try:
        validate(_Attributes, trial.user_attrs, "hydra.sweeper.storage", file, "")
    except UserError as error:
        raise StorageError(storage, str(error), REPAIR) from None
    values = [v for v in trial.values or () if isinstance(v, int | float)]
    ended = trial.state is not TrialState.COMPLETE or len(values) == objectives
    epochs = trial.intermediate_values.items()
    numbers = all(isinstance(e, int) and isinstance(v, int | float) for e, v in epochs)
    if not (ended and numbers):
        raise StorageError(storage, f"{file} is damaged", REPAIR)
