"""JSON and YAML documents: read without trust, and checked against the fields of a dataclass."""

from __future__ import annotations

import json
import re
import stat
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from research.utils import secrets
from research.utils.errors import Damaged, UserError, one_line

T = TypeVar("T")
MAX_BYTES: Final = {".json": 2**24, ".yaml": 2**16}
"""Of a document; reading YAML takes up to 15 microseconds a byte."""


class _Loader(yaml.SafeLoader):
    """Plain YAML without merge keys (``<<``), with which a small file can become any size.

    A key that is there twice is an error: YAML forbids it, but PyYAML takes the last.
    """

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Leave ``<<`` as it is; as a key it is then not valid."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        if len(found) != len(node.value):
            keys = Counter(self.construct_object(key, True) for key, _ in node.value)
            repeated = _shown(keys.most_common(1)[0][0])
            raise ValueError(f"{repeated} twice, line {node.start_mark.line + 1} and below")
        return found


class _TypedLoader(_Loader):
    """The same for a word of a command line: ``1e-6`` is a number, and a date is text."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in _Loader.yaml_implicit_resolvers.items()
    }


_TypedLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    [*"-+.0123456789"],
)


def load(path: Path, kind: type[T], key: str, hint: str = "use another run") -> T:
    """The content of a ``.json`` or ``.yaml`` file of plain values.

    Args:
        path: the file.
        kind: ``dict`` or ``list``, of the whole document.
        key: of the error.
        hint: of the error.

    Raises:
        Damaged: if it is missing, too large, or not such a document.
    """
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):  # opening a pipe would block
            raise ValueError("not a regular file")
        if about.st_size > MAX_BYTES[path.suffix]:
            raise ValueError(f"{about.st_size:,} bytes")
        text = path.read_text(encoding="utf-8")
        content = parse_json(text) if path.suffix == ".json" else parse_yaml(text)
    except FileNotFoundError:
        raise Damaged(key, f"{path}: missing", hint) from None
    except (OSError, ValueError, RecursionError, OverflowError, yaml.YAMLError) as error:
        raise Damaged(key, f"{path}: damaged ({one_line(error)})", hint) from None
    if not isinstance(content, kind):
        raise Damaged(key, f"{path}: damaged (expected a {kind.__name__})", hint)
    found: T = secrets.redacted(content)
    return found


def parse_json(text: str | bytes) -> Any:
    """Values from JSON; numbers may be infinite or NaN.

    Raises:
        ValueError, RecursionError: if it is not valid, or an object has two values for one key.
    """
    return json.loads(text, object_pairs_hook=_one_value_each)


def parse_yaml(text: str) -> Any:
    """Plain values from YAML, without tags and merge keys.

    Raises:
        yaml.YAMLError, ValueError, RecursionError, OverflowError: if it is not valid, or a mapping
            has a key twice.
    """
    return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader


def parse_typed(text: str) -> Any:
    """The value of ``key=text`` on a command line, in YAML.

    Unlike in YAML 1.1, ``1e-6`` is a number, and text without quotes is taken as it is: a date, or
    a path with ``#``.

    Raises:
        ValueError: if it is not valid.
    """
    try:
        value = yaml.load(text, _TypedLoader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, RecursionError, OverflowError) as error:
        raise ValueError(one_line(error)) from None
    text = text.strip()
    return text if isinstance(value, str) and text[0] not in "'\"" else value


def _one_value_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dict, if no key has two values; Python's parser would take the last."""
    found = dict(pairs)
    for key, value in pairs if len(found) != len(pairs) else ():
        if value != found[key]:
            both = f"{_shown(value)} and {_shown(found[key])}"
            raise ValueError(f"two values of {_shown(key)}: {both}")
    return found


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def validate(kind: type[T], document: object, key: str, file: Path, hint: str) -> T:
    """A document as a dataclass, by pydantic.

    Args:
        kind: the dataclass. Constraints stand in its annotations; ``pydantic.with_config`` says
            whether other fields are allowed.
        document: content of the file, as JSON.
        key: of the error.
        file: for the message.
        hint: of the error.

    Raises:
        UserError: for the first field that is missing, unknown or not valid.
    """
    try:
        adapter: TypeAdapter[T] = _adapter(kind)  # type: ignore[arg-type] # classes are hashable
        return adapter.validate_json(json.dumps(document))
    except ValidationError as error:
        raise UserError(key, f"{file}: {_first_problem(error)}", hint) from None


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _first_problem(error: ValidationError) -> str:
    first: Any = error.errors(include_url=False)[0]
    *above, last = first["loc"] or ["the file"]
    if first["type"] == "missing":
        return f"{_dotted(above) or 'the file'} has no {last!r}"
    name = _dotted([*above, last])
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{name} is not known"
    return f"{name} is {_shown(first['input'])}: {first['msg'].removeprefix('Value error, ')}"


def _dotted(parts: Sequence[int | str]) -> str:
    """``("groups", 1, "split")`` as ``groups[1].split``."""
    words = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return "".join(words).removeprefix(".")
