"""JSON documents checked against the fields of a dataclass."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from research.utils.errors import UserError

T = TypeVar("T")


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
    text = repr(first["input"])
    text = text if len(text) <= 60 else f"{text[:57]}…"
    return f"{name} is {text}: {first['msg'].removeprefix('Value error, ')}"


def _dotted(parts: Sequence[int | str]) -> str:
    """``("groups", 1, "split")`` as ``groups[1].split``."""
    words = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return "".join(words).removeprefix(".")
