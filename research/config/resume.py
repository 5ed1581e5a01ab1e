"""The configuration of a run that is resumed: its own, with the changes of the command line.

``resume=RUN`` alone is enough: what conf/ says today does not count. Words that choose options
(``model=…``, ``experiment=…``) and values that the run has are accepted; of the others only those
whose rule is ``changeable``, the trackers, and where the data are.
"""

from __future__ import annotations

import copy
import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from research.config import run_files, stored, targets
from research.config.changes import WEIGHTS, set_value
from research.config.checks import check, check_value, run_faults
from research.config.compose import Composed, composed, config_dir, hydra_ready, own_targets
from research.config.group_rules import group_rules
from research.config.keys import MISSING, differences, leaves
from research.config.messages import HELP, format_value
from research.config.options import option_node, options
from research.config.outputs import run_dir_of
from research.config.overrides import override, train_command
from research.config.run_config import RunConfig
from research.config.run_paths import instead_of
from research.config.schema import GROUPS, OPTIONAL, RUN_RULES, register, rule_for
from research.config.stored import Plain
from research.utils.errors import UserError

SHOWN: Final = 3
"""Settings that a message lists."""
OF_THE_COMMAND: Final = ("resume", "run_dir", "init_from", "trust", "version")
"""Settings that are not taken from composed configurations."""
NETWORK: Final = ("model.", "compression.", "task.")
"""Settings without which the weights of a run do not fit."""


class _Changes(NamedTuple):
    """What typed words change.

    Attributes:
        settings: both values of each setting.
        values: of the settings that were composed.
        after: the composed configuration; None if only run settings were typed, for which it is
            not needed.
        words: the run's own, with which the typed ones were composed; without those of trackers
            that were replaced.
    """

    settings: dict[str, tuple[Any, Any]]
    values: dict[str, Any]
    after: Composed | None
    words: list[str] | None


def run_of(words: Sequence[str]) -> str | None:
    """The run that a command line resumes; None without ``resume=``, and for ``resume=auto``."""
    typed = [word for word in words if word.startswith("resume=")]
    try:
        found = _parser().parse_overrides(typed[-1:])
    except OverrideParseException:
        return None
    if not found or found[0].is_sweep_override() or found[0].value() in (None, "", "auto"):
        return None
    return str(found[0].value())


def compose(words: Sequence[str], own: Path | None = None) -> RunConfig:
    """The run of a command line with ``resume=RUN``.

    Args:
        words: of the command line, ``key=value`` each.
        own: folder with the user's own options, as ``--config-dir`` names it.

    Raises:
        UserError: for a run that cannot be read, or a setting that may not change.
        HydraException: for words that cannot be composed.
    """
    register()
    with hydra_ready(own):
        return _compose(words, own)


def _compose(words: Sequence[str], own: Path | None) -> RunConfig:
    run = run_of(words)
    assert run is not None
    typed = {each.key_or_group: each for each in _parser().parse_overrides(list(words))}
    _check_words(typed)
    folder = _folder(run)
    trusted: Any = typed["trust"].value() if "trust" in typed else []
    check_value("trust", trusted, [], {})
    names = {*trusted, *own_targets()}
    before = run_files.configuration(folder, names)
    is_own = run_files.is_own(folder)
    recorded = _recorded(folder, names)
    lines = [_line(each) for key, each in typed.items() if key not in OF_THE_COMMAND]
    changes = _composed_changes(before, recorded if is_own else None, lines)
    config, after = copy.deepcopy(before), changes.after
    for key, (_, value) in changes.settings.items():
        _put(config, key, value)
    values: Plain = {}
    for key, each in typed.items():
        if key not in (*GROUPS, *OPTIONAL, *OF_THE_COMMAND):
            values |= _values(key, each.value())
    rules = group_rules(config)
    for key, value in values.items():
        set_value(config, key, changes.values.get(key, value), rules)
    config["resume"] = run
    targets.check_targets(config, names)
    for error in run_faults(config):
        raise error
    fixed = unchangeable(before, config, moved=True)
    if fixed:
        more = [_line(typed["trust"])] if "trust" in typed else []
        raise _refusal(run, fixed, changes, [*lines, *more])
    if not is_own:
        config = _without_foreign_paths(config, {*values}, run)
    config["trust"] = targets.user_targets(config)
    started = changes.words if changes.words is not None else recorded
    choices = {} if after is None else after.choices
    return RunConfig(config, run_files.name(folder), merged(started or [], lines), choices, own)


