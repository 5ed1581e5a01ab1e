"""All commands under one name: ``lab VERB …``, such as ``lab train`` and ``lab evaluate RUN``."""

from __future__ import annotations

import ast
import sys
from importlib import import_module
from pathlib import Path

from research.config import cli, command_line
from research.utils.errors import UserError
from research.utils.installation import HOME, IS_COPY, NAME, PACKAGE, VERSION

OTHERS = ("__init__", "batch", "judge", "lab", "train")
"""Modules at the top of the package that are no verbs, or one of another name."""


def verbs() -> dict[str, Path]:
    """The file of each command by its verb."""
    files = sorted(path for path in PACKAGE.glob("*.py") if path.stem not in OTHERS)
    return {"train": HOME / "train.py", **{path.stem: path for path in files}}


def usage() -> str:
    """The verbs, with the first line of each file."""
    lines = ["lab VERB …", "", "VERB"]
    for verb, path in verbs().items():
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        lines.append(f"  {verb:<12} {text.splitlines()[0].partition(': ``')[0].rstrip('.')}")
    return "\n".join([*lines, "", "lab VERB --help describes one."])


def run(words: list[str]) -> None:
    """Run a command as ``python -m research.VERB`` would, with the other words as its arguments."""
    if words[:1] in ([], ["--help"], ["-h"]):
        print(usage())
        return
    if words[0] == "--version":
        print(NAME, VERSION)
        return
    verb = cli.choose("VERB", words[0], list(verbs()))
    sys.argv = [f"lab {verb}", *words[1:]]
    # Imported, not run as __main__: what is recorded of the command stays as it was typed.
    if verb == "train":
        if not IS_COPY:
            sys.path.insert(0, str(HOME))  # as for ``python train.py``
        command_line(import_module("research.train" if IS_COPY else "train").main)
    else:
        module = import_module(f"research.{verb}")
        cli.command(module.USAGE, module.main)


def main() -> None:
    """The console script ``lab``."""
    try:
        run(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
