"""``p3o bench frontier``: every method's distance from the best possible KL–reward frontier.

One job trains one method on one task, all β and seeds in one tensor program; jobs run side by side on the machine's cores.
The standard benchmark takes its settings from the file that the sweep wrote; ``--full`` repeats the sweep and uses more seeds.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from p3o.bench import results as result_files
from p3o.bench.efficiency import efficiency_of_optima, limits, objective_ratio, seed_frontiers
from p3o.bench.methods import EVALUATION_SEEDS, FULL_EVALUATION_SEEDS, METHODS, TASKS, Setting, tuned_on
from p3o.bench.summary import summarise
from p3o.bench.table import frontier_table
from p3o.bench.tune import SETTINGS_FILE, for_all_tasks, read_settings, run, settings_as_json, tune

Job = TypeVar("Job")
Outcome = TypeVar("Outcome")


def main(json_path: Path | None, *, full: bool, output: Path | None) -> None:
    """Run the benchmark, print its table and write what was asked for.

    Args:
        json_path: where to write the results; None writes no JSON.
        full: repeat the sweep of settings and use 12 seeds instead of 5.
        output: a folder for frontier.json, frontier.csv, frontier.svg, frontier.png and, with ``full``, settings.json.

    Raises:
        P3OError: if a file cannot be written, or the file of settings lacks a method.
    """
    console = Console(stderr=True)
    seeds = FULL_EVALUATION_SEEDS if full else EVALUATION_SEEDS
    result_files.check_writable(json_path, output)
    pairs = [(method, task) for method in METHODS for task in TASKS]
    if full:
        to_tune = [(method, task) for method, task in pairs if tuned_on(method, task) == task]
        tuned = _in_parallel(_tune, to_tune, console, "tuning")
        best = {(task, method): setting for method, task, setting, _ in tuned}
        sweep = settings_as_json(best, [row for *_, rows in tuned for row in rows])
        chosen = for_all_tasks(best)
    else:
        chosen, sweep = read_settings(), None
    jobs = [(method, task, chosen[task, method], seeds) for method, task in pairs]
    measured = _in_parallel(_measure, jobs, console, "training")
    optima = {name: float(efficiency_of_optima(task.build, seeds, task.betas).mean()) for name, task in TASKS.items()}
    results = result_files.assemble(measured, chosen, seeds, optima, full=full)
    results["summary"] = summarise(results)
    Console().print(frontier_table(results))
    result_files.write(results, json_path, output)
    if output is not None and sweep is not None:
        result_files.write_json(sweep, output / SETTINGS_FILE.name)


def _tune(job: tuple[str, str]) -> tuple[str, str, Setting, list[dict[str, Any]]]:
    method, task = job
    setting, rows = tune(method, task)
    return method, task, setting, rows


def _measure(job: tuple[str, str, Setting, Sequence[int]]) -> dict[str, Any]:
    """One method on one task: per-seed efficiency, frontier on the grid, and objective at the last step."""
    method, name, setting, seeds = job
    task = TASKS[name]
    curves = run(METHODS[method], task, [setting], seeds)
    frontiers = seed_frontiers(curves, limits(task.build(seeds), min(task.betas)))
    objective = objective_ratio(task.build, curves, seeds, task.betas)
    return {
        "method": method,
        "task": name,
        "efficiency": [float((reached / best).mean()) for _, reached, best in frontiers],
        "kl": np.mean([kl for kl, _, _ in frontiers], axis=0).tolist(),
        "gain": np.mean([reached for _, reached, _ in frontiers], axis=0).tolist(),
        "gibbs_gain": np.mean([best for _, _, best in frontiers], axis=0).tolist(),
        "objective": {str(beta): float(row.mean()) for beta, row in zip(task.betas, objective, strict=True)},
        "updates": float(curves.updates.mean()),
        "responses_learned": float(curves.responses_learned.mean()),
    }


def _one_thread() -> None:
    torch.set_num_threads(1)


def _in_parallel(work: Callable[[Job], Outcome], jobs: Sequence[Job], console: Console, what: str) -> list[Outcome]:
    """All outcomes in the order of the jobs. The longest jobs, those with replay, stand last in the table and start first."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    outcomes: dict[int, Outcome] = {}
    with (
        Progress(*columns, console=console, disable=not console.is_terminal) as progress,
        ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn"), initializer=_one_thread) as pool,
    ):
        bar = progress.add_task(what, total=len(jobs))
        futures = {pool.submit(work, job): i for i, job in reversed(list(enumerate(jobs)))}
        for done in as_completed(futures):
            outcomes[futures[done]] = done.result()
            progress.advance(bar)
            if not console.is_terminal and len(outcomes) % 10 == 0:
                console.print(f"{what}: {len(outcomes)} of {len(jobs)}")
    return [outcomes[i] for i in range(len(jobs))]
