"""Raw rows of JSON Lines files: one JSON object a line, UTF-8, blank lines ignored."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from p3o.data.rows import BadRowError, RawRow
from p3o.errors import shorten
from p3o.files import open_for_reading

MALFORMED = "malformed"
_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")


def jsonl_rows(path: Path) -> Iterator[RawRow]:
    """The rows of a file, each with its line; a line that is no JSON object comes as a bad row.

    Raises:
        P3OError: if the file is missing or unreadable.
    """
    with open_for_reading(path) as file:
        # Iterating over bytes ends lines at \n only: a text may hold U+2028, at which str.splitlines would cut it.
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield RawRow(f"{path}:{number}", _parse(line))
                except BadRowError as bad:
                    yield RawRow(f"{path}:{number}", bad)


def _parse(line: bytes) -> dict[str, Any]:
    if line.startswith(_MARKS):
        raise BadRowError(MALFORMED, "begins with a byte order mark; save the file as UTF-8 without BOM")
    try:
        value = json.loads(line.rstrip().decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        problem = f"not UTF-8 (byte 0x{line[error.start]:02x} at position {error.start + 1}); save the file as UTF-8"
    except json.JSONDecodeError as error:
        problem = (
            f"malformed JSON at column {error.pos + 1}: {error.msg.lower()}; each line must be one complete JSON object"
        )
    except RecursionError:
        problem = "nested too deeply; a row is one flat JSON object"
    except ValueError as error:  # ours, from the hooks, and Python's own for integers of thousands of digits
        problem = f"malformed JSON: {error}"
    else:
        if isinstance(value, dict):
            return value
        problem = f'is {kind_of(value)}; each line must be one complete JSON object, such as {{"prompt": "…"}}'
    raise BadRowError(MALFORMED, problem)


def kind_of(value: Any) -> str:
    """A JSON value's type, as a reader would say it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a text"
    if isinstance(value, list):
        return "a list"
    return "an object" if isinstance(value, dict) else f"of type {type(value).__name__}"


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of two values under one name Python would keep the last without a word."""
    items = dict(pairs)
    if len(items) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"{shorten(twice)} appears twice in one object; keep one")
    return items


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value; remove it")
