"""Print how to repeat a run, and what has changed: ``python -m research.reproduce RUN``."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from research.config import cli, compose_config, outputs
from research.config.compose import CONFIG_DIR
from research.config.keys import MISSING, differences, leaves
from research.config.messages import format_change, format_value
from research.config.overrides import override, train_command
from research.config.rules import PATH
from research.config.run_files import OWN
from research.config.run_paths import instead_of
from research.config.stored import with_defaults
from research.engine.run_record import RunRecord, read_record
from research.utils.errors import UserError, printable
from research.utils.files import write_text
from research.utils.installation import HOME, IS_COPY, NAME, VERSION, is_here


@dataclass(frozen=True)
class ReproduceOptions(cli.TrustOptions):
    """Options of the command."""

    out: Path | None = cli.option(
        None,
        PATH,
        "folder for the printed text, reproduce.txt, and the commands alone, reproduce.sh",
        placeholder="FOLDER",
    )


USAGE = cli.usage(
    "python -m research.reproduce RUN [key=value …]",
    """
Prints what RUN, the folder of any run or trial, was made with; what is different today (commit,
changed files, Python, packages, hardware, and every setting to which conf/ gives another value
now); and the commands that repeat it. Settings whose defaults have changed since are written out in
them.
""",
    ReproduceOptions,
)

NOT_COMPARED = ("device", "logging", "trust", "version", *OWN)
"""Settings without effect on the result, or that depend on the machine."""
WHEELS = "https://download.pytorch.org/whl"


@dataclass(frozen=True)
class ChangedSetting:
    """A setting with another value than in the run.

    Attributes:
        key: dotted.
        recorded: value in the run; ``MISSING`` if it had none.
        current: value that the same overrides give today.
    """

    key: str
    recorded: Any
    current: Any

    def __str__(self) -> str:
        return format_change(self.key, self.recorded, self.current)


def describe(record: RunRecord, patch: Path) -> list[str]:
    """Lines that describe the run.

    Args:
        record: of the run.
        patch: file with its uncommitted changes, if it exists.
    """
    environment = record.environment
    git, hardware = environment["git"], environment["hardware"]
    data = environment["data"]
    packages = environment["packages"].items()
    lines = {
        "run": f"{record.folder}" + (f" ({record.outcome})" if record.outcome else ""),
        "command": f"python {shlex.join(environment['command'])}",
        "started in": environment["folder"] or "not recorded",
        "commit": f"{git.get('commit', 'not recorded')}{_state(git, patch)}",
        "seed": str(record.config.get("seed")),
        **({"processes": str(processes)} if (processes := environment["processes"]) > 1 else {}),
        "data": f"{data['name']}, hash {data['hash']}" if data else "hash not recorded here",
        "python": environment["python"] or "not recorded",
        "packages": ", ".join(f"{name} {version}" for name, version in packages if version),
        "hardware": "; ".join(_hardware(hardware)),
    }
    return [printable(f"{f'{name}:':<12}{text}") for name, text in lines.items()]


def _state(git: Mapping[str, Any], patch: Path) -> str:
    """Uncommitted changes and untracked files."""
    if not git.get("changed"):
        return ""
    parts = [f"changes in {patch.name}"] if patch.exists() else []
    if git.get("untracked"):
        parts.append(f"untracked and not saved: {', '.join(git['untracked'])}")
    return f"; {'; '.join(parts) or 'files were changed, and not saved'}"


def _hardware(hardware: Mapping[str, Any]) -> Iterator[str]:
    if "cpu" in hardware:
        cores, memory = hardware.get("cores", "?"), hardware.get("memory_gib", "?")
        yield f"{cores} cores of {hardware['cpu']}, {memory} GiB"
        yield f"GPUs: {', '.join(hardware.get('gpus', [])) or 'none'}"
        yield str(hardware.get("platform", "?"))


def environment_changes(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Lines for the parts of a recorded environment that are different today."""
    current = _parts(now)
    return [
        f"{name}: {_text(value)} → {_text(current.get(name))}"
        for name, value in _parts(recorded).items()
        if value != current.get(name)
    ]


def _parts(environment: Mapping[str, Any]) -> dict[str, Any]:
    git = environment["git"]
    return {
        "commit": git.get("commit"),
        "uncommitted changes": git.get("changed"),
        "untracked files": git.get("untracked") or [],
        "python": environment["python"],
        **environment["packages"],
        **environment["hardware"],
    }


def _text(value: Any) -> str:
    return "none" if value in (None, []) else printable(format_value(value))


def changed_settings(
    recorded: Mapping[str, Any], current: Mapping[str, Any]
) -> list[ChangedSetting]:
    """The settings in which two configurations differ, except ``NOT_COMPARED``.

    Settings that were added after a run have their defaults in its configuration.
    """
    pairs = differences(with_defaults(dict(recorded)), current, NOT_COMPARED)
    return [ChangedSetting(key, *values) for key, values in pairs.items()]


