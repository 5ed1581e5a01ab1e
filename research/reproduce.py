"""What a run was made with, what is different now: ``python -m research.reproduce RUN``."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from research.config import cli, compose_config, stored, targets
from research.config.keys import MISSING, differences
from research.config.messages import shown
from research.config.migrations import current_word
from research.config.overrides import override, train_command
from research.config.rules import PATH
from research.config.schema import GROUPS
from research.utils.errors import UserError, one_line, printable
from research.utils.files import write_text


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

OWN = ("run_dir", "resume", "sweep")
"""What belongs to the one run and not to what it did: its folder, and how it came about."""
HERE = ("device", "trust", "version", *OWN)
"""Settings that say nothing of the result, or nothing on another machine."""
WORD = re.compile(r"(?!hydra[./=@])[A-Za-z][\w./@]*=")
COMMIT = re.compile(r"[0-9a-f]{7,64}|")
PACKAGE = re.compile(r"[A-Za-z0-9][\w.-]*")
VERSION = re.compile(r"\d[\w.!]*(\+[a-z0-9.]+)?")
WHEELS = "https://download.pytorch.org/whl"


@dataclass(frozen=True)
class Then:
    """A run folder's own record.

    Attributes:
        folder: the run folder.
        config: resolved configuration.
        overrides: of its command line, without ``OWN``.
        environment: as ``run_folder.describe`` wrote it.
        outcome: how it ended, in a few words; empty when it never began.
    """

    folder: Path
    config: dict[str, Any]
    overrides: list[str]
    environment: dict[str, Any]
    outcome: str


@dataclass(frozen=True)
class Setting:
    """One that is not as it was.

    Attributes:
        key: dotted.
        then: value in the run; ``MISSING`` if it had none.
        now: value that the same overrides give today.
    """

    key: str
    then: Any
    now: Any

    def __str__(self) -> str:
        then, now = ("(none)" if v is MISSING else shown(v) for v in (self.then, self.now))
        return f"{self.key}: {then} → {now}"


def read(folder: Path, trust: Sequence[str] = ()) -> Then:
    """What a run folder says of how it was made.

    Args:
        folder: of the run.
        trust: names of the user's own that its configuration may have.

    Raises:
        UserError: for a folder without a run, a damaged file, or one that says what no run does.
    """
    if not (folder / "config.yaml").exists():
        raise UserError("RUN", f"{folder}: no run here (no config.yaml)", "give a run folder")
    path = folder / "config.yaml"
    document = _load(path, dict)
    if "seed" not in document:
        raise UserError("RUN", f"{path}: has no seed", "this is no run's configuration")
    config = stored.recorded(document, str(path))
    _check_names(config, trust, path)
    overrides = _overrides(folder / "overrides.yaml", trust)
    environment = _environment(folder / "environment.json")
    for group in GROUPS:
        if not isinstance(config.get(group), dict):
            raise UserError("RUN", f"{path}: has no {group}", "this is no run's configuration")
    return Then(folder, config, overrides, environment, _outcome(folder / "summary.json"))


def _check_names(config: Mapping[str, Any], trust: Sequence[str], path: Path) -> None:
    try:
        targets.check_targets(config, trust)
    except UserError as error:
        raise UserError("RUN", f"{path}: refused, its configuration has {error}") from None


def _overrides(path: Path, trust: Sequence[str]) -> list[str]:
    """The words of a run's command line as they are written today, without ``OWN``.

    Whom its user trusted is no reason to trust them here: only what is given now is.

    Raises:
        UserError: for a word that is no setting of ours: it will be composed, and printed as a
            part of a command.
    """
    words = []
    for word in _load(path, list):
        if not isinstance(word, str):
            raise UserError(
                "RUN", f"{path}: refused, a {type(word).__name__} is no setting of a run"
            )
        if not WORD.match(word) or re.search(r"(?<!\\)\$\{", word):
            raise UserError("RUN", f"{path}: refused, {word[:80]!r} is no setting of a run")
        word = current_word(word)
        key, _, value = word.partition("=")
        if targets.TARGET in word:
            *above, last = key.split(".")
            if last != targets.TARGET:
                raise UserError("RUN", f"{path}: refused, {word[:80]!r} is no setting of a run")
            _check_names(targets.at(".".join(above), {last: value}), trust, path)
        if key not in (*OWN, "trust"):
            words.append(word)
    return [*words, f"trust=[{','.join(trust)}]"] if trust else words


def _environment(path: Path) -> dict[str, Any]:
    """As ``run_folder.describe`` wrote it.

    Raises:
        UserError: for a commit, a package or a version that is none: commands are made of them.
    """
    found = _load(path, dict)
    parts = {name: found.get(name) or {} for name in ("git", "packages", "hardware")}
    found = {"command": [], "data": None, "folder": "", "python": "", **found}
    data, gpus = found["data"], parts["hardware"].get("gpus", []) if parts["hardware"] else []
    sound = {
        **{name: isinstance(part, dict) for name, part in parts.items()},
        "command": _are_texts(found["command"]),
        "data": data is None or (isinstance(data, dict) and {"name", "hash"} <= {*data}),
        "folder": isinstance(found["folder"], str),
        "python": isinstance(found["python"], str),
        "gpus": _are_texts(gpus),
    }
    for name, right in sound.items():
        if not right:
            raise UserError("RUN", f"{path}: damaged ({name})", "use another run")
    commit = parts["git"].get("commit")
    if commit is not None and not (isinstance(commit, str) and COMMIT.fullmatch(commit)):
        raise UserError("RUN", f"{path}: refused, {str(commit)[:80]!r} is no commit")
    for name, version in parts["packages"].items():
        if version is None:
            continue
        if not PACKAGE.fullmatch(name) or not VERSION.fullmatch(str(version)):
            raise UserError(
                "RUN", f"{path}: refused, {name[:40]}=={str(version)[:40]} is no package"
            )
    return {**found, **parts}


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


def _load(path: Path, kind: type) -> Any:
    parsed = json.loads if path.suffix == ".json" else yaml.safe_load
    try:
        found = parsed(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("RUN", f"{path}: missing", "this run cannot be repeated") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError("RUN", f"{path}: damaged ({one_line(error)})", "use another run") from None
    if not isinstance(found, kind):
        raise UserError("RUN", f"{path}: damaged (expected a {kind.__name__})", "use another run")
    return found


def _outcome(path: Path) -> str:
    """How it ended; empty when it says nothing of that."""
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        if not summary["best_epoch"]:
            return str(summary["status"])
        value, epoch = summary["best_value"], summary["best_epoch"]
        return f"{summary['status']}, best {summary['monitor'][0]} {value:.4f} at epoch {epoch}"
    except (
        OSError, ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError,
    ):  # fmt: skip
        return ""


def about(then: Then, patch: Path) -> list[str]:
    """What the run was, a line each; ``patch`` has its uncommitted changes if it is there."""
    environment = then.environment
    git, hardware = environment.get("git", {}), environment.get("hardware", {})
    data = environment.get("data")
    packages = environment.get("packages", {}).items()
    lines = {
        "run": f"{then.folder}" + (f" ({then.outcome})" if then.outcome else ""),
        "command": f"python {shlex.join(environment.get('command', []))}",
        "started in": environment.get("folder", "not recorded"),
        "commit": f"{git.get('commit', 'not recorded')}{_state(git, patch)}",
        "seed": str(then.config.get("seed")),
        "data": f"{data['name']}, hash {data['hash']}" if data else "hash not recorded here",
        "python": environment.get("python", "not recorded"),
        "packages": ", ".join(f"{name} {version}" for name, version in packages if version),
        "hardware": "; ".join(_hardware(hardware)),
    }
    return [printable(f"{f'{name}:':<12}{text}") for name, text in lines.items()]


def _state(git: Mapping[str, Any], patch: Path) -> str:
    """How the files stood to the commit."""
    if not git.get("changed"):
        return ""
    parts = [f"changes in {patch.name}"] if patch.exists() else []
    if git.get("untracked"):
        parts.append(f"untracked and not kept: {', '.join(git['untracked'])}")
    return f"; {'; '.join(parts) or 'files were changed, and not kept'}"


def _hardware(hardware: Mapping[str, Any]) -> Iterator[str]:
    if "cpu" in hardware:
        cores, memory = hardware.get("cores", "?"), hardware.get("memory_gib", "?")
        yield f"{cores} cores of {hardware['cpu']}, {memory} GiB"
        yield f"GPUs: {', '.join(hardware.get('gpus', [])) or 'none'}"
        yield str(hardware.get("platform", "?"))


def drift(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What was recorded of an environment and is not so now, a line each."""
    ours, theirs = _parts(then), _parts(now)
    return [
        f"{name}: {_said(value)} → {_said(theirs.get(name))}"
        for name, value in ours.items()
        if value != theirs.get(name)
    ]


