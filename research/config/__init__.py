"""The configuration: typed schema, checks, and messages of one line. Imports no torch."""

from research.config import targets
from research.config.checks import check
from research.config.command import (
    check_jobs,
    command_line,
    compose_config,
    told_in_one_line,
)
from research.config.compose import resolved
from research.config.messages import explain
from research.config.options import CONF
from research.config.schema import RunSettings, register

__all__ = [
    "CONF",
    "RunSettings",
    "check",
    "check_jobs",
    "command_line",
    "compose_config",
    "explain",
    "register",
    "resolved",
    "targets",
    "told_in_one_line",
]
