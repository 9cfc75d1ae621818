"""The benchmark's files: JSON with everything, CSV with one row per method, task and seed, and the chart."""

import csv
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from p3o.bench.chart import frontier_chart
from p3o.bench.efficiency import paired_interval
from p3o.bench.methods import METHODS, TASKS, Setting
from p3o.bench.summary import BASELINE
from p3o.errors import P3OError


def check_writable(json_path: Path | None, output: Path | None) -> None:
    """Before minutes of work: make the folders.

    Raises:
        P3OError: if a folder cannot be made.
    """
    for folder in (json_path.parent if json_path else None, output):
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise P3OError(f"{folder}: cannot be created: {error.strerror}; choose another folder") from error


def assemble(
    measured: Sequence[Mapping[str, Any]],
    chosen: Mapping[tuple[str, str], Setting],
    seeds: Sequence[int],
    optima: Mapping[str, float],
    *,
    full: bool,
) -> dict[str, Any]:
    """All results but the summary, with what is needed to repeat them; ``optima`` is ``efficiency_of_optima`` of each task."""
    by_pair = {(row["method"], row["task"]): row for row in measured}
    results: dict[str, dict[str, Any]] = {}
    for (method, task), row in by_pair.items():
        efficiency = np.array(row["efficiency"])
        gap = paired_interval(efficiency - np.array(by_pair[BASELINE, task]["efficiency"]))
        fields = {name: value for name, value in row.items() if name not in ("method", "task")}
        results.setdefault(method, {})[task] = {
            "mean": float(efficiency.mean()),
            "standard_deviation": float(efficiency.std(ddof=1)),
            "minus_ppo": asdict(gap),
            **fields,
            "setting": asdict(chosen[task, method]),
        }
    return {
        "command": "p3o bench frontier" + (" --full" if full else ""),
        "commit": commit(),
        "machine": machine(),
        "seeds": list(seeds),
        "tasks": {
            name: {
                "betas": task.betas,
                "samples": task.samples,
                "efficiency_of_optima": optima[name],
            }
            for name, task in TASKS.items()
        },
        "titles": {name: METHODS[name].title for name in results},
        "results": results,
    }


def write(results: Mapping[str, Any], json_path: Path | None, output: Path | None) -> None:
    """The JSON to its path, and all files to the folder."""
    if json_path is not None:
        write_json(results, json_path)
    if output is not None:
        write_json(results, output / "frontier.json")
        write_csv(results, output / "frontier.csv")
        chart = frontier_chart(results)
        chart.save(str(output / "frontier.svg"))
        chart.save(str(output / "frontier.png"), scale_factor=2)


def write_json(data: Mapping[str, Any], path: Path) -> None:
    """Numbers to six significant digits, one key a line.

    Raises:
        P3OError: if the file cannot be written.
    """
    try:
        path.write_text(json.dumps(_rounded(data), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise P3OError(f"{path}: cannot be written: {error.strerror}; choose another place") from error


def write_csv(results: Mapping[str, Any], path: Path) -> None:
    """Columns: method, task, seed, efficiency."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["method", "task", "seed", "efficiency"])
        for method, tasks in results["results"].items():
            for task, row in tasks.items():
                for seed, value in zip(results["seeds"], row["efficiency"], strict=True):
                    writer.writerow([method, task, seed, f"{value:.6g}"])


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value


def commit() -> str | None:
    """The checkout's commit, with ``+`` where files differ from it; None outside of one."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "")


def machine() -> dict[str, Any]:
    cpus = Path("/proc/cpuinfo")
    models = (
        [line.split(":", 1)[1].strip() for line in cpus.read_text().splitlines() if line.startswith("model name")]
        if (cpus.exists())
        else [platform.processor()]
    )
    return {
        "cpus": len(models),
        "cpu": models[0] if models else platform.machine(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }
