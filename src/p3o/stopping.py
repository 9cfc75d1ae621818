"""How a process is asked to stop, and how it answers.

SIGINT (Ctrl-C) and SIGTERM (a scheduler) ask. A training finishes its step, saves a checkpoint and raises ``Stopped``; what
takes long inside a step, such as waiting for people, looks now and then (``stop_if_asked``); whatever else runs is left at
once.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], None]


class Stopped(BaseException):
    """The process was asked to stop. Not an ``Exception``: no handler should take it for a failure.

    Attributes:
        signal: the number of the signal that asked.
    """

    def __init__(self, number: int, told: str = "") -> None:
        super().__init__(told or f"stopped by {signal.Signals(number).name}")
        self.signal = number


@contextmanager
def sigterm_stops() -> Iterator[None]:
    """Within this block SIGTERM raises ``Stopped``, as SIGINT raises KeyboardInterrupt: files are closed, states are told."""

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 (the signature of a handler)
        raise Stopped(number)

    with _handling({signal.SIGTERM: stop}):
        yield


@contextmanager
def note_signals(*, armed: bool = True) -> Iterator[list[int]]:
    """Within this block SIGINT and SIGTERM are noted in the list that it gives; the second SIGINT raises KeyboardInterrupt.

    Not ``armed``, nothing is noted and signals end the process as they otherwise would.
    """
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)

    with _handling({signal.SIGINT: note, signal.SIGTERM: note} if armed else {}):
        if armed:
            _listening.append(asked)
        try:
            yield asked
        finally:
            _listening[:] = [other for other in _listening if other is not asked]


_listening: list[list[int]] = []
"""What the open blocks of ``note_signals`` have noted."""


def noted() -> int:
    """The first signal that an open block of ``note_signals`` has noted; 0 if none has."""
    return next((asked[0] for asked in _listening if asked), 0)


def stop_if_asked(doing: str, number: int | None = None) -> None:
    """For what takes long inside a step of a training: stop where a signal was noted, and leave it to the training to save.

    Args:
        doing: what is left undone, to follow "while".
        number: of the signal, or 0, where several processes have agreed on it; None: as noted here.

    Raises:
        Stopped: if there was a signal.
    """
    if number := noted() if number is None else number:
        name = signal.Signals(number).name
        raise Stopped(number, f"stopped by {name} while {doing}; everything is saved; continue with --resume")


def ask_to_stop(number: int) -> bool:
    """Ask the trainings of this process to stop, as if the signal had come: where they run in a thread, or the signal came to
    another host. Returns whether there was one to ask."""
    for asked in _listening:
        asked.append(number)
    return bool(_listening)


@contextmanager
def _handling(handlers: dict[signal.Signals, Handler]) -> Iterator[None]:
    """These handlers, for the time of the block. Only the main thread can set any; elsewhere nothing changes. A signal that is
    ignored (SIGINT in a job of the shell's background) stays so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: signal.signal(number, handler)
        for number, handler in handlers.items()
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
