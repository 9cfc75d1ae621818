"""Runs of `p3o rl` on the embedded task, started as a user starts them, and the comparison of what came of two of them."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

TOLERANCE = 1e-4
"""Of weights, and of metrics relative to their size: ranks add up in another order, and Adam divides small by small."""

ILL_CONDITIONED = {"explained_variance"}
"""1 − a ratio of variances, which may be nearly 0 / 0 for an untrained critic."""

STEPS = 40
_SETTINGS = ("evaluation.every=40", "checkpoints.every=5", "rl.training.learning_rate=3e-5")
LONG = ("--algorithm", "p3o_v2", "--steps", str(STEPS), *(part for one in _SETTINGS for part in ("--set", one)))
"""Options of a run long enough to be disturbed in the middle, with a checkpoint every five steps. At the demo's learning rate
the rounding of one step grows a thousandfold in forty, and runs that are equal could not be told from others."""


def environment(**more: str) -> dict[str, str]:
    """Of a process of ours: this checkout's package, one thread, no hub."""
    source = Path(__file__).parents[2] / "src"
    return os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | more


def p3o(*arguments: str) -> list[str]:
    """The command line, in this interpreter."""
    return [sys.executable, "-m", "p3o", *arguments]


def prepare(output: Path, name: str = "base") -> Path:
    """A run's folder with an SFT model and a reward model, from a few steps each: what RL begins from."""
    small = ("embedded.demonstrations=400", "embedded.pairs=96", "embedded.prompts=60", "evaluation.prompts=16")
    chosen = (*small, "sft.steps=30", "evaluation.best_of=[2]")
    settings = [argument for setting in chosen for argument in ("--set", setting)]
    place = ("--output", str(output), "--name", name)
    for stage in (("sft", "--config", "demo_quick", *settings), ("sample",), ("reward",)):
        subprocess.run(p3o(*stage, *place), env=environment(), check=True, capture_output=True, timeout=240)
    return output / name


def copy(base: Path, name: str) -> Path:
    """The prepared folder under another name."""
    return Path(shutil.copytree(base, base.parent / name))


def rl(folder: Path, *arguments: str) -> list[str]:
    """`p3o rl` in this folder."""
    return p3o("rl", "--output", str(folder.parent), "--name", folder.name, *arguments)


def done(
    folder: Path, *arguments: str, env: Mapping[str, str] | None = None, prefix: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """What came of `p3o rl` in this folder."""
    return subprocess.run(
        [*prefix, *rl(folder, *arguments)], env=env or environment(), capture_output=True, text=True, timeout=540
    )


def wait_for_checkpoint(folder: Path, step: int, process: subprocess.Popen[str], seconds: float = 300) -> None:
    """Until a checkpoint of this step or a later one stands in the folder."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = [int(path.name) for path in folder.glob("checkpoints/rl/*/*") if path.name.isdigit()]
        if found and max(found) >= step:
            return
        assert process.poll() is None, f"it has ended before: {process.communicate()}"
        time.sleep(0.1)
    raise AssertionError(f"no checkpoint of step {step} within {seconds:g} s")


def kill_a_worker(address: str | None = None) -> int:
    """End one worker of Ray Train on this machine, as the kernel would; returns its process id."""
    for status in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            title = status.read_bytes()
            environ = status.with_name("environ").read_bytes()
        except OSError:  # it has ended
            continue
        if title.startswith(b"ray::RayTrainWorker") and (address is None or address.encode() in environ):
            os.kill(int(status.parent.name), signal.SIGKILL)
            return int(status.parent.name)
    raise AssertionError("no worker of Ray Train runs here")


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_equal(one: Path, other: Path, *, until: int | None = None) -> None:
    """Both runs hold the same rows and the same weights, within TOLERANCE; what is no float, exactly.

    Args:
        one: a run's folder.
        other: of the same settings.
        until: compare the steps of RL up to this one, and no weights. Where the number of processes differs, a random number
            will sooner or later fall between two tokens' shares of probability that differ in the last bits.
    """
    rows, others = metrics(one), metrics(other)
    if until is not None:
        rows, others = (
            [row for row in all_ if row["stage"] == "rl" and row["step"] <= until] for all_ in (rows, others)
        )
        assert len(rows) == until
    assert [row["stage"] for row in rows] == [row["stage"] for row in others]
    for row, again in zip(rows, others, strict=True):
        assert row.keys() == again.keys()
        for key in row.keys() - ILL_CONDITIONED:
            if isinstance(row[key], float):
                close = math.isclose(row[key], again[key], rel_tol=TOLERANCE, abs_tol=TOLERANCE)
                assert close, f"{key} is {row[key]} and {again[key]} in {row}"
            else:
                assert row[key] == again[key], f"{key} in {row} and {again}"
    if until is not None:
        return
    saved = sorted(path.relative_to(one) for path in one.glob("rl/*/model.safetensors"))
    assert saved
    assert saved == sorted(path.relative_to(other) for path in other.glob("rl/*/model.safetensors"))
    for file in saved:
        weights, again = load_file(one / file), load_file(other / file)
        for name, tensor in weights.items():
            assert (tensor - again[name]).abs().max() <= TOLERANCE, f"{file}: {name}"
