"""All policies in one order: Bradley–Terry strengths from their comparisons, with intervals over prompts.

    P(A is preferred to B) = σ( strength(A) − strength(B) ),     a tie being half a win of each.

The strengths are evalica's maximum-likelihood fit. Between each two policies that were compared, half a win of each is added:
with it a policy that won everything has a finite strength; among hundreds of comparisons it weighs next to nothing.

Intervals are from the Bayesian bootstrap (Rubin 1981, Annals of Statistics 9(1)): every prompt gets a weight drawn from Exp(1),
every added half win one from Gamma(½). For two policies the share of wins is then a draw from Jeffreys' Beta(wins + ½, losses +
½). Resampled prompts alone would be all alike where all comparisons went one way, and the interval a point.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from p3o.errors import P3OError

ADDED = 0.5
"""Wins of each over each that it was compared with."""

LEAST = 1e-4
"""Of a drawn half win: one in a hundred is less, and log-odds of more than log(prompts / LEAST) say nothing but "always"."""


@dataclass(frozen=True)
class Compared:
    """One pair of responses to one prompt. ``outcome`` is above 0 where ``a`` won, below 0 where ``b`` did, 0 for a tie."""

    a: str
    b: str
    prompt: Hashable
    outcome: float


@dataclass(frozen=True)
class Ranked:
    """A policy's place.

    Attributes:
        strength: log-odds against the baseline, or against the mean of all if there is none.
        low, high: percentiles of the bootstrap over prompts; both 0 for the baseline, which is the zero of the scale.
        rank: 1 is the strongest; ``rank_low`` and ``rank_high`` are limits of its interval.
        comparisons: pairs that this policy took part in.
    """

    name: str
    strength: float
    low: float
    high: float
    rank: int
    rank_low: int
    rank_high: int
    comparisons: int


def bradley_terry_ranking(
    comparisons: Sequence[Compared],
    *,
    baseline: str | None = None,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> list[Ranked]:
    """Rank the policies, strongest first.

    A resample weighs prompts, and with each every comparison on it, for policies that answer the same prompts rise and fall
    together.

    Args:
        comparisons: at least one.
        baseline: the policy whose strength is 0.
        confidence: of the intervals.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: without comparisons, for an unknown baseline, a policy compared with itself, or policies that no chain of
            comparisons connects (their strengths could not be compared).
        P3OError: if evalica is not installed.
    """
    names = list(dict.fromkeys(name for row in comparisons for name in (row.a, row.b)))
    if not comparisons or (baseline is not None and baseline not in names):
        raise ValueError(f"no comparisons with {baseline!r}" if comparisons else "no comparisons")
    place = {name: index for index, name in enumerate(names)}
    wins = _wins_by_prompt(comparisons, place)
    compared = wins.sum(0) + wins.sum(0).T > 0
    if compared.diagonal().any():
        raise ValueError("a policy is compared with itself")
    if not _connected(compared):
        raise ValueError("no chain of comparisons connects all policies; compare each with one that the others share")
    zero = place[baseline] if baseline is not None else None
    strengths = _strengths(wins.sum(0) + ADDED * compared, zero)
    drawn = np.stack(
        [_strengths(_resampled(wins, compared, rng), zero) for rng in np.random.default_rng(seed).spawn(resamples)]
    )
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=0)
    ranks = 1 + (drawn[:, None, :] > drawn[:, :, None]).sum(-1)
    rank_low, rank_high = np.quantile(ranks, [tail, 1 - tail], axis=0, method="inverted_cdf")
    taken = (wins + wins.transpose(0, 2, 1)).sum((0, 2))
    ranked = [
        Ranked(
            name,
            float(strengths[i]),
            float(low[i]),
            float(high[i]),
            1 + int((strengths > strengths[i]).sum()),
            int(rank_low[i]),
            int(rank_high[i]),
            round(float(taken[i])),
        )
        for name, i in place.items()
    ]
    return sorted(ranked, key=lambda row: -row.strength)


def _wins_by_prompt(
    comparisons: Sequence[Compared], place: Mapping[str, int]
) -> Float[np.ndarray, "prompt policy policy"]:
    """[prompt, i, j]: how often i was preferred to j, a tie being half of one for each."""
    prompts = {prompt: index for index, prompt in enumerate(dict.fromkeys(row.prompt for row in comparisons))}
    wins = np.zeros((len(prompts), len(place), len(place)))
    for row in comparisons:
        share = 1.0 if row.outcome > 0 else 0.0 if row.outcome < 0 else 0.5
        wins[prompts[row.prompt], place[row.a], place[row.b]] += share
        wins[prompts[row.prompt], place[row.b], place[row.a]] += 1 - share
    return wins


def _resampled(
    wins: Float[np.ndarray, "prompt policy policy"], compared: np.ndarray, rng: np.random.Generator
) -> Float[np.ndarray, "policy policy"]:
    """Wins with random weights of prompts and of the half wins that are added."""
    drawn: Float[np.ndarray, "policy policy"] = np.einsum("p,pij->ij", rng.standard_exponential(len(wins)), wins)
    drawn += compared * np.maximum(rng.standard_gamma(ADDED, compared.shape), LEAST)
    return drawn


def _connected(compared: np.ndarray) -> bool:
    reached = np.zeros(len(compared), dtype=bool)
    reached[0] = True
    for _ in range(len(compared)):
        reached |= compared[reached].any(0)
    return bool(reached.all())


def _strengths(wins: Float[np.ndarray, "policy policy"], zero: int | None) -> Float[np.ndarray, " policy"]:
    """Log-strengths, evalica's fit of a matrix of wins."""
    try:
        from evalica import Winner, bradley_terry
    except ImportError as error:
        raise P3OError("the ranking needs evalica; install it with: pip install 'p3o[judge]'") from error

    x, y = np.nonzero(wins)
    result = bradley_terry(
        [int(i) for i in x],
        [int(j) for j in y],
        [Winner.X] * len(x),
        weights=[float(value) for value in wins[x, y]],
        tolerance=1e-9,
        limit=100_000,
    )
    scores = np.log(result.scores.sort_index().to_numpy())
    centred: Float[np.ndarray, " policy"] = scores - (scores.mean() if zero is None else scores[zero])
    return centred
