"""Win rates against scipy's interval, a closed form for ties and the coverage that an interval promises."""

import numpy as np
import pytest
from scipy.stats import binomtest

from p3o.evaluation.winrate import (
    head_to_head,
    head_to_head_by_prompt,
    kl_adjusted_win_rates,
    unvaried_interval,
    wilson_interval,
)


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.99])
@pytest.mark.parametrize(("wins", "n"), [(0, 1), (1, 1), (0, 40), (40, 40), (146, 256), (511, 512)])
def test_wilson_interval_equals_scipy(wins: int, n: int, confidence: float) -> None:
    expected = binomtest(wins, n).proportion_ci(confidence_level=confidence, method="wilson")
    assert wilson_interval(wins, n, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_papers_57_per_cent_of_256_is_51_to_63() -> None:
    low, high = wilson_interval(146, 256)
    assert (round(low, 3), round(high, 3)) == (0.509, 0.629)


def test_ties_count_one_half() -> None:
    result = head_to_head([1.0, 2.0, 3.0, 4.0], [0.0, 2.0, 3.0, 5.0])
    assert (result.wins, result.ties, result.losses, result.win_rate) == (1, 2, 1, 0.5)
    assert result.method == "bootstrap"


def test_without_ties_the_interval_is_wilsons() -> None:
    result = head_to_head([1.0] * 30 + [-1.0] * 10, [0.0] * 40)
    assert (result.win_rate, result.method) == (0.75, "wilson")
    assert (result.low, result.high) == wilson_interval(30, 40)


def test_per_prompt_offsets_change_nothing() -> None:
    rng = np.random.default_rng(0)
    a, b, offset = rng.integers(-8, 8, size=(3, 200)) / 4.0
    assert head_to_head(a, b) == head_to_head(a + 64 * offset, b + 64 * offset)


def test_bootstrap_interval_is_near_the_normal_approximation() -> None:
    # 1200 wins, 1200 ties, 600 losses: scores 1, ½, 0 with mean .6 and variance .14.
    a, b = np.repeat([1.0, 0.0, -1.0], [1200, 1200, 600]), np.zeros(3000)
    result = head_to_head(a, b)
    half_width = 1.959964 * np.sqrt(0.14 / 3000)
    assert (result.low, result.high) == pytest.approx((0.6 - half_width, 0.6 + half_width), abs=5e-4)
    assert result == head_to_head(a, b)
    assert result.low != head_to_head(a, b, seed=1).low


def test_swapping_the_two_mirrors_the_result() -> None:
    a, b = np.array([1.0, 0.0, 2.0, 2.0, 5.0]), np.zeros(5)
    there, back = head_to_head(a, b), head_to_head(b, a)
    assert (there.wins, there.losses, there.win_rate) == (back.losses, back.wins, 1 - back.win_rate)


@pytest.mark.parametrize("tie_rate", [0.0, 0.3])
def test_intervals_cover_the_truth_as_often_as_they_say(tie_rate: float) -> None:
    rng = np.random.default_rng(0)
    win_rate, n, covered, trials = 0.57, 200, 0, 600
    chances = np.array([win_rate - tie_rate / 2, tie_rate, 1 - win_rate - tie_rate / 2])
    for _ in range(trials):
        outcome = rng.choice([1.0, 0.0, -1.0], size=n, p=chances)
        result = head_to_head(outcome, np.zeros(n), resamples=1000)
        covered += result.low <= win_rate <= result.high
    # Three standard errors of a 95 % coverage over 600 trials.
    assert covered / trials == pytest.approx(0.95, abs=3 * np.sqrt(0.95 * 0.05 / trials))


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [([1.0], [1.0, 2.0], "equally long"), ([], [], "equally long"), ([float("nan")], [0.0], "NaN")],
)
def test_bad_rewards_are_refused(a: list[float], b: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        head_to_head(a, b)


@pytest.mark.parametrize(("wins", "n", "confidence"), [(-1, 5, 0.95), (6, 5, 0.95), (0, 0, 0.95), (1, 5, 1.0)])
def test_bad_counts_are_refused(wins: int, n: int, confidence: float) -> None:
    with pytest.raises(ValueError, match="got"):
        wilson_interval(wins, n, confidence)


def test_one_pair_a_prompt_is_the_plain_head_to_head() -> None:
    outcomes = [1.0, 0.0, -1.0, 1.0, 1.0]
    assert head_to_head_by_prompt(outcomes, list("abcde")) == head_to_head(outcomes, np.zeros(5))


def test_copies_of_a_pair_on_the_same_prompt_tell_nothing_new() -> None:
    outcomes = np.repeat([1.0, -1.0, 0.0], [50, 30, 20])
    once = head_to_head(outcomes, np.zeros(100))
    copied = head_to_head_by_prompt(np.tile(outcomes, 4), list(range(100)) * 4)
    assert copied.win_rate == once.win_rate
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high), abs=0.01)


