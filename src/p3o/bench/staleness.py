"""``p3o bench staleness``: what it costs to learn from groups that an older policy sampled.

The methods and exact problems of ``p3o bench frontier``, each with the settings that were tuned there without any lag; nothing
is tuned here. The groups of step t are sampled by the policy of step t − d. All lags and β of a method on a task are arms
of one tensor program with the same prompts and the same sampling noise, so the cost of a lag is a difference between pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from p3o.algorithms import make_algorithm
from p3o.algorithms.p3o_residual import P3OResidualConfig
from p3o.bench import results as result_files
from p3o.bench.efficiency import efficiencies, paired_interval
from p3o.bench.methods import EVALUATION_SEEDS, METHODS, TASKS, Method, Setting, Task, schedule_of
from p3o.bench.staleness_report import staleness_chart, staleness_tables
from p3o.bench.train import Arm, Schedule, train
from p3o.bench.tune import arms, read_settings

LAGS = (0, 1, 2, 4, 8)
ON = ("bandit_0", "factorised_80")
"""The sequence problem is left out: it would take longer than these two together."""
COMPARED = ("p3o_v1", "p3o_v2", "p3o_r", "ppo", "rloo", "online_dpo")
NO_CLIP = 1e9

Correction = Literal["corrected", "uncorrected", "unclipped"]
"""With the ratio to the policy that sampled; with that to the policy at the groups' arrival; corrected, but without a clip."""


@dataclass(frozen=True)
class Variant:
    """One way to be late."""

    correction: Correction
    lag: int


def is_blind(method: Method, setting: Setting) -> bool:
    """Whether the loss never reads log π_old, so that there is nothing to correct and no clip: online DPO, and P3O-R without
    weights and without a clip."""
    config = make_algorithm(method.algorithm, **{**method.settings, **setting.algorithm}).config
    if isinstance(config, P3OResidualConfig):
        return config.importance == 0.0 and config.epsilon is None
    return method.algorithm == "online_dpo"


def variants(method: Method, setting: Setting, lags: Sequence[int] = LAGS) -> list[Variant]:
    """What is measured of a method. Without a lag, corrected and uncorrected are the same; the clip is taken away at the
    longest lag, and without a lag, to know what it does by itself."""
    corrected = [Variant("corrected", lag) for lag in lags]
    if is_blind(method, setting):
        return corrected
    uncorrected = [Variant("uncorrected", lag) for lag in lags if lag]
    return [*corrected, *uncorrected, *[Variant("unclipped", lag) for lag in sorted({0, max(lags)})]]


def late_arms(method: Method, task: Task, setting: Setting, late: Sequence[Variant]) -> list[Arm]:
    """β × variants as arms, variants running fastest."""
    free = replace(setting, algorithm={**setting.algorithm, "epsilon": NO_CLIP})
    clipped = arms(method, task, [setting])
    unclipped = arms(method, task, [free]) if any(variant.correction == "unclipped" for variant in late) else clipped
    return [
        replace(
            without if variant.correction == "unclipped" else plain,
            lag=variant.lag,
            corrected=variant.correction != "uncorrected",
        )
        for plain, without in zip(clipped, unclipped, strict=True)
        for variant in late
    ]


def measure(
    method: str, task: Task, setting: Setting, seeds: Sequence[int], late: Sequence[Variant], schedule: Schedule
) -> Float[np.ndarray, "variant seed"]:
    """The frontier efficiency of every variant and seed."""
    curves = train(task.build, late_arms(METHODS[method], task, setting, late), seeds, schedule)
    each = []
    for i in range(len(late)):
        own = curves._replace(reward=curves.reward[i :: len(late)], kl=curves.kl[i :: len(late)])
        each.append(efficiencies(task.build, own, seeds, task.betas)[0])
    return np.array(each)


def main(
    json_path: Path | None,
    *,
    output: Path | None,
    methods: Sequence[str] = COMPARED,
    tasks: Sequence[str] = ON,
) -> None:
    """Run the benchmark on one core, print its tables and write what was asked for.

    Args:
        json_path: where to write the results; None writes no JSON.
        output: a folder for staleness.json and staleness.svg.
        methods: which methods.
        tasks: on which tasks.

    Raises:
        P3OError: if a file cannot be written, or the file of settings lacks a method.
    """
    console = Console(stderr=True)
    result_files.check_writable(json_path, output)
    chosen, jobs = read_settings(), [(task, method) for task in tasks for method in methods]
    results: dict[str, dict[str, Any]] = {task: {} for task in tasks}
    torch.set_num_threads(1)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("training", total=len(jobs))
        for done, (task, method) in enumerate(jobs, start=1):
            setting = chosen[task, method]
            late = variants(METHODS[method], setting)
            schedule = schedule_of(TASKS[task], setting)
            measured = measure(method, TASKS[task], setting, EVALUATION_SEEDS, late, schedule)
            results[task][method] = describe(late, measured)
            progress.advance(bar)
            if not console.is_terminal:
                console.print(f"training: {done} of {len(jobs)}")
    record = {
        "command": "p3o bench staleness",
        "commit": result_files.commit(),
        "machine": result_files.machine(),
        "seeds": list(EVALUATION_SEEDS),
        "titles": {method: METHODS[method].title for method in methods},
        "results": results,
    }
    Console().print(staleness_tables(record))
    if json_path is not None:
        result_files.write_json(record, json_path)
    if output is not None:
        result_files.write_json(record, output / "staleness.json")
        staleness_chart(record).save(str(output / "staleness.svg"))


def describe(
    late: Sequence[Variant], measured: Float[np.ndarray, "variant seed"]
) -> dict[str, dict[str, Mapping[str, Any]]]:
    """By correction and lag: the efficiencies, and their paired differences to the same method without a lag."""
    punctual = measured[late.index(Variant("corrected", 0))]
    described: dict[str, dict[str, Mapping[str, Any]]] = {}
    for variant, values in zip(late, measured, strict=True):
        described.setdefault(variant.correction, {})[str(variant.lag)] = {
            "mean": float(values.mean()),
            "minus_lag_0": asdict(paired_interval(values - punctual)),
            "efficiency": values.tolist(),
        }
    return described