def own_options(record: RunRecord) -> tuple[Path | None, str]:
    """The folder of ``--config-dir`` with which the run is composed, and a remark about it.

    A folder that a record from outside ``runs/`` names is not used: a command with
    ``--config-dir`` may build every class in its files.
    """
    from research.config.run_files import is_own

    recorded = record.environment["config_dir"] or _flag(record.environment["command"])
    if recorded is None:
        return None, ""
    remark = f"the run had --config-dir {recorded}"
    if not is_own(record.folder):
        return None, f"{remark}, which is not repeated for a run outside runs/"
    folder = Path(record.environment["folder"], recorded)
    if not folder.is_dir():
        return None, f"{remark}, which is missing"
    here = folder.resolve().is_relative_to(Path.cwd())
    return folder.resolve().relative_to(Path.cwd()) if here else folder, ""


def _flag(command: Sequence[str]) -> str | None:
    """The folder of ``--config-dir`` in a command line; runs of earlier versions have only this."""
    for word, following in pairwise([*command, ""]):
        flag, equals, value = word.partition("=")
        if flag in (CONFIG_DIR, "-cd"):
            return (value if equals else following) or None
    return None


def current_overrides(
    record: RunRecord, own: Path | None = None
) -> tuple[list[str], list[ChangedSetting], list[ChangedSetting], str]:
    """The overrides that give the run's configuration today.

    Args:
        record: of the run.
        own: folder of ``--config-dir``.

    Returns:
        the run's own overrides and those for changed defaults; the changed settings; those of them
        that no override restores; and why the run's overrides cannot be composed today, else
        empty.
    """
    words = list(record.overrides)
    if not any(word.startswith("seed=") for word in words):
        words.append(f"seed={record.config['seed']}")
    try:
        now = compose_config(words, own).config
    except UserError as error:
        return words, [], [], str(error)
    changed = changed_settings(record.config, now)
    for setting in changed:
        if setting.recorded is not MISSING and setting.current is not MISSING:
            more = [*words, override(setting.key, setting.recorded)]
            try:
                now = compose_config(more, own).config
            except UserError:
                continue
            words = more
    return words, changed, changed_settings(record.config, now), ""


def commands(
    record: RunRecord,
    now: Mapping[str, Any],
    words: Sequence[str],
    patch: Path,
    *,
    same: bool,
    modified: bool,
    own: Path | None = None,
) -> list[str]:
    """Shell commands that repeat the run.

    Args:
        record: of the run.
        now: today's environment.
        words: overrides.
        patch: as in ``describe``.
        same: whether commit and files are the same.
        modified: whether tracked files have uncommitted changes now.
        own: folder of ``--config-dir``.
    """
    lines = []
    git = record.environment["git"]
    if not same and git.get("commit") and not IS_COPY:
        # Elsewhere, git would take another repository, or apply a part of the changes only.
        here = ["git", *([] if is_here(".") else ["-C", str(HOME)])]
        if modified:
            stash = shlex.join([*here, "stash"])
            lines.append(f"# first commit or stash the changes of the code: {stash}")
        lines.append(shlex.join([*here, "checkout", git["commit"]]))
        if patch.exists():
            lines.append(shlex.join([*here, "apply", str(patch.resolve())]))
    recorded = record.environment["packages"]
    wanted = [
        f"{name}=={version}"
        for name, version in recorded.items()
        if version and name in now["packages"] and version != now["packages"][name] and name != NAME
    ]
    if wanted:
        labels = dict.fromkeys(w.rpartition("+")[2] for w in wanted if "+" in w)
        index = [word for label in labels for word in ("--extra-index-url", f"{WHEELS}/{label}")]
        lines.append(shlex.join(["pip", "install", *wanted, *index]))
    return [*lines, train_command(words, own=own, processes=record.environment["processes"])]


def remarks(record: RunRecord, words: Sequence[str], lost: Sequence[ChangedSetting]) -> list[str]:
    """Remarks on what the commands do not restore."""
    lines = []
    gone = [f"{s.key}={format_value(s.recorded)}" for s in lost if s.recorded is not MISSING]
    new = [f"{s.key}={format_value(s.current)}" for s in lost if s.recorded is MISSING]
    if gone:
        lines.append(f"with today's files cannot be set: {', '.join(gone)}")
    if new:
        lines.append(f"with today's files new, and at their defaults: {', '.join(new)}")
    device = record.config.get("device")
    if any(word.startswith("device=") for word in words):
        lines.append(f"device={device} is that of the run; leave it out on a machine without it")
    elif device != "auto":
        lines.append(f"the run had device={device}; the command uses the first available one")
    if record.config.get("init_from"):
        lines.append(f"it started from the weights of {record.config['init_from']}")
    lines += [line for line in (_machines(record), _other_processes(record, words)) if line]
    if paths := _relative_paths(record, words):
        folder = record.environment["folder"]
        lines.append(f"start it in {folder}, to which these paths belong: {paths}")
    if IS_COPY and (commit := record.environment["git"].get("commit")):
        lines.append(f"it was run at commit {commit}; this is an installed copy of {VERSION}")
    return lines


