"""Several run folders as one set of policies: frontiers over β and seeds, and what they say against each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from p3o.errors import P3OError
from p3o.evaluation.dominance import (
    Band,
    FrontierComparison,
    PolicySample,
    area_under_frontier,
    compare_frontiers,
    hull_band,
)
from p3o.evaluation.frontier import FrontierFit, fit_frontier
from p3o.report.frontiers import Measure, value_of
from p3o.report.reading import read_run
from p3o.report.rundata import Evaluation, RunData

GRID = 60
"""KLs at which a band is drawn."""


@dataclass(frozen=True)
class RunPolicy:
    """One trained policy of one run, with all its evaluations and its last responses.

    ``reward`` and ``kl`` are those of its sampled responses by prompt, where they were kept.
    """

    run: str
    name: str
    algorithm: str
    beta: float | None
    seed: int
    evaluations: list[Evaluation]
    reward: Mapping[int, float]
    kl: Mapping[int, float]

    @property
    def last(self) -> Evaluation:
        """At its last step."""
        return max(self.evaluations, key=lambda row: row.step)


@dataclass(frozen=True)
class MethodFrontier:
    """One algorithm over β and seeds.

    Attributes:
        policies: all of them.
        band: of the hull, over seeds; each seed's hull takes all its policies at all their evaluations.
        area: mean gain over SFT within the budget that every algorithm reached, one for each seed.
        fit: reward(SFT) + a·√KL + b·KL through all points, where there are enough.
    """

    algorithm: str
    policies: list[RunPolicy]
    band: Band
    area: list[float]
    fit: FrontierFit | None


@dataclass(frozen=True)
class RunSet:
    """Runs that are compared.

    Attributes:
        runs: as they were read.
        policies: of all runs; those trained with reward offsets are left out and counted in ``shifted``.
        same_prompts: whether every run was evaluated on the same held-out prompts, so that they can be paired.
    """

    runs: list[RunData]
    policies: list[RunPolicy]
    shifted: int
    same_prompts: bool

    @property
    def measure(self) -> Measure:
        """Gold where every run has it."""
        return "gold" if all(run.has_gold for run in self.runs) else "reward"

    @property
    def algorithms(self) -> list[str]:
        """In the order of the runs."""
        return list(dict.fromkeys(policy.algorithm for policy in self.policies))


def read_runs(folders: Sequence[Path]) -> RunSet:
    """Read the run folders.

    Raises:
        P3OError: as ``read_run``, if two names are the same folder, or no run holds an evaluated policy.
    """
    resolved = [folder.resolve() for folder in folders]
    for folder, path in zip(folders, resolved, strict=True):
        if resolved.count(path) > 1:
            raise P3OError(f"{folder}: given twice; name each run once")
    runs = [read_run(folder) for folder in folders]
    policies = [policy for folder, run in zip(folders, runs, strict=True) for policy in _policies(folder.name, run)]
    if not policies:
        raise P3OError(f"{folders[0]}: no run holds an evaluation of a trained policy; there is nothing to compare")
    prompts = [{row.prompt_index: row.prompt for row in run.responses if row.policy == "sft"} for run in runs]
    same = bool(prompts[0]) and all(other == prompts[0] for other in prompts)
    return RunSet(runs, policies, sum(len({row.policy for row in run.shifted}) for run in runs), same)


def largest_common_kl(runs: RunSet) -> float:
    """The largest KL that every algorithm reached with a policy at the end of its training."""
    largest: dict[str, float] = {}
    for policy in runs.policies:
        largest[policy.algorithm] = max(largest.get(policy.algorithm, 0.0), policy.last.kl or 0.0)
    return min(largest.values())


def method_frontiers(runs: RunSet, measure: Measure) -> list[MethodFrontier]:
    """One for each algorithm; empty if none moved away from the SFT model."""
    budget = largest_common_kl(runs)
    start = sft_value(runs, measure)
    if budget <= 0 or start is None:
        return []
    found = []
    for algorithm in runs.algorithms:
        policies = [policy for policy in runs.policies if policy.algorithm == algorithm]
        points = {
            seed: _points([p for p in policies if p.seed == seed], measure, start)
            for seed in dict.fromkeys(policy.seed for policy in policies)
        }
        largest = max(kl.max() for kl, _ in points.values())
        # Even steps in √KL: hulls bend most near the SFT model.
        band = hull_band(points, np.linspace(0.0, np.sqrt(largest), GRID) ** 2)
        areas = [area_under_frontier(kl, reward, budget) for kl, reward in points.values()]
        kl, reward = (np.concatenate(values) for values in zip(*points.values(), strict=True))
        enough = np.unique(kl[kl > 0]).size > 2
        fit = fit_frontier(kl, reward, reward_at_sft=start) if enough else None
        found.append(MethodFrontier(algorithm, policies, band, areas, fit))
    return found


def sft_value(runs: RunSet, measure: Measure) -> float | None:
    """Mean over the runs of the SFT model's value."""
    rows = [run.sft_sample for run in runs.runs if run.sft_sample is not None]
    values = [value[0] for row in rows if (value := value_of(row, measure)) is not None]
    return float(np.mean(values)) if values else None


