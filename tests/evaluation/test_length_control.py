"""Length control against statsmodels' logistic regression and against simulations in which the truth is known."""

import numpy as np
import pytest
import statsmodels.api as sm

from p3o.evaluation.length_control import length_controlled_win_rate, lengths, win_rate_by_length


def simulated(
    rng: np.random.Generator, n: int, alpha: float, phi: float, *, ties: float = 0.0, shift: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes and length differences of the model itself, with s = 1 as far as n lets it be."""
    d = rng.normal(shift, 1.0, size=n)
    chance = 1 / (1 + np.exp(-(alpha + phi * np.tanh(d / d.std()))))
    outcome = np.where(rng.random(n) < chance, 1.0, -1.0)
    outcome[rng.random(n) < ties] = 0.0
    return outcome, d


def test_the_fit_is_statsmodels_logistic_regression() -> None:
    outcome, d = simulated(np.random.default_rng(0), 400, 0.4, 1.2, ties=0.2)
    found = length_controlled_win_rate(outcome, d, ridge=0.0, resamples=1)
    design = sm.add_constant(np.tanh(d / d.std()))
    alpha, phi = sm.GLM((outcome + 1) / 2, design, family=sm.families.Binomial()).fit(tol=1e-12).params
    assert found.win_rate == pytest.approx(1 / (1 + np.exp(-alpha)), abs=1e-9)
    assert found.length_effect == pytest.approx(phi, abs=1e-8)
    assert found.raw == pytest.approx(((outcome + 1) / 2).mean())
    assert length_controlled_win_rate(outcome, d, resamples=1).win_rate == pytest.approx(found.win_rate, abs=2e-4)


def test_a_win_that_length_alone_bought_is_gone_at_equal_length() -> None:
    # The longer wins nine times in ten; A is longer four times in five.
    outcome = np.array([1.0] * 72 + [-1.0] * 8 + [-1.0] * 18 + [1.0] * 2)
    d = np.array([10.0] * 80 + [-10.0] * 20)
    found = length_controlled_win_rate(outcome, d)
    assert found.raw == 0.74
    assert found.win_rate == pytest.approx(0.5, abs=1e-3)
    assert found.low < 0.5 < found.high


def test_without_differences_of_length_the_rate_is_the_raw_one() -> None:
    found = length_controlled_win_rate([1.0] * 60 + [-1.0] * 40, np.full(100, 3.0), ridge=0.0)
    assert (found.win_rate, found.length_effect) == pytest.approx((0.6, 0.0))


def test_a_side_that_wins_everything_has_a_finite_fit() -> None:
    found = length_controlled_win_rate(np.ones(50), np.arange(50.0))
    assert 0.97 < found.win_rate < 1.0
    assert np.isfinite([found.low, found.high, found.length_effect]).all()


def test_swapping_the_two_mirrors_the_rate() -> None:
    outcome, d = simulated(np.random.default_rng(3), 200, 0.3, 0.8)
    there, back = (length_controlled_win_rate(sign * outcome, sign * d, resamples=1) for sign in (1, -1))
    assert back.win_rate == pytest.approx(1 - there.win_rate)
    assert back.length_effect == pytest.approx(there.length_effect)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng, covered, trials = np.random.default_rng(0), 0, 300
    truth = 1 / (1 + np.exp(-0.3))
    for _ in range(trials):
        outcome, d = simulated(rng, 200, 0.3, 1.0)
        found = length_controlled_win_rate(outcome, d, resamples=300)
        covered += found.low <= truth <= found.high
    assert covered / trials == pytest.approx(0.95, abs=3 * np.sqrt(0.95 * 0.05 / trials))


def test_bins_hold_every_pair_once_and_equal_differences_together() -> None:
    outcome = np.array([1.0, 1.0, -1.0, -1.0, 0.0, 1.0, 1.0, 1.0])
    d = np.array([-4.0, -3.0, 0.0, 0.0, 0.0, 0.0, 5.0, 6.0])
    found = win_rate_by_length(outcome, d, bins=4)
    counts = [(b.low, b.high, b.result.wins, b.result.ties, b.result.losses) for b in found]
    assert counts == [(-4.0, -3.0, 2, 0, 0), (0.0, 0.0, 1, 1, 2), (5.0, 6.0, 2, 0, 0)]


def test_lengths_are_words() -> None:
    assert lengths(["one two", "", " three\nfour  five "]) == [2, 0, 3]


@pytest.mark.parametrize(
    ("outcome", "d", "message"),
    [([1.0], [1.0, 2.0], "equally long"), ([], [], "equally long"), ([1.0], [float("nan")], "finite")],
)
def test_bad_data_are_refused(outcome: list[float], d: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        length_controlled_win_rate(outcome, d)
