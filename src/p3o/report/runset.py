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
from p3o.report.rundata import Evaluation, Response, RunData

GRID = 60
"""KLs at which a band is drawn."""


@dataclass(frozen=True)
class RunPolicy:
    """One trained policy of one run, with all its evaluations and its last responses.

    ``reward`` and ``kl`` are those of its sampled responses by prompt, where they were kept. ``start`` is its run's SFT model.
    ``lift`` is added to its proxy rewards, see :func:`_lifts`.
    """

    run: str
    name: str
    algorithm: str
    beta: float | None
    seed: int
    evaluations: list[Evaluation]
    reward: Mapping[int, float]
    kl: Mapping[int, float]
    start: Evaluation | None
    lift: float

    @property
    def last(self) -> Evaluation:
        """At its last step."""
        return max(self.evaluations, key=lambda row: row.step)

    def value(self, row: Evaluation, measure: Measure) -> float | None:
        """What an evaluation of its run measured, at the level that all runs share."""
        value = value_of(row, measure)
        return None if value is None else value[0] + (self.lift if measure == "reward" else 0.0)


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
    measure: Measure = "gold" if all(run.has_gold for run in runs) else "reward"
    policies = [
        policy
        for folder, run, lift in zip(folders, runs, _lifts(runs), strict=True)
        for policy in _policies(folder.name, run, measure, lift)
    ]
    if not policies:
        raise P3OError(
            f"{folders[0]}: none of the runs has an evaluation of a trained policy, so there is "
            f"nothing to compare; run p3o evaluate first"
        )
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
            seed: _points([p for p in policies if p.seed == seed], measure)
            for seed in dict.fromkeys(policy.seed for policy in policies)
        }
        largest = max(kl.max() for kl, _ in points.values())
        # Even steps in √KL: hulls bend most near the SFT model.
        band = hull_band(points, np.linspace(0.0, np.sqrt(largest), GRID) ** 2)
        areas = [area_under_frontier(kl, reward, budget) for kl, reward in points.values()]
        # One curve through all seeds, each of which begins at an SFT model of its own.
        kl = np.concatenate([kl for kl, _ in points.values()])
        reward = np.concatenate([values - values[0] + start for _, values in points.values()])
        enough = np.unique(kl[kl > 0]).size > 2
        fit = fit_frontier(kl, reward, reward_at_sft=start) if enough else None
        found.append(MethodFrontier(algorithm, policies, band, areas, fit))
    return found


def sft_value(runs: RunSet, measure: Measure) -> float | None:
    """Mean over the runs of the SFT model's value; None if one of them has none."""
    return _mean_start(runs.runs, measure)


def paired_comparisons(runs: RunSet, *, resamples: int = 500) -> dict[tuple[str, str], FrontierComparison]:
    """Every two algorithms at a quarter, a half and all of the common KL, from the last policies' responses.

    Empty unless all runs were evaluated on the same prompts and kept their responses.
    """
    budget = largest_common_kl(runs)
    if not runs.same_prompts or budget <= 0:
        return {}
    starts = _sft_samples(runs)
    if any(policy.seed not in starts for policy in runs.policies):
        return {}
    shared = sorted(
        set.intersection(*(set(start) for start in starts.values())).intersection(
            *(p.reward.keys() & p.kl.keys() for p in runs.policies)
        )
    )
    if len(shared) < 2:
        return {}
    samples: dict[str, list[PolicySample]] = {}
    for policy in runs.policies:
        reward, kl = (np.array([values[i] for i in shared]) for values in (policy.reward, policy.kl))
        samples.setdefault(policy.algorithm, []).append(PolicySample(policy.seed, reward, kl))
    zero = {
        seed: PolicySample(seed, np.array([start[i] for i in shared]), np.zeros(len(shared)))
        for seed, start in starts.items()
    }
    names = runs.algorithms
    budgets = [budget / 4, budget / 2, budget]
    return {
        (a, b): compare_frontiers(samples[a], samples[b], zero, budgets, resamples=resamples)
        for place, a in enumerate(names)
        for b in names[place + 1 :]
    }


def _lifts(runs: Sequence[RunData]) -> list[float]:
    """What to add to each run's proxy rewards so that they can stand beside those of the others.

    The level of a reward that is learned from comparisons is arbitrary (Bradley–Terry). Where a run trained its reward model
    itself, that level is set so that the run's SFT model stands at the mean of all SFT models; a reward that was given is the
    same for all, and stays.
    """
    mean = _mean_start(runs, "reward")
    return [
        mean - run.sft_sample.reward if mean is not None and run.sft_sample is not None and _has_own_level(run) else 0.0
        for run in runs
    ]


def _mean_start(runs: Sequence[RunData], measure: Measure) -> float | None:
    values = [None if run.sft_sample is None else value_of(run.sft_sample, measure) for run in runs]
    known = [value[0] for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def _policies(run: str, data: RunData, measure: Measure, lift: float) -> list[RunPolicy]:
    found = []
    for name in data.trained_policies:
        rows = [row for row in data.evaluations if row.policy == name and row.decoding == "sample"]
        if not rows:
            continue
        responses = [row for row in data.responses if row.policy == name and row.decoding == "sample"]
        reward = _by_prompt(responses, measure, lift)
        kl = {r.prompt_index: r.kl for r in responses if r.kl is not None}
        last = max(rows, key=lambda row: row.step)
        found.append(
            RunPolicy(
                run, name, last.algorithm or name, last.beta, data.info.seed, rows, reward, kl, data.sft_sample, lift
            )
        )
    return found


def _by_prompt(responses: Sequence[Response], measure: Measure, lift: float) -> dict[int, float]:
    """The values of responses by prompt, those without one left out."""
    moved = lift if measure == "reward" else 0.0
    return {r.prompt_index: float(v) + moved for r in responses if (v := getattr(r, measure)) is not None}


def _points(
    policies: Sequence[RunPolicy], measure: Measure
) -> tuple[Float[np.ndarray, " point"], Float[np.ndarray, " point"]]:
    """(KL, value) of every evaluation, that of the SFT model that they started from first (the mean of several)."""
    starts = [start for p in policies if p.start is not None and (start := p.value(p.start, measure)) is not None]
    kl, values = [0.0], [float(np.mean(starts))]
    for policy in policies:
        for row in policy.evaluations:
            value = policy.value(row, measure)
            if value is not None and row.kl is not None and row.kl > 0:
                kl.append(row.kl)
                values.append(value)
    return np.array(kl), np.array(values)


def _sft_samples(runs: RunSet) -> dict[int, dict[int, float]]:
    """The SFT model's value by seed and prompt, mean over the runs of the seed (their SFT models may differ)."""
    values: dict[int, dict[int, list[float]]] = {}
    for run, lift in zip(runs.runs, _lifts(runs.runs), strict=True):
        rows = [row for row in run.responses if row.policy == "sft" and row.decoding == "sample"]
        for index, value in _by_prompt(rows, runs.measure, lift).items():
            values.setdefault(run.info.seed, {}).setdefault(index, []).append(value)
    return {seed: {index: float(np.mean(v)) for index, v in found.items()} for seed, found in values.items()}


def _has_own_level(run: RunData) -> bool:
    """Whether a run trained the reward that its policies were trained on."""
    return bool(run.reward_training) or run.reward_test is not None