def paired_comparisons(runs: RunSet, *, resamples: int = 500) -> dict[tuple[str, str], FrontierComparison]:
    """Every two algorithms at a quarter, a half and all of the common KL, from the last policies' responses.

    Empty unless all runs were evaluated on the same prompts and kept their responses.
    """
    budget = largest_common_kl(runs)
    if not runs.same_prompts or budget <= 0:
        return {}
    start = _sft_sample(runs)
    shared = sorted(set(start).intersection(*(p.reward.keys() & p.kl.keys() for p in runs.policies)))
    if len(shared) < 2:
        return {}
    samples: dict[str, list[PolicySample]] = {}
    for policy in runs.policies:
        reward, kl = (np.array([values[i] for i in shared]) for values in (policy.reward, policy.kl))
        samples.setdefault(policy.algorithm, []).append(PolicySample(policy.seed, reward, kl))
    zero = PolicySample(0, np.array([start[i] for i in shared]), np.zeros(len(shared)))
    names = runs.algorithms
    budgets = [budget / 4, budget / 2, budget]
    return {
        (a, b): compare_frontiers(samples[a], samples[b], zero, budgets, resamples=resamples)
        for place, a in enumerate(names)
        for b in names[place + 1 :]
    }


def _policies(run: str, data: RunData) -> list[RunPolicy]:
    measure = "gold" if data.has_gold else "reward"
    found = []
    for name in data.trained_policies:
        rows = [row for row in data.evaluations if row.policy == name and row.decoding == "sample"]
        if not rows:
            continue
        responses = [row for row in data.responses if row.policy == name and row.decoding == "sample"]
        reward = {r.prompt_index: float(v) for r in responses if (v := getattr(r, measure)) is not None}
        kl = {r.prompt_index: r.kl for r in responses if r.kl is not None}
        last = max(rows, key=lambda row: row.step)
        found.append(RunPolicy(run, name, last.algorithm or name, last.beta, data.info.seed, rows, reward, kl))
    return found


def _points(
    policies: Sequence[RunPolicy], measure: Measure, start: float
) -> tuple[Float[np.ndarray, " point"], Float[np.ndarray, " point"]]:
    """(KL, value) of every evaluation, the SFT model's first."""
    kl, values = [0.0], [start]
    for row in (row for policy in policies for row in policy.evaluations):
        value = value_of(row, measure)
        if value is not None and row.kl is not None and row.kl > 0:
            kl.append(row.kl)
            values.append(value[0])
    return np.array(kl), np.array(values)


def _sft_sample(runs: RunSet) -> dict[int, float]:
    """The SFT model's value by prompt, mean over the runs (their SFT models may differ by the seed)."""
    values: dict[int, list[float]] = {}
    for run in runs.runs:
        measure = "gold" if run.has_gold else "reward"
        for row in run.responses:
            value = getattr(row, measure)
            if row.policy == "sft" and row.decoding == "sample" and value is not None:
                values.setdefault(row.prompt_index, []).append(float(value))
    return {index: float(np.mean(found)) for index, found in values.items()}
