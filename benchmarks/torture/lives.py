"""One life of a command: it runs in a process of its own, which can be killed, starved of disk, and looked at after its death.

The process is forked from one that has imported everything already, so that a life begins at once and most kills fall into
work and not into imports. All else is as on the command line: the same ``main``, its own standard error, a real signal.
"""

import importlib
import os
import resource
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from p3o.cli import main

_GLANCE = 0.002
"""Seconds between two looks at a living process."""


def import_everything() -> None:
    """Import once what every life needs."""
    for name in (
        "p3o.pipeline",
        "p3o.report.terminal",
        "altair",
        "vl_convert",
        "transformers.models.llama.modeling_llama",
    ):
        importlib.import_module(name)


@dataclass
class Life:
    """A running command.

    Attributes:
        pid: of its process.
        errors: the file that its standard error goes to.
        code: the exit code, minus the signal if it was killed, once it is dead.
    """

    pid: int
    errors: Path
    code: int | None = None

    def told(self) -> str:
        """What it has written to standard error so far."""
        return self.errors.read_text(encoding="utf-8", errors="replace")

    def alive(self) -> bool:
        """Whether it still runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is None

    def wait(self, until: Callable[[], bool] = lambda: False, *, seconds: float) -> bool:
        """Wait for its end, for ``until`` or for so long; whether it still runs then."""
        end = time.monotonic() + seconds
        while self.alive() and time.monotonic() < end and not until():
            time.sleep(_GLANCE)
        return self.alive()

    def kill(self, number: signal.Signals, *, patience: float = 120.0) -> None:
        """Send it a signal and wait for its end.

        Raises:
            TimeoutError: if it does not end, which is a hang.
        """
        if self.alive():
            os.kill(self.pid, number)
        if self.wait(seconds=patience):
            os.kill(self.pid, signal.SIGKILL)
            self.wait(seconds=patience)
            raise TimeoutError(f"the command did not end within {patience:g} s of {number.name}")


def begin(arguments: Sequence[str], errors: Path, *, largest_file: int | None = None) -> Life:
    """Start ``p3o ARGUMENTS``.

    Args:
        arguments: of the command line.
        errors: where its standard error goes.
        largest_file: bytes that a file may have at most (``ulimit -f``); None: no limit.
    """
    errors.write_bytes(b"")  # here, so that nobody reads the words of an earlier life
    pid = os.fork()
    if pid:
        return Life(pid, errors)
    code = 1
    try:
        os.dup2(os.open(errors, os.O_WRONLY | os.O_APPEND), 2)
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
        code = main(list(arguments))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
