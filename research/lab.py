"""All commands under one name: ``lab VERB …``, such as ``lab train`` and ``lab evaluate RUN``."""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

from research.config import cli
from research.utils.errors import UserError
from research.utils.installation import HOME, PACKAGE

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
    """Run a command as its file would be run, with the other words as its arguments."""
    if words[:1] in ([], ["--help"], ["-h"]):
        print(usage())
        return
    verb = cli.choose("VERB", words[0], list(verbs()))
    sys.argv = [f"lab {verb}", *words[1:]]
    runpy.run_path(str(verbs()[verb]), run_name="__main__")


def main() -> None:
    """The console script ``lab``."""
    try:
        run(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
