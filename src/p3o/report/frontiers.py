"""What the evaluations say, before it is drawn or written: each algorithm's frontier, and its over-optimisation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from p3o.evaluation.frontier import FrontierFit, fit_frontier, reward_at_kl
from p3o.report.rundata import Evaluation, RunData

Measure = Literal["reward", "gold"]
"""Which reward: the one that training maximised (the proxy), or the gold reward that it never saw."""


@dataclass(frozen=True)
class Point:
    """One policy at one step: a point of the frontier with its standard errors; KL in nats per response."""

    policy: str
    step: int
    beta: float | None
    kl: float
    kl_se: float
    value: float
    value_se: float
    last: bool


@dataclass(frozen=True)
class Frontier:
    """All points of one algorithm, over its runs and their steps."""

    algorithm: str
    points: list[Point]
    fit: FrontierFit | None

    @property
    def largest_kl(self) -> float:
        """Nats per response."""
        return max(point.kl for point in self.points)

    def value_at(self, kl: float) -> float:
        """The best value within this KL budget, on the concave hull of the points."""
        return float(reward_at_kl([p.kl for p in self.points], [p.value for p in self.points], [kl])[0])


@dataclass(frozen=True)
class OverOptimisation:
    """Where the gold reward of one policy was highest and where it ended.

    ``significant`` is whether the fall exceeds two standard errors of the difference, taken as independent.
    """

    policy: str
    algorithm: str
    peak: Evaluation
    end: Evaluation
    fall: float
    significant: bool


def value_of(row: Evaluation, measure: Measure) -> tuple[float, float] | None:
    """Mean and standard error of one measure, or None where it was not taken."""
    value, error = (row.reward, row.reward_se) if measure == "reward" else (row.gold, row.gold_se)
    return None if value is None else (value, error or 0.0)


def judge(data: RunData) -> Measure:
    """The measure that the report's verdicts use: gold where it exists."""
    return "gold" if data.has_gold else "reward"


def frontiers(data: RunData, measure: Measure, rows: Sequence[Evaluation] | None = None) -> list[Frontier]:
    """The frontier of every algorithm that has points of this measure, in the order of training.

    The curve fit is held at the SFT model's value where that was measured, and left out below three points besides it.
    """
    rows = data.evaluations if rows is None else rows
    start = value_of(data.sft_sample, measure) if data.sft_sample else None
    found = []
    for algorithm in dict.fromkeys(row.algorithm for row in rows if row.algorithm):
        points = _points([row for row in rows if row.algorithm == algorithm and row.decoding == "sample"], measure)
        if points:
            found.append(Frontier(algorithm, points, _fit(points, start[0] if start else None)))
    order = {name: index for index, name in enumerate(data.algorithms)}
    return sorted(found, key=lambda frontier: order.get(frontier.algorithm, len(order)))


def matched_kl(found: Sequence[Frontier]) -> float | None:
    """The largest KL that every algorithm reached: where they can be compared. None if there is none above 0."""
    largest = min((frontier.largest_kl for frontier in found), default=0.0)
    return largest if largest > 0 else None


def over_optimisation(data: RunData) -> list[OverOptimisation]:
    """For every trained policy with gold reward: its highest gold reward against its last."""
    found = []
    for policy in data.trained_policies:
        rows = [row for row in data.evaluations if row.policy == policy and row.gold is not None]
        if not rows:
            continue
        peak = max(rows, key=lambda row: row.gold or 0.0)
        end = max(rows, key=lambda row: row.step)
        fall = (peak.gold or 0.0) - (end.gold or 0.0)
        error = float(np.hypot(peak.gold_se or 0.0, end.gold_se or 0.0))
        found.append(OverOptimisation(policy, end.algorithm or policy, peak, end, fall, fall > max(2 * error, 1e-12)))
    return found


def best_of_n(row: Evaluation) -> int | None:
    """n of a row with decoding ``best_of_n``, else None."""
    prefix, _, number = row.decoding.rpartition("_")
    return int(number) if prefix == "best_of" and number.isdigit() else None


def best_of_n_kl(n: int) -> float:
    """log n − (n−1)/n nats: an upper bound of the KL of best-of-n to its base policy (Beirami et al., arXiv:2401.01879).

    The best of n samples is no model whose probabilities could be summed; the bound is tight unless rewards tie.
    """
    return float(np.log(n) - (n - 1) / n)


def _points(rows: Sequence[Evaluation], measure: Measure) -> list[Point]:
    last_step: dict[str, int] = {}
    for row in rows:
        last_step[row.policy] = max(row.step, last_step.get(row.policy, row.step))
    points = []
    for row in rows:
        value = value_of(row, measure)
        if value is None or row.kl is None:
            continue
        points.append(
            Point(
                policy=row.policy,
                step=row.step,
                beta=row.beta,
                kl=max(row.kl, 0.0),
                kl_se=row.kl_se or 0.0,
                value=value[0],
                value_se=value[1],
                last=row.step == last_step[row.policy],
            )
        )
    return points


def _fit(points: Sequence[Point], start: float | None) -> FrontierFit | None:
    if len({point.kl for point in points if point.kl > 0}) < 3:
        return None  # two parameters go through any two points: that would say nothing
    return fit_frontier([p.kl for p in points], [p.value for p in points], reward_at_sft=start)
