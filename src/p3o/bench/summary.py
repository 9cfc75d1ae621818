"""From per-seed efficiencies to the numbers that people quote."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from jaxtyping import Float

from p3o.bench.efficiency import paired_interval
from p3o.bench.methods import METHODS, PROBLEMS, SHIFTS

BASELINE = "ppo"
EQUAL_REPLAY_BASELINE = "ppo_replay"


def problem_efficiency(results: Mapping[str, Any], method: str, problem: str) -> Float[np.ndarray, " seed"]:
    """Efficiency of each seed on a problem: the mean over its tasks."""
    mean: Float[np.ndarray, " seed"] = np.mean(
        [results["results"][method][task]["efficiency"] for task in PROBLEMS[problem]], axis=0
    )
    return mean


def difference(results: Mapping[str, Any], method: str, baseline: str, problem: str) -> dict[str, float]:
    """Mean and 95% t interval of the seed-by-seed difference of efficiencies."""
    gap = problem_efficiency(results, method, problem) - problem_efficiency(results, baseline, problem)
    return asdict(paired_interval(gap))


def summarise(results: Mapping[str, Any]) -> dict[str, Any]:
    """The best method that needs comparisons only, against PPO and PPO with replay, and everybody under reward shifts."""
    relative = [name for name in results["results"] if METHODS[name].is_relative]
    means = {
        name: {problem: float(problem_efficiency(results, name, problem).mean()) for problem in PROBLEMS}
        for name in relative
    }
    best = max(relative, key=lambda name: sum(means[name].values()))
    return {
        "best_relative": {
            "name": best,
            "efficiency": means[best],
            "minus_ppo": {problem: difference(results, best, BASELINE, problem) for problem in PROBLEMS},
            "minus_ppo_equal_replay": {
                problem: difference(results, best, EQUAL_REPLAY_BASELINE, problem) for problem in PROBLEMS
            },
        },
        "shift": {
            name: {str(shift): float(np.mean(tasks[f"bandit_{shift}"]["efficiency"])) for shift in SHIFTS}
            for name, tasks in results["results"].items()
        },
    }
