"""Passwords and tokens in addresses, which must not be written, logged or shown.

The words of a command line lose their secrets when the command starts (``hide_command_line``), and
so does every text of a configuration (``hidden``): ``http://me:word@host`` becomes
``http://me:***@host``. Files, messages and other processes get only that. What opens an address
asks for the whole one with ``reveal``. Processes that this one starts find it in the environment.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import re
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, quote_plus, unquote, unquote_plus

HIDDEN: Final = "***"
TRACKING_URI: Final = "MLFLOW_TRACKING_URI"
"""MLflow's own variable; an address in it may stand for the same one without its password."""
INHERITED: Final = "BACKBONE_LAB_ADDRESSES"
"""Environment variable: a JSON object, hidden address to address."""
SHORTEST: Final = 4
"""Characters; shorter secrets are hidden in addresses only, since any text may contain them."""
INTERPOLATION: Final = "${"
"""Of Hydra, such as ``${oc.env:PASSWORD}``; what it stands for is hidden once it is resolved."""
ADDRESS = re.compile(r"\s*['\"\[]*[\w.+-]+://")
URL_IN_TEXT = re.compile(r"\S*://\S*")
QUERY = re.compile(
    r"(?i)((?:^|[&;])[^=&;]*(?:pass|pwd|token|secret|key|auth|cred|sig|odbc_connect)[^=&;]*=)"
    r"([^&;#'\"]+)"
)

_addresses: dict[str, str] = {}
_parts: set[str] = set()


def hide(text: str) -> str:
    """The text with ``***`` for every password and token in its URLs; ``reveal`` undoes it.

    Args:
        text: a value of a configuration, or any other text.
    """
    if "://" not in text:
        return text
    if not ADDRESS.match(text):
        return URL_IN_TEXT.sub(lambda match: _hide_url(match[0]), text)
    return _hide_url(text)


def hidden(value: Any) -> Any:
    """A copy of plain values in which every text is hidden, see ``hide``."""
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, dict):
        return {hidden(key): hidden(entry) for key, entry in value.items()}
    return [hidden(entry) for entry in value] if isinstance(value, list | tuple) else value


def reveal(address: str) -> str | None:
    """The whole address that ``hide`` has shortened; None if its secret is not known here.

    It is known from this command line, from a parent process, or from ``MLFLOW_TRACKING_URI``.
    """
    if HIDDEN not in address:
        return address
    whole = os.environ.get(TRACKING_URI, "")
    known = {_split(whole)[0]: whole, **_inherited(), **_addresses}
    return known.get(address)


def redact(text: str) -> str:
    """A message or a text from a file without secrets: those in URLs, and known ones anywhere."""
    for part in sorted(_parts, key=len, reverse=True):
        text = text.replace(part, HIDDEN)
    return _redact_urls(text)


def redacted(value: Any, seen: dict[int, Any] | None = None) -> Any:
    """A copy of plain values from a file, hidden as by ``hidden`` but not known to ``reveal``.

    Args:
        value: may have the same container at several places, as YAML's aliases make it.
        seen: copies of containers by their identity.
    """
    if isinstance(value, str):
        return _split(value)[0] if "://" in value and ADDRESS.match(value) else _redact_urls(value)
    if not isinstance(value, dict | list | tuple):
        return value
    seen = {} if seen is None else seen
    if id(value) not in seen:
        copy: Any = {} if isinstance(value, dict) else []
        seen[id(value)] = copy
        if isinstance(value, dict):
            copy.update((key, redacted(entry, seen)) for key, entry in value.items())
        else:
            copy.extend(redacted(entry, seen) for entry in value)
    return seen[id(value)]


def hide_command_line() -> None:
    """Hide the secrets in ``sys.argv``, and on Linux in what ``ps`` shows of this process."""
    words = [hidden_word(word) for word in sys.argv]
    if words != sys.argv:
        sys.argv[:] = words
        sys.orig_argv[:] = [hidden_word(word) for word in sys.orig_argv]
        _overwrite_arguments()


def hidden_word(word: str) -> str:
    """A word of a command line; the value behind ``=`` may be quoted for Hydra."""
    start = word.find("://")
    equals = word.find("=", 0, max(start, 0))
    key, value = word[: equals + 1], word[equals + 1 :]
    if start < 0 or not ADDRESS.match(value):
        return hide(word)
    shown, secrets = _split(value)
    if shown != value:
        marks = value[:1] if value[:1] in ("'", '"') and value[-1:] == value[:1] else ""
        whole = value[len(marks) : len(value) - len(marks)].replace(f"\\{marks or '-'}", marks)
        _remember(shown[len(marks) : len(shown) - len(marks)], whole, secrets)
    return key + shown


