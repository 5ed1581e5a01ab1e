"""The configuration: typed schema, checks, and messages of one line. Imports no torch."""

from research.config.checks import check
from research.config.command import (
    check_jobs,
    command_line,
    compose_config,
    told_in_one_line,
)
from research.config.compose import CONF, resolved
from research.config.messages import explain
from research.config.schema import EXECUTION_WHITELIST, RunSettings, register

__all__ = [
    "CONF",
    "EXECUTION_WHITELIST",
    "RunSettings",
    "check",
    "check_jobs",
    "command_line",
    "compose_config",
    "explain",
    "register",
    "resolved",
    "told_in_one_line",
]
