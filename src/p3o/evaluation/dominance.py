"""Frontiers held against each other: area, bands over seeds, and the difference at equal KL with a paired bootstrap.

What is compared is each method's concave hull (``p3o.evaluation.frontier``) of its policies over β, one hull for each seed and
then the mean over seeds, for the best of all seeds is luck. A hull is a maximum over noisy points and so a little too high, the
more so the more points it has: compare methods with equally many.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy.integrate import trapezoid
from scipy.special import stdtrit

from p3o.evaluation.frontier import concave_hull, reward_at_kl

Array = Float[np.ndarray, "..."]


@dataclass(frozen=True)
class PolicySample:
    """One trained policy on the held-out prompts, which are the same, in the same order, for all that are compared.

    Attributes:
        seed: of its training; policies of one seed share a hull.
        reward: of one response to each prompt.
        kl: estimate of each response, nats.
    """

    seed: int
    reward: Float[np.ndarray, " prompt"]
    kl: Float[np.ndarray, " prompt"]


@dataclass(frozen=True)
class Interval:
    """An estimate with its limits, all NaN where there is nothing to estimate."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the sign is beyond doubt at the interval's confidence."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class FrontierComparison:
    """Method A minus method B.

    Attributes:
        kl: budgets, nats per response.
        difference: of the best reward within each budget.
        area: of the mean difference over all budgets up to the largest.
    """

    kl: list[float]
    difference: list[Interval]
    area: Interval

    @property
    def dominates(self) -> bool:
        """A is better at every budget, each beyond doubt by itself."""
        return all(row.low > 0 for row in self.difference)


@dataclass(frozen=True)
class Band:
    """The hull of one method over its seeds: mean and Student-t interval at each KL, no interval for one seed (NaN)."""

    kl: Array
    mean: Array
    low: Array
    high: Array
    seeds: int


def area_under_frontier(kl: ArrayLike, reward: ArrayLike, budget: float) -> float:
    """Mean gain over the SFT point within KL budgets from the SFT point's to ``budget``: ∫ (hull − hull(SFT)) dKL / range.

    In units of reward; 0 for a method that only hurts. Beyond the hull's end the reward stays what it was there.

    Raises:
        ValueError: as ``concave_hull``, or if the budget is not above the smallest KL.
    """
    hull_kl, hull_reward = concave_hull(kl, reward)
    if not budget > hull_kl[0]:
        raise ValueError(f"the budget {budget} is not above the smallest KL {hull_kl[0]}")
    return _area(hull_kl, hull_reward, budget)


def hull_band(points: Mapping[int, tuple[ArrayLike, ArrayLike]], at: ArrayLike, *, confidence: float = 0.95) -> Band:
    """The hulls of several seeds as one band.

    Args:
        points: seed -> (KL, reward) of its policies, the SFT model among them.
        at: KLs of the band.
        confidence: of the interval of the mean over seeds.

    Raises:
        ValueError: without seeds, or as ``concave_hull``.
    """
    if not points:
        raise ValueError("a band needs the points of at least one seed")
    grid = np.asarray(at, dtype=np.float64)
    curves = np.stack([reward_at_kl(kl, reward, grid) for kl, reward in points.values()])
    mean, n = curves.mean(0), len(curves)
    if n == 1:
        return Band(grid, mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan), 1)
    half = stdtrit(n - 1, (1 + confidence) / 2) * curves.std(0, ddof=1) / np.sqrt(n)
    return Band(grid, mean, mean - half, mean + half, n)


