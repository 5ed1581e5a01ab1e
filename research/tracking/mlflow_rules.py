"""Rules of the keys of ``logging.mlflow``, and what stands in for those that are null."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Final

from research.config.group_rules import Job
from research.config.rules import ADDRESS, TEXT, Rule, or_null
from research.utils import secrets
from research.utils.errors import UserError

TRACKER: Final = "research.tracking.mlflow.MLflowTracker"
DEFAULT_URI: Final = "sqlite:///runs/mlflow.db"
DEFAULT_EXPERIMENT: Final = "backbone-lab"

MODEL: Final = Rule(
    "a name of letters, digits, spaces and . _ -, which begins with a letter or digit",
    lambda value: isinstance(value, str) and re.fullmatch(r"\w[\w .-]{0,199}", value) is not None,
)

RULES: dict[str, Rule] = {
    "uri": or_null(ADDRESS),
    "experiment": or_null(TEXT),
    "register": or_null(MODEL),
}


def faults(job: Job) -> Iterator[UserError]:
    """An address whose password is not known."""
    for node in job.settings["logging"].values():
        try:
            if isinstance(node, Mapping) and node.get("_target_") == TRACKER:
                store_address(node.get("uri"))
        except UserError as error:
            yield error


def store_address(uri: str | None) -> str:
    """The address of the store, with its secrets.

    Args:
        uri: the setting; null: ``MLFLOW_TRACKING_URI``, else the database in ``runs/``.

    Raises:
        UserError: if the setting comes from a file, without its password.
    """
    secrets.know_environment()
    address = uri or os.environ.get(secrets.TRACKING_URI) or DEFAULT_URI
    whole = secrets.reveal(secrets.hide(address))
    if whole is None:
        raise UserError(
            "logging.mlflow.uri",
            f"logging.mlflow.uri={address}: its password is not stored",
            f"write it in place of ***, or put the whole address into {secrets.TRACKING_URI}",
        )
    return whole


def experiment_name(experiment: str | None) -> str:
    """The setting; if it is null ``MLFLOW_EXPERIMENT_NAME``, else the default."""
    return experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or DEFAULT_EXPERIMENT
