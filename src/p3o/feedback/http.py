"""What clients of served models have in common: when a request is sent again, how long to wait, and that no key is ever shown.

Sent again, after a pause that doubles: time-outs, cut connections, 408, 409, 425, 429, 5xx, and bodies that are not what was
asked for. A pause that the server asks for (Retry-After) is kept, up to a minute. A request that is refused for what it asks
(400, 413, 422) is not sent again. A refusal of the key or the model (401, 403, 404) would be given to every other request too.

A key is read from the environment and goes into the header of the request and nowhere else: what a server writes back is
searched for it before it is shown or kept.
"""

import asyncio
import os
import random
import re
from collections.abc import Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import urlsplit

from p3o.errors import P3OError, shorten

T = TypeVar("T")

LONGEST_PAUSE = 60.0
"""Seconds."""

REFUSED = {401: "the key was refused", 403: "access was refused", 404: "there is no such model or path"}
_SENT_AGAIN = {408, 409, 425, 429}


def is_sent_again(status: int) -> bool:
    """Whether the same request may be answered the next time."""
    return status in _SENT_AGAIN or status >= 500


def pause_before_next(attempt: int, *, backoff: int | float, wish: float) -> float:
    """Seconds to wait after the attempt of this number, counted from 0; ``wish`` is what the server asked for."""
    pause = float(backoff) * 2.0**attempt * (0.75 + random.random() / 2)
    return min(max(pause, wish), LONGEST_PAUSE)


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds; 0 if the server names none (or a date, which needs its clock to be ours)."""
    try:
        seconds = float(headers.get("retry-after", "0"))
        return seconds if seconds > 0 else 0.0  # also for NaN
    except ValueError:
        return 0.0


def check_address(address: str, *, key: str, example: str) -> None:
    """Addresses are written to files, so they may hold no user name, password or query.

    Raises:
        P3OError: if this one does, or is no http(s) address; it calls it by its ``key``.
    """
    try:
        parts = urlsplit(address)
        there = parts.hostname is not None and parts.port != 0  # a port that is no number is a ValueError
    except ValueError as error:
        raise P3OError(f"{key}: not a valid address; write for example {example}") from error
    if parts.scheme not in ("http", "https") or not there:
        raise P3OError(f"{key}: {shorten(address)} is not a valid address; write for example {example}")
    if "@" in parts.netloc or parts.query:
        raise P3OError(
            f"{key}: contains a password or a query; put the key into the environment variable and give only the address here"
        )


def read_key(variable: str) -> str:
    """The key in this environment variable; "" if it is not set.

    Raises:
        P3OError: if this is no name of a variable.
    """
    if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", variable):
        # It may be the key itself, so it is not repeated here.
        raise P3OError("api_key_env: not the name of an environment variable; write the variable's name, never the key")
    return os.environ.get(variable, "").strip()


def without_key(text: str, key: str) -> str:
    """The text with every occurrence of the key, and halves of surrogate pairs, which no file can hold, made harmless."""
    text = text.encode(errors="backslashreplace").decode()
    return text.replace(key, "***") if key else text


def told(what: str, error: BaseException | str, key: str) -> str:
    """What went wrong, on one line that may be shown."""
    message = " ".join(str(error).split()) or type(error).__name__
    return f"{what}: {shorten(without_key(message, key), 200)}"


def run_to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Run it, also under a loop that is running already, as in a notebook or a server."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()
