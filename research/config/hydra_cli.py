"""The command line of ``train.py``, and composed configurations for all other commands.

``command_line`` runs the function of ``hydra.main``. Every job is composed and checked before the
first one starts, and a user's mistake is reported in one line. Options of
``python -m research.COMMAND`` are in ``cli``.
"""

from __future__ import annotations

import io
import os
import re
import signal
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from research.config import resume
from research.config.checks import check
from research.config.compose import Composed, composed, hydra_ready, own_targets
from research.config.help import help_text
from research.config.jobs import check_jobs, refuse_preset
from research.config.messages import explain, suggest
from research.config.run_config import RunConfig
from research.config.schema import register
from research.utils import conditions, secrets
from research.utils.errors import UserError
from research.utils.installation import NAME, VERSION
from research.utils.launch import process_prefix
from research.utils.starting import start


def command_line(main: Callable[..., object]) -> None:
    """Run a ``hydra.main`` function as a command; for ``resume=RUN`` it receives a ``RunConfig``.

    A mistake of the user, or an everyday condition of the machine (``research.utils.conditions``),
    is printed in one line, ``error: …``, with exit status 2; the exit status of an interruption is
    128 + the number of the signal. Every other exception keeps its traceback.
    """
    start()
    if "--version" in sys.argv[1:]:  # Hydra would print its own
        print(NAME, VERSION)
        return
    full_error = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra raises instead of exiting
    overrides: list[str] = []
    own: Path | None = None
    try:
        arguments = _arguments()
        overrides = arguments.overrides
        own = Path(arguments.config_dir) if arguments.config_dir is not None else None
        if resume.run_of(overrides) is not None and not arguments.multirun:
            _resume(main, arguments, own)
        elif arguments.help:
            with hydra_ready(own):
                print(secrets.redact(help_text(overrides)))
        elif arguments.cfg or arguments.info or arguments.shell_completion:
            _show_config(main, overrides, own)
        else:
            if not _uses_other_config(arguments):
                check_jobs(overrides, multirun=arguments.multirun, own=own)
            main()
    except KeyboardInterrupt as interrupt:
        number = interrupt.args[0] if interrupt.args else signal.SIGINT
        _exit(f"interrupted by {signal.Signals(number).name}", 128 + number)
    except Exception as error:
        with hydra_ready(own if own and own.is_dir() else None):
            line = f"error: {_reported(error, overrides)}"
        _exit(line, 2)
    finally:
        if full_error is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)
        else:
            os.environ["HYDRA_FULL_ERROR"] = full_error


def _resume(main: Callable[..., object], arguments: Namespace, own: Path | None) -> None:
    """Resume a run, or show its configuration."""
    for flag in ("config_name", "config_path", "experimental_rerun", "info"):
        if getattr(arguments, flag) is not None:
            name = f"--{flag.replace('_', '-')}"
            message = f"{name} with resume=RUN: the run's own configuration is used"
            raise UserError(name, message, "remove it; --cfg job prints the configuration")
    found = resume.compose(arguments.overrides, own)
    if arguments.help:
        print(secrets.redact(help_text(arguments.overrides, found)))
    elif arguments.cfg:
        shown = OmegaConf.select(found.composed.cfg, arguments.package or "")
        if shown is None or arguments.cfg != "job":
            message = f"--cfg {arguments.cfg}: a resumed run has no such configuration"
            raise UserError("--cfg", message, "use --cfg job")
        text = OmegaConf.to_yaml(shown) if OmegaConf.is_config(shown) else str(shown)
        print(secrets.redact(text))
    else:
        main(found)


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Exit with one line on a user's mistake, before Hydra adds a line of its own.

    With -m the exception is raised, so that the other jobs continue.
    """
    try:
        yield
    except Exception as error:
        if HydraConfig.get().mode is RunMode.MULTIRUN:
            raise
        _exit(f"error: {_reported(error, HydraConfig.get().overrides.task)}", 2)


def compose_run(overrides: Sequence[str], own: Path | None = None) -> RunConfig:
    """The checked configuration of the run that ``train.py`` would train with these words.

    With ``resume=RUN`` it is the configuration of that run, see ``research.config.resume``.

    Args:
        overrides: ``key=value`` each, as on the command line.
        own: folder with the user's own options, as ``--config-dir`` names it.

    Raises:
        UserError: if it cannot be composed or does not pass ``check``.
    """
    words = [secrets.hidden_word(word) for word in overrides]
    if resume.run_of(words) is None:
        found = compose_config(words, own)
        with hydra_ready(own):
            refuse_preset(found.choices, words)
            return RunConfig.of(found.cfg, found.choices, words, own)
    try:
        return resume.compose(words, own)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise explain(error, words) from error


def compose_config(overrides: Sequence[str], own: Path | None = None) -> Composed:
    """The same for commands other than ``train.py``, with the interpolations of ``conf/``."""
    words = list(overrides)
    if resume.run_of(words) is not None:
        return compose_run(words, own).composed
    register()
    with hydra_ready(own):
        try:
            result = composed(words)
            check(result.cfg, result.choices, words, own=own_targets())
        except (HydraException, OmegaConfBaseException, YAMLError) as error:
            raise explain(error, words) from error
    return result


def _show_config(main: Callable[[], object], overrides: list[str], own: Path | None) -> None:
    """Let Hydra print the configuration, which is composed but not checked; without secrets."""
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            main()
    except ValueError:
        with hydra_ready(own):
            composed(overrides)  # raises the same error as one line
        raise
    finally:
        print(secrets.redact(printed.getvalue()), end="")


def _uses_other_config(arguments: Namespace) -> bool:
    """Whether Hydra's flags select another configuration, which only the job can check."""
    flags = ("config_name", "config_path", "experimental_rerun")
    return any(getattr(arguments, flag) is not None for flag in flags)


def _arguments() -> Namespace:
    """The command line, parsed by Hydra's parser."""
    stderr = io.StringIO()
    try:
        with redirect_stderr(stderr):
            arguments: Namespace = get_args_parser().parse_intermixed_args()
    except SystemExit as stop:
        if not stop.code:
            raise
        raise _bad_flag(stderr.getvalue()) from None
    return arguments


def _bad_flag(printed: str) -> UserError:
    match = re.search(r"unrecognized arguments: (\S+)", printed)
    if not match:
        return UserError("flags", printed.strip().rpartition("error: ")[2])
    flag, _, value = match[1].partition("=")
    close = suggest(flag.lstrip("-").replace("-", "_"))
    like = f"; did you mean {close}={value or '…'}?" if close else ", see --help"
    return UserError(flag, f"unknown flag {flag}", f"settings are written key=value{like}")


def _reported(error: Exception, overrides: list[str]) -> UserError:
    """The one line for a user's mistake or an everyday condition; raises any other exception."""
    known = isinstance(error, UserError | HydraException | YAMLError)
    if known and not (isinstance(error, InstantiationException) and not _is_mistake(error)):
        return explain(error, overrides)
    condition = conditions.explain(error)
    if condition is None:
        raise error
    return condition


def _is_mistake(error: InstantiationException) -> bool:
    """Whether the user made a mistake; other exceptions of a constructor are bugs."""
    return isinstance(error.__cause__, UserError) or "Error locating target" in str(error)


def _exit(line: str, status: int) -> NoReturn:
    text = process_prefix() + secrets.redact(" ".join(line.split()))
    sys.stderr.write(f"{text}\n")  # at once: other processes of the run write to the same terminal
    raise SystemExit(status)
