"""The frontier's fit against curves that are known, its hull against a brute-force definition."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p3o.evaluation.frontier import concave_hull, fit_frontier, reward_at_kl


def test_fit_recovers_a_curve_without_noise() -> None:
    kl = np.array([0.0, 0.25, 1.0, 4.0, 9.0])
    fit = fit_frontier(kl, 0.5 + 2.0 * np.sqrt(kl) - 0.3 * kl)
    assert (fit.a, fit.b, fit.reward_at_sft) == pytest.approx((2.0, -0.3, 0.5), abs=1e-12)
    assert fit.r_squared == pytest.approx(1.0, abs=1e-12)
    assert fit.predict([4.0]) == pytest.approx([0.5 + 4.0 - 1.2])


def test_fit_of_two_points_solves_two_equations() -> None:
    # √KL = 1, 2 and gains 1, 1: a + b = 1, 2a + 4b = 1, so a = 3/2, b = −1/2.
    fit = fit_frontier([1.0, 4.0], [3.0, 3.0], reward_at_sft=2.0)
    assert (fit.a, fit.b) == pytest.approx((1.5, -0.5))


def test_fit_holds_the_curve_at_the_sft_point() -> None:
    kl, reward = np.array([0.0, 0.0, 1.0, 2.0, 3.0]), np.array([0.1, 0.3, 9.0, 9.0, 9.0])
    assert fit_frontier(kl, reward).reward_at_sft == pytest.approx(0.2)
    assert fit_frontier(kl, reward, reward_at_sft=-1.0).predict([0.0]) == pytest.approx([-1.0])


def test_fit_is_the_least_squares_solution() -> None:
    rng = np.random.default_rng(0)
    kl = rng.uniform(0.1, 8.0, size=30)
    reward = 1.0 + 1.3 * np.sqrt(kl) - 0.2 * kl + rng.normal(0.0, 0.1, size=30)
    fit = fit_frontier(kl, reward, reward_at_sft=1.0)
    residual = reward - fit.predict(kl)
    # Normal equations: the residual is orthogonal to both regressors.
    assert residual @ np.sqrt(kl) == pytest.approx(0.0, abs=1e-9)
    assert residual @ kl == pytest.approx(0.0, abs=1e-9)
    assert fit.r_squared == pytest.approx(1.0 - residual @ residual / ((reward - reward.mean()) ** 2).sum())


@pytest.mark.parametrize(
    ("kl", "reward", "message"),
    [
        ([0.0, 1.0], [0.0, 1.0], "two different KLs"),
        ([0.0, 1.0], [0.0], "equally long"),
        ([], [], "equally long"),
        ([0.0, 1.0, float("nan")], [0.0, 1.0, 2.0], "finite"),
    ],
)
def test_fit_refuses_what_it_cannot_fit(kl: list[float], reward: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_frontier(kl, reward)


def test_hull_skips_points_below_it_and_ends_at_the_highest_reward() -> None:
    kl, reward = concave_hull([0.0, 1.0, 2.0, 3.0, 4.0], [0.0, 2.0, 1.0, 3.0, 2.5])
    assert kl.tolist() == [0.0, 1.0, 3.0]
    assert reward.tolist() == [0.0, 2.0, 3.0]
    assert reward_at_kl([0.0, 1.0, 3.0], [0.0, 2.0, 3.0], [0.5, 2.0, 10.0]).tolist() == [1.0, 2.5, 3.0]


def test_hull_starts_at_the_mean_of_the_sft_points() -> None:
    kl, reward = concave_hull([0.0, 0.0, 2.0], [0.0, 1.0, 3.0])
    assert (kl.tolist(), reward.tolist()) == ([0.0, 2.0], [0.5, 3.0])


def test_hull_of_a_method_that_only_hurts_is_the_sft_point() -> None:
    kl, reward = concave_hull([0.0, 1.0, 2.0], [1.0, 0.5, 0.7])
    assert (kl.tolist(), reward.tolist()) == ([0.0], [1.0])
    assert reward_at_kl([0.0, 1.0], [1.0, 0.5], [3.0]).tolist() == [1.0]


def test_nothing_is_said_below_the_smallest_kl() -> None:
    assert np.isnan(reward_at_kl([1.0, 2.0], [1.0, 2.0], [0.5])).all()


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(-20, 20)), min_size=1, max_size=12))
def test_hull_is_the_best_mixture_of_two_points_within_the_budget(points: list[tuple[int, int]]) -> None:
    # Independent definition: the best reward of a mixture of any two points whose mean KL is within the budget.
    smallest = min(x for x, _ in points)
    start = float(np.mean([y for x, y in points if x == smallest]))
    unique = [(float(smallest), start), *((float(x), float(y)) for x, y in points if x > smallest)]
    for budget in (smallest, smallest + 0.5, 7.0, 41.0):
        if budget < smallest:
            continue
        best = max(y for x, y in unique if x <= budget)
        for (x1, y1), (x2, y2) in itertools.permutations(unique, 2):
            if x1 <= budget < x2:
                best = max(best, y1 + (y2 - y1) * (budget - x1) / (x2 - x1))
        kl, reward = zip(*points, strict=True)
        assert reward_at_kl(np.array(kl), np.array(reward), [budget]) == pytest.approx([best])
