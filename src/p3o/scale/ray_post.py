"""What the driver and its workers tell each other: lines to show, how it ended, a wish to stop.

``Post`` lives in an actor on the driver's host; nothing here imports Ray, so that it can be tried without.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from p3o.stopping import ask_to_stop

POLL_SECONDS = 0.5
"""Between two looks of a worker for a wish to stop."""


@dataclass(frozen=True)
class Outcome:
    """How the work ended in a worker, where no other attempt would end otherwise.

    Attributes:
        kind: a mistake in what it was given, or a stop that was asked for.
        text: what to tell.
        signal: that asked for the stop.
    """

    kind: Literal["mistake", "stopped"]
    text: str
    signal: int = 0


@dataclass(frozen=True)
class News:
    """What the driver finds when it looks.

    Attributes:
        lines: to show, since the last look.
        outcome: the first that a worker reported.
        quiet_seconds: since a worker last asked for a wish to stop.
    """

    lines: list[str]
    outcome: Outcome | None
    quiet_seconds: float


class Post:
    """The actor's side."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._outcome: Outcome | None = None
        self._stop: int | None = None
        self._attempts = 0
        self._heard = time.monotonic()

    def attempt(self) -> int:
        """The number of this attempt, from 0; the first worker of each attempt asks once."""
        self._attempts += 1
        return self._attempts - 1

    def say(self, text: str) -> None:
        """A text for the user."""
        self._lines += text.splitlines()

    def finish(self, outcome: Outcome) -> None:
        """It has ended; the first to say so is the one that is believed."""
        self._outcome = self._outcome or outcome

    def ask_to_stop(self, number: int) -> None:
        """The driver has received this signal."""
        self._stop = number

    def stop_asked(self) -> int | None:
        """The signal, for workers."""
        self._heard = time.monotonic()
        return self._stop

    def collect(self) -> News:
        """What is new, for the driver."""
        lines, self._lines = self._lines, []
        return News(lines, self._outcome, time.monotonic() - self._heard)


class Lull:
    """When to tell that no worker runs: once in so many seconds of silence.

    Args:
        every: seconds.
    """

    def __init__(self, every: int | float) -> None:
        self._every, self._told = every, 0

    def due(self, quiet_seconds: int | float) -> bool:
        """Whether it is time, after so many seconds without a word of any worker."""
        count = int(quiet_seconds // self._every)
        due, self._told = count > self._told, count
        return due


def cause_of(error: BaseException) -> BaseException:
    """Why Ray says that a worker has failed: of one that does not answer, what became of it."""
    cause = getattr(error, "health_check_failure", error)
    assert isinstance(cause, BaseException)
    return cause


def in_words(error: BaseException) -> str:
    """A worker's failure in a line; of a traceback the last one, which says what it was."""
    lines = str(cause_of(error)).strip().splitlines() or [type(error).__name__]
    return (lines[-1] if lines[0].startswith("Traceback") else lines[0])[:200]


class Teller:
    """A stream of text whose lines go to the driver; of all workers but the first, nowhere."""

    def __init__(self, say: Callable[[str], Any] | None) -> None:
        self._say = say
        self._text = ""

    def write(self, text: str, /) -> int:
        """Take a text."""
        self._text += text
        return len(text)

    def flush(self) -> None:
        """Send the lines that are whole."""
        whole, newline, self._text = self._text.rpartition("\n")
        if newline and self._say is not None:
            self._say(whole)


@contextmanager
def stops_when_asked(asked: Callable[[], int | None], idle: Callable[[int], None]) -> Iterator[None]:
    """Inside, a thread looks for a wish to stop and hands it to the training that runs in this process.

    Args:
        asked: the signal that asked for it, once there is one. An error of it ends the looking: the driver has gone then,
            and Ray ends its workers.
        idle: called with the signal, again and again, while there is no training that could save its state.
    """
    over = threading.Event()

    def look() -> None:
        told = False
        while not over.wait(POLL_SECONDS):
            try:
                number = asked()
            except Exception:
                return
            if number is not None and not told:
                told = ask_to_stop(number)
                if not told:
                    idle(number)

    thread = threading.Thread(target=look, name="p3o stop", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