def _machines(record: RunRecord) -> str:
    """How the processes of a run are started on as many machines; empty if it had one."""
    processes, count = (record.environment[name] for name in ("processes", "machines"))
    if count == 1:
        return ""
    each, rest = divmod(processes, count)
    typed = (
        f": type the command on each of them, with --nnodes={count} --nproc_per_node={each} "
        "--rdzv_backend=c10d --rdzv_endpoint=HOST:29500 in place of "
        f"--nproc_per_node={processes}; HOST is one of them"
    )
    return f"the run had its processes on {count} machines{'' if rest else typed}"


def _other_processes(record: RunRecord, words: Sequence[str]) -> str:
    """How another number of processes trains on the same batches; empty for a run of one."""
    processes, whole = (record.environment[name] for name in ("processes", "global_batch"))
    if processes == 1 or whole is None:
        return ""
    keys = {word.partition("=")[0] for word in words}
    typed = "" if "global_batch_size" in keys else f" with global_batch_size={whole}"
    instead = " in place of batch_size" if "batch_size" in keys else ""
    return f"another number of processes than {processes} has the same batches{typed}{instead}"


def _relative_paths(record: RunRecord, words: Sequence[str]) -> str:
    """The settings of a run that name files of the folder in which it was started, and would name
    others here; empty if there are none.
    """
    folder, keys = Path(record.environment["folder"]), {word.partition("=")[0] for word in words}
    values = [(k, v) for k, v in leaves(record.config) if k in keys and isinstance(v, str | list)]
    paths = [
        override(key, value)
        for key, value in values
        for name in ([value] if isinstance(value, str) else value)
        if isinstance(name, str) and name and _is_elsewhere(folder, name)
    ]
    return ", ".join(dict.fromkeys(paths))


def _is_elsewhere(folder: Path, name: str) -> bool:
    """Whether a relative path leads to something in ``folder``, but to something else here."""
    try:
        there = (folder / name).resolve()
        return there.exists() and there != Path(name).resolve()
    except (OSError, ValueError):  # no path, such as a long text
        return False


def report(record: RunRecord) -> tuple[str, list[str]]:
    """The printed text, and the commands alone."""
    own, remark = own_options(record)
    words, changed, lost, reason = current_overrides(record, own)
    # Imported late: mistakes are reported before torch is imported.
    from research.engine import run_folder

    now = run_folder.environment()
    patch = record.folder / run_folder.PATCH
    changes = patch.read_bytes() if patch.is_file() else b""
    git = record.environment["git"]
    untracked = [state.get("untracked", []) for state in (git, now["git"])]
    current = run_folder.changes()
    same_files = changes == current and untracked[0] == untracked[1]
    same = git.get("commit") == now["git"].get("commit") and same_files
    lines = environment_changes(record.environment, now)
    if git.get("changed") and now["git"].get("changed") and not same_files:
        lines.append("uncommitted changes: not those of the run")
    lines += [f"settings: {setting}" for setting in changed]
    if reason:
        lines.append(f"settings: today's conf/ refuses them ({reason})")
    steps = commands(record, now, words, patch, same=same, modified=bool(current), own=own)
    parts = [
        "\n".join(describe(record, patch)),
        "\n".join(["different now:", *(f"  {printable(line)}" for line in lines or ["nothing"])]),
        "\n".join(["to run it again:", *(f"  {line}" for line in steps)]),
    ]
    if notes := [*remarks(record, words, lost), *([remark] if remark else [])]:
        parts.append("\n".join(map(printable, notes)))
    return "\n\n".join(parts), steps


def main(words: list[str]) -> None:
    paths, options, _ = cli.parse(ReproduceOptions, words)
    if len(paths) != 1:
        raise UserError("RUN", "pass one RUN folder, then out=FOLDER if wanted", "see --help")
    run, out = Path(paths[0]), options.out
    if not run.exists():
        raise UserError("RUN", f"{run}: no such run", instead_of(run))
    text, steps = report(read_record(outputs.run_dir_of(run), options.trust))
    print(text)
    if out is not None:
        with outputs.writing_to(out):
            write_text(out / "reproduce.txt", f"{text}\n")
            write_text(out / "reproduce.sh", "\n".join(["set -e", *steps, ""]))


if __name__ == "__main__":
    cli.command(USAGE, main)
