"""The lines and bars that a run shows, with a clock of our own."""

import os
import subprocess
import sys
from io import StringIO

import pytest

from p3o.training.progress import Progress


def test_plain_lines_come_every_few_seconds_with_the_time_left() -> None:
    stream, now = StringIO(), [0.0]
    progress = Progress(stream, terminal=False, interval=5.0, clock=lambda: now[0])
    with progress.stage("rl", total=2) as outer, progress.stage("p3o_v2", total=100) as advance:
        for step in range(100):
            now[0] += 1.0
            advance(1, loss=1 / (step + 1))
        outer()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "rl / p3o_v2: 5% (5/100), 1 min 35 s left, loss 0.2"
    assert lines[18] == "rl / p3o_v2: 95% (95/100), 5 s left, loss 0.01053"
    assert lines[19] == "rl: 50% (1/2), 1 min 40 s left"
    assert lines[20:] == ["rl / p3o_v2: done in 1 min 40 s, loss 0.01", "rl: done in 1 min 40 s"]


def test_a_terminal_shows_bars_and_printed_lines() -> None:
    stream = StringIO()
    progress = Progress(stream, terminal=True)
    with progress.stage("rl", total=2) as outer:
        with progress.stage("p3o_v2", total=3) as advance:
            advance(3, loss=0.25)
        progress.print("reward [model] at chance")
        outer(2)
    with progress.stage("evaluate", total=1) as advance:
        advance(1)
    shown = stream.getvalue()
    for text in ("p3o_v2", "3/3", "loss 0.25", "reward [model] at chance", "2/2", "evaluate"):
        assert text in shown


def test_a_stage_that_fails_closes_its_bar() -> None:
    stream = StringIO()
    progress = Progress(stream, terminal=True)
    for _ in range(2):
        with pytest.raises(ValueError, match="no"), progress.stage("sft", total=3):
            raise ValueError("no")
    assert stream.getvalue().count("\x1b[?25h") == 2  # the cursor is back


def test_a_reader_who_leaves_does_not_stop_the_run() -> None:
    script = (
        "import sys\n"
        "from p3o.training.progress import Progress\n"
        "progress = Progress(interval=0.0)\n"
        "with progress.stage('sft', total=20000) as advance:\n"
        "    for _ in range(20000): advance()\n"
        "print('finished')"
    )
    reader, writer = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=writer, text=True)
    os.close(writer)
    os.close(reader)
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (0, "finished\n")
