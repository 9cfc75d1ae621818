"""Areas by hand, bands against scipy, and the paired bootstrap against simulations with known frontiers."""

import numpy as np
import pytest
from scipy import stats

from p3o.evaluation.dominance import PolicySample, area_under_frontier, compare_frontiers, hull_band
from p3o.evaluation.frontier import reward_at_kl


def test_area_of_a_triangle_and_of_what_lies_beyond_the_hull() -> None:
    kl, reward = [0.0, 2.0], [1.0, 5.0]
    assert area_under_frontier(kl, reward, 2.0) == pytest.approx(2.0)
    assert area_under_frontier(kl, reward, 1.0) == pytest.approx(1.0)
    assert area_under_frontier(kl, reward, 4.0) == pytest.approx((4.0 + 8.0) / 4.0)
    assert area_under_frontier([0.0, 1.0], [1.0, 0.0], 3.0) == 0.0


def test_area_is_the_integral_of_the_hull() -> None:
    rng = np.random.default_rng(0)
    kl = np.append(0.0, rng.uniform(0, 8, 12))
    reward = np.append(0.3, rng.normal(1, 1, 12))
    fine = np.linspace(0, 6, 200_001)
    expected = (reward_at_kl(kl, reward, fine) - 0.3).mean()
    assert area_under_frontier(kl, reward, 6.0) == pytest.approx(expected, abs=1e-4)


def test_a_band_is_the_t_interval_over_seeds() -> None:
    points = {seed: ([0.0, 2.0], [0.0, top]) for seed, top in enumerate((2.0, 3.0, 5.0))}
    band = hull_band(points, [1.0, 2.0])
    expected = stats.t.interval(0.95, 2, loc=10 / 3, scale=stats.sem([2.0, 3.0, 5.0]))
    assert band.mean == pytest.approx([5 / 3, 10 / 3])
    assert (band.low[1], band.high[1]) == pytest.approx(expected)
    assert np.isnan(hull_band({0: points[0]}, [1.0]).low).all()


def method(
    rng: np.random.Generator, gains: list[float], noise: np.ndarray, seeds: int = 1, seed_noise: float = 0.0
) -> list[PolicySample]:
    """Policies at 1, 2, … nats that gain this much; the noise of the prompts is shared by all policies."""
    policies = []
    for seed in range(seeds):
        for step, gain in enumerate(gains, start=1):
            own = rng.normal(0, 0.5, size=noise.size)
            kl = rng.gamma(4.0, step / 4.0, size=noise.size)
            policies.append(PolicySample(seed, gain + rng.normal(0, seed_noise) + noise + own, kl))
    return policies


def start_of(noise: np.ndarray) -> PolicySample:
    return PolicySample(0, noise.copy(), np.zeros_like(noise))


def test_a_method_against_itself_is_exactly_equal() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 2, 100)
    same = method(rng, [1.0, 1.6], noise)
    found = compare_frontiers(same, same, start_of(noise), [1.0, 2.0], resamples=50)
    assert all((row.value, row.low, row.high) == (0.0, 0.0, 0.0) for row in [*found.difference, found.area])
    assert not found.dominates


def test_a_difference_without_noise_is_the_difference_of_the_hulls() -> None:
    a = [PolicySample(0, np.full(10, 2.0), np.full(10, 2.0))]
    b = [PolicySample(0, np.full(10, 1.0), np.full(10, 4.0))]
    found = compare_frontiers(a, b, start_of(np.zeros(10)), [1.0, 2.0, 4.0], resamples=20)
    assert [row.value for row in found.difference] == pytest.approx([0.75, 1.5, 1.0])
    # Areas up to 4: (2 + 4)/4 for a and 2/4 for b.
    assert found.area.value == pytest.approx(1.0)
    assert found.dominates
    assert found.area.excludes_zero


def test_the_luckiest_seed_is_not_the_method() -> None:
    at = lambda seed, gain: PolicySample(seed, np.full(10, gain), np.full(10, 1.0))  # noqa: E731
    found = compare_frontiers([at(0, 1.0), at(1, 3.0)], [at(0, 1.5)], start_of(np.zeros(10)), [1.0], resamples=20)
    assert found.difference[0].value == pytest.approx((1.0 + 3.0) / 2 - 1.5)


def test_pairing_takes_the_noise_of_the_prompts_out() -> None:
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 20, 200)
    a, b = method(rng, [1.3, 2.0], noise), method(rng, [1.0, 1.4], noise)
    area = compare_frontiers(a, b, start_of(noise), [1.0, 1.8], resamples=300).area
    # Unpaired, the standard error of the difference would be 20 · √(2/200) = 2.
    assert area.high - area.low < 0.5
    assert area.excludes_zero


@pytest.mark.slow
def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng, covered, trials = np.random.default_rng(2), 0, 80
    truth = [0.3, 0.6]  # the gains at budgets of 1 and 2 nats, of policies that stand there
    for _ in range(trials):
        noise = rng.normal(0, 2, 150)
        a, b = method(rng, [1.3, 2.0], noise), method(rng, [1.0, 1.4], noise)
        found = compare_frontiers(a, b, start_of(noise), [1.0, 2.0], resamples=150)
        covered += sum(row.low <= t <= row.high for row, t in zip(found.difference, truth, strict=True))
    assert covered / (2 * trials) == pytest.approx(0.95, abs=3 * np.sqrt(0.95 * 0.05 / trials))


def test_seeds_are_resampled_too() -> None:
    rng = np.random.default_rng(3)
    noise = rng.normal(0, 1, 400)
    quiet, loud = (
        compare_frontiers(
            method(rng, [1.0], noise, 6, spread),
            method(rng, [1.0], noise, 6, spread),
            start_of(noise),
            [1.0],
            resamples=300,
        ).area
        for spread in (0.0, 1.0)
    )
    assert loud.high - loud.low > 3 * (quiet.high - quiet.low)


def test_what_cannot_be_compared_is_refused() -> None:
    start = start_of(np.zeros(4))
    policy = PolicySample(0, np.ones(4), np.ones(4))
    with pytest.raises(ValueError, match="policies of both"):
        compare_frontiers([], [policy], start, [1.0])
    with pytest.raises(ValueError, match="budgets above 0"):
        compare_frontiers([policy], [policy], start, [0.0])
    with pytest.raises(ValueError, match="same prompts"):
        compare_frontiers([policy], [PolicySample(0, np.ones(3), np.ones(3))], start, [1.0])
    with pytest.raises(ValueError, match="not above"):
        area_under_frontier([0.0, 1.0], [0.0, 1.0], 0.0)
    with pytest.raises(ValueError, match="at least one seed"):
        hull_band({}, [1.0])