def test_intervals_over_prompts_cover_the_truth() -> None:
    # Each prompt has its own chance of a win; its four pairs share it.
    rng = np.random.default_rng(1)
    covered, trials = 0, 400
    for _ in range(trials):
        chance = rng.beta(0.6, 0.4, size=120)
        outcomes = np.where(rng.random((4, 120)) < chance, 1.0, -1.0).ravel()
        result = head_to_head_by_prompt(outcomes, list(range(120)) * 4, resamples=500)
        covered += result.low <= 0.6 <= result.high
    assert covered / trials == pytest.approx(0.95, abs=3 * np.sqrt(0.95 * 0.05 / trials))


@pytest.mark.parametrize(("outcome", "wins"), [(1.0, 3), (-1.0, 0)])
def test_three_prompts_that_all_came_out_the_same_are_three_prompts(outcome: float, wins: int) -> None:
    """Scipy's interval of 3 of 3 begins at 44 %; a bootstrap of equal prompts would say 100 to 100."""
    result = head_to_head_by_prompt([outcome] * 6, list("aabbcc"))
    expected = binomtest(wins, 3).proportion_ci(method="wilson")
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert (result.win_rate, result.wins + result.losses, result.method) == (wins / 3, 6, "wilson")


@pytest.mark.parametrize(
    ("outcomes", "prompts", "mean"),
    [
        ([1.0, -1.0] * 5, np.repeat(range(5), 2), 0.5),
        ([1.0, -1.0, 1.0, -1.0, 1.0, -1.0], [0, 0, 1, 1, 1, 1], 0.5),
        ([1.0, 1.0, 1.0, -1.0], [0] * 4, 0.75),
        ([0.0] * 7, range(7), 0.5),
        ([0.0] * 8, np.repeat(range(4), 2), 0.5),
    ],
)
def test_prompts_with_one_mean_have_an_interval_of_some_width(
    outcomes: list[float], prompts: list[int], mean: float
) -> None:
    """By the limit of scipy on how many prompts come out otherwise, these all lost or all won."""
    result = head_to_head_by_prompt(outcomes, list(prompts))
    n = len(set(prompts))
    others = binomtest(0, n).proportion_ci(method="wilson").high
    assert (result.low, result.win_rate, result.high) == pytest.approx(
        (mean * (1 - others), mean, mean * (1 - others) + others), abs=1e-12
    )
    assert result.method == "wilson"


def test_nothing_but_ties_is_wider_than_a_point() -> None:
    result = head_to_head([1.0] * 24, [1.0] * 24)
    others = binomtest(0, 24).proportion_ci(method="wilson").high
    assert (result.low, result.high) == pytest.approx((0.5 - others / 2, 0.5 + others / 2))
    with pytest.raises(ValueError, match="n=0"):
        unvaried_interval(0.5, 0)


@pytest.mark.parametrize("usual", [1.0, 0.0, -1.0])
def test_intervals_cover_the_truth_where_prompts_mostly_agree(usual: float) -> None:
    """Twelve prompts, three pairs each; one prompt in twenty comes out otherwise. More than half of all trials see none."""
    rng = np.random.default_rng(2)
    covered, trials, prompts = 0, 400, 12
    other = 1.0 if usual <= 0 else -1.0
    truth = (0.95 * usual + 0.05 * other + 1) / 2
    for _ in range(trials):
        outcomes = np.where(rng.random(prompts) < 0.05, other, usual)
        result = head_to_head_by_prompt(np.repeat(outcomes, 3), list(np.repeat(range(prompts), 3)), resamples=300)
        covered += result.low <= truth <= result.high
    assert covered / trials >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / trials)


def test_a_price_on_kl_turns_the_win_around() -> None:
    # A earns 1 more for 2 more nats on every prompt: ahead below a price of ½, behind above.
    reward, kl = np.arange(40.0), np.full(40, 3.0)
    found = kl_adjusted_win_rates(reward + 1, kl + 2, reward, kl, [0.0, 0.4, 0.5, 0.6])
    assert [(row.price, row.result.win_rate) for row in found] == [(0.0, 1.0), (0.4, 1.0), (0.5, 0.5), (0.6, 0.0)]
    assert found[0].result == head_to_head(reward + 1, reward)


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="2 prompts for 3"):
        head_to_head_by_prompt([1.0, 0.0, 1.0], ["a", "b"])
    with pytest.raises(ValueError, match="equally long"):
        kl_adjusted_win_rates([1.0, 2.0], [1.0], [1.0, 2.0], [1.0, 2.0], [0.0])
