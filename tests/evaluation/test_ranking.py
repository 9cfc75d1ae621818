"""Bradley–Terry against statsmodels' logistic regression, evalica on the same data, and simulations with a known order."""

import itertools

import evalica
import numpy as np
import pytest
import statsmodels.api as sm
from scipy.special import expit
from scipy.stats import beta

from p3o.evaluation.ranking import Compared, bradley_terry_ranking

STRENGTHS = {"sft": 0.0, "dpo": 0.4, "ppo": 0.9, "p3o": 1.3}


def simulated(rng: np.random.Generator, prompts: int, *, spread: float = 0.0) -> list[Compared]:
    """Every pair on every prompt. With a spread, each policy is better at some prompts than at others."""
    rows = []
    for prompt in range(prompts):
        at = {name: value + rng.normal(0, spread) for name, value in STRENGTHS.items()}
        for a, b in itertools.combinations(STRENGTHS, 2):
            win = rng.random() < 1 / (1 + np.exp(at[b] - at[a]))
            rows.append(Compared(a, b, prompt, 1.0 if win else -1.0))
    return rows


def test_strengths_are_statsmodels_logistic_regression_with_the_added_ties() -> None:
    rows = simulated(np.random.default_rng(0), 60)
    rows += [Compared("sft", "p3o", i, 0.0) for i in range(10)]
    found = {row.name: row.strength for row in bradley_terry_ranking(rows, baseline="sft", resamples=1)}
    names = list(STRENGTHS)
    ties = [Compared(a, b, 0, 0.0) for a, b in itertools.combinations(names, 2)]
    design = np.zeros((len(rows) + len(ties), len(names)))
    for index, row in enumerate([*rows, *ties]):
        design[index, names.index(row.a)], design[index, names.index(row.b)] = 1.0, -1.0
    y = [0.5 * (1 + row.outcome) for row in [*rows, *ties]]
    fit = sm.GLM(y, design[:, 1:], family=sm.families.Binomial()).fit(tol=1e-12)
    assert [found[name] for name in names[1:]] == pytest.approx(fit.params, abs=1e-5)
    assert found["sft"] == 0.0


def test_strengths_are_near_those_of_evalica_on_the_comparisons_one_by_one() -> None:
    rows = simulated(np.random.default_rng(1), 400)
    scores = evalica.bradley_terry(
        [row.a for row in rows],
        [row.b for row in rows],
        [evalica.Winner.X if row.outcome > 0 else evalica.Winner.Y for row in rows],
    ).scores
    expected = np.log(scores / np.exp(np.log(scores).mean()))
    for row in bradley_terry_ranking(rows, resamples=1):
        assert row.strength == pytest.approx(float(expected[row.name]), abs=0.01)
        assert row.comparisons == 3 * 400


def test_a_known_order_is_recovered() -> None:
    found = bradley_terry_ranking(simulated(np.random.default_rng(2), 300), baseline="sft", resamples=200)
    assert [row.name for row in found] == ["p3o", "ppo", "dpo", "sft"]
    assert [row.rank for row in found] == [1, 2, 3, 4]
    assert all(row.low <= STRENGTHS[row.name] <= row.high for row in found)
    assert (found[-1].rank_low, found[-1].rank_high) == (4, 4)


def test_the_order_does_not_depend_on_which_side_a_policy_stood() -> None:
    rows = simulated(np.random.default_rng(4), 50)
    swapped = [Compared(row.b, row.a, row.prompt, -row.outcome) for row in rows]
    there, back = (bradley_terry_ranking(r, baseline="sft", resamples=1) for r in (rows, swapped))
    assert [(row.name, pytest.approx(row.strength, abs=1e-6)) for row in there] == [(r.name, r.strength) for r in back]


def test_a_policy_that_wins_everything_has_a_finite_strength() -> None:
    rows = [Compared("a", "b", i, 1.0) for i in range(50)]
    (first, second) = bradley_terry_ranking(rows, baseline="b", resamples=50)
    # 50 wins and one tie: 50½ to ½.
    assert (first.name, first.strength) == ("a", pytest.approx(np.log(101.0), abs=1e-4))
    assert second.strength == 0.0


@pytest.mark.parametrize(("wins", "losses"), [(50, 0), (1, 0), (3, 17), (30, 20)])
def test_the_interval_of_two_policies_is_that_of_jeffreys_beta(wins: int, losses: int) -> None:
    """Also where one won everything, and of one comparison only: no interval is a point."""
    rows = [Compared("a", "b", i, 1.0 if i < wins else -1.0) for i in range(wins + losses)]
    (found,) = [row for row in bradley_terry_ranking(rows, baseline="b", resamples=1000) if row.name == "a"]
    share = beta(wins + 0.5, losses + 0.5)
    for value, tail in ((found.low, 0.025), (found.high, 0.975)):
        expected = share.ppf(tail)
        error = np.sqrt(0.025 * 0.975 / 1000) / share.pdf(expected)  # of a quantile of so many draws
        assert expit(value) == pytest.approx(expected, abs=4 * error)


def test_an_order_without_exceptions_has_no_interval_that_is_a_point() -> None:
    """Of three: one that always won against two that are alike; and three that always tied."""
    always = [Compared("a", other, i, 1.0) for i in range(40) for other in "bc"]
    alike = [Compared("b", "c", i, 1.0 if i % 2 else -1.0) for i in range(40)]
    best, *others = bradley_terry_ranking([*always, *alike], resamples=200)
    # The lower end is where 40 of 40 wins are nothing strange, the upper one far beyond what was seen.
    assert best.low < best.strength - 0.5 < best.strength + 1.5 < best.high
    assert all(row.low < row.strength < row.high for row in others)
    ties = [Compared(a, b, i, 0.0) for i in range(40) for a, b in itertools.combinations("abc", 2)]
    for row in bradley_terry_ranking(ties, baseline="a", resamples=200):
        assert (row.strength, row.rank_low, row.rank_high) == (pytest.approx(0.0, abs=1e-6), 1, 3)
        assert (row.low == row.high == 0.0) == (row.name == "a")
        assert row.low >= -0.2
        assert row.high <= 0.2


@pytest.mark.slow
def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    # The prompts' own spread makes comparisons on a prompt dependent; the truth is the fit of very many prompts.
    many = simulated(np.random.default_rng(9), 20_000, spread=1.0)
    truth = {row.name: row.strength for row in bradley_terry_ranking(many, baseline="sft", resamples=1)}
    rng, covered, trials = np.random.default_rng(0), 0, 100
    for _ in range(trials):
        found = bradley_terry_ranking(simulated(rng, 100, spread=1.0), baseline="sft", resamples=200)
        covered += sum(row.low <= truth[row.name] <= row.high for row in found if row.name != "sft")
    # Three correlated intervals a trial: their count is at most as noisy as that of one repeated three times.
    assert covered / (3 * trials) == pytest.approx(0.95, abs=3 * np.sqrt(0.95 * 0.05 / trials))


@pytest.mark.parametrize(
    ("rows", "baseline", "message"),
    [
        ([], None, "no comparisons"),
        ([Compared("a", "b", 0, 1.0)], "c", "no comparisons with 'c'"),
        ([Compared("a", "a", 0, 1.0)], None, "with itself"),
        ([Compared("a", "b", 0, 1.0), Compared("c", "d", 0, 1.0)], None, "no chain"),
    ],
)
def test_what_cannot_be_ranked_is_refused(rows: list[Compared], baseline: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bradley_terry_ranking(rows, baseline=baseline)
