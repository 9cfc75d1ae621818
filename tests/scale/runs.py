"""Runs of p3o on the embedded task, started as a user starts them, and the comparison of what came of two of them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

TOLERANCE = 1e-5
"""Of weights, and of metrics relative to their size: ranks add up in another order, and Adam divides small by small. The runs
are in float64, but transformers' RMSNorm rounds to float32: what differs in the last bit of 64 may there differ in the last of
32."""

ILL_CONDITIONED = {"explained_variance", "implicit_reward_accuracy"}
"""The first is 1 − a ratio of variances, which may be nearly 0 / 0 for an untrained critic; the second counts signs, of nothing
but rounding until the first update."""

STEPS = 40
_SETTINGS = ("evaluation.every=40", "checkpoints.every=5", "rl.training.learning_rate=3e-5")
LONG = ("--algorithm", "p3o_v2", "--steps", str(STEPS), *(part for one in _SETTINGS for part in ("--set", one)))
"""Options of a run long enough to be disturbed in the middle, with a checkpoint every five steps. At the demo's learning rate
the rounding of one step grows a thousandfold in forty, and runs that are equal could not be told from others; in float32 a
random number would sooner or later fall between two tokens' shares of probability that differ in their last bits."""

_SIZES = ("embedded.demonstrations=400", "embedded.pairs=96", "embedded.prompts=60", "evaluation.prompts=16")
_SMALL = (*_SIZES, "evaluation.best_of=[2]", "dtype=float64")
SMALL = ("--config", "demo_quick", *(part for one in _SMALL for part in ("--set", one)))
"""Options of a small run."""

_FEW_STEPS = ("sft.steps=4", "sft.learning_rate=3e-5", "reward.train.steps=3", "reward.train.learning_rate=3e-5")
WHOLE = (*SMALL, *(part for one in _FEW_STEPS for part in ("--set", one)))
"""Options of a run from end to end, whose roundings stay as small as those of LONG."""


def environment(**more: str) -> dict[str, str]:
    """Of a process of ours: this checkout's package, one thread, no hub."""
    source = Path(__file__).parents[2] / "src"
    return os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | more


def p3o(*arguments: str) -> list[str]:
    """The command line, in this interpreter."""
    return [sys.executable, "-m", "p3o", *arguments]


def prepare(output: Path, name: str = "base") -> Path:
    """A run's folder with an SFT model and a reward model, from a few steps each: what RL begins from."""
    place = ("--output", str(output), "--name", name)
    for stage in (("sft", *SMALL, "--set", "sft.steps=30"), ("sample",), ("reward",)):
        subprocess.run(p3o(*stage, *place), env=environment(), check=True, capture_output=True, timeout=240)
    return output / name


def copy(base: Path, name: str) -> Path:
    """The prepared folder under another name."""
    return Path(shutil.copytree(base, base.parent / name))


def in_folder(folder: Path, command: str, *arguments: str) -> list[str]:
    """This command in this folder."""
    return p3o(command, "--output", str(folder.parent), "--name", folder.name, *arguments)


def rl(folder: Path, *arguments: str) -> list[str]:
    """`p3o rl` in this folder."""
    return in_folder(folder, "rl", *arguments)


def done(
    folder: Path, *arguments: str, env: Mapping[str, str] | None = None, cwd: Path | None = None, command: str = "rl"
) -> subprocess.CompletedProcess[str]:
    """What came of `p3o rl`, or another command, in this folder."""
    return subprocess.run(
        in_folder(folder, command, *arguments),
        env=env or environment(),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=540,
    )


@contextmanager
def begun(
    folder: Path, *arguments: str, env: Mapping[str, str], cwd: Path | None = None
) -> Iterator[subprocess.Popen[str]]:
    """`p3o rl` in this folder, in a session of its own, with all that it prints on standard output; ended with the block."""
    process = subprocess.Popen(
        rl(folder, *arguments),
        env=env,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)
        if process.stdout is not None:
            process.stdout.close()


def checkpoint_of(folder: Path) -> int:
    """The step of the newest checkpoint; 0 without any."""
    return max((int(path.name) for path in folder.glob("checkpoints/rl/*/*") if path.name.isdigit()), default=0)


def wait_for_checkpoint(folder: Path, step: int, process: subprocess.Popen[str], seconds: float = 300) -> None:
    """Until a checkpoint of this step or a later one stands in the folder."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if checkpoint_of(folder) >= step:
            return
        assert process.poll() is None, f"it has ended before: {process.communicate()}"
        time.sleep(0.1)
    raise AssertionError(f"no checkpoint of step {step} within {seconds:g} s")


class Listener(threading.Thread):
    """Reads what a process prints on standard output; each line with the seconds since it was started."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        super().__init__(daemon=True)
        self.process, self.began = process, time.monotonic()
        self.lines: list[str] = []
        self.start()

    def run(self) -> None:
        """Until the process ends."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(f"{time.monotonic() - self.began:.0f} s: {line.rstrip()}")

    def wait_for(self, text: str, seconds: float = 300) -> None:
        """Until a line has this text."""
        deadline = time.monotonic() + seconds
        while not any(text in line for line in self.lines):
            assert self.process.poll() is None, "it has ended:\n" + "\n".join(self.lines)
            assert time.monotonic() < deadline, f"no {text!r} within {seconds:g} s:\n" + "\n".join(self.lines)
            time.sleep(0.1)

    def told(self, seconds: float = 540) -> list[str]:
        """The lines that tell of the engine, once it has succeeded."""
        code = self.process.wait(seconds)
        self.join(10)
        assert code == 0, "\n".join(self.lines)
        return [line for line in self.lines if "engine:" in line or "continuing" in line]


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_equal(one: Path, other: Path) -> float:
    """Both runs hold the same rows and the same weights, within TOLERANCE; what is no float, exactly. Returns the largest
    difference.

    Args:
        one: a run's folder.
        other: of the same settings.
    """
    rows, others = metrics(one), metrics(other)
    assert [row["stage"] for row in rows] == [row["stage"] for row in others]
    largest = 0.0
    for row, again in zip(rows, others, strict=True):
        assert row.keys() == again.keys()
        for key in row.keys() - ILL_CONDITIONED:
            if isinstance(row[key], float):
                difference = abs(row[key] - again[key]) / max(1.0, abs(row[key]), abs(again[key]))
                assert difference <= TOLERANCE, f"{key} is {row[key]} and {again[key]} in {row}"
                largest = max(largest, difference)
            else:
                assert row[key] == again[key], f"{key} in {row} and {again}"
    saved, found = (sorted(path.relative_to(run) for path in run.rglob("model.safetensors")) for run in (one, other))
    assert {file.parts[0] for file in saved} == {"sft", "reward_model", "rl"}
    assert saved == found
    for file in saved:
        weights, again = load_file(one / file), load_file(other / file)
        for name, tensor in weights.items():
            difference = (tensor - again[name]).abs().max().item()
            assert difference <= TOLERANCE, f"{file}: {name}"
            largest = max(largest, difference)
    return largest