def student_interval(values: Sequence[float], *, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean of a few values, such as one a seed, with the limits of its Student-t interval; NaN limits for one value."""
    mean, n = float(np.mean(values)), len(values)
    if n == 1:
        return mean, float("nan"), float("nan")
    half = float(stdtrit(n - 1, (1 + confidence) / 2) * np.std(values, ddof=1) / np.sqrt(n))
    return mean, mean - half, mean + half


def compare_frontiers(
    a: Sequence[PolicySample],
    b: Sequence[PolicySample],
    start: PolicySample | Mapping[int, PolicySample],
    budgets: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> FrontierComparison:
    """A minus B at equal KL, with a bootstrap that is paired over prompts.

    A resample draws prompts, the same ones for every policy, and, where a method was trained with several seeds, its seeds; it
    then takes means, hulls and differences anew. With two or three seeds the drawn seeds are few, and the interval is too
    narrow for what another seed would do.

    Args:
        a: the policies of one method over β and seeds.
        b: those of the other.
        start: the SFT model on the same prompts, or that of each seed; its KL is 0.
        budgets: KLs, nats per response, above 0.
        confidence: of each interval by itself.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: no policies, no budgets, or policies that were not evaluated on the same number of prompts.
    """
    grid = np.sort(np.atleast_1d(np.asarray(budgets, dtype=np.float64)))
    starts = start if isinstance(start, Mapping) else {policy.seed: start for policy in (*a, *b)}
    prompts = next(iter(starts.values())).reward.size if starts else 0
    if not a or not b or grid.size == 0 or not grid[0] > 0:
        raise ValueError("a comparison needs policies of both methods and budgets above 0")
    if any(s.reward.shape != (prompts,) or s.kl.shape != (prompts,) for s in (*a, *b, *starts.values())):
        raise ValueError("all policies must have been evaluated on the same prompts")
    left, right = _Method(a, starts), _Method(b, starts)
    even = np.full(prompts, 1 / prompts)
    whole = left.curve(even, None, grid) - right.curve(even, None, grid)
    random = np.random.default_rng(seed)
    drawn = np.stack(
        [
            left.curve(weights, random, grid) - right.curve(weights, random, grid)
            for weights in random.multinomial(prompts, even, size=resamples) / prompts
        ]
    )
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=0)
    rows = [Interval(float(v), float(lo), float(hi)) for v, lo, hi in zip(whole, low, high, strict=True)]
    return FrontierComparison(grid.tolist(), rows[:-1], rows[-1])


class _Method:
    """The policies of one method as matrices, [policy, prompt], the seeds' SFT models the first; the rows of each seed."""

    def __init__(self, policies: Sequence[PolicySample], starts: Mapping[int, PolicySample]) -> None:
        seeds = list(dict.fromkeys(policy.seed for policy in policies))
        first = [starts[seed] for seed in seeds]
        self.reward = np.stack([policy.reward for policy in (*first, *policies)]).astype(np.float64)
        self.kl = np.stack([*(np.zeros_like(sft.kl) for sft in first), *(policy.kl for policy in policies)]).astype(
            np.float64
        )
        self.rows = [
            [place, *(i for i, policy in enumerate(policies, start=len(seeds)) if policy.seed == seed)]
            for place, seed in enumerate(seeds)
        ]

    def curve(self, weights: Array, random: np.random.Generator | None, grid: Array) -> Array:
        """Read off the hull of each seed under these weights of the prompts, mean over the seeds, drawn if there is a
        generator."""
        kl, reward = self.kl @ weights, self.reward @ weights
        curves = np.stack([_read_off(*concave_hull(kl[rows], reward[rows]), grid) for rows in self.rows])
        if random is not None and len(curves) > 1:
            curves = curves[random.integers(len(curves), size=len(curves))]
        mean: Array = curves.mean(0)
        return mean


def _read_off(hull_kl: Array, hull_reward: Array, grid: Array) -> Array:
    """The hull at the budgets and, last, its area up to the largest."""
    at: Array = np.interp(grid, hull_kl, hull_reward)
    joined: Array = np.append(at, _area(hull_kl, hull_reward, float(grid[-1])))
    return joined


def _area(hull_kl: Array, hull_reward: Array, budget: float) -> float:
    x = np.append(hull_kl[hull_kl < budget], budget)
    y = np.interp(x, hull_kl, hull_reward) - hull_reward[0]
    return float(trapezoid(y, x) / (budget - hull_kl[0]))
