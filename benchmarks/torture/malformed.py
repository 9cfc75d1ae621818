"""The property tests of tests/torture at length, and how many malformed cases they tried.

python -m benchmarks.torture.malformed --count 1000
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.torture.record import RESULTS, keep


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="examples of each property")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts = Path(folder) / "counts.json"
        options = ["-q", "-p", "no:cacheprovider", "--torture-json", str(counts), f"--hypothesis-seed={given.seed}"]
        environment = os.environ | {"P3O_TORTURE_EXAMPLES": str(given.count)}
        subprocess.run(
            [sys.executable, "-m", "pytest", "tests/torture", "--hypothesis-profile=torture", *options],
            check=True,
            cwd=RESULTS.parents[2],
            env=environment,
        )
        tried = json.loads(counts.read_bytes())
    keep("malformed", given, {"tried": sum(one["tried"] for one in tried.values()), "by_kind": tried})


if __name__ == "__main__":
    main()
