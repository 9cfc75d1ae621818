"""Length control against statsmodels' logistic regression and against simulations in which the truth is known."""

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.stats import binomtest

from p3o.evaluation.length_control import length_controlled_win_rate, lengths, win_rate_by_length
from p3o.evaluation.winrate import head_to_head_by_prompt


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


@pytest.mark.slow
def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng, covered, trials = np.random.default_rng(0), 0, 300
    truth = 1 / (1 + np.exp(-0.3))
    for _ in range(trials):
        outcome, d = simulated(rng, 200, 0.3, 1.0)
        found = length_controlled_win_rate(outcome, d, resamples=300)
        covered += found.low <= truth <= found.high
    assert covered / trials == pytest.approx(0.95, abs=3 * np.sqrt(0.95 * 0.05 / trials))


def clustered(rng: np.random.Generator, prompts: int, pairs: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Outcomes of the model with α = .3, φ = 1, the pairs of a prompt moved by the same luck; differences; prompts."""
    d = rng.normal(0.5, 1.0, size=(prompts, pairs))
    luck = rng.random((prompts, 1))
    outcome = np.where(luck < 1 / (1 + np.exp(-(0.3 + np.tanh(d / d.std())))), 1.0, -1.0)
    return outcome.ravel(), d.ravel(), np.repeat(range(prompts), pairs).tolist()


def test_without_repeated_prompts_every_pair_is_drawn_by_itself() -> None:
    outcome, d = simulated(np.random.default_rng(4), 60, 0.3, 1.0)
    plain = length_controlled_win_rate(outcome, d, resamples=150)
    assert length_controlled_win_rate(outcome, d, prompts=[f"p{i}" for i in range(60)], resamples=150) == plain


def test_the_interval_over_prompts_is_as_wide_as_statsmodels_clustered_error() -> None:
    outcome, d, prompts = clustered(np.random.default_rng(5), 250, 4)
    found = length_controlled_win_rate(outcome, d, prompts=prompts, ridge=0.0, resamples=1000)
    design = sm.add_constant(np.tanh(d / d.std()))
    model = sm.GLM((outcome + 1) / 2, design, family=sm.families.Binomial())
    error = model.fit(cov_type="cluster", cov_kwds={"groups": np.array(prompts)}).bse[0]
    low, high = (np.log(rate / (1 - rate)) for rate in (found.low, found.high))
    assert (high - low) == pytest.approx(2 * 1.959964 * error, rel=0.1)
    assert (high - low) > 1.5 * 2 * 1.959964 * model.fit().bse[0], "as independent pairs it would be far narrower"


@pytest.mark.slow
def test_intervals_over_prompts_cover_the_truth() -> None:
    rng, covered, by_pair, trials = np.random.default_rng(6), 0, 0, 200
    truth = 1 / (1 + np.exp(-0.3))
    for _ in range(trials):
        outcome, d, prompts = clustered(rng, 100, 4)
        found = length_controlled_win_rate(outcome, d, prompts=prompts, resamples=200)
        covered += found.low <= truth <= found.high
        found = length_controlled_win_rate(outcome, d, resamples=200)
        by_pair += found.low <= truth <= found.high
    assert covered / trials == pytest.approx(0.95, abs=3 * np.sqrt(0.95 * 0.05 / trials))
    assert by_pair / trials < 0.85, "pairs of a prompt are not independent"


@pytest.mark.parametrize(("outcome", "wins"), [(1.0, 3), (-1.0, 0)])
def test_three_prompts_that_all_came_out_the_same_are_three_prompts(outcome: float, wins: int) -> None:
    found = length_controlled_win_rate([outcome] * 6, [1.0, 2.0, -1.0, 3.0, 0.0, 5.0], prompts=list("aabbcc"))
    expected = binomtest(wins, 3).proportion_ci(method="wilson")
    # The ridge keeps the rate itself a little away from 0 and 1.
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.02)
    assert found.low <= found.win_rate <= found.high


def test_one_prompt_says_little_however_many_pairs_it_has() -> None:
    found = length_controlled_win_rate([1.0, 1.0, 1.0, -1.0] * 5, np.arange(20.0) % 7, prompts=["p"] * 20)
    assert found.low < 0.2
    assert found.high > 0.9


def test_bins_have_intervals_over_prompts() -> None:
    outcome, d, prompts = clustered(np.random.default_rng(7), 50, 4)
    found = win_rate_by_length(outcome, d, prompts=prompts, bins=2)
    for bin_, inside in zip(found, (d <= np.median(d), d > np.median(d)), strict=True):
        assert bin_.result == head_to_head_by_prompt(outcome[inside], np.array(prompts)[inside].tolist())
    assert found[0].result.method == "bootstrap"


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


def test_there_is_one_prompt_for_each_outcome() -> None:
    for function in (length_controlled_win_rate, win_rate_by_length):
        with pytest.raises(ValueError, match="1 prompts for 2 outcomes"):
            function([1.0, 1.0], [1.0, 2.0], prompts=["a"])
