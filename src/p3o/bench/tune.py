"""Choosing settings on tuning seeds, and the file that keeps what was chosen together with the sweep that chose it.

First the learning rate, from the task's list; an optimum at the end of the list moves on beyond it. Then the method's
refinements, one after another, each kept if it raises the mean efficiency. The whole sweep is recorded.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from p3o.algorithms import make_algorithm
from p3o.bench.efficiency import efficiencies
from p3o.bench.methods import METHODS, TASKS, TUNING_SEEDS, Method, Setting, Task, schedule_of, tuned_on
from p3o.bench.train import Arm, Curves, train
from p3o.errors import P3OError

SETTINGS_FILE = Path(__file__).with_name("settings.json")
MOST_EXTENSIONS = 2


def arms(method: Method, task: Task, settings: Sequence[Setting]) -> list[Arm]:
    """Settings × β as arms, β running fastest; settings may differ in rates and stop, not in algorithm or schedule."""
    algorithms = [
        make_algorithm(method.algorithm, beta=beta, **{**method.settings, **settings[0].algorithm})
        for beta in task.betas
    ]
    return [
        Arm(algorithm, setting.learning_rate, setting.learning_rate * setting.critic_factor, setting.kl_stop)
        for setting in settings
        for algorithm in algorithms
    ]


def run(
    method: Method, task: Task, settings: Sequence[Setting], seeds: Sequence[int], *, evaluations: int = 16
) -> Curves:
    """Train all settings from all seeds at every β of the task."""
    schedule = schedule_of(task, settings[0], evaluations=evaluations)
    return train(task.build, arms(method, task, settings), seeds, schedule)


def tune(method_name: str, task_name: str) -> tuple[Setting, list[dict[str, Any]]]:
    """The setting chosen for a method on a task, and a row for every setting tried."""
    method, task = METHODS[method_name], TASKS[task_name]
    rows: list[dict[str, Any]] = []

    def measure(settings: Sequence[Setting]) -> list[float]:
        curves = run(method, task, settings, TUNING_SEEDS, evaluations=14)
        each = efficiencies(task.build, curves, TUNING_SEEDS, task.betas)
        for setting, values in zip(settings, each, strict=True):
            row = {"task": task_name, "method": method_name, "setting": asdict(setting)}
            rows.append(row | {"efficiency": values.tolist(), "mean": float(values.mean())})
        return [float(value) for value in each.mean(1)]

    start = Setting(task.rates[0], kl_stop=method.kl_stop, schedule=method.schedule)
    best, score = _best_rate(start, task, measure)
    for change in method.refinements:
        candidate = _changed(best, change)
        (changed,) = measure([candidate])
        if changed > score:
            best, score = candidate, changed
    return best, rows


def _best_rate(start: Setting, task: Task, measure: Any) -> tuple[Setting, float]:
    first = [replace(start, learning_rate=rate) for rate in task.rates]
    tried = dict(zip(task.rates, measure(first), strict=True))
    for _ in range(MOST_EXTENSIONS):
        rate = max(tried, key=lambda key: tried[key])
        if rate == min(tried):
            beyond = rate / 2.3
        elif rate == max(tried):
            beyond = rate * 2.3
        else:
            break
        (tried[beyond],) = measure([replace(start, learning_rate=beyond)])
    rate = max(tried, key=lambda key: tried[key])
    return replace(start, learning_rate=rate), tried[rate]


def _changed(setting: Setting, change: Mapping[str, Any]) -> Setting:
    fields: dict[str, Any] = {}
    for name, value in change.items():
        old = getattr(setting, name)
        fields[name] = {**old, **value} if isinstance(value, Mapping) else value
    return replace(setting, **fields)


def read_settings(path: Path = SETTINGS_FILE) -> dict[tuple[str, str], Setting]:
    """The settings chosen, by task and method."""
    data = json.loads(path.read_text(encoding="utf-8"))
    return for_all_tasks({(row["task"], row["method"]): Setting(**row["setting"]) for row in data["chosen"]})


def for_all_tasks(chosen: Mapping[tuple[str, str], Setting]) -> dict[tuple[str, str], Setting]:
    """Every method's setting for every task, from those that were tuned.

    Raises:
        P3OError: if a method was never tuned, as after adding one.
    """
    for task in TASKS:
        for method in METHODS:
            if (tuned_on(method, task), method) not in chosen:
                raise P3OError(
                    f"{SETTINGS_FILE.name}: no settings for {method} on {task}; tune with: p3o bench frontier --full"
                )
    return {(task, method): chosen[tuned_on(method, task), method] for task in TASKS for method in METHODS}


def settings_as_json(chosen: Mapping[tuple[str, str], Setting], sweep: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the file holds: ``chosen``, and ``sweep`` with the efficiency of every setting on every tuning seed."""
    rows = [{"task": task, "method": method, "setting": asdict(setting)} for (task, method), setting in chosen.items()]
    rounded = [
        row | {"efficiency": [round(x, 5) for x in row["efficiency"]], "mean": round(row["mean"], 5)} for row in sweep
    ]
    return {"tuning_seeds": list(TUNING_SEEDS), "chosen": rows, "sweep": rounded}
