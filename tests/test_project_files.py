"""The small files of a kept project: version, changelog, citation, forms, hooks, container."""

from __future__ import annotations

import re
import shlex
import sys
import tomllib
from datetime import date
from typing import Any

import pytest
import yaml

import research
from research.config import command_line
from research.engine import run_folder
from research.lab import run as lab
from research.utils.installation import NAME, VERSION
from tests.conftest import ROOT

CHANGES = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
KINDS = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")
"""Of keepachangelog.com."""


def document(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


# -- version --------------------------------------------------------------------------------------


def test_the_version_stands_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    from hatchling.metadata.core import ProjectMetadata
    from hatchling.plugin.manager import PluginManager

    monkeypatch.chdir(ROOT)
    assert "version" not in PROJECT["project"]
    assert ProjectMetadata(str(ROOT), PluginManager()).version == VERSION
    assert research.__version__ == VERSION
    assert run_folder.versions()[NAME] == run_folder.environment()["packages"][NAME] == VERSION


@pytest.mark.parametrize("words", ["train --version", "evaluate --version", "--version"])
def test_every_command_says_it(
    words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["lab", *words.split()])
    lab(words.split())
    monkeypatch.setattr(sys, "argv", ["train.py", "--version", "epochs=3"])
    command_line(lambda: pytest.fail("it began"))
    assert capsys.readouterr().out == f"{NAME} {VERSION}\n" * 2


# -- changelog and citation ------------------------------------------------------------------------


def test_the_changelog_has_the_form_of_keep_a_changelog() -> None:
    assert CHANGES.startswith("# Changelog\n")
    heads = re.findall(r"^## (.*)$", CHANGES, re.MULTILINE)
    assert heads[0] == "[Unreleased]"
    released = [re.fullmatch(r"\[(\d+)\.(\d+)\.(\d+)\] - (\d{4}-\d\d-\d\d)", h) for h in heads[1:]]
    versions = [tuple(map(int, match.groups()[:3])) for match in released if match]
    days = [date.fromisoformat(match[4]) for match in released if match]
    assert len(versions) == len(heads) - 1
    assert versions == sorted({*versions}, reverse=True)
    assert days == sorted(days, reverse=True)
    assert ".".join(map(str, versions[0])) == VERSION
    assert {*re.findall(r"^### (.*)$", CHANGES, re.MULTILINE)} <= {*KINDS}
    assert not re.search(r"^### .*\n\n(?!- )", CHANGES, re.MULTILINE)  # no kind without an entry


def test_the_citation_is_of_the_released_version() -> None:
    found = document("CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= {*found}  # required by 1.2.0
    assert found["cff-version"] == "1.2.0"
    assert found["version"] == VERSION
    assert f"## [{VERSION}] - {found['date-released']}" in CHANGES
    assert found["license"] == PROJECT["project"]["license"]
    assert found["title"].lower().replace(" ", "-") == PROJECT["project"]["name"] == NAME
    assert all(
        author.keys() <= {"name", "given-names", "family-names"} for author in found["authors"]
    )


# -- forms of issues ------------------------------------------------------------------------------

ATTRIBUTES = {
    "markdown": {"value"},
    "textarea": {"label", "description", "placeholder", "value", "render"},
    "input": {"label", "description", "placeholder", "value"},
    "checkboxes": {"label", "description", "options"},
}
"""What GitHub's syntax of issue forms allows, of the elements that are used."""
NEEDED = {"markdown": "value", "textarea": "label", "input": "label", "checkboxes": "options"}


@pytest.mark.parametrize("name", ["bug", "feature"])
def test_a_form_is_one_that_github_shows(name: str) -> None:
    form = document(f".github/ISSUE_TEMPLATE/{name}.yml")
    assert {"name", "description", "body"} <= {*form} <= {
        "name", "description", "body", "labels", "title", "assignees",
    }  # fmt: skip
    elements = form["body"]
    assert any(element["type"] != "markdown" for element in elements)
    for element in elements:
        kind, attributes = element["type"], element["attributes"]
        assert {*element} <= {"type", "id", "attributes", "validations"}
        assert NEEDED[kind] in attributes
        assert {*attributes} <= ATTRIBUTES[kind]
        assert {*element.get("validations", {})} <= {"required"}
        assert kind == "markdown" or re.fullmatch(r"[\w-]+", element["id"])
        for entry in attributes.get("options", []):
            assert {*entry} <= {"label", "required"}
    ids = [element["id"] for element in elements if "id" in element]
    labels = [element["attributes"].get("label") for element in elements]
    assert len({*ids}) == len(ids)
    assert len({*labels}) == len(labels)
    text = (ROOT / f".github/ISSUE_TEMPLATE/{name}.yml").read_text(encoding="utf-8")
    for path in re.findall(r"[\w/]+\.md", text):
        assert (ROOT / path).exists()


# -- hooks and container --------------------------------------------------------------------------


def test_hooks_call_what_ci_calls_and_download_nothing() -> None:
    found = document(".pre-commit-config.yaml")
    assert [repository["repo"] for repository in found["repos"]] == ["local"]
    hooks = [hook for repository in found["repos"] for hook in repository["hooks"]]
    assert {hook["language"] for hook in hooks} == {"system"}
    needed = {"id", "name", "entry", "language"}
    assert all(
        needed <= {*hook} <= {*needed, "types", "types_or", "pass_filenames"} for hook in hooks
    )
    installed = {
        re.match(r"[\w-]+", each)[0] for each in PROJECT["project"]["optional-dependencies"]["dev"]
    }  # type: ignore[index]
    assert {shlex.split(hook["entry"])[0] for hook in hooks} <= installed
    ci = (ROOT / ".ci/run").read_text(encoding="utf-8")
    for hook in hooks:
        words = [word for word in shlex.split(hook["entry"]) if word != "--force-exclude"]
        assert shlex.join(words) in ci


def instructions() -> list[tuple[str, str]]:
    """The instructions of the container file, with their arguments."""
    text = (ROOT / "Containerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    pairs = [line.split(maxsplit=1) for line in lines]
    assert all(len(pair) == 2 for pair in pairs)
    return [(pair[0], pair[1]) for pair in pairs]


def test_the_container_is_made_of_what_is_here() -> None:
    known = {"FROM", "ENV", "WORKDIR", "COPY", "RUN", "USER", "VOLUME", "ENTRYPOINT", "CMD"}
    found = instructions()
    assert {name for name, _ in found} <= known
    assert found[0] == ("FROM", "python:3.11-slim")
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert found[0][1] == f"python:{oldest}-slim"
    copied: set[str] = set()
    for name, words in found:
        if name == "COPY":
            *sources, _ = words.split()
            assert all((ROOT / source).exists() for source in sources)
            copied |= {*sources}
    # All that the package is built from, and nothing that only lies beside it.
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    project = PROJECT["project"]
    needed = {
        *wheel["packages"],
        *wheel["force-include"],
        project["readme"],
        *project["license-files"],
    }
    assert copied == {*needed, "pyproject.toml"}
    ignored = (ROOT / ".containerignore").read_text(encoding="utf-8").splitlines()
    assert ignored[0] == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} == copied


def test_the_container_runs_the_readme_s_commands_as_a_plain_user() -> None:
    found = instructions()
    values = dict(found)
    names = [name for name, _ in found]
    assert values["USER"] not in ("root", "0")
    assert f"useradd --create-home --uid 1000 {values['USER']}" in "".join(w for _, w in found)
    assert names.index("USER") < names.index("ENTRYPOINT")
    assert values["VOLUME"] == "/home/lab/runs"
    assert [words for name, words in found if name == "WORKDIR"][-1] == "/home/lab"
    start = (ROOT / "docs" / "start.md").read_text(encoding="utf-8")
    assert "`pip install .`" in start
    assert ("RUN", "pip install .") in found
    program, verb = yaml.safe_load(values["ENTRYPOINT"])[0], yaml.safe_load(values["CMD"])[0]
    assert program in PROJECT["project"]["scripts"]
    assert f"{program} {verb}" in start
    head = (ROOT / "Containerfile").read_text(encoding="utf-8")
    for line in re.findall(r"^#   \w+ run .* backbone-lab (\w+)", head, re.MULTILINE):
        assert f"{program} {line} runs/RUN" in start


def test_the_page_for_contributors_names_what_exists() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", page):
        assert (ROOT / target).exists(), target
    for path in re.findall(r"`((?:research|tests|\.ci|docs)/[\w./]+)`", page):
        assert (ROOT / path).exists() or "STUDY" in path, path
    markers = [
        each.partition(":")[0] for each in PROJECT["tool"]["pytest"]["ini_options"]["markers"]
    ]
    assert all(f"`{marker}`" in page for marker in markers)
