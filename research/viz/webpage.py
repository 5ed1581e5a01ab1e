"""Web pages of one file each, from the shell, style and scripts in ``research/viz/web``.

A page loads nothing: its content security policy allows only its own style and scripts.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Final

SHARED: Final = "research.viz"
TABLES: Final = ("tools.js", "table.js", "charts.js")
"""Shared scripts of a page with tables and charts; ``tools.js`` comes first on every page."""


@dataclass(frozen=True)
class WebPage:
    """A page.

    Attributes:
        text: of the HTML file.
        policy: its content security policy, which is also in the text.
    """

    text: str
    policy: str


def web_page(
    package: str,
    name: str,
    title: str,
    data: object,
    scripts: Sequence[str],
    shared: Sequence[str] = TABLES,
    loads: str = "",
) -> WebPage:
    """The page from ``NAME.html`` (the elements of its body) and ``NAME.css`` of a package.

    Args:
        package: with these files.
        name: of the page.
        title: of the page.
        data: JSON value that its scripts find as ``data``; without NaN and infinities.
        scripts: files of the package, in order.
        shared: files of ``research/viz/web`` that come before them.
        loads: further directives of the policy, such as ``img-src 'self'``.
    """
    style = _joined((SHARED, "web/base.css"), (package, f"{name}.css"))
    script = _joined(
        *((SHARED, f"web/{file}") for file in shared), *((package, file) for file in scripts)
    )
    policy = "; ".join(
        filter(None, ("default-src 'none'", _own("script", script), _own("style", style), loads))
    )
    text = json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    content = {
        "POLICY": policy,
        "TITLE": html.escape(title),
        "STYLE": style,
        "BODY": _joined((package, f"{name}.html")),
        # A name must not end the script element that holds the data.
        "DATA": text.replace("<", "\\u003c"),
        "SCRIPT": script,
    }
    # In one pass: the words of a placeholder may stand in the data.
    shell = _joined((SHARED, "web/shell.html"))
    return WebPage(re.sub("__([A-Z]+)__", lambda match: content[match[1]], shell), policy)


def _joined(*files: tuple[str, str]) -> str:
    return "\n".join(_read(files))


def _read(files: Iterable[tuple[str, str]]) -> Iterable[str]:
    for package, name in files:
        yield resources.files(package).joinpath(name).read_text(encoding="utf-8").strip()


def _own(kind: str, text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"{kind}-src 'sha256-{digest}'"
