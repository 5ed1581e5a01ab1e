"""Passwords in addresses: hidden in texts, logs, tracebacks and command lines; known to reveal."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.tracking.mlflow_rules import store_address
from research.utils import secrets
from tests.conftest import ROOT, user_error


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What one test hides is not known to the next."""
    monkeypatch.setenv(secrets.INHERITED, "{}")
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    factory = logging.getLogRecordFactory()
    yield
    logging.setLogRecordFactory(factory)
    secrets._addresses.clear()
    secrets._parts.clear()


HIDDEN = {
    "http://me:hunter22@host:5000/x": "http://me:***@host:5000/x",
    "postgresql+psycopg://me:a%40b/c@host/db": "postgresql+psycopg://me:***@host/db",
    "mysql://me@corp.com:hunter22@host": "mysql://me@corp.com:***@host",
    "redis://:hunter22@host": "redis://:***@host",
    "https://token123@host": "https://***@host",
    "https://token123:@host/x": "https://***:@host/x",
    "postgresql://me:a b'c\"d@host/db": "postgresql://me:***@host/db",
    "postgresql://me:a?b@host/db": "postgresql://me:***@host/db",
    "postgresql://host/db?user=me&password=hunter22&sslmode=x": (
        "postgresql://host/db?user=me&password=***&sslmode=x"
    ),
    "http://host/api?Access_Token=hunter22": "http://host/api?Access_Token=***",
    "mssql+pyodbc:///?odbc_connect=PWD%3Dhunter22": "mssql+pyodbc:///?odbc_connect=***",
    "see http://me:hunter22@host, (http://a:other123@b)": "see http://me:***@host, (http://a:***@b)",
}


@pytest.mark.parametrize("text", HIDDEN)
def test_a_secret_in_a_text_is_hidden(text: str) -> None:
    shown = secrets.hide(text)
    assert shown == HIDDEN[text]
    assert secrets.hide(shown) == secrets.redact(shown) == shown
    assert secrets.redact(f"failed: {text}").endswith(HIDDEN[text])
    assert secrets.redacted([{"a": text}]) == [{"a": shown}]


@pytest.mark.parametrize(
    "text",
    ["sqlite:///runs/mlflow.db", "postgresql://me@host/db", "http://host:80/a", "s3://a/b", "a@b",
     "postgresql://a:5432,b:5432/db", "postgresql://me:${oc.env:PASSWORD}@host/db", "key=value"],
)  # fmt: skip
def test_a_text_without_a_secret_stays(text: str) -> None:
    assert secrets.hide(text) == secrets.redact(text) == text


WORD = st.text(st.characters(codec="ascii", min_codepoint=33), min_size=4, max_size=20)


@settings(max_examples=100, deadline=None)
@given(password=WORD, scheme=st.sampled_from(["http", "https", "postgresql", "mysql+pymysql"]))
def test_any_password_is_hidden_wherever_a_library_writes_it(password: str, scheme: str) -> None:
    address = f"{scheme}://me:{quote(password, safe='')}@db.example:77/x"
    shown = secrets.hide(address)
    assert shown == f"{scheme}://me:***@db.example:77/x"
    assert secrets.reveal(shown) == address
    if password not in shown and quote(password, safe="") not in shown:
        messages = (password, repr(password), json.dumps(password), address, f"{address}/y failed")
        for message in messages:
            assert password not in secrets.redact(f"error: {message} at 1")
    secrets._addresses.clear()
    secrets._parts.clear()


def test_logs_of_libraries_and_their_tracebacks_are_redacted(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    secrets.hide("postgresql://me:hunter%2122@host/db")
    try:
        raise ValueError("cannot log in with hunter!22")
    except ValueError as error:
        logging.getLogger("a.library").exception("tried %s", "hunter%2122")
        sys.excepthook(ValueError, error, None)
    assert caplog.messages == ["tried ***"]
    assert "cannot log in with ***" in caplog.text
    assert "cannot log in with ***" in capsys.readouterr().err
    with user_error("x", "with ***"):
        raise secrets_error("with hunter!22")


def secrets_error(message: str) -> Exception:
    from research.utils.errors import UserError

    return UserError("x", message)


def test_an_address_without_its_password_is_found_in_the_environment_or_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = "http://me:***@host"
    with user_error("logging.mlflow.uri", shown, secrets.TRACKING_URI):
        store_address(shown)
    monkeypatch.setenv(secrets.TRACKING_URI, "http://me:hunter22@host")
    assert store_address(shown) == store_address(None) == "http://me:hunter22@host"
    with user_error("logging.mlflow.uri"):
        store_address("http://me:***@other")
    assert store_address("http://me:own-word@host") == "http://me:own-word@host"
    assert store_address(shown) == "http://me:own-word@host"


def test_child_processes_know_an_address_of_the_command_line() -> None:
    secrets.hide("http://me:hunter22@host")
    code = "from research.utils import secrets; print(secrets.reveal('http://me:***@host'))"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert child.stdout == "http://me:hunter22@host\n"


def test_the_command_line_is_hidden_also_in_the_list_of_processes(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from research.utils import secrets\n"
        "secrets.hide_command_line()\n"
        "print(sys.argv[1:], sys.orig_argv, Path('/proc/self/cmdline').read_bytes())\n"
        "print(secrets.reveal('http://me:***@host/x') == 'http://me:hunter\\'22@host/x')"
    )
    word = "logging.mlflow.uri='http://me:hunter\\'22@host/x'"
    child = subprocess.run(
        [sys.executable, "-c", code, word], capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, secrets.INHERITED: "{}"},
    )  # fmt: skip
    assert "hunter" not in child.stdout, child.stderr
    assert child.stdout.startswith("[\"logging.mlflow.uri='http://me:***@host/x'\"]")
    assert child.stdout.endswith("True\n")