def know_environment() -> None:
    """Redact the secrets of ``MLFLOW_TRACKING_URI``: MLflow may show it beside another address."""
    shown, secrets = _split(os.environ.get(TRACKING_URI, ""))
    _know(shown, secrets)


def login(address: str) -> tuple[str, str, str]:
    """A whole HTTP address without its login, the user and the password; empty if it has none."""
    scheme, mark, rest = address.partition("://")
    place, at, host = rest.rpartition("@")
    user, _, password = place.partition(":")
    if not (scheme in ("http", "https") and mark and at and user and password):
        return address, "", ""
    return f"{scheme}://{host}", unquote(user), unquote(password)


def _hide_url(url: str) -> str:
    shown, secrets = _split(url)
    if shown != url:
        _remember(shown, url, secrets)
    return shown


def _redact_urls(text: str) -> str:
    return URL_IN_TEXT.sub(lambda match: _split(match[0])[0], text) if "://" in text else text


def _split(url: str) -> tuple[str, list[str]]:
    """A URL without its secrets, and the secrets."""
    head, mark, rest = url.partition("://")
    place, question, query = rest.partition("?")
    if "@" not in place and "@" in query and ":" in place:
        place, question, query = rest, "", ""  # a question mark in a password
    secrets = []
    login, at, host = place.rpartition("@")
    user, colon, password = login.partition(":")
    if at and password and INTERPOLATION not in password:
        secrets.append(password)
        login = f"{user}:{HIDDEN}"
    elif (
        at
        and user
        and not password
        and "/" not in user
        and head.lower().endswith(("http", "https"))
    ):
        secrets.append(user)  # a token
        login = f"{HIDDEN}{colon}"

    def hidden_value(match: re.Match[str]) -> str:
        if INTERPOLATION in match[2]:
            return match[0]
        secrets.append(match[2])
        return f"{match[1]}{HIDDEN}"

    query = QUERY.sub(hidden_value, query)
    shown = f"{head}{mark}{login}{at}{host}{question}{query}" if mark else url
    return shown, [secret for secret in secrets if secret != HIDDEN] if mark else []


def _remember(shown: str, whole: str, secrets: list[str]) -> None:
    _addresses[shown] = whole
    _know(shown, secrets)
    os.environ[INHERITED] = json.dumps({**_inherited(), **_addresses})


def _know(shown: str, secrets: list[str]) -> None:
    """Redact secrets of an address in everything that is logged from now on."""
    if secrets:
        _redact_logs()
    for secret in secrets:
        plain = unquote(secret)
        forms = {secret, plain, unquote_plus(secret), quote(plain, safe=""), quote_plus(plain)}
        forms |= {json.dumps(form)[1:-1] for form in forms} | {repr(form)[1:-1] for form in forms}
        # A word that the address shows as well, such as the name of the user, is no secret.
        _parts.update(form for form in forms if len(form) >= SHORTEST and form not in shown)


def _inherited() -> dict[str, str]:
    try:
        known = json.loads(os.environ.get(INHERITED, "{}"))
    except ValueError:
        return {}
    return known if isinstance(known, dict) else {}


def _redact_logs() -> None:
    """Redact what libraries log, and the tracebacks of uncaught exceptions.

    SQLAlchemy, MLflow and requests put addresses into their messages.
    """
    make = logging.getLogRecordFactory()
    if getattr(make, "redacts", False):
        return

    def make_redacted(*args: Any, **more: Any) -> logging.LogRecord:
        record = make(*args, **more)
        try:
            record.msg, record.args = redact(record.getMessage()), ()
        except (TypeError, ValueError):
            record.msg, record.args = redact(str(record.msg)), ()
        if record.exc_info and record.exc_info[1] is not None:
            record.exc_text = redact(
                "".join(traceback.format_exception(record.exc_info[1]))
            ).rstrip()
        return record

    make_redacted.redacts = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(make_redacted)
    sys.excepthook = lambda _, error, __: _print_redacted(error)
    threading.excepthook = lambda args: _print_redacted(args.exc_value)


def _print_redacted(error: BaseException | None) -> None:
    print(redact("".join(traceback.format_exception(error))), end="", file=sys.stderr)


def _overwrite_arguments() -> None:
    """Overwrite known secrets in the memory from which Linux shows the command line."""
    try:
        fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
        start, end = int(fields[45]), int(fields[46])
    except (OSError, ValueError, IndexError):
        return  # not Linux
    if not 0 < start < end:
        return
    shown = ctypes.string_at(start, end - start)
    for part in _parts:
        secret = part.encode()
        at = shown.find(secret)
        while at >= 0:
            ctypes.memset(start + at, ord("*"), len(secret))
            at = shown.find(secret, at + len(secret))
