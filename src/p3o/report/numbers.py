"""Numbers as the report prints them."""

import math
from collections.abc import Sequence

_GLUE = "\N{NO-BREAK SPACE}"


def number(value: float | None, digits: int = 2) -> str:
    """Fixed digits, a real minus sign, a dash for what was not measured; no negative zero."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.removeprefix("-")
    return text.replace("-", "−")


def with_error(value: float | None, error: float | None, digits: int = 2) -> str:
    """``1.23 ± 0.04``: a mean and its standard error."""
    if value is None or error is None:
        return number(value, digits)
    return f"{number(value, digits)}{_GLUE}±{_GLUE}{number(error, digits)}"


def signed(value: float, digits: int = 2) -> str:
    """A difference, with its sign."""
    text = number(value, digits)
    return text if text.startswith("−") or float(f"{value:.{digits}f}") == 0 else f"+{text}"


def percent(share: float | None, digits: int = 0) -> str:
    """A share as a percentage."""
    return "–" if share is None else f"{number(100 * share, digits)}{_GLUE}%"


def duration(seconds: float) -> str:
    """Seconds in the unit a person would use."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def listed(words: Sequence[str]) -> str:
    """``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