def unchangeable(
    then: Mapping[str, Any], now: Mapping[str, Any], *, moved: bool = False
) -> dict[str, tuple[Any, Any]]:
    """Both values of every setting that differs and that a resumed run cannot change.

    A name is compared only if it was set; runs of earlier versions had one from their recipe.

    Args:
        then: configuration of the run; ``MISSING`` stands for a setting that it lacks.
        now: the configuration with which it would be resumed, checked.
        moved: whether its data may be elsewhere.
    """
    rules = group_rules(now)
    fixed = {}
    unnamed = ("name",) if now["name"] is None else ()
    for key, pair in differences(then, now, (stored.TRACKERS, *unnamed)).items():
        rule = rule_for(key, None, rules)
        if not (rule.may_change or (moved and rule.is_path and key.startswith("dataset."))):
            fixed[key] = pair
    return fixed


def merged(words: Sequence[str], more: Sequence[str]) -> list[str]:
    """The words of two command lines; the second replaces those with the same key."""
    replaced = {word.partition("=")[0] for word in more}
    return [*(word for word in words if word.partition("=")[0] not in replaced), *more]


def _parser() -> OverridesParser:
    return OverridesParser.create()


def _line(word: Override) -> str:
    return word.input_line or ""


def _check_words(typed: Mapping[str, Override]) -> None:
    """Refuse words that only have a meaning for a new run or a sweep."""
    for key, word in typed.items():
        line = _line(word)
        if word.type is not OverrideType.CHANGE or word.package is not None:
            message = f"{line!r}: settings are written key=value with no +, ~ or @ {HELP}"
            raise UserError(key, message)
        if key.startswith("hydra"):
            raise UserError(key, f"{line}: no effect with resume=RUN", "remove it")
        if word.is_sweep_override():
            composed([line])  # raises the error for several values without -m
        if key == "sweep" and word.value() is not None:
            message = f"{line} with resume=RUN: a sweep continues by its own command"
            raise UserError(key, message, "remove it")
        if key == "init_from" and word.value() is not None:
            raise UserError(
                "resume",
                f"resume={typed['resume'].value()} with {line}: resume continues a run, init_from "
                "starts a new one",
                "set only one of them",
            )


def _folder(run: str) -> Path:
    """The run folder of ``resume=run``, a folder or a checkpoint."""
    path = Path(run)
    folder = run_dir_of(path)
    if not path.exists():
        raise UserError(
            "resume",
            f"resume={run}: no such run folder or checkpoint",
            instead_of(path),
        )
    if not (folder / "config.yaml").is_file():
        if path.is_dir() and not (path / "checkpoints").exists():
            hint = "pass a run folder that has checkpoints/last.pt"
            raise UserError("checkpoint", f"resume={run}: no checkpoint in {path}", hint)
        raise UserError(
            "resume",
            f"resume={run}: no config.yaml in {folder}",
            f"pass a run folder, or start a new run from the weights with init_from={run}",
        )
    return folder


def _recorded(folder: Path, names: Collection[str]) -> list[str] | None:
    """The overrides of the run; None if they are lost or refused."""
    try:
        return run_files.overrides(folder / "overrides.yaml", names)
    except UserError:
        return None


def _composed_changes(config: Plain, recorded: list[str] | None, typed: Sequence[str]) -> _Changes:
    """What the typed words change in the configuration that the run's own words give today.

    What has changed in ``conf/`` since cancels out. An option that is not in the run's own words,
    or if these are not known, must be that of the run in every setting.

    Args:
        config: of the run.
        recorded: the run's own words, if they are known and may be composed.
        typed: the words of this command line.

    Raises:
        HydraException: if the typed words cannot be composed.
    """
    keys = [word.partition("=")[0] for word in typed]
    if all(key in RUN_RULES or key.startswith("tags.") for key in keys):
        return _Changes({}, {}, None, recorded)
    chosen = [key for key in keys if key in (*GROUPS, *OPTIONAL)]
    known = [] if recorded is None else [recorded, _without_trackers(recorded)]
    choices = [word for word in typed if word.partition("=")[0] in chosen]
    tries = [*((own, typed) for own in known), (None, typed), (None, choices)]
    for words, more in tries if chosen else tries[:-1]:
        try:
            before = composed(words or []).config
            after = composed(merged(words or [], more))
            settings = after.config
        except (HydraException, OmegaConfBaseException):
            if more is choices:
                raise
            continue
        new = {word.partition("=")[0] for word in choices if word not in (words or [])}
        whole = GROUPS if "experiment" in new else new
        before |= {group: config[group] for group in whole if group in GROUPS}
        found = differences(before, settings, OF_THE_COMMAND)
        # Names in this mapping may contain dots.
        changes = {k: pair for k, pair in found.items() if f".{WEIGHTS}." not in k}
        return _Changes(changes, dict(leaves(settings)) if more is typed else {}, after, words)
    return _Changes({}, {}, None, recorded)


def _without_trackers(words: Sequence[str]) -> list[str]:
    return [word for word in words if not word.startswith(f"{stored.TRACKERS}.")]


