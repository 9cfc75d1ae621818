"""The one exception that a user's mistake raises; the command line prints it as one line and exits with code 2."""

from collections.abc import Iterable
from difflib import get_close_matches


class P3OError(Exception):
    """Bad input: the message names the file, row or key, says what was wrong and what to do about it."""


def shorten(value: object, length: int = 60) -> str:
    """A value as it may stand inside a message: its ``repr`` on one line, cut at ``length`` characters."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # somebody else's __repr__, or an integer of more digits than Python writes
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= length else f"{text[: length - 1]}…"


def first_line(error: BaseException) -> str:
    """The first line of an exception's message without its full stop, or its type if it has none: somebody else's exceptions
    explain at length."""
    try:
        lines = str(error).strip().splitlines()
    except Exception:  # a __str__ that fails itself
        lines = []
    # A message may quote what no terminal can show.
    return lines[0].rstrip(".").encode(errors="backslashreplace").decode() if lines else type(error).__name__


def did_you_mean(wrong: str, known: Iterable[str]) -> str | None:
    """``"did you mean 'right'?"`` with the nearest known name, or None if none is near."""
    nearest = get_close_matches(wrong, list(known), n=1)
    return f"did you mean '{nearest[0]}'?" if nearest else None
