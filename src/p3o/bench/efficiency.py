"""Frontier efficiency: how much of the reward that is possible at each KL a method reaches.

A method's frontier is the concave hull of its (KL, reward gain) points over β and steps, the reference at the origin
included: points between two policies are reached by tossing a coin between them (the KL of the mixture is at most the mean).
The limit is the Gibbs policy's curve. Efficiency is hull / limit, averaged over a grid of KL. All points are exact.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats

from p3o.bench.problems import Problem
from p3o.bench.train import Curves
from p3o.evaluation.frontier import reward_at_kl

LARGEST_BETA = 50.0
"""At this β the Gibbs policy is the reference, but for rewards of that size: where its curve begins."""


@dataclass(frozen=True)
class Limit:
    """The Gibbs curve of one seed's instance: KL ascending, and reward gain over the reference."""

    reference_reward: float
    kl: Float[np.ndarray, " beta"]
    gain: Float[np.ndarray, " beta"]

    @property
    def grid(self) -> Float[np.ndarray, " point"]:
        """16 KLs from 2% of the largest up to it, equally spaced in √KL, in which frontiers are nearly straight."""
        largest = self.kl[-1]
        grid: Float[np.ndarray, " point"] = np.linspace(np.sqrt(0.02 * largest), np.sqrt(largest), 16) ** 2
        return grid

    def gain_at(self, kl: Float[np.ndarray, " point"]) -> Float[np.ndarray, " point"]:
        """The best possible reward gain at each KL."""
        best: Float[np.ndarray, " point"] = np.interp(kl, self.kl, self.gain)
        return best


def limits(problem: Problem, smallest_beta: float) -> list[Limit]:
    """The Gibbs curve of every policy's instance, down to the smallest β that is trained."""
    start = problem.evaluate(problem.initial_policy()).reward
    points = [problem.gibbs(beta) for beta in np.geomspace(LARGEST_BETA, smallest_beta, 80)]
    kl = torch.stack([point.kl for point in points], -1).numpy()
    gain = (torch.stack([point.reward for point in points], -1) - start.unsqueeze(-1)).numpy()
    return [Limit(float(start[i]), kl[i], gain[i]) for i in range(len(problem.seeds))]


def frontier_on_grid(
    kl: Float[np.ndarray, " point"], reward: Float[np.ndarray, " point"], limit: Limit
) -> Float[np.ndarray, " grid"]:
    """The reward gain of the hull of a method's points (the reference's, at KL 0, among them) on the limit's grid."""
    gain: Float[np.ndarray, " grid"] = reward_at_kl(kl, reward, limit.grid) - limit.reference_reward
    return gain


def frontier_efficiency(kl: Float[np.ndarray, " point"], reward: Float[np.ndarray, " point"], limit: Limit) -> float:
    """Mean over the limit's grid of hull / Gibbs reward gain at equal KL."""
    return float(np.mean(frontier_on_grid(kl, reward, limit) / limit.gain_at(limit.grid)))


def efficiencies(
    build: Callable[[Sequence[int]], Problem], curves: Curves, seeds: Sequence[int], betas: Sequence[float]
) -> Float[np.ndarray, "setting seed"]:
    """Efficiency of each setting and seed; the arms of ``curves`` are settings × β, β running fastest."""
    each = limits(build(seeds), min(betas))
    arms = len(betas)
    values = [
        [frontier_efficiency(*_points(curves, slice(first, first + arms), s), each[s]) for s in range(len(seeds))]
        for first in range(0, curves.reward.shape[0], arms)
    ]
    return np.array(values)


def seed_frontiers(
    curves: Curves, each: Sequence[Limit]
) -> list[tuple[Float[np.ndarray, " grid"], Float[np.ndarray, " grid"], Float[np.ndarray, " grid"]]]:
    """For each seed: the KL grid, the method's reward gain there over all arms (β), and the best possible one."""
    return [
        (limit.grid, frontier_on_grid(*_points(curves, slice(None), s), limit), limit.gain_at(limit.grid))
        for s, limit in enumerate(each)
    ]


def efficiency_of_optima(
    build: Callable[[Sequence[int]], Problem], seeds: Sequence[int], betas: Sequence[float]
) -> Float[np.ndarray, " seed"]:
    """Efficiency of the hull of the reference and the Gibbs policies at ``betas``: how finely these resolve the curve.

    A method that ends every run at its optimum has this, and more by what its points on the way there add.
    """
    problem = build(seeds)
    points = [problem.evaluate(problem.initial_policy()), *(problem.gibbs(beta) for beta in betas)]
    kl, reward = (torch.stack([getattr(point, name) for point in points], -1).numpy() for name in ("kl", "reward"))
    return np.array(
        [frontier_efficiency(kl[s], reward[s], limit) for s, limit in enumerate(limits(problem, min(betas)))]
    )


def _points(curves: Curves, arms: slice, seed: int) -> tuple[Float[np.ndarray, " point"], Float[np.ndarray, " point"]]:
    return curves.kl[arms, seed].flatten().numpy(), curves.reward[arms, seed].flatten().numpy()


def objective_ratio(
    build: Callable[[Sequence[int]], Problem], curves: Curves, seeds: Sequence[int], betas: Sequence[float]
) -> Float[np.ndarray, "beta seed"]:
    """(J − J_ref)/(J* − J_ref) of the last policy at each β, J = E[r] − β KL: 1 minus the relative regret."""
    problem = build(seeds)
    start = problem.evaluate(problem.initial_policy()).reward.numpy()
    rows = []
    for i, beta in enumerate(betas):
        best = problem.gibbs(beta)
        reached = (curves.reward[i, :, -1] - beta * curves.kl[i, :, -1]).numpy() - start
        rows.append(reached / ((best.reward - beta * best.kl).numpy() - start))
    return np.array(rows)


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its 95% t interval."""

    mean: float
    low: float
    high: float


def paired_interval(differences: Float[np.ndarray, " seed"]) -> Interval:
    """Student's t over seeds, of differences taken seed by seed."""
    mean = float(differences.mean())
    if len(differences) < 2:
        return Interval(mean, float("nan"), float("nan"))
    half = float(stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences))
    return Interval(mean, mean - half, mean + half)