def _values(key: str, value: Any) -> dict[str, Any]:
    """The settings of a word: several for ``key={name: value}``."""
    is_node = isinstance(value, dict) and not key.endswith(f".{WEIGHTS}")
    return {f"{key}.{name}": each for name, each in leaves(value)} if is_node else {key: value}


def _put(config: Plain, key: str, value: Any) -> None:
    """Set a dotted key, or remove it for ``MISSING``."""
    *parts, last = key.split(".")
    node = config
    for part in parts:
        if not isinstance(node.get(part), dict):
            if value is MISSING:
                return
            node[part] = {}
        node = node[part]
    if value is not MISSING:
        node[last] = value
    elif last in node:
        del node[last]
        if not node:
            _put(config, ".".join(parts), MISSING)


def _refusal(
    run: str, fixed: Mapping[str, tuple[Any, Any]], changes: _Changes, typed: Sequence[str]
) -> UserError:
    """The error for settings that may not change.

    Args:
        run: as typed.
        fixed: from ``unchangeable``.
        changes: of the typed words.
        typed: these words, with ``trust=``.
    """
    other = [key.partition(".")[0] for key in fixed if key.count(".") == 1 and "_target_" in key]
    keys = [key for key in fixed if "_target_" in key or key.partition(".")[0] not in other]
    texts = [
        "{} is {} in the run, {} here".format(
            key, *("not set" if value is MISSING else format_value(value) for value in fixed[key])
        )
        for key in keys[:SHOWN]
    ]
    more = f"; and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    hint = "leave out what differs, or train a new run without resume="
    words = [*merged(changes.words or [], typed), override("init_from", run)]
    fits = not any(key.startswith(NETWORK) for key in fixed)
    if fits and changes.words is not None and _is_valid(words):
        hint = "leave out what differs, or start a new run from its weights: "
        hint += train_command(words, own=config_dir())
    return UserError("resume", f"resume={run}: {'; '.join(texts)}{more}", hint)


def _is_valid(words: Sequence[str]) -> bool:
    """Whether the command line of a new run is accepted."""
    try:
        found = composed(words)
        check(found.cfg, found.choices, words, own=own_targets())
    except (UserError, HydraException, OmegaConfBaseException):
        return False
    return True


def words_to_resume(folder: Path, config: Mapping[str, Any]) -> list[str]:
    """The words that ``resume=FOLDER`` needs beside it, ``key=value`` each; reads no file.

    Args:
        folder: of the run; outside of ``runs/``, its data must be named.
        config: of the run, of the user's own command line.
    """
    names = targets.own_names(config)
    trusted = [targets.trust_word(names)] if names else []
    if run_files.is_own(folder):
        return trusted
    paths = _foreign_paths(config, ())
    return [*trusted, *(override(key, value) for key, value in paths.items() if _is_needed(key))]


def _without_foreign_paths(config: Plain, typed: Collection[str], run: str) -> Plain:
    """The configuration of a run outside of ``runs/``, which may be someone else's.

    Its files, folders and addresses are used only if they were typed or are those of ``conf/``.

    Raises:
        UserError: if others are needed.
    """
    result = copy.deepcopy(config)
    foreign = _foreign_paths(config, typed)
    missing = [override(key, value) for key, value in foreign.items() if _is_needed(key)]
    if missing:
        raise UserError(
            "resume",
            f"resume={run}: it is outside runs/, so files and addresses that it names are not used",
            f"say where they are: {shlex.join(missing)}",
        )
    for key in foreign:
        _put(result, key, stored.CACHE)
    return {**result, "init_from": None, "run_dir": None}


def _foreign_paths(config: Mapping[str, Any], typed: Collection[str]) -> dict[str, Any]:
    """The files, folders and addresses of a run that were not typed and are not in ``conf/``."""
    found = {}
    for key, value in stored.paths_in(config).items():
        group, _, rest = key.partition(".")
        # Neither the file of the first weights nor the folder of the run is needed any more.
        if key in typed or group not in GROUPS or key == "model.pretrained":
            continue
        if value not in _packaged_values(group, rest):
            found[key] = value
    return found


def _is_needed(key: str) -> bool:
    """Whether a path must be known; another cache does as well."""
    return not key.endswith(".cache_dir")


def _packaged_values(group: str, key: str) -> list[Any]:
    """The values of a key in the options of a group."""
    found = []
    for option in options(group):
        node = OmegaConf.create({group: option_node(group, option)})
        try:
            value = OmegaConf.select(node, f"{group}.{key}")
        except OmegaConfBaseException:
            continue  # it depends on another group
        is_node = OmegaConf.is_config(value)
        found.append(OmegaConf.to_container(value, resolve=True) if is_node else value)
    return found
