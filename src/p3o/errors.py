"""The one exception that a user's mistake raises; the command line prints it as one line and exits with code 2."""

from collections.abc import Iterable
from difflib import get_close_matches


class P3OError(Exception):
    """Bad input: the message names the file, row or key, says what was wrong and what to do about it."""


def shorten(value: object, length: int = 60) -> str:
    """A value as it may stand inside a message: its ``repr`` on one line, cut at ``length`` characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= length else f"{text[: length - 1]}…"


def did_you_mean(wrong: str, known: Iterable[str]) -> str | None:
    """``"did you mean 'right'?"`` with the nearest known name, or None if none is near."""
    nearest = get_close_matches(wrong, list(known), n=1)
    return f"did you mean '{nearest[0]}'?" if nearest else None
