"""Configuration: schema, rules, checks, command lines, one-line messages. Imports no torch."""

from research.config import targets
from research.config.checks import check
from research.config.compose import resolved
from research.config.hydra_cli import command_line, compose_config, compose_run, exit_on_user_error
from research.config.jobs import check_jobs
from research.config.messages import explain
from research.config.run_config import RunConfig
from research.config.schema import RunSettings, register
from research.utils.installation import CONF

__all__ = [
    "CONF",
    "RunConfig",
    "RunSettings",
    "check",
    "check_jobs",
    "command_line",
    "compose_config",
    "compose_run",
    "exit_on_user_error",
    "explain",
    "register",
    "resolved",
    "targets",
]
