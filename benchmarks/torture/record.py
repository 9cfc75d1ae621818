"""Where the numbers of docs/reliability.md come from: benchmarks/results/reliability.json, one entry for each torture."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from p3o.files import write_json
from p3o.training.environment import machine, versions

RESULTS = Path(__file__).parents[1] / "results" / "reliability.json"


def _commit() -> str:
    """The short hash of the commit, with a mark if its code was changed since; "unknown" outside a checkout."""

    def git(*arguments: str) -> str:
        asked = ["git", *arguments]
        return subprocess.run(asked, capture_output=True, text=True, cwd=RESULTS.parents[2], check=False).stdout.strip()

    commit = git("rev-parse", "--short", "HEAD")
    return f"{commit}-changed" if git("status", "--porcelain", "src", "benchmarks/torture") else commit or "unknown"


COMMIT = _commit()
"""As the torture starts: it runs the code of this moment, whatever is edited meanwhile."""


def keep(name: str, given: argparse.Namespace, figures: dict[str, Any]) -> None:
    """Print the figures and put them, with the command that made them, in the place of earlier ones of this name."""
    entry = {
        "command": " ".join(["python -m", (sys.modules["__main__"].__spec__ or sys).name, *sys.argv[1:]]),
        "commit": COMMIT,
        "seed": getattr(given, "seed", None),
        "machine": machine(),
        "versions": versions(),
        **figures,
    }
    print(json.dumps({name: entry}, indent=2))
    results = json.loads(RESULTS.read_bytes()) if RESULTS.exists() else {}
    write_json(RESULTS, dict(sorted((results | {name: entry}).items())))
