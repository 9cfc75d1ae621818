"""How far a run has come: bars with the time left on a terminal, a plain line every few seconds elsewhere.

with progress.stage("sft", total=300) as advance:
    for _ in range(300):
        advance(1, loss=0.7)
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, Protocol, cast, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


@runtime_checkable
class Advance(Protocol):
    """What a stage calls after each piece of work."""

    def __call__(self, count: int = 1, /, **metrics: float) -> None:
        """Count this many more pieces as done, and show these numbers beside them."""


@runtime_checkable
class TextStream(Protocol):
    """A file of text, or something like it."""

    def write(self, text: str, /) -> Any:
        """Take a text."""

    def flush(self) -> Any:
        """Show what was written."""


class Nowhere:
    """A stream that shows nothing: of several processes one tells how far they are."""

    def write(self, text: str, /) -> int:
        """Take a text."""
        return len(text)

    def flush(self) -> None:
        """Nothing to show."""


class Progress:
    """Shows the stages of a run on a stream.

    Args:
        stream: where to write; standard error when None, so that standard output stays the command's own.
        terminal: whether to draw bars; asked of the stream when None.
        interval: seconds between two plain lines of a stage.
        clock: seconds that only grow; tests put their own here.
    """

    def __init__(
        self,
        stream: TextStream | None = None,
        *,
        terminal: bool | None = None,
        interval: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = _Console(
            file=cast(IO[str], stream or sys.stderr), force_terminal=terminal, highlight=False, soft_wrap=True
        )
        self._bars = _bars(self._console) if self._console.is_terminal else None
        self._interval = interval
        self._clock = clock
        self._open: list[str] = []

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Advance]:
        """A piece of work of ``total`` equal parts. A stage may run inside another."""
        self._open.append(name)
        try:
            if self._bars is not None:
                yield from self._bar(self._bars, name, total)
            else:
                yield from self._lines(" / ".join(self._open), total)
        finally:
            self._open.pop()

    def print(self, text: str) -> None:
        """A line of its own, above the bars if there are any."""
        self._console.print(text, markup=False)

    def _bar(self, bars: RichProgress, name: str, total: int) -> Iterator[Advance]:
        task = bars.add_task("  " * (len(self._open) - 1) + name, total=total, metrics="")

        def advance(count: int = 1, /, **metrics: float) -> None:
            shown: dict[str, Any] = {"metrics": _format(metrics)} if metrics else {}
            bars.update(task, advance=count, **shown)

        bars.start()  # does nothing when an outer stage has started it
        try:
            yield advance
        finally:
            if len(self._open) == 1:
                # The finished bars stay on the screen; the next stage begins below them with bars of its own.
                bars.stop()
                self._bars = _bars(self._console)

    def _lines(self, name: str, total: int) -> Iterator[Advance]:
        started = last = self._clock()
        done = 0
        latest: dict[str, float] = {}

        def advance(count: int = 1, /, **metrics: float) -> None:
            nonlocal done, last
            done += count
            latest.update(metrics)
            now = self._clock()
            if now - last >= self._interval and done < total:
                left = (now - started) / done * (total - done) if done else float("inf")
                last = now
                self.print(
                    _join(f"{name}: {done / total:.0%} ({done}/{total})", f"{_duration(left)} left", _format(latest))
                )

        yield advance
        self.print(_join(f"{name}: done in {_duration(self._clock() - started)}", _format(latest)))


class _Console(Console):
    """A console whose reader may leave: nobody has to watch a run for it to go on."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        # What is still in the stream's buffer would raise again when the interpreter flushes it at its end.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


def _bars(console: Console) -> RichProgress:
    return RichProgress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[metrics]}"),
        console=console,
    )


def _format(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def _join(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _duration(seconds: float) -> str:
    """12 s, 3 min 20 s, 2 h 05 min; "unknown time" while nothing is done yet."""
    if seconds == float("inf"):
        return "unknown time"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