def _parts(environment: Mapping[str, Any]) -> dict[str, Any]:
    git = environment.get("git", {})
    return {
        "commit": git.get("commit"),
        "uncommitted changes": git.get("changed"),
        "python": environment.get("python"),
        **environment.get("packages", {}),
        **environment.get("hardware", {}),
    }


def _said(value: Any) -> str:
    return "none" if value in (None, []) else printable(shown(value))


def settings(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[Setting]:
    """The settings in which two configurations differ, but for ``HERE``."""
    return [Setting(key, *values) for key, values in differences(then, now, HERE).items()]


def overrides_now(then: Then) -> tuple[list[str], list[Setting], list[Setting], str]:
    """The words that give the run's configuration today.

    Returns:
        the run's own overrides and those that make up for changed defaults; the settings that
        have changed; those of them that no override brings back; and why the run's overrides
        cannot be composed today, empty if they can.
    """
    words = list(then.overrides)
    if not any(word.startswith("seed=") for word in words):
        words.append(f"seed={then.config['seed']}")
    try:
        now = compose_config(words).config
    except UserError as error:
        return words, [], [], str(error)
    changed = settings(then.config, now)
    for setting in changed:
        if setting.then is not MISSING and setting.now is not MISSING:
            more = [*words, override(setting.key, setting.then)]
            try:
                now = compose_config(more).config
            except UserError:
                continue
            words = more
    return words, changed, settings(then.config, now), ""


def commands(
    then: Then, now: Mapping[str, Any], words: Sequence[str], patch: Path, *, same: bool
) -> list[str]:
    """Shell lines that run it again.

    Args:
        then: the run.
        now: today's environment.
        words: overrides.
        patch: as in ``about``.
        same: whether the files are as they were.
    """
    lines = []
    git = then.environment.get("git", {})
    if not same and git.get("commit"):
        if now["git"].get("changed"):
            lines.append("# first commit or stash what is changed here: git stash")
        lines.append(shlex.join(["git", "checkout", git["commit"]]))
        if patch.exists():
            lines.append(shlex.join(["git", "apply", str(patch.resolve())]))
    recorded = then.environment.get("packages", {})
    wanted = [
        f"{name}=={version}"
        for name, version in recorded.items()
        if version
        and name in now["packages"]
        and version != now["packages"][name]
        and name != "backbone-lab"
    ]
    if wanted:
        labels = dict.fromkeys(w.rpartition("+")[2] for w in wanted if "+" in w)
        index = [word for label in labels for word in ("--extra-index-url", f"{WHEELS}/{label}")]
        lines.append(shlex.join(["pip", "install", *wanted, *index]))
    return [*lines, train_command(words)]


def remarks(then: Then, words: Sequence[str], left: Sequence[Setting]) -> list[str]:
    """What the commands do not say."""
    told = []
    lost = [f"{s.key}={shown(s.then)}" for s in left if s.then is not MISSING]
    new = [f"{s.key}={shown(s.now)}" for s in left if s.then is MISSING]
    if lost:
        told.append(f"with today's files cannot be set: {', '.join(lost)}")
    if new:
        told.append(f"with today's files new, and at their defaults: {', '.join(new)}")
    device = then.config.get("device")
    if any(word.startswith("device=") for word in words):
        told.append(f"device={device} is as it was; leave it out where this machine has none")
    elif device != "auto":
        told.append(f"device={device} was given to it; the command takes the first there is")
    if then.config.get("init_from"):
        told.append(f"it started from the weights of {then.config['init_from']}")
    return told


def report(then: Then) -> tuple[str, list[str]]:
    """What is printed, and the commands alone."""
    words, changed, left, why = overrides_now(then)
    # Imported late: a mistake is answered before torch is there.
    from research.engine import run_folder

    now = run_folder.environment()
    patch = then.folder / run_folder.PATCH
    recorded = patch.read_bytes() if patch.exists() else b""
    git = then.environment.get("git", {})
    untracked = [one.get("untracked", []) for one in (git, now["git"])]
    same_files = recorded == run_folder.changes() and untracked[0] == untracked[1]
    same = git.get("commit") == now["git"].get("commit") and same_files
    lines = drift(then.environment, now)
    if git.get("changed") and now["git"].get("changed") and not same_files:
        lines.append("uncommitted changes: others than then")
    lines += [f"settings: {setting}" for setting in changed]
    if why:
        lines.append(f"settings: today's conf/ does not take them ({why})")
    steps = commands(then, now, words, patch, same=same)
    parts = [
        "\n".join(about(then, patch)),
        "\n".join(["different now:", *(f"  {printable(line)}" for line in lines or ["nothing"])]),
        "\n".join(["to run it again:", *(f"  {line}" for line in steps)]),
    ]
    told = remarks(then, words, left)
    if told:
        parts.append("\n".join(map(printable, told)))
    return "\n\n".join(parts), steps


def main(words: list[str]) -> None:
    paths, options, _ = cli.parse(ReproduceOptions, words)
    if len(paths) != 1:
        raise UserError("RUN", "pass one RUN folder, then out=FOLDER if wanted", "see --help")
    run, out = Path(paths[0]), options.out
    if not run.exists():
        raise UserError("RUN", f"{run}: no such run", "pass a run folder")
    text, steps = report(read(cli.run_dir_of(run), options.trust))
    print(text)
    if out is not None:
        with cli.writing_to(out):
            write_text(out / "reproduce.txt", f"{text}\n")
            write_text(out / "reproduce.sh", "\n".join(["set -e", *steps, ""]))


if __name__ == "__main__":
    cli.command(USAGE, main)
