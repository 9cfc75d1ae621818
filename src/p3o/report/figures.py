"""The final figures of a run, as one JSON value: what `--json FILE` writes."""

from pathlib import Path
from typing import Any

from p3o.files import read_jsonl
from p3o.report.reading import read_json
from p3o.training.trackers import series
from p3o.training.tracking import METRICS_FILE, RUN_FILE


def final_figures(run: Path) -> dict[str, Any]:
    """Status, folder, seconds of each stage, and the last metrics of every series of a run.

    A series is a stage with its run or policy, such as ``rl/p3o_v2``; rows of one step are one.

    Raises:
        P3OError: if a record of the run cannot be read.
    """
    record = read_json(run / RUN_FILE)
    last: dict[str, dict[str, Any]] = {}
    path = run / METRICS_FILE
    for row in read_jsonl(path) if path.exists() else []:
        name = series(row)
        same_step = last.get(name, {}).get("step") == row.get("step")
        last[name] = (last.get(name, {}) if same_step else {}) | row
    return {
        "name": record["name"],
        "status": record["status"],
        "folder": str(run),
        "seed": record["seed"],
        "seconds": record["seconds"],
        "metrics": last,
    }
