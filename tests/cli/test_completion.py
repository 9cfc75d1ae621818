"""What the shell shows on Tab."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("typed", "word", "expected"),
    [
        ("p3o re", 1, {"reward", "report"}),
        ("p3o bench ", 2, {"frontier", "speed"}),
        ("p3o rl --algor", 2, {"--algorithm"}),
    ],
)
def test_commands_and_options_are_completed(typed: str, word: int, expected: set[str]) -> None:
    asked = {"_P3O_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(word)}
    done = subprocess.run(
        [sys.executable, "-m", "p3o"], env=os.environ | asked, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert expected <= set(done.stdout.split())
    assert all(word.startswith(typed.split(" ")[-1]) for word in done.stdout.split())
