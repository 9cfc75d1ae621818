"""A refit that a signal stops on the first of two processes stops both, so that both save the same step."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from tests.distributed.ranks import on_ranks
from torch import nn

from p3o.distributed import world
from p3o.stages.rl import refit
from p3o.stopping import Stopped, note_signals, stop_if_asked


class Waiting:
    """Stands in for the refits of a run: the first process is asked to stop while it waits."""

    def refit(self, step: int, policy: nn.Module) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        stop_if_asked("2 of 2 pairs were waiting for people")

    def at(self, step: int) -> None:
        raise AssertionError("there is no new reward model")


def stopped_refit() -> Any:
    refits: Any = Waiting()
    with note_signals():
        try:
            refit(refits, 2, nn.Linear(1, 1))
        except Stopped as stop:
            return [stop.signal, str(stop), world().totals(1.0)]
    return "went on"


@pytest.mark.slow
def test_both_processes_stop(tmp_path: Path) -> None:
    told = "stopped by SIGTERM while 2 of 2 pairs were waiting for people; everything is saved; continue with --resume"
    assert on_ranks(stopped_refit, tmp_path) == [[signal.SIGTERM, told, [2.0]]] * 2
