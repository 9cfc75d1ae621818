"""What the number of threads changes: the quick demo (or another run) with one thread twice, and with two.

    python -m benchmarks.torture.threads

The same number of threads must give the same files. Another number sums in another order; how far that carries is measured.
"""

import argparse
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.torture.lives import begin, import_everything
from benchmarks.torture.record import keep

from p3o.files import read_jsonl


def rows_with(threads: int, output: Path, name: str, config: str, seed: int) -> list[dict[str, Any]]:
    """The metrics of a run with so many threads."""
    settings = ["--set", f"threads={threads}", "--set", f"seed={seed}"]
    life = begin(["run", "--config", config, "--name", name, "--output", str(output), *settings], output / "stderr.txt")
    if life.wait(seconds=3600) or life.code != 0:
        raise RuntimeError(f"ended with {life.code}:\n{life.told()}")
    return read_jsonl(output / name / "metrics.jsonl")


def differences(one: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Where two runs part, and how far apart they are, by stage.

    A difference is relative to the larger of the two numbers and of 1.
    """
    largest: dict[str, float] = {}
    first: dict[str, str] = {}
    for left, right in zip(one, other, strict=False):
        stage = " ".join(str(left[key]) for key in ("stage", "run", "policy") if key in left)
        for key, value in left.items():
            found = right.get(key)
            if not isinstance(value, int | float) or not isinstance(found, int | float) or value == found:
                continue
            gap = abs(value - found) / max(abs(value), abs(found), 1.0)
            largest[stage] = max(largest.get(stage, 0.0), gap)
            first.setdefault(stage, f"step {left.get('step')}: {key} {value!r} and {found!r}")
    return {
        "equal": list(one) == list(other),
        "first": next(iter(first.items()), None),
        "largest_relative_difference": {stage: float(f"{gap:.2g}") for stage, gap in largest.items()},
    }


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="demo_quick", help="as of p3o run")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    import_everything()
    with tempfile.TemporaryDirectory(prefix="p3o-threads-") as name:
        output = Path(name)
        once, again = (rows_with(1, output, f"one-{i}", given.config, given.seed) for i in range(2))
        two = rows_with(2, output, "two", given.config, given.seed)
    figures = {"one_and_one_thread": differences(once, again), "one_and_two_threads": differences(once, two)}
    assert all(math.isfinite(gap) for gap in figures["one_and_two_threads"]["largest_relative_difference"].values())
    keep("threads", given, {"rows": len(once), **figures})


if __name__ == "__main__":
    main()
